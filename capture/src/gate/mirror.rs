//! The guest's memory as it was at the last epoch, in a file in memory that another process may look at and not change.
//!
//! The regions lie in it one behind the other. Pages of zeros that were never anything else take no room. The file has no name;
//! a reader gets it handed over, opened for reading only, and whoever it is cannot open it for anything else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use varve_formats::image::Segment;
use varve_formats::{Gfn, Gpa, PAGE_SIZE, Region, is_zero};

use crate::source::GuestMemory;

/// A copy of a guest's memory.
#[derive(Debug)]
pub struct Mirror {
    file: File,
    segments: Vec<Segment>,
    /// Frames of the regions that could not be read.
    absent: BTreeSet<Gfn>,
    /// Lines that were written to since the mirror was last shown, by frame.
    changes: BTreeMap<Gfn, u64>,
    /// Tells this mirror from any other of this process.
    serial: u64,
}

/// Bytes of a line: a frame has as many as a number has bits.
const LINE_BYTES: usize = PAGE_SIZE / 64;

impl Mirror {
    /// A copy of all of `memory`.
    pub(super) fn of(memory: &dyn GuestMemory) -> io::Result<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let mut mirror = Self {
            file: File::from(memfd_create("varve-mirror", MemfdFlags::CLOEXEC)?),
            segments: segments(memory.regions()),
            absent: BTreeSet::new(),
            changes: BTreeMap::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        };
        fchmod(&mirror.file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
        mirror.file.set_len(mirror.segments.iter().map(|segment| segment.len).sum())?;
        for region in memory.regions() {
            for gfn in frames(region) {
                mirror.copy(memory, gfn, true)?;
            }
        }
        Ok(mirror)
    }

    /// Copies these frames of `memory`.
    pub(super) fn update(&mut self, memory: &dyn GuestMemory, frames: &[Gfn]) -> io::Result<()> {
        frames.iter().try_for_each(|gfn| self.copy(memory, *gfn, false))
    }

    /// Copies a frame. `fresh`: nothing was copied there before.
    fn copy(&mut self, memory: &dyn GuestMemory, gfn: Gfn, fresh: bool) -> io::Result<()> {
        let Some((at, offset)) = gfn.gpa().and_then(|at| Some((at, self.offset(at)?))) else { return Ok(()) };
        let mut copy = [0; PAGE_SIZE];
        // What is compared must be what is written: a device may be writing to the frame.
        match memory.slice(at, PAGE_SIZE) {
            Some(bytes) => copy.copy_from_slice(bytes),
            None if memory.read(at, &mut copy).is_ok() => {}
            None => {
                if self.absent.insert(gfn) {
                    self.changes.insert(gfn, u64::MAX);
                }
                return Ok(());
            }
        }
        let bytes = &copy;
        let was_absent = self.absent.remove(&gfn);
        if fresh {
            return if is_zero(bytes) { Ok(()) } else { self.file.write_all_at(bytes, offset) };
        }
        let mut before = [0; PAGE_SIZE];
        self.file.read_exact_at(&mut before, offset)?;
        let lines = if was_absent { u64::MAX } else { differing(&before, bytes) };
        if lines != 0 {
            self.file.write_all_at(bytes, offset)?;
            *self.changes.entry(gfn).or_default() |= lines;
        }
        Ok(())
    }

    /// What is different from what the mirror held when it was last [shown](Self::shown), or made: frames, with a bit for each of
    /// their lines of 64 bytes.
    pub fn changes(&self) -> impl Iterator<Item = (Gfn, u64)> {
        self.changes.iter().map(|(gfn, lines)| (*gfn, *lines))
    }

    /// Says that somebody knows of all changes until now.
    pub(super) fn shown(&mut self) {
        self.changes.clear();
    }

    /// Where in the file an address is.
    fn offset(&self, at: Gpa) -> Option<u64> {
        let after = self.segments.partition_point(|segment| segment.start <= at);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let into = at.offset_from(segment.start).filter(|into| *into < segment.len)?;
        Some(segment.offset + into)
    }

    /// Which guest physical addresses are where in the file.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Frames of which the file has nothing: they could not be read.
    pub fn absent(&self) -> impl Iterator<Item = Gfn> {
        self.absent.iter().copied()
    }

    /// Tells this mirror from any other that this process has made.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// The file, opened for reading only.
    ///
    /// # Errors
    /// What the system says.
    pub fn reader(&self) -> io::Result<File> {
        OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

fn segments(regions: &[Region]) -> Vec<Segment> {
    let mut offset = 0;
    let place = |region: &Region| {
        let segment = Segment { start: region.start, len: region.len, offset };
        offset += region.len;
        segment
    };
    regions.iter().map(place).collect()
}

/// The lines in which two pages differ.
fn differing(one: &[u8], other: &[u8]) -> u64 {
    let lines = one.chunks(LINE_BYTES).zip(other.chunks(LINE_BYTES)).enumerate();
    lines.filter(|(_, (one, other))| one != other).fold(0, |found, (line, _)| found | 1 << line)
}

fn frames(region: &Region) -> impl Iterator<Item = Gfn> + use<> {
    let first = region.start.gfn().0;
    (first..first + region.len / PAGE_SIZE as u64).map(Gfn)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use varve_formats::PhysicalMemory;
    use varve_formats::image::Image;

    use super::*;
    use crate::source::Source;
    use crate::testing::Scripted;

    const REGIONS: [Region; 2] =
        [Region { start: Gpa(0x1000), len: 0x3000 }, Region { start: Gpa(0x10_0000), len: 0x2000 }];

    /// Byte 0 of each frame.
    fn seen(mirror: &Mirror) -> Vec<u8> {
        let image =
            Image::of_ram(mirror.reader().unwrap(), Path::new("mirror"), mirror.segments().to_vec()).unwrap();
        assert_eq!(image.regions(), REGIONS);
        let frames = REGIONS.iter().flat_map(frames).map(|gfn| {
            let mut byte = [0];
            image.read(gfn.gpa().unwrap(), &mut byte).unwrap();
            byte[0]
        });
        frames.collect()
    }

    #[test]
    fn a_mirror_shows_what_memory_held_when_it_was_told() {
        let guest = Scripted::new(
            &REGIONS,
            Box::new(|nth, ram| match nth {
                0 => {
                    ram.fill(Gfn(2), 7);
                    ram.fill(Gfn(0x101), 8);
                }
                _ => {
                    ram.fill(Gfn(2), 0);
                    ram.fill(Gfn(3), 9);
                    ram.lose(Gfn(1));
                }
            }),
        );
        let pause = Source::pause(&guest).unwrap();
        pause.pause().unwrap();
        let memory = guest.memory().unwrap();
        let mut mirror = Mirror::of(&*memory).unwrap();
        assert_eq!(seen(&mirror), [0, 7, 0, 0, 8]);
        pause.pause().unwrap();
        assert_eq!(seen(&mirror), [0, 7, 0, 0, 8]);
        assert_eq!(mirror.changes().count(), 0, "a new one is known as a whole");
        mirror.update(&*memory, &[Gfn(1), Gfn(2), Gfn(4), Gfn(0x9000)]).unwrap();
        assert_eq!(mirror.changes().collect::<Vec<_>>(), [(Gfn(1), u64::MAX), (Gfn(2), u64::MAX)]);
        mirror.shown();
        mirror.update(&*memory, &[Gfn(1), Gfn(2)]).unwrap();
        assert_eq!(mirror.changes().count(), 0, "nothing is different from what was shown");
        assert_eq!(seen(&mirror), [0, 0, 0, 0, 8], "frame 3 was not named");
        assert_eq!(mirror.absent().collect::<Vec<_>>(), [Gfn(1)]);
        assert_ne!(mirror.serial(), Mirror::of(&*memory).unwrap().serial());
    }

    #[test]
    fn lines_that_differ_are_found_one_by_one() {
        let (one, mut other) = ([7; PAGE_SIZE], [7; PAGE_SIZE]);
        assert_eq!(differing(&one, &other), 0);
        for byte in [0, 63, 64, PAGE_SIZE - 1] {
            other[byte] = 8;
        }
        assert_eq!(differing(&one, &other), 1 | 2 | 1 << 63);
    }

    #[test]
    fn a_reader_cannot_write() {
        let guest = Scripted::new(&REGIONS, Box::new(|_, _| {}));
        let mirror = Mirror::of(&*guest.memory().unwrap()).unwrap();
        assert!(mirror.reader().unwrap().write_all(b"x").is_err());
    }
}
