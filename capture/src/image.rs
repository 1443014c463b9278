//! Image files as a source: each becomes one epoch.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use varve_formats::FormatError;
use varve_formats::image::Image;
use varve_formats::xen::stream::SaveState;
use varve_store::Archive;

use crate::ingest::{History, Ingest, Manner, nanoseconds};
use crate::source::{GuestMemory, Registers, Remainder, Source};
use crate::{CaptureError, Ended, Interrupt, Observer, Options, SourceError};

/// An image file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    image: Arc<Image>,
}

impl ImageFile {
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        Ok(Self { image: Arc::new(Image::open(path)?) })
    }
}

impl Source for ImageFile {
    fn spec(&self) -> String {
        format!("image:{}", self.image.path().display())
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        Ok(self.image.clone())
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn take_remarks(&self) -> Vec<String> {
        self.image.notices().iter().map(ToString::to_string).collect()
    }
}

impl Registers for ImageFile {
    fn read(&self) -> Result<Remainder, SourceError> {
        let state = self.image.save_state().map(SaveState::encode);
        Ok(Remainder { vcpus: self.image.vcpus().to_vec(), state })
    }
}

/// Makes each of `files` an epoch of `vm`, in the order given.
///
/// An epoch counts as taken when its file was last written, which is what an image says of its age (a copy made
/// without `cp -p` says when it was copied). The order given rules all the same; a file older than the epoch before
/// is remarked on.
///
/// What was committed before something fails stays.
pub fn import(
    files: &[PathBuf],
    archive: &Archive,
    vm: &str,
    options: &Options,
    interrupt: &dyn Interrupt,
    observer: &dyn Observer,
) -> Ended {
    let ingest = Ingest { archive, vm, options, interrupt, observer, witness: None };
    let mut ended = Ended::default();
    let mut last = last_taken_at(archive, vm);
    for file in files {
        if interrupt.finish() {
            break;
        }
        match import_one(file, &ingest, last) {
            Ok(report) => {
                last = Some(report.record.taken_at_ns);
                ended.summary.add(&report);
            }
            Err(error) => {
                ended.fail(error);
                break;
            }
        }
    }
    ended
}

fn import_one(
    file: &Path,
    ingest: &Ingest<'_>,
    last: Option<i64>,
) -> Result<crate::EpochReport, CaptureError> {
    let source = ImageFile::open(file).map_err(|error| CaptureError::Source {
        spec: format!("image:{}", file.display()),
        source: error.into(),
    })?;
    source.take_remarks().iter().for_each(|remark| ingest.observer.remark(remark));
    let taken_at = source.image.modified().unwrap_or_else(SystemTime::now);
    if last.is_some_and(|last| nanoseconds(taken_at) < last) {
        let remark = format!("{} was written before what the last epoch holds was taken", file.display());
        ingest.observer.remark(&remark);
    }
    let manner = Manner { taken_at: Some(taken_at), ..Manner::default() };
    ingest.epoch(&source, &manner, &mut History::default())
}

/// When the VM's last epoch was taken.
fn last_taken_at(archive: &Archive, vm: &str) -> Option<i64> {
    let count = archive.epoch_count(vm).ok()?;
    Some(archive.record(vm, count.checked_sub(1)?).ok()?.taken_at_ns)
}
