//! Memory image files: raw, LiME, ELF core and Xen's, told apart by what they begin with.
//!
//! One file per format, one line per format in [`FORMATS`]. A format only says where in the file which guest memory
//! lies; this module checks that against the file and serves reads from a mapping of it, without copying.

mod elf;
mod foreign;
mod holes;
pub(crate) mod lime;
mod mapping;
mod qemu_note;
mod raw;
mod segments;
mod xen_core;
mod xl_save;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::xen::stream::SaveState;
use crate::{Fault, FormatError, Gpa, PhysicalMemory, Region, Vcpu};
use mapping::Mapping;
pub use segments::{MAX_SEGMENTS, PHYSICAL_END, Segment, SegmentError, Segments};

/// Every format that can be read, in the order in which they are tried.
pub static FORMATS: &[&Format] =
    &[&xen_core::FORMAT, &elf::FORMAT, &lime::FORMAT, &xl_save::FORMAT, &raw::FORMAT];

/// Bytes at the beginning of a file that a format is recognised by.
const HEAD_BYTES: usize = 512;

/// A format of memory images.
pub struct Format {
    name: &'static str,
    /// Whether a file that begins with these bytes is of this format.
    probe: fn(head: &[u8]) -> bool,
    /// Where the file has what. Segments need not be checked against one another, nor against the file's end.
    layout: fn(&Contents<'_>) -> Result<Layout, FormatError>,
}

impl Format {
    /// The format's name, lower case: `raw`, `lime`, `elf`, `xen-core`, `xl-save`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The format with this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        FORMATS.iter().copied().find(|format| format.name == name)
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Format").field(&self.name).finish()
    }
}

/// What a format found in a file.
#[derive(Default)]
struct Layout {
    segments: Vec<Segment>,
    vcpus: Vec<Vcpu>,
    notices: Vec<FormatError>,
    save_state: Option<SaveState>,
}

/// A file's bytes with its name, so that every error says where.
struct Contents<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl<'a> Contents<'a> {
    const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    const fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn error(&self, offset: u64, reason: impl Into<String>) -> FormatError {
        FormatError::new(self.path, offset, reason)
    }

    fn slice(&self, offset: u64, len: u64) -> Option<&'a [u8]> {
        slice(self.bytes, offset, len)
    }

    fn field<const N: usize>(&self, at: u64) -> Result<[u8; N], FormatError> {
        self.slice(at, N as u64)
            .and_then(|bytes| bytes.first_chunk().copied())
            .ok_or_else(|| self.error(at, "the file ends here: truncated?"))
    }

    fn u32(&self, at: u64) -> Result<u32, FormatError> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, FormatError> {
        self.field(at).map(u64::from_le_bytes)
    }
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

/// A memory image file, mapped into memory.
///
/// The file must not be truncated while it is open (the process would be killed with `SIGBUS`).
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    format: &'static Format,
    mapping: Mapping,
    segments: Segments,
    vcpus: Vec<Vcpu>,
    notices: Vec<FormatError>,
    save_state: Option<SaveState>,
}

impl Image {
    /// Opens `path`, telling its format by its first bytes.
    ///
    /// # Errors
    /// [`FormatError`] with the file, an offset and a reason: it cannot be opened, is no regular file, is empty, is
    /// something else (compressed, a disk, a Windows dump), is truncated, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let mapping = Mapping::open(path)?;
        let bytes = mapping.bytes();
        let head = bytes.get(..HEAD_BYTES).unwrap_or(bytes);
        if let Some(reason) = foreign::identify(head) {
            return Err(FormatError::new(path, 0, reason));
        }
        let format = FORMATS.iter().copied().find(|format| (format.probe)(head)).unwrap_or(&raw::FORMAT);
        Self::with_format(path, format, mapping)
    }

    /// Opens `path` as `format`, whatever it begins with: a guest can write a header to address 0, and its raw
    /// image then begins with it.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open_as(path: &Path, format: &'static Format) -> Result<Self, FormatError> {
        Self::with_format(path, format, Mapping::open(path)?)
    }

    /// Opens `path`, of which somebody else knows what it holds: a file that backs the RAM of a running guest, laid
    /// out as its hypervisor says. [`Image::format`] is then raw.
    ///
    /// The bytes change while the guest runs. Copy what must not change, and believe only the copy.
    ///
    /// # Errors
    /// As [`Image::open`], when the file is no regular file or does not hold the segments.
    pub fn open_ram(path: &Path, segments: Vec<Segment>) -> Result<Self, FormatError> {
        Self::ram(path, Mapping::open(path)?, segments)
    }

    /// The same of a file that is open already and has no name to open it by: `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Image::open_ram`].
    pub fn of_ram(file: std::fs::File, name: &Path, segments: Vec<Segment>) -> Result<Self, FormatError> {
        Self::ram(name, Mapping::of(file, name)?, segments)
    }

    fn ram(path: &Path, mapping: Mapping, segments: Vec<Segment>) -> Result<Self, FormatError> {
        Self::with_layout(path, &raw::FORMAT, mapping, Layout { segments, ..Layout::default() })
    }

    fn with_format(path: &Path, format: &'static Format, mapping: Mapping) -> Result<Self, FormatError> {
        let layout = (format.layout)(&Contents { path, bytes: mapping.bytes() })?;
        Self::with_layout(path, format, mapping, layout)
    }

    fn with_layout(
        path: &Path,
        format: &'static Format,
        mapping: Mapping,
        layout: Layout,
    ) -> Result<Self, FormatError> {
        let contents = Contents { path, bytes: mapping.bytes() };
        let Layout { segments, vcpus, mut notices, save_state } = layout;
        let segments = Segments::new(segments, contents.len())
            .map_err(|error| contents.error(error.offset(), error.to_string()))?;
        if segments.partial_bytes() > 0 {
            let reason =
                format!("{} bytes belong to frames that are not whole: left out", segments.partial_bytes());
            notices.push(contents.error(0, reason));
        }
        Ok(Self { path: path.to_owned(), format, mapping, segments, vcpus, notices, save_state })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's format.
    pub const fn format(&self) -> &'static Format {
        self.format
    }

    /// When the file was last written, as it was opened.
    pub fn modified(&self) -> Option<SystemTime> {
        self.mapping.modified()
    }

    /// The CPUs, when the file holds them (ELF cores of QEMU and Xen's files do).
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// What of the guest is not memory, when the file holds it: a save file of Xen, which can then be made again.
    pub const fn save_state(&self) -> Option<&SaveState> {
        self.save_state.as_ref()
    }

    /// What is wrong with the file and did not keep it from being read: notes that make no sense, frames that are
    /// not whole.
    pub fn notices(&self) -> &[FormatError] {
        &self.notices
    }

    /// `len` bytes from `at` on, without copying; `None` when the file does not hold them, or not in one piece.
    pub fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        let (offset, left) = self.segments.locate(at)?;
        let len = len as u64;
        if len > left {
            return None;
        }
        slice(self.mapping.bytes(), offset, len)
    }

    /// The first part at or behind `at` that was never written and reads as zeros, as far as the file is in one
    /// piece; empty, at the end of the piece, when there is none; `None` when nobody can tell.
    ///
    /// Such a hole is better not touched: reading it can make the system allocate memory. Go from hole to hole; do
    /// not ask for many places before the same one.
    pub fn next_hole(&self, at: Gpa) -> Option<Range<Gpa>> {
        let (offset, left) = self.segments.locate(at)?;
        let hole = holes::first(self.mapping.file(), offset..offset.checked_add(left)?)?;
        Some(at.checked_add(hole.start - offset)?..at.checked_add(hole.end - offset)?)
    }

    /// The bytes from `at` on that lie in one piece, at most `max`.
    fn piece(&self, at: Gpa, max: usize) -> Option<&[u8]> {
        let (offset, left) = self.segments.locate(at)?;
        slice(self.mapping.bytes(), offset, left.min(max as u64))
    }
}

impl PhysicalMemory for Image {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len()).ok_or(Fault::NotCaptured { at })?;
            let (head, tail) = rest.split_at_mut_checked(piece.len()).ok_or(Fault::NotCaptured { at })?;
            head.copy_from_slice(piece);
            at = at.checked_add(piece.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.segments.regions()
    }
}
