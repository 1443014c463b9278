//! The guest's RAM as QEMU's memory-backend files hold it.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use varve_formats::image::{Image, Segment};
use varve_formats::{Fault, FormatError, Gpa, PAGE_SIZE, PhysicalMemory, Region};

use super::layout::MemoryRange;
use crate::source::GuestMemory;

/// A memory backend with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    /// The file.
    pub(super) path: PathBuf,
    /// Where the backend begins in it, in bytes.
    pub(super) offset: u64,
}

/// The files behind a guest's RAM, mapped.
#[derive(Debug)]
pub(super) struct RamFiles {
    files: Vec<(Image, Identity)>,
    regions: Vec<Region>,
}

/// What tells a file from the one that takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
}

impl From<Metadata> for Identity {
    fn from(metadata: Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), len: metadata.len() }
    }
}

impl RamFiles {
    /// Maps the files of `backends` (by id) that show in `ranges`.
    pub(super) fn open(
        ranges: &[MemoryRange],
        backends: &BTreeMap<String, Backend>,
    ) -> Result<Self, FormatError> {
        let mut files = Vec::new();
        for (id, Backend { path, offset }) in backends {
            let shown = ranges.iter().filter(|range| range.region == *id);
            let segments = shown.map(|range| {
                let offset = offset.saturating_add(range.offset);
                Segment { start: range.start, len: range.len, offset }
            });
            let identity = Identity::from(
                path.metadata().map_err(|error| FormatError::io(path, 0, "cannot read its status", error))?,
            );
            files.push((Image::open_ram(path, segments.collect())?, identity));
        }
        let regions = regions(&files)?;
        Ok(Self { files, regions })
    }

    /// Makes sure that the files are still what was mapped.
    pub(super) fn check(&self) -> Result<(), FormatError> {
        for (file, identity) in &self.files {
            let path = file.path();
            let now = path.metadata().map_err(|error| {
                FormatError::io(path, 0, "the guest's memory file is not there any more", error)
            })?;
            if Identity::from(now) != *identity {
                return Err(FormatError::new(path, 0, "the guest's memory file was truncated or replaced"));
            }
        }
        Ok(())
    }
}

/// The regions of all files, those side by side joined.
fn regions(files: &[(Image, Identity)]) -> Result<Vec<Region>, FormatError> {
    let mut all: Vec<_> = files
        .iter()
        .flat_map(|(file, _)| file.regions().iter().map(|region| (*region, file.path())))
        .collect();
    all.sort_by_key(|(region, _)| region.start);
    let mut joined: Vec<Region> = Vec::new();
    for (region, path) in all {
        let end = joined.last().and_then(Region::end).unwrap_or_default();
        match joined.last_mut() {
            Some(_) if region.start < end => {
                let reason = format!("guest physical {} belongs to two memory backends", region.start);
                return Err(FormatError::new(path, 0, reason));
            }
            Some(last) if region.start == end => last.len += region.len,
            _ => joined.push(region),
        }
    }
    Ok(joined)
}

impl GuestMemory for RamFiles {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        self.files.iter().find_map(|(file, _)| file.slice(at, len))
    }

    fn next_hole(&self, at: Gpa) -> Option<Range<Gpa>> {
        self.files.iter().find_map(|(file, _)| file.next_hole(at))
    }
}

impl PhysicalMemory for RamFiles {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let len = rest.len().min(PAGE_SIZE - at.page_offset());
            let bytes = self.slice(at, len).ok_or(Fault::NotCaptured { at })?;
            let (head, tail) = rest.split_at_mut_checked(len).ok_or(Fault::NotCaptured { at })?;
            head.copy_from_slice(bytes);
            at = at.checked_add(len as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64, region: &str, offset: u64) -> MemoryRange {
        MemoryRange { start: Gpa(start), len, region: region.to_owned(), offset }
    }

    /// A file whose every page begins with `tag` and its own number.
    fn file(directory: &std::path::Path, tag: u8, pages: u8) -> Backend {
        let path = directory.join(format!("mem{tag}"));
        let mut bytes = vec![0; usize::from(pages) * PAGE_SIZE];
        for (number, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
            page[..2].copy_from_slice(&[tag, number as u8]);
        }
        std::fs::write(&path, bytes).unwrap();
        Backend { path, offset: 0 }
    }

    #[test]
    fn ram_around_a_hole_and_in_two_files_is_read_where_the_guest_sees_it() {
        let directory = tempfile::tempdir().unwrap();
        let second = Backend { offset: 0x1000, ..file(directory.path(), 2, 3) };
        let backends =
            BTreeMap::from([("a".to_owned(), file(directory.path(), 1, 4)), ("b".to_owned(), second)]);
        let ranges = [
            range(0, 0x2000, "a", 0),
            range(0x2000, 0x1000, "b", 0),
            range(0xf000, 0x1000, "vga.vram", 0),
            range(0x1_0000_0000, 0x2000, "a", 0x2000),
        ];
        let memory = RamFiles::open(&ranges, &backends).unwrap();
        let regions = memory.regions().iter().map(|region| (region.start.0, region.len));
        assert_eq!(regions.collect::<Vec<_>>(), [(0, 0x3000), (0x1_0000_0000, 0x2000)]);
        assert_eq!(memory.slice(Gpa(0x1_0000_1000), 2).unwrap(), [1, 3]);
        assert_eq!(memory.slice(Gpa(0x1000), 0x2000), None, "two files are not one piece");
        let mut both = [0; 0x2000];
        memory.read(Gpa(0x1000), &mut both).unwrap();
        assert_eq!((&both[..2], &both[0x1000..0x1002]), (&[1, 1][..], &[2, 1][..]));
        assert_eq!(memory.read(Gpa(0x2000), &mut both), Err(Fault::NotCaptured { at: Gpa(0x3000) }));
    }

    #[test]
    fn a_file_that_is_too_short_truncated_or_replaced_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let backends = BTreeMap::from([("a".to_owned(), file(directory.path(), 1, 2))]);
        let short = RamFiles::open(&[range(0, 0x3000, "a", 0)], &backends).unwrap_err();
        assert!(short.reason.contains("past the end of the file"), "{short}");
        let memory = RamFiles::open(&[range(0, 0x2000, "a", 0)], &backends).unwrap();
        memory.check().unwrap();
        let path = &backends["a"].path;
        std::fs::rename(path, directory.path().join("old")).unwrap();
        assert!(memory.check().unwrap_err().reason.contains("not there any more"));
        file(directory.path(), 1, 2);
        assert!(memory.check().unwrap_err().reason.contains("truncated or replaced"));
        std::fs::rename(directory.path().join("old"), path).unwrap();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0x1000).unwrap();
        assert!(memory.check().unwrap_err().reason.contains("truncated or replaced"));
    }

    #[test]
    fn two_backends_at_one_address_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let backends = BTreeMap::from([
            ("a".to_owned(), file(directory.path(), 1, 2)),
            ("b".to_owned(), file(directory.path(), 2, 2)),
        ]);
        let lie = [range(0, 0x2000, "a", 0), range(0x1000, 0x1000, "b", 0)];
        assert!(RamFiles::open(&lie, &backends).unwrap_err().reason.contains("two memory backends"));
    }
}
