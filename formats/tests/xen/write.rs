//! Streams that are written again.

use std::io::{self, Write};

use varve_fixtures::synth::xl_save::{
    BROKEN, HVM, L1, L4_PINNED, NORMAL, PV, Stream, hvm_context, vcpu_context,
};
use varve_formats::image::Image;
use varve_formats::write::{WriteError, Written};
use varve_formats::xen::stream::{Damaged, SaveState, write};
use varve_formats::{Fault, Gpa, PhysicalMemory, Region};

use super::build::*;

fn image(bytes: &[u8]) -> (tempfile::TempDir, Image) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let image = Image::open(&path).unwrap();
    (directory, image)
}

fn rewrite(bytes: &[u8]) -> (Vec<u8>, Written) {
    let (_directory, image) = image(bytes);
    let state = SaveState::decode(&image.save_state().unwrap().encode()).unwrap();
    let mut out = Vec::new();
    let written = write(&state, &image, Damaged::Refused, &mut out, &|_| {}).unwrap();
    assert_eq!(written.file_bytes, out.len() as u64);
    (out, written)
}

#[test]
fn a_pvh_domain_is_written_as_the_specification_says() {
    let mut expected = Stream::default();
    expected.xl(JSON).libxl().record(1, &[]).libxc(HVM);
    expected.record(17, &[0x11; 24]).record(18, &[0x12; 16]).record(16, &[]);
    let [two, three] = [page(2), page(33)];
    expected.pages(&[(NORMAL, 2, Some(&two)), (NORMAL, 3, Some(&three))]);
    expected.record(8, &[8; 24]).record(9, &hvm_context(&[cpu(1), cpu(0)])).record(10, &[0; 8]);
    expected.record(0x8000_0077, b"odd").record(0, &[]);
    expected.record(3, b"\x02\0\0\0\0\0\0\0emulator").record(0, &[]);
    let (out, written) = rewrite(&pvh());
    assert!(out == expected.bytes());
    assert_eq!((written.frames_data, written.is_complete()), (2, true));
    assert!(rewrite(&out).0 == out);
}

#[test]
fn a_pv_domain_keeps_its_page_tables_and_broken_frames() {
    // What the first reader saw has no xl header; the written stream has one, without a configuration.
    let (out, _) = rewrite(&pv());
    let mut expected = Stream::default();
    expected.libxl().record(1, &[]).libxc(PV);
    expected.record(2, &[8, 4, 0, 0, 0, 0, 0, 0]).record(16, &[]).record(3, &[0; 16]);
    let [one, five, seven] = [page(5), page(1), page(4)];
    expected.pages(&[(NORMAL, 1, Some(&one))]).pages(&[(L1, 5, Some(&five))]);
    expected.pages(&[(L4_PINNED, 7, Some(&seven))]).pages(&[(BROKEN, 6, None)]);
    expected.record(8, &[8; 24]).record(7, &page(7));
    let basic = |number: u16, flags, kernel| {
        let context = vcpu_context(&cpu(number), flags, 0xe033, 99, kernel);
        [u32::from(number).to_le_bytes().to_vec(), vec![0; 4], context].concat()
    };
    expected.record(4, &basic(0, 1 << 2, true)).record(5, &[0; 16]).record(4, &basic(1, 0, false));
    expected.record(0, &[]).record(0, &[]);
    assert_eq!(
        &out[..52],
        b"Xen saved domain, xl format\n \0 \r\x04\x03\x02\x01\x02\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0"
    );
    assert!(out[52..] == *expected.bytes());
}

#[test]
fn the_last_checkpoint_becomes_a_save_file() {
    let (bytes, _) = remus();
    let (out, _) = rewrite(&bytes);
    let (_directory, image) = image(&out);
    assert_eq!(image.slice(Gpa(0), PAGE).unwrap(), page(10));
    assert_eq!(image.slice(Gpa(0x1000), PAGE).unwrap(), page(12));
    assert_eq!(image.vcpus()[0].index, 1);
    assert!(image.save_state().unwrap().records().iter().any(|record| record.body.ends_with(b"second")));
}

/// Frames `first..first + 3000`, each a page of its number; every seventh is zero, one is damaged, and one is not there.
struct Memory(Region);

const BAD: u64 = 1500;
const ABSENT: u64 = 1501;

impl Memory {
    fn new(first: u64) -> Self {
        Self(Region { start: Gpa(first << 12), len: 3000 << 12 })
    }
}

impl PhysicalMemory for Memory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        for (index, page) in buf.chunks_mut(PAGE).enumerate() {
            let frame = (at.0 >> 12) + index as u64;
            match (frame, Gpa(frame << 12)) {
                (BAD, at) => return Err(Fault::Damaged { at }),
                (ABSENT, at) => return Err(Fault::NotCaptured { at }),
                _ => {}
            }
            page.fill(if frame.is_multiple_of(7) { 0 } else { frame as u8 | 1 });
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        std::slice::from_ref(&self.0)
    }
}

fn pvh_state() -> SaveState {
    image(&pvh()).1.save_state().unwrap().clone()
}

#[test]
fn batches_end_where_four_mib_do_and_damaged_frames_are_counted() {
    let mut out = Vec::new();
    let done = std::sync::atomic::AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    let written = write(&pvh_state(), &Memory::new(100), Damaged::Zeros, &mut out, &progress).unwrap();
    assert_eq!((written.frames_missing, written.first_missing), (1, Some(Gpa(BAD << 12))));
    assert_eq!((written.frames_zero, written.frames_data), (428, 2570));
    assert_eq!(done.into_inner(), 3000 << 12);
    let mut reader = varve_formats::xen::stream::Reader::new(out.as_slice(), "stream");
    let mut batches = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if let varve_formats::xen::stream::Event::Pages(pages) = event {
            batches.push((pages.frames[0].gfn.0, pages.frames.len()));
        }
    }
    assert_eq!(batches, [(100, 924), (1024, 1023), (2048, 1024), (3072, 28)]);
}

#[test]
fn a_stream_that_is_to_be_whole_breaks_off_at_a_damaged_frame() {
    let mut out = Vec::new();
    let refused = write(&pvh_state(), &Memory::new(100), Damaged::Refused, &mut out, &|_| {}).unwrap_err();
    insta::assert_snapshot!(refused, @"the frame at 0x5dc000 cannot be read (`varve check --read-data` says more)");
    let mut reader = varve_formats::xen::stream::Reader::new(out.as_slice(), "stream");
    let end = loop {
        match reader.next_event() {
            Ok(Some(_)) => {}
            end => break end.map(drop),
        }
    };
    assert!(end.is_err(), "it has no end: {end:?}");
}

#[test]
fn a_state_that_lacks_registers_is_not_written() {
    let mut bytes = Stream::default();
    bytes.libxc(HVM).pages(&[(NORMAL, 0, Some(&page(1)))]).record(0, &[]);
    let (_directory, image) = image(bytes.bytes());
    let mut out = Vec::new();
    let refused = write(image.save_state().unwrap(), &image, Damaged::Zeros, &mut out, &|_| {}).unwrap_err();
    insta::assert_snapshot!(refused, @"the state of the domain lacks the HVM context");
    assert!(out.is_empty());
}

/// Takes so many bytes and no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(self.0);
        self.0 -= taken;
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_wherever_it_comes() {
    let (_directory, image) = image(&pvh());
    let state = image.save_state().unwrap();
    let whole = rewrite(&pvh()).0.len();
    for room in (0..whole).step_by(13).chain([whole - 1]) {
        let error = write(state, &image, Damaged::Zeros, &mut Full(room), &|_| {}).unwrap_err();
        assert!(matches!(error, WriteError::Io { offset, .. } if offset <= room as u64), "{error}");
    }
    write(state, &image, Damaged::Zeros, &mut Full(whole), &|_| {}).unwrap();
}
