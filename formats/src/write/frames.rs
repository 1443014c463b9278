//! Copies frames into a file: in parallel, in bounded memory, with holes for zeros.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};

use super::{Progress, WriteError, Written};
use crate::{Gpa, PAGE_SIZE, PhysicalMemory, Region, is_zero};

/// Bytes a worker copies at a time, which is all the memory it needs: a multiple of the archive's packs, long
/// enough for the system calls not to matter, short enough to stay in a core's second-level cache.
const WINDOW_BYTES: usize = 1 << 20;

/// A region and where its bytes go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) region: Region,
    /// File offset of the region's first byte.
    pub(super) offset: u64,
}

/// A part of a region that one worker copies.
#[derive(Clone, Copy)]
struct Window {
    start: Gpa,
    offset: u64,
    len: usize,
}

/// Makes `out` `file_bytes` long and empty, then copies every region to its place.
pub(super) fn copy(
    memory: &dyn PhysicalMemory,
    placed: &[Placed],
    file_bytes: u64,
    out: &File,
    progress: Progress<'_>,
) -> Result<Written, WriteError> {
    let resize = |len| {
        out.set_len(len).map_err(|source| WriteError::Io { doing: "the file's length", offset: len, source })
    };
    resize(0)?;
    resize(file_bytes)?;
    let copied = placed
        .par_iter()
        .flat_map(|placed| windows(*placed))
        .map_init(Vec::new, |buffer, window| {
            let written = copy_window(memory, window, buffer, out);
            progress(window.len as u64);
            written
        })
        .try_reduce(Written::default, |a, b| Ok(a.plus(b)))?;
    Ok(Written { file_bytes, ..copied })
}

fn windows(placed: Placed) -> impl ParallelIterator<Item = Window> {
    let step = WINDOW_BYTES as u64;
    let count = placed.region.len.div_ceil(step);
    (0..count).into_par_iter().map(move |index| {
        // Within the region, hence without overflow.
        let into = index * step;
        Window {
            start: Gpa(placed.region.start.0 + into),
            offset: placed.offset + into,
            len: step.min(placed.region.len - into) as usize,
        }
    })
}

fn copy_window(
    memory: &dyn PhysicalMemory,
    window: Window,
    buffer: &mut Vec<u8>,
    out: &File,
) -> Result<Written, WriteError> {
    buffer.resize(window.len, 0);
    let mut written = Written::default();
    if memory.read(window.start, buffer).is_err() {
        read_frame_by_frame(memory, window, buffer, &mut written);
    }
    let mut data_start = None;
    for (index, page) in buffer.chunks(PAGE_SIZE).enumerate() {
        let at = index * PAGE_SIZE;
        if is_zero(page) {
            written.frames_zero += 1;
            write_run(out, window, buffer, data_start.take(), at)?;
        } else {
            written.frames_data += 1;
            data_start.get_or_insert(at);
        }
    }
    write_run(out, window, buffer, data_start, window.len)?;
    begin_writeback(out, window);
    // Missing frames were counted as zeros above, because that is what stands in the file.
    written.frames_zero = written.frames_zero.saturating_sub(written.frames_missing);
    Ok(written)
}

/// Has the operating system bring what was written to the disk while the next windows are copied, so that there is little
/// left to wait for at the end. Linux begins to write dirty pages that are advised away, and keeps them until they are
/// written (`mm/fadvise.c`).
fn begin_writeback(out: &File, window: Window) {
    // Only advice: without it the file is the same.
    let _ = fadvise(out, window.offset, NonZeroU64::new(window.len as u64), Advice::DontNeed);
}

/// Reads what can be read of a window in which something faults; the rest becomes zeros and is counted.
fn read_frame_by_frame(
    memory: &dyn PhysicalMemory,
    window: Window,
    buffer: &mut [u8],
    written: &mut Written,
) {
    for (index, page) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
        let at = Gpa(window.start.0 + (index * PAGE_SIZE) as u64);
        if memory.read(at, page).is_err() {
            page.fill(0);
            written.frames_missing += 1;
            written.first_missing.get_or_insert(at);
        }
    }
}

/// Writes the bytes from `start` (if there are any to write) to `end` of the window.
fn write_run(
    out: &File,
    window: Window,
    buffer: &[u8],
    start: Option<usize>,
    end: usize,
) -> Result<(), WriteError> {
    let Some((start, run)) = start.and_then(|start| Some((start, buffer.get(start..end)?))) else {
        return Ok(());
    };
    let offset = window.offset + start as u64;
    out.write_all_at(run, offset).map_err(|source| WriteError::Io { doing: "guest memory", offset, source })
}
