//! How a capture ends.

use varve_store::StoreError;

use crate::SourceError;
use crate::report::Summary;
use crate::source::Source;

/// A capture or import that is over: what it came to, and what ended it if that was not the plan.
#[derive(Debug, Default)]
pub struct Ended {
    /// What was done.
    pub summary: Summary,
    /// What ended it early; `None` when it did all it should, or was asked to finish.
    pub error: Option<CaptureError>,
}

impl Ended {
    pub(crate) fn fail(&mut self, error: CaptureError) {
        if matches!(error, CaptureError::Abandoned) {
            self.summary.epochs_dropped += 1;
        }
        self.error = Some(error);
    }
}

/// An epoch that was not taken. The archive is as it was before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The source failed; if it is a live guest, it runs.
    #[error("{spec}: {source}")]
    Source {
        /// The source.
        spec: String,
        /// What failed.
        source: SourceError,
    },
    /// The source failed, and the guest could not be made to run again.
    #[error(
        "{spec}: {}the guest may still stand still, because it could not be resumed ({source}): \
         resume it by hand (`cont` in QEMU's monitor, `xl unpause`); a domain that has suspended itself is let go by the next capture",
        first.as_ref().map(|first| format!("{first}; ")).unwrap_or_default()
    )]
    LeftHeld {
        /// The source.
        spec: String,
        /// What failed first, if anything did.
        first: Option<Box<CaptureError>>,
        /// Why the guest could not be resumed.
        source: SourceError,
    },
    /// The archive failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user gave the epoch up.
    #[error("the epoch in hand was dropped as asked")]
    Abandoned,
}

impl CaptureError {
    pub(crate) fn source(source: &dyn Source, error: SourceError) -> Self {
        Self::Source { spec: source.spec(), source: error }
    }
}
