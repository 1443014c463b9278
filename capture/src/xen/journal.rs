//! What is being done to a domain, so that whoever comes after a sudden death can undo it.
//!
//! One file for each domain below `/run/varve`, which lives as long as the host, like its domains: two letters, how the
//! domain is held and whether its writes are being recorded. It is written *before* the deed and after it was undone.
//! Its lock says that somebody is at it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use super::domain::{Domain, failed};
use crate::SourceError;

const DIRECTORY: &str = "/run/varve";

/// How a domain is held, or is about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// Not at all.
    Nothing,
    /// Its vCPUs are paused.
    Paused,
    /// It suspends itself.
    Suspended,
}

impl Holding {
    const ALL: [(Self, u8); 3] = [(Self::Nothing, b'-'), (Self::Paused, b'P'), (Self::Suspended, b'S')];
}

const LOGGING: u8 = b'L';
const NOT_LOGGING: u8 = b'-';

/// The journal of a domain, locked.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Takes the domain's journal, and tells what its last holder left.
    pub(super) fn take(domain: &Domain) -> Result<(Self, Holding, bool), SourceError> {
        let path = PathBuf::from(format!("{DIRECTORY}/xen-{}-{}", domain.id, domain.uuid_text()));
        let doing = format!("opening the journal {}", path.display());
        let error = |error: io::Error| failed(&doing, error);
        DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY).map_err(error)?;
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(error)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let reason =
                    format!("another varve captures domain {} ({:?}) already", domain.id, domain.name);
                return Err(SourceError::Unsuitable { reason });
            }
            Err(errno) => return Err(error(errno.into())),
        }
        let mut text = Vec::new();
        (&mut file).take(2).read_to_end(&mut text).map_err(error)?;
        let held = Holding::ALL.iter().find(|(_, letter)| text.first() == Some(letter));
        let holding = held.map_or(Holding::Nothing, |(holding, _)| *holding);
        Ok((Self { file, path }, holding, text.get(1) == Some(&LOGGING)))
    }

    /// Says how the domain is about to be held, or that it is not any more.
    pub(super) fn holding(&self, holding: Holding) -> Result<(), SourceError> {
        let letter =
            Holding::ALL.iter().find(|(listed, _)| *listed == holding).map_or(b'-', |(_, letter)| *letter);
        self.write(letter, 0)
    }

    /// Says that Xen is about to record the domain's writes, or does not any more.
    pub(super) fn logging(&self, on: bool) -> Result<(), SourceError> {
        self.write(if on { LOGGING } else { NOT_LOGGING }, 1)
    }

    fn write(&self, letter: u8, at: u64) -> Result<(), SourceError> {
        self.file.write_all_at(&[letter], at).map_err(|error| failed("writing the journal", error))
    }

    /// Removes the journal of a domain that nothing is being done to. One that is held when its holder ends, as by a gate that failed,
    /// keeps it: the next to come lets it go.
    pub(super) fn remove_if_idle(&self) {
        let mut holding = [0];
        let read = self.file.read_at(&mut holding, 0);
        if !matches!((read, holding), (Ok(1), [b'P' | b'S'])) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
