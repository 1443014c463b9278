//! Writers: what they write reads back, in the reader and in the specification's own terms.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use varve_formats::image::Image;
use varve_formats::write::{self, Existing, WRITERS, WriteError, Written};
use varve_formats::{Fault, Gfn, Gpa, PhysicalMemory, Region};

use super::build::{PAGE, lime, pages};

/// Memory with a rule for each frame: data, zeros, or a fault.
struct Sparse {
    regions: Vec<Region>,
    frames: fn(Gfn) -> Frame,
}

#[derive(Clone, Copy, PartialEq)]
enum Frame {
    Data,
    Zero,
    Missing,
}

impl Sparse {
    fn page(&self, gfn: Gfn) -> [u8; PAGE] {
        match (self.frames)(gfn) {
            Frame::Data => std::array::from_fn(|at| (gfn.0 as u8).wrapping_add(at as u8) | 1),
            Frame::Zero | Frame::Missing => [0; PAGE],
        }
    }
}

impl PhysicalMemory for Sparse {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            if (self.frames)(at.gfn()) == Frame::Missing {
                return Err(Fault::Damaged { at });
            }
            let from = at.page_offset();
            let len = rest.len().min(PAGE - from);
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&self.page(at.gfn())[from..from + len]);
            at = at.checked_add(len as u64).unwrap();
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

fn region(start: u64, len: u64) -> Region {
    Region { start: Gpa(start), len }
}

fn mixed() -> Sparse {
    let frames = |gfn: Gfn| match gfn.0 % 7 {
        0 | 1 | 5 => Frame::Data,
        6 => Frame::Missing,
        _ => Frame::Zero,
    };
    Sparse { regions: vec![region(0x3000, 0x2_1000), region(0x10_0000, 0x5000)], frames }
}

#[test]
fn every_writer_writes_what_the_reader_reads_and_counts_what_was_missing() {
    let memory = mixed();
    for writer in WRITERS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(writer.name);
        let seen = AtomicU64::new(0);
        let progress = |bytes| {
            seen.fetch_add(bytes, Ordering::Relaxed);
        };
        let written =
            write::create(&path, Existing::Refuse, |out| (writer.write)(&memory, out, &progress)).unwrap();
        assert_eq!(seen.into_inner(), 0x2_6000);
        assert_eq!(written.frames_data + written.frames_zero + written.frames_missing, 0x26);
        assert_eq!(written.frames_missing, 6);
        assert_eq!(written.first_missing, Some(Gpa(0x6000)));
        assert!(!written.is_complete());
        let image = Image::open(&path).unwrap();
        assert_eq!(image.format().name(), writer.name);
        for region in &memory.regions {
            for gfn in region.start.gfn().0..region.end().unwrap().gfn().0 {
                let page = image.slice(Gfn(gfn).gpa().unwrap(), PAGE).unwrap();
                assert_eq!(page, memory.page(Gfn(gfn)), "{}: frame {gfn:#x}", writer.name);
            }
        }
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), written.file_bytes);
        assert_eq!(metadata.mode() & 0o777, 0o600, "guest memory is nobody else's business");
    }
}

#[test]
fn lime_is_byte_for_byte_what_the_specification_says() {
    let (low, high) = (pages(1, 2), pages(2, 1));
    let expected = lime(&[(0x1000, &low), (0x8000, &high)]);
    let mut source = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut source, &expected).unwrap();
    let image = Image::open(source.path()).unwrap();
    let out = tempfile::NamedTempFile::new().unwrap();
    let written = write::lime::write(&image, out.as_file(), &|_| {}).unwrap();
    assert_eq!(std::fs::read(out.path()).unwrap(), expected);
    let file_bytes = expected.len() as u64;
    assert_eq!(written, Written { file_bytes, frames_data: 3, ..Written::default() });
}

#[test]
fn raw_leaves_holes_where_there_is_nothing() {
    let frames = |gfn: Gfn| if gfn.0 == 0x10_0000 { Frame::Data } else { Frame::Zero };
    let memory = Sparse { regions: vec![region(0x1_0000_0000, 0x40_0000)], frames };
    let mut out = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut out, b"left over").unwrap();
    let written = write::raw::write(&memory, &out, &|_| {}).unwrap();
    assert_eq!((written.frames_data, written.frames_zero), (1, 0x3ff));
    let metadata = out.metadata().unwrap();
    assert_eq!(metadata.len(), 0x1_0040_0000);
    assert!(metadata.blocks() * 512 < 0x10_0000, "{} blocks", metadata.blocks());
    let mut head = [1; 9];
    out.seek(SeekFrom::Start(0)).unwrap();
    std::io::Read::read_exact(&mut out, &mut head).unwrap();
    assert_eq!(head, [0; 9]);
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let memory = Sparse { regions: vec![region(0, 0x1000)], frames: |_| Frame::Data };
    let error = write::raw::write(&memory, &full, &|_| {}).unwrap_err();
    assert!(matches!(error, WriteError::Io { .. }), "{error}");
}

#[test]
fn memory_without_regions_makes_an_empty_file() {
    let memory = Sparse { regions: Vec::new(), frames: |_| Frame::Data };
    for writer in WRITERS {
        let out = tempfile::tempfile().unwrap();
        assert_eq!((writer.write)(&memory, &out, &|_| {}).unwrap(), Written::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_layout_comes_back(
        gaps in prop::collection::vec((1u64..40, 1u64..300), 1..5),
        rule in 0usize..3,
    ) {
        let frames = [
            |gfn: Gfn| if gfn.0.is_multiple_of(3) { Frame::Zero } else { Frame::Data },
            |gfn: Gfn| if gfn.0 % 64 < 40 { Frame::Zero } else { Frame::Data },
            |_| Frame::Data,
        ][rule];
        let mut at = 0;
        let mut regions = Vec::new();
        for (gap, len) in gaps {
            regions.push(region((at + gap) << 12, len << 12));
            at += gap + len;
        }
        let memory = Sparse { regions, frames };
        for writer in WRITERS {
            let out = tempfile::NamedTempFile::new().unwrap();
            let written = (writer.write)(&memory, out.as_file(), &|_| {}).unwrap();
            prop_assert!(written.is_complete());
            let image = Image::open(out.path()).unwrap();
            if writer.name == "lime" {
                prop_assert_eq!(image.regions(), &memory.regions[..]);
            }
            for region in &memory.regions {
                for gfn in region.start.gfn().0..region.end().unwrap().gfn().0 {
                    let page = image.slice(Gfn(gfn).gpa().unwrap(), PAGE).unwrap();
                    prop_assert_eq!(page, &memory.page(Gfn(gfn))[..]);
                }
            }
        }
    }
}
