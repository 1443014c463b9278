//! Errors of file and blob formats.

use std::path::{Path, PathBuf};

/// A file or blob that is not what its format says it should be.
#[derive(Debug, thiserror::Error)]
#[error("{}: offset {offset:#x}: {reason}", file.display())]
pub struct FormatError {
    /// The file, or a name for a blob that was found in memory.
    pub file: PathBuf,
    /// Offset of the offending bytes, in bytes from the start of the file or blob.
    pub offset: u64,
    /// What is wrong, in words.
    pub reason: String,
    /// The I/O error behind it, if one is.
    #[source]
    pub source: Option<std::io::Error>,
}

impl FormatError {
    /// An error about the bytes at `offset` of `file`.
    pub fn new(file: impl AsRef<Path>, offset: u64, reason: impl Into<String>) -> Self {
        Self { file: file.as_ref().to_owned(), offset, reason: reason.into(), source: None }
    }

    /// An I/O error at `offset` of `file`.
    pub fn io(file: impl AsRef<Path>, offset: u64, doing: &str, error: std::io::Error) -> Self {
        let reason = format!("{doing}: {error}");
        Self { file: file.as_ref().to_owned(), offset, reason, source: Some(error) }
    }
}
