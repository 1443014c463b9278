//! The archive's directory: the `FORMAT` file, the `lock` file, the database.
//!
//! ```text
//! FORMAT   "varve archive\n" "format 1\n"; written last when an archive is created, read first when one is opened
//! lock     held with flock(2) by the one process that writes; its text says who that is
//! db/      RocksDB
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::StoreError;

/// The format this varve writes, and the last it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

const MAGIC_LINE: &str = "varve archive";
const MAX_FORMAT_LEN: u64 = 4096;
const MAX_HOLDER_LEN: u64 = 4096;

/// Paths within an archive.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The archive in `root`, which has been opened.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Prepares `root`, a new or empty directory, for an archive.
    pub(crate) fn create(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(|error| StoreError::io(root, "creating the directory", error))?;
        let mut entries =
            fs::read_dir(root).map_err(|error| StoreError::io(root, "listing the directory", error))?;
        match entries.next() {
            None => Ok(Self { root: root.to_owned() }),
            Some(_) => Err(StoreError::NotEmpty { path: root.to_owned() }),
        }
    }

    /// The archive in `root`, if there is one this varve can read.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        let directory = Self { root: root.to_owned() };
        let path = directory.format_file();
        let text = match read_bounded(&path, MAX_FORMAT_LEN) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(StoreError::NoArchive { path: root.to_owned() });
            }
            Err(error) => return Err(StoreError::io(path, "reading", error)),
        };
        match parse_format(&text) {
            Ok(found) if found > FORMAT_VERSION => {
                Err(StoreError::NewerFormat { found, supported: FORMAT_VERSION })
            }
            Ok(_) => Ok(directory),
            Err(reason) => Err(StoreError::NotAnArchive { path, reason }),
        }
    }

    /// Marks the directory as an archive: the last step of creation.
    pub(crate) fn write_format(&self) -> Result<(), StoreError> {
        let path = self.format_file();
        let text = format!("{MAGIC_LINE}\nformat {FORMAT_VERSION}\n");
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|error| StoreError::io(&path, "writing", error))
    }

    /// Where RocksDB's files are.
    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("db")
    }

    /// Takes the writer's lock, or says who has it.
    pub(crate) fn lock(&self) -> Result<WriterLock, StoreError> {
        let path = self.root.join("lock");
        let failed = |doing| move |error: io::Error| StoreError::io(self.root.join("lock"), doing, error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("opening the lock"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = read_bounded(&path, MAX_HOLDER_LEN).unwrap_or_default();
                return Err(StoreError::Locked { holder: printable(&holder) });
            }
            Err(error) => return Err(failed("locking")(error.into())),
        }
        let announce = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(holder().as_bytes())
        };
        announce(&mut file).map_err(failed("writing the lock"))?;
        Ok(WriterLock { _file: file })
    }

    fn format_file(&self) -> PathBuf {
        self.root.join("FORMAT")
    }
}

/// The writer's lock. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct WriterLock {
    _file: File,
}

/// This process, for the text of the lock.
fn holder() -> String {
    let command: Vec<String> = std::env::args().take(8).collect();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let since = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("process {} on {host} ({}) since {since}\n", std::process::id(), command.join(" "))
}

/// The first line, without what a terminal would act on.
fn printable(text: &str) -> String {
    let line: String = text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    if line.is_empty() { "another process".to_owned() } else { line }
}

fn parse_format(text: &str) -> Result<u32, String> {
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC_LINE) {
        return Err(format!("it does not begin with {MAGIC_LINE:?}"));
    }
    let version =
        lines.next().and_then(|line| line.strip_prefix("format ")).and_then(|number| number.parse().ok());
    version.filter(|version| *version > 0).ok_or_else(|| "it does not say which format".to_owned())
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_files_are_understood() {
        assert_eq!(parse_format("varve archive\nformat 1\n"), Ok(1));
        assert_eq!(parse_format("varve archive\nformat 7\nwhatever a later varve adds\n"), Ok(7));
        for text in
            ["", "varve archive", "varve archive\nformat x\n", "varve archive\nformat 0\n", "tar\nformat 1\n"]
        {
            assert!(parse_format(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_holder_is_one_clean_line() {
        let text = holder();
        assert!(text.starts_with(&format!("process {} on ", std::process::id())), "{text}");
        assert_eq!(printable("process 1\u{1b}[31m\nsecond"), "process 1[31m");
        assert_eq!(printable(""), "another process");
    }
}
