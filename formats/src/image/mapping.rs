//! The one place that maps a file into memory.
//!
//! Mapping is `unsafe` because the bytes behind a `&[u8]` may change, or go away, while it is borrowed. varve maps
//! image files and the files behind a live guest's RAM, read-only; it reads every field of a header once, into a
//! value, before it checks and uses it, and never builds a `str`, a `bool` or an enum in place. A file that changes
//! underneath therefore gives wrong bytes, which every reader must expect of guest memory anyway, and no other
//! harm; a capture copies a page before it names it by its digest. A file that *shrinks* underneath kills the
//! process with `SIGBUS`, as it does any program that maps files (of a live guest, the hypervisor too): the archive
//! survives that by design.
#![allow(
    unsafe_code,
    reason = "memmap2 cannot promise that the file stays as it is; see the module documentation"
)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use memmap2::Mmap;
use rustix::fs::OFlags;

use crate::FormatError;

/// A regular file, mapped read-only.
#[derive(Debug)]
pub(super) struct Mapping {
    file: File,
    bytes: Mmap,
    modified: Option<SystemTime>,
}

impl Mapping {
    /// Maps the whole of `path`.
    ///
    /// # Errors
    /// [`FormatError`] when it cannot be opened, is empty, or is not a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, FormatError> {
        let cannot = |doing: &str, error| FormatError::io(path, 0, doing, error);
        // Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
        let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nonblock)
            .open(path)
            .map_err(|error| cannot("cannot open", error))?;
        Self::of(file, path)
    }

    /// Maps the whole of an open file, called `path` in errors.
    ///
    /// # Errors
    /// As [`Mapping::open`].
    pub(super) fn of(file: File, path: &Path) -> Result<Self, FormatError> {
        let cannot = |doing: &str, error| FormatError::io(path, 0, doing, error);
        let metadata = file.metadata().map_err(|error| cannot("cannot read its status", error))?;
        if let Some(kind) = not_regular(metadata.file_type()) {
            return Err(FormatError::new(path, 0, format!("is {kind}, not a memory image file")));
        }
        if metadata.len() == 0 {
            return Err(FormatError::new(path, 0, "is empty"));
        }
        let bytes = map(&file).map_err(|error| cannot("cannot map into memory", error))?;
        Ok(Self { file, bytes, modified: metadata.modified().ok() })
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// When the file was last written.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}

fn not_regular(kind: std::fs::FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_fifo() => Some("a FIFO"),
        kind if kind.is_char_device() => Some("a character device"),
        kind if kind.is_block_device() => Some("a block device"),
        _ => Some("a special file"),
    }
}

fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private to `Mapping`, which hands out `&[u8]` only. That its bytes may
    // change when another process writes the file is accepted for the reasons in the module documentation.
    unsafe { Mmap::map(file) }
}
