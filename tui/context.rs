//! What every command needs: the archive, the VM, and where to write.

use std::{ops::Range, path::Path};

use varve_store::{
    Access, Archive,
    spec::{EpochName, resolve, resolve_range},
};

use crate::{cli::Global, exit::Failure, output::Output, progress::Progress};

/// The global options, and how commands use them.
pub(crate) struct Context<'a> {
    global: &'a Global,
}

impl<'a> Context<'a> {
    pub(crate) const fn new(global: &'a Global) -> Self {
        Self { global }
    }

    /// Directory of the archive.
    pub(crate) fn archive_path(&self) -> Result<&'a Path, Failure> {
        let missing = "which archive? Give -r DIR or set VARVE_ARCHIVE";
        self.global.archive.as_deref().ok_or_else(|| Failure::usage(missing))
    }

    /// Opens the archive for reading. Another process may be writing to it.
    pub(crate) fn open(&self) -> Result<Archive, Failure> {
        Ok(Archive::open(self.archive_path()?, Access::Read)?)
    }

    /// Opens the archive for writing; fails when another process does.
    pub(crate) fn open_for_writing(&self) -> Result<Archive, Failure> {
        Ok(Archive::open(self.archive_path()?, Access::Write)?)
    }

    /// The VM that was named, if one was.
    pub(crate) fn named_vm(&self) -> Option<&'a str> {
        self.global.vm.as_deref()
    }

    /// The VM to write to: it has to be named, because a slip would found a new one.
    pub(crate) fn vm_to_write(&self) -> Result<&'a str, Failure> {
        let missing = "which VM? Give --vm NAME or set VARVE_VM";
        self.global.vm.as_deref().ok_or_else(|| Failure::usage(missing))
    }

    /// The VM to read: the one named, or the only one there is.
    pub(crate) fn vm(&self, archive: &Archive) -> Result<String, Failure> {
        if let Some(name) = &self.global.vm {
            return Ok(name.clone());
        }
        match archive.vms().as_slice() {
            [] => Err(Failure::new("the archive is empty: `varve import` or `varve capture` first")),
            [only] => Ok(only.clone()),
            several => {
                Err(Failure::usage(format_args!("which VM? Give --vm NAME, one of: {}", several.join(", "))))
            }
        }
    }

    /// The number of the epoch of `vm` that `text` names.
    pub(crate) fn epoch(&self, archive: &Archive, vm: &str, text: &str) -> Result<u64, Failure> {
        // A plain number needs no look at the others.
        if let Ok(number) = text.parse()
            && number < archive.epoch_count(vm)?
        {
            return Ok(number);
        }
        resolve(text, &names(archive, vm)?).map_err(Failure::usage)
    }

    /// The numbers of the epochs of `vm` that `text` names; all of them without it.
    pub(crate) fn range(
        &self,
        archive: &Archive,
        vm: &str,
        text: Option<&str>,
    ) -> Result<Range<u64>, Failure> {
        match text {
            None => Ok(0..archive.epoch_count(vm)?),
            Some(text) => resolve_range(text, &names(archive, vm)?).map_err(Failure::usage),
        }
    }

    /// Standard output in the form asked for.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.global.json)
    }

    /// Standard error in the form asked for, where standard output is somebody else's.
    pub(crate) fn output_aside(&self) -> Output {
        Output::aside(self.global.json)
    }

    /// A remark on standard error, unless the user wants quiet.
    pub(crate) fn remark(&self, text: impl std::fmt::Display) {
        if !self.global.quiet {
            eprintln!("{}", crate::output::printable(&text.to_string()));
        }
    }

    /// Progress in steps on standard error: shown on a terminal only.
    pub(crate) fn progress(&self, total: u64, what: &'static str) -> Progress {
        Progress::new(total, what, self.global.quiet)
    }

    /// Progress in bytes on standard error: shown on a terminal only.
    pub(crate) fn progress_of_bytes(&self, total: u64, what: &'static str) -> Progress {
        Progress::of_bytes(total, what, self.global.quiet)
    }
}

fn names(archive: &Archive, vm: &str) -> Result<Vec<EpochName>, Failure> {
    Ok(archive.epochs(vm)?.iter().map(EpochName::from).collect())
}
