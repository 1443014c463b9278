//! Files that stand complete and durable under their name, or not at all.
//!
//! The contents go to a file without a name (`O_TMPFILE`), which the kernel frees whatever becomes of us; only when
//! they are on disk does it get one. Where the file system cannot do that, a temporary name beside the target
//! serves, removed unless we are killed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// What to do about a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Refuse,
    /// Put the new one in its place, in one step.
    Replace,
}

/// A file could not be created; the target is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CreateError<E> {
    /// It exists, and was not to be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// What stands there is a directory, a device or the like, which no file may replace.
    #[error("{} is not a file: name one, or a new name", path.display())]
    NotAFile {
        /// The target.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The target.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// What writes the contents failed.
    #[error("{}: {source}", path.display())]
    Contents {
        /// The target.
        path: PathBuf,
        /// The cause.
        source: E,
    },
}

/// Creates `path` with what `write` writes: all of it, on disk, under its final name, or nothing.
///
/// # Errors
/// [`CreateError`]. Nothing then stands under `path` that did not before.
pub fn create<T, E>(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&File) -> Result<T, E>,
) -> Result<T, CreateError<E>> {
    let failed = |doing| move |source| CreateError::Io { path: path.to_owned(), doing, source };
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(CreateError::NotAFile { path: path.to_owned() });
    }
    // Asked first, so that nobody waits for an export that cannot end well; `publish` decides.
    if existing == Existing::Refuse && path.symlink_metadata().is_ok() {
        return Err(CreateError::Exists { path: path.to_owned() });
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = Temporary::new(directory, path).map_err(failed("create a temporary file"))?;
    let written =
        write(&temporary.file).map_err(|source| CreateError::Contents { path: path.to_owned(), source })?;
    temporary.file.sync_all().map_err(failed("bring the file to disk"))?;
    match temporary.publish(path, existing) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CreateError::Exists { path: path.to_owned() });
        }
        published => published.map_err(failed("put the file under its name"))?,
    }
    let sync_directory = || File::open(directory)?.sync_all();
    sync_directory().map_err(failed("bring the directory to disk"))?;
    Ok(written)
}

/// A file that is not under its name yet.
struct Temporary {
    file: File,
    /// Its temporary name, when it has one. Removed on drop.
    name: Option<PathBuf>,
}

impl Temporary {
    fn new(directory: &Path, target: &Path) -> io::Result<Self> {
        // Guest memory holds keys and passwords: its owner may widen this, we do not.
        let mode = Mode::RUSR | Mode::WUSR;
        let nameless = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, directory, nameless, mode) {
            Ok(file) => Ok(Self { file: file.into(), name: None }),
            // What kernels and file systems without O_TMPFILE answer, see open(2).
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT)
                if directory.is_dir() =>
            {
                Self::named(temporary_name(target))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn named(name: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
        Ok(Self { file, name: Some(name) })
    }

    /// Puts the file under `target`.
    fn publish(mut self, target: &Path, existing: Existing) -> io::Result<()> {
        if existing == Existing::Refuse {
            return self.link(target);
        }
        if self.name.is_none() {
            let name = temporary_name(target);
            self.link(&name)?;
            self.name = Some(name);
        }
        if let Some(name) = &self.name {
            std::fs::rename(name, target)?;
            self.name = None;
        }
        Ok(())
    }

    /// Gives the file one more name, which must not exist.
    fn link(&self, to: &Path) -> io::Result<()> {
        match &self.name {
            Some(name) => std::fs::hard_link(name, to),
            None => {
                let ours = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                Ok(rustix::fs::linkat(CWD, ours, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Nothing better can be done about a name that will not go.
            let _ = std::fs::remove_file(name);
        }
    }
}

/// A name beside `target` that no other running process uses.
fn temporary_name(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", std::process::id()));
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn what_exists_is_replaced_only_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        std::fs::write(&path, b"old").unwrap();
        let write = |mut file: &File| file.write_all(b"new");
        let refused = create(&path, Existing::Refuse, write).unwrap_err();
        assert!(matches!(refused, CreateError::Exists { .. }), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        create(&path, Existing::Replace, write).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let refused = create(&path, Existing::Refuse, |_| std::fs::write(&path, b"theirs")).unwrap_err();
        assert!(matches!(refused, CreateError::Exists { .. }), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn contents_that_fail_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let failed = create(&directory.path().join("out"), Existing::Refuse, |mut file: &File| {
            file.write_all(b"half").unwrap();
            Err::<(), _>("the guest is gone")
        });
        assert!(failed.unwrap_err().to_string().ends_with("out: the guest is gone"));
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_temporary_name_serves_where_nameless_files_do_not_exist() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let named = || Temporary::named(temporary_name(&path)).unwrap();
        drop(named());
        assert!(names(directory.path()).is_empty());
        named().publish(&path, Existing::Refuse).unwrap();
        let again = named().publish(&path, Existing::Refuse).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        named().publish(&path, Existing::Replace).unwrap();
        assert_eq!(names(directory.path()), ["out"]);
    }
}
