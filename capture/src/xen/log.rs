//! Which frames were written to: Xen's log-dirty mode.
//!
//! Xen write-protects the frames in the second level of page tables and notes each first write
//! (`XEN_DOMCTL_SHADOW_OP_*` of `xen/domctl.h`). It also notes what it, or a backend through a grant, writes for the
//! guest. What a backend writes through a grant that it keeps mapped is noted when it is unmapped. What Xen writes of its own
//! accord is not noted: see [`own`](super::own). That a guest puts another page at a frame number is not either (`p2m_add_page` of
//! `xen/arch/x86/mm/p2m.c`), nor what it then writes to that page until the log is next taken: both show when the frame has its
//! turn ([`Options::recheck_epochs`](crate::Options::recheck_epochs)).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::{fs, io};

use varve_formats::Gfn;

use super::domain::Domain;
use super::emulator::Emulator;
use super::journal::Journal;
use super::memory::DomainMemory;
use super::sys::{Bitmap, ForeignMemory};
use crate::SourceError;
use crate::source::Dirty;

/// Whether one of Xen's tools is saving a domain, which it has recorded for that.
pub(super) fn is_being_saved(id: u32) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok()).any(|line| saves(&line, id))
}

/// Whether this command line is that of the helper that saves a domain: its name, what it is to do, numbers of two files, the domain
/// (`tools/libs/light/libxl_save_callout.c`).
fn saves(line: &[u8], id: u32) -> bool {
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    match *arguments.as_slice() {
        [program, b"--save-domain", _, _, domain, ..] => {
            program.ends_with(b"libxl-save-helper") && domain == id.to_string().as_bytes()
        }
        _ => false,
    }
}

/// Ends the recording, whoever began it.
pub(super) fn stop(
    domain: &Domain,
    emulator: Option<&Emulator>,
    journal: &Journal,
) -> Result<(), SourceError> {
    // There is nothing to end of a domain that is gone, or of a capture that was killed just before it would have begun.
    let _ = emulator.map(|emulator| emulator.tell(false));
    let _ = domain.control.log_dirty(domain.id, false);
    journal.logging(false)
}

/// The log of a domain.
pub(super) struct Log {
    on: bool,
    /// Whether nobody has taken anything yet.
    untaken: bool,
    emulator: Option<Emulator>,
    bitmap: Option<Bitmap>,
    /// Frames that are written to and cannot be mapped: Xen's own, such as grant tables.
    unreadable: BTreeSet<Gfn>,
}

impl Log {
    /// The log of a domain whose devices are emulated by this, if they are. Nothing is recorded yet.
    pub(super) fn new(emulator: Option<Emulator>) -> Self {
        Self { on: false, untaken: true, emulator, bitmap: None, unreadable: BTreeSet::new() }
    }

    /// Whether it has begun.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Begins, unless it has begun.
    pub(super) fn begin(&mut self, domain: &Domain, journal: &Journal) -> Result<(), SourceError> {
        if self.on {
            return Ok(());
        }
        journal.logging(true)?;
        domain.control.log_dirty(domain.id, true).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => SourceError::Unsuitable {
                reason: "somebody else has Xen record this domain's writes: is it being saved, migrated or replicated?"
                    .to_owned(),
            },
            _ => domain.failed("making Xen record which frames are written to", error),
        })?;
        self.on = true;
        if let Some(emulator) = &self.emulator {
            let told = emulator.tell(true);
            told.inspect_err(|_| self.end(domain, journal))?;
        }
        Ok(())
    }

    /// Begins anew if somebody else has ended it; whether that was so. Whatever was written to since is not known then.
    ///
    /// Xen refuses to begin what goes on already (`paging_log_dirty_enable` of `xen/arch/x86/mm/paging.c`). To end it takes nothing but to
    /// say so: `xl save` and `xl migrate` do when they are through, whoever had begun.
    pub(super) fn mend(&mut self, domain: &Domain, journal: &Journal) -> Result<bool, SourceError> {
        if !self.on {
            return Ok(false);
        }
        match domain.control.log_dirty(domain.id, true) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => {
                Err(domain.failed("asking whether it is recorded which frames are written to", error))
            }
            Ok(()) => {
                self.untaken = true;
                if let Some(emulator) = &self.emulator {
                    emulator.tell(true).inspect_err(|_| self.end(domain, journal))?;
                }
                Ok(true)
            }
        }
    }

    /// The frames of `memory` written to since they were last taken; all of them at the first time.
    pub(super) fn take(
        &mut self,
        domain: &Domain,
        foreign: &Arc<ForeignMemory>,
        memory: &DomainMemory,
    ) -> Result<Dirty, SourceError> {
        if std::mem::take(&mut self.untaken) {
            return Ok(Dirty::All);
        }
        self.read(domain, foreign, memory, true).map(Dirty::Frames)
    }

    /// The same without beginning anew.
    pub(super) fn peek(
        &mut self,
        domain: &Domain,
        foreign: &Arc<ForeignMemory>,
        memory: &DomainMemory,
    ) -> Result<Dirty, SourceError> {
        match self.untaken {
            true => Ok(Dirty::All),
            false => self.read(domain, foreign, memory, false).map(Dirty::Frames),
        }
    }

    fn read(
        &mut self,
        domain: &Domain,
        foreign: &Arc<ForeignMemory>,
        memory: &DomainMemory,
        clean: bool,
    ) -> Result<Vec<Gfn>, SourceError> {
        let error = |error| domain.failed("asking which frames were written to", error);
        let bitmap = match &mut self.bitmap {
            Some(bitmap) => bitmap,
            None => {
                let maximum = domain.control.maximum_gfn(domain.id).map_err(error)?;
                self.bitmap.insert(Bitmap::new(&domain.control, maximum.0 + 1).map_err(error)?)
            }
        };
        domain.control.dirty(domain.id, bitmap, clean).map_err(error)?;
        let (known, unknown): (Vec<Gfn>, Vec<Gfn>) =
            bitmap.frames().into_iter().partition(|gfn| memory.has(*gfn));
        let unknown: Vec<Gfn> = unknown.into_iter().filter(|gfn| !self.unreadable.contains(gfn)).collect();
        if unknown.is_empty() {
            return Ok(known);
        }
        let mapping = foreign.map(domain.id, &unknown).map_err(error)?;
        if mapping.mapped().contains(&true) {
            return Err(SourceError::Relaid);
        }
        self.unreadable.extend(unknown);
        Ok(known)
    }

    /// Says that memory was mapped anew: there may be more of it, and what could not be read may be readable now.
    pub(super) fn mapped_anew(&mut self) {
        self.bitmap = None;
        self.unreadable.clear();
    }

    /// Ends the recording, if it was begun.
    pub(super) fn end(&mut self, domain: &Domain, journal: &Journal) {
        // Whoever saves the domain has taken the recording over, and ends it.
        if std::mem::take(&mut self.on) && !is_being_saved(domain.id) {
            let _ = stop(domain, self.emulator.as_ref(), journal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::saves;

    #[test]
    fn the_helper_that_saves_a_domain_is_known_by_its_command_line() {
        let line = |text: &str| text.replace(' ', "\0").into_bytes();
        let save = line("/usr/lib/xen-4.17/bin/libxl-save-helper --save-domain 9 8 7 1 0 12 0");
        assert!(saves(&save, 7) && ![9, 8, 1, 12].iter().any(|other| saves(&save, *other)));
        let others =
            ["libxl-save-helper --restore-domain 7 7 7", "vi --save-domain 7 7 7", "libxl-save-helper", ""];
        for other in others {
            assert!(!saves(&line(other), 7), "{other}");
        }
    }
}
