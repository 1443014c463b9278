//! Bytes of a stream as they come, counted, never one more than asked for.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use crate::FormatError;

/// Most bytes allocated before any of them has come.
const STEP_BYTES: usize = 1 << 20;

/// Where a stream comes from, and how far it has been read.
#[derive(Debug)]
pub(super) struct Input<R> {
    source: R,
    offset: u64,
    name: PathBuf,
}

impl<R> Input<R> {
    pub(super) fn new(source: R, name: PathBuf) -> Self {
        Self { source, offset: 0, name }
    }

    /// Bytes taken so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn error(&self, offset: u64, reason: impl Into<String>) -> FormatError {
        FormatError::new(&self.name, offset, reason)
    }

    fn ends_in(&self, what: &str) -> FormatError {
        self.error(self.offset, format!("the stream ends in {what}: interrupted or truncated?"))
    }
}

impl<R: Read> Input<R> {
    /// Fills `buf`, waiting for as long as the source does.
    pub(super) fn fill(&mut self, buf: &mut [u8], what: &str) -> Result<(), FormatError> {
        let mut rest = buf;
        while !rest.is_empty() {
            match self.source.read(rest) {
                Ok(0) => return Err(self.ends_in(what)),
                Ok(count) => {
                    self.offset = self.offset.saturating_add(count as u64);
                    rest = rest.get_mut(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(FormatError::io(&self.name, self.offset, "cannot read", error)),
            }
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    /// The next `len` bytes, a number from the stream that its caller has checked against a limit. Memory is taken
    /// as the bytes come.
    pub(super) fn bytes(&mut self, len: usize, what: &str) -> Result<Vec<u8>, FormatError> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let start = bytes.len();
            bytes.resize(len.min(start.saturating_add(STEP_BYTES)), 0);
            self.fill(bytes.get_mut(start..).unwrap_or_default(), what)?;
        }
        Ok(bytes)
    }
}

impl<'a> Input<&'a [u8]> {
    /// The next `len` bytes where they lie.
    pub(super) fn slice(&mut self, len: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let Some((bytes, rest)) = self.source.split_at_checked(len) else {
            self.offset = self.offset.saturating_add(self.source.len() as u64);
            self.source = &[];
            return Err(self.ends_in(what));
        };
        self.offset = self.offset.saturating_add(len as u64);
        self.source = rest;
        Ok(bytes)
    }
}
