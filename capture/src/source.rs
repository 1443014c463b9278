//! Where memory comes from: one small base trait, and a capability trait for each thing only some sources can do.
//!
//! One file per kind of source, one line per kind in [`SOURCES`]. A source is named by a spec, `KIND:WHERE`.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use varve_formats::image::Image;
use varve_formats::{Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Vcpu};

use crate::output::Vif;
use crate::{Interrupt, SourceError, qemu, xen, xen_stream};

/// Every kind of live source.
pub static SOURCES: &[SourceKind] = &[qemu::KIND, xen::KIND, xen_stream::KIND];

/// A kind of source that can be opened by its spec.
#[derive(Debug)]
pub struct SourceKind {
    /// What comes before the colon.
    pub name: &'static str,
    /// What comes behind it, for help texts.
    pub argument: &'static str,
    /// Whether this varve was built with what it takes; otherwise the error says how to.
    pub(crate) available: fn() -> Result<(), SourceError>,
    /// Opens what is behind the colon.
    pub(crate) open: fn(&str) -> Result<Box<dyn Source>, SourceError>,
}

/// Whether sources of this kind can be opened by this varve at all.
///
/// # Errors
/// [`SourceError`] that says what is missing.
pub fn available(kind: &str) -> Result<(), SourceError> {
    let known = SOURCES.iter().find(|known| known.name == kind);
    known.map_or(Ok(()), |known| (known.available)())
}

/// Opens the source named `spec`, for instance `qemu:/run/web1.qmp`.
///
/// # Errors
/// [`SourceError`] when there is no such kind, or the source cannot be reached or is not suitable.
pub fn open(spec: &str) -> Result<Box<dyn Source>, SourceError> {
    let kind = spec.split_once(':').and_then(|(name, argument)| {
        SOURCES.iter().find(|kind| kind.name == name).map(|kind| (kind, argument))
    });
    match kind {
        Some((kind, argument)) if !argument.is_empty() => (kind.open)(argument),
        _ => {
            let known: Vec<_> =
                SOURCES.iter().map(|kind| format!("{}:{}", kind.name, kind.argument)).collect();
            Err(SourceError::UnknownSpec { spec: spec.to_owned(), known: known.join(", ") })
        }
    }
}

/// Something whose memory can become epochs.
pub trait Source: Sync {
    /// What the epoch record says of where the memory came from.
    fn spec(&self) -> String;

    /// The memory as it is laid out now. Asked for before each epoch, as a guest's memory can grow.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be told or reached.
    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError>;

    /// Says that what was written to since the memory was last asked for is not known: it is laid out anew.
    fn forget_memory(&self) {}

    /// Looks whether the guest is still there. Of one that is gone nothing may be kept: its memory is the host's again.
    ///
    /// # Errors
    /// [`SourceError::Gone`].
    fn is_there(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// How to hold the guest still; `None` when what is captured does not change anyway.
    fn pause(&self) -> Option<&dyn Pause> {
        None
    }

    /// How to let the guest suspend itself: its devices are then quiet, and it can be started from what is captured.
    fn suspend(&self) -> Option<&dyn Pause> {
        None
    }

    /// Why there is no [`suspend`](Self::suspend).
    fn no_suspend(&self) -> String {
        "the source knows no way to have this guest suspend itself".to_owned()
    }

    /// How to read registers.
    fn registers(&self) -> Option<&dyn Registers> {
        None
    }

    /// How to learn what was written to since the last epoch; without it every frame is compared.
    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        None
    }

    /// What leads out of the guest; `None` when nobody here knows.
    fn devices(&self) -> Option<&dyn Devices> {
        None
    }

    /// How its memory comes, when that is not for us to say: nothing is then held, compared or looked at.
    fn feed(&self) -> Option<&dyn Feed> {
        None
    }

    /// Whether standard output is a line to whoever feeds the source, on which nobody else may write.
    fn owns_standard_output(&self) -> bool {
        false
    }

    /// What the user should know about the source; each remark is given once.
    fn take_remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Memory that can often be looked at in place.
pub trait GuestMemory: PhysicalMemory + Send {
    /// `len` bytes from `at` on without copying; `None` when that is not possible, which says nothing about whether
    /// they can be read. The bytes may change while a guest runs.
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]>;

    /// The first part at or behind `at` that is known to be zeros and better not touched, because that would make
    /// the host allocate memory for it. Empty when there is none up to there; `None` when nobody can tell.
    fn next_hole(&self, _at: Gpa) -> Option<Range<Gpa>> {
        None
    }

    /// Memory that shows what lies at these frame numbers now, if this may show what lay there before: a guest can move its frames
    /// about. Of all else it need not show anything.
    ///
    /// # Errors
    /// [`SourceError`].
    fn anew(&self, _frames: &[Gfn]) -> Result<Option<Box<dyn GuestMemory>>, SourceError> {
        Ok(None)
    }
}

impl GuestMemory for Image {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        Self::slice(self, at, len)
    }

    fn next_hole(&self, at: Gpa) -> Option<Range<Gpa>> {
        Self::next_hole(self, at)
    }
}

/// Who holds the guest still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// We paused it and must let it go.
    Ours,
    /// It stood still before, for this reason; that is how it stays.
    Theirs(String),
}

/// A guest that can be held still.
pub trait Pause: Sync {
    /// Holds the guest still. On an error the guest runs, as far as we can do anything about it.
    ///
    /// # Errors
    /// [`SourceError`].
    fn pause(&self) -> Result<Hold, SourceError>;

    /// Lets a guest go that we hold, whatever else went wrong, and tells whether it stood still all the time.
    ///
    /// # Errors
    /// [`SourceError::Disturbed`] when somebody else let it run meanwhile (it runs); any other when it may still be
    /// held.
    fn resume(&self, hold: &Hold) -> Result<(), SourceError>;

    /// Leaves a guest held that we hold, for whoever comes later to let go: neither our end nor a later start of ours does.
    ///
    /// # Errors
    /// [`SourceError`] when this cannot be, or is not certain; the guest is held nevertheless.
    fn leave_held(&self, _hold: &Hold) -> Result<(), SourceError> {
        Err(SourceError::Unsuitable { reason: "this kind of guest cannot be left held".to_owned() })
    }
}

/// A guest whose registers can be read.
pub trait Registers: Sync {
    /// The registers, and what else the guest consists of. Called while the guest is held.
    ///
    /// # Errors
    /// [`SourceError`].
    fn read(&self) -> Result<Remainder, SourceError>;
}

/// A guest of which the host knows what leads out of it.
pub trait Devices: Sync {
    /// What tells the guest from any other, itself before it was started again included: ASCII without spaces.
    fn identity(&self) -> String;

    /// Its network cards, all of them.
    ///
    /// # Errors
    /// [`SourceError`], also when there is a card that does not lead through this host.
    fn vifs(&self) -> Result<Vec<Vif>, SourceError>;

    /// What else leads out of it, for a person to read: disks, devices passed through.
    ///
    /// # Errors
    /// [`SourceError`].
    fn other_channels(&self) -> Result<Vec<String>, SourceError>;
}

/// What a guest consists of beside its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remainder {
    /// The registers of every vCPU.
    pub vcpus: Vec<Vcpu>,
    /// All that is needed to start the guest again, in the encoding of the source; `None` when it knows no way to.
    pub state: Option<Vec<u8>>,
}

/// A source that is fed: memory comes in pieces, frames in any order and some of them several times, until all that has come
/// is one consistent state; then what changed since comes, and so on.
///
/// The first state is complete, so that frames which do not come for a later one are as they were. The source's
/// [memory](Source::memory) tells which frames there are so far, but cannot be read.
pub trait Feed: Sync {
    /// Waits for frames and hands each to `take`, until there were about `frames` or a state is complete. The last that is
    /// said of a frame counts.
    ///
    /// Gives up when told to finish between two states, or to abandon the one in hand.
    ///
    /// # Errors
    /// [`SourceError`]; there is no going on then.
    fn next(
        &self,
        frames: usize,
        take: &mut dyn FnMut(Gfn, &[u8; PAGE_SIZE]),
        interrupt: &dyn Interrupt,
    ) -> Result<Fed, SourceError>;

    /// When the state was that of the guest; `None` for now.
    fn taken_at(&self) -> Option<SystemTime> {
        None
    }
}

/// What was fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// Some of what makes the next state.
    Part,
    /// The rest of it.
    Whole,
    /// Nothing, and nothing more will come.
    Nothing,
}

/// A guest that tells which frames were written to.
pub trait DirtyLog: Sync {
    /// The frames written to since the last call; everything at the first.
    ///
    /// # Errors
    /// [`SourceError`].
    fn take(&self) -> Result<Dirty, SourceError>;

    /// The same, without beginning anew. A guest that is held still can have its memory written to: by its devices.
    ///
    /// # Errors
    /// [`SourceError`].
    fn peek(&self) -> Result<Dirty, SourceError>;
}

/// Frames that may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Any of them.
    All,
    /// These, in ascending order.
    Frames(Vec<Gfn>),
}
