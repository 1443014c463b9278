//! Save files of Xen's tools (`xl save`), and streams of `xl migrate` and `xl remus` that went to a file. The layout is
//! described in [`xen::stream`](crate::xen::stream).
//!
//! A frame may be in the file several times, when it changed while the guest was saved live, or at each checkpoint of
//! Remus: the last time counts. A file that was cut off holds what it held at its last checkpoint, which is said; without
//! one it is refused.
//!
//! Page tables of PV domains hold guest frames in a stream (Xen's tools turn them into machine frames and back), so
//! that addresses are those of the guest here too.

use super::segments::{MAX_SEGMENTS, Segment};
use super::{Contents, Format, Layout};
use crate::xen::runs::{Run, Runs};
use crate::xen::stream::{Event, Pages, Reader, SaveState, looks_like_stream};
use crate::{FormatError, Gfn, PAGE_SIZE};

/// The save stream format.
pub(super) static FORMAT: Format = Format { name: "xl-save", probe: looks_like_stream, layout };

/// A file offset, which grows with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset(u64);

impl Run for Offset {
    fn further(self, frames: u64) -> Self {
        Self(self.0.saturating_add(frames.saturating_mul(PAGE_SIZE as u64)))
    }
}

/// How much of a file is one consistent state.
struct Extent {
    /// Checkpoints to read up to; `None`: the file is complete.
    checkpoints: Option<u64>,
    /// What is wrong with the rest.
    notice: Option<FormatError>,
}

fn layout(file: &Contents<'_>) -> Result<Layout, FormatError> {
    let extent = extent(file)?;
    let mut reader = Reader::new(file.bytes(), file.path);
    let mut state = None;
    let mut frames = Runs::default();
    let mut checkpoints = 0;
    while let Some(event) = reader.next_in_place()? {
        match event {
            Event::Header(header) => state = Some(SaveState::new(header)),
            Event::Pages(pages) => {
                place(&mut frames, &pages);
                if frames.len() > MAX_SEGMENTS {
                    let reason = format!("frames in more than {MAX_SEGMENTS} pieces");
                    return Err(file.error(pages.offset, reason));
                }
                if let Some(state) = &mut state {
                    state.keep_types(pages.frames)?;
                }
            }
            Event::Record(record) => {
                if let Some(state) = &mut state {
                    state.keep(record)?;
                }
            }
            Event::Checkpoint => {
                checkpoints += 1;
                if extent.checkpoints == Some(checkpoints) {
                    break;
                }
            }
            Event::End => break,
        }
    }
    let mut layout = Layout { segments: segments(&frames), ..Layout::default() };
    layout.notices.extend(extent.notice);
    if let Some(state) = state {
        match state.vcpus() {
            Ok(vcpus) => layout.vcpus = vcpus,
            Err(error) => layout.notices.push(file.error(0, error.to_string())),
        }
        layout.save_state = Some(state);
    }
    Ok(layout)
}

/// Goes through the file once, to know where its last consistent state ends.
fn extent(file: &Contents<'_>) -> Result<Extent, FormatError> {
    let mut reader = Reader::new(file.bytes(), file.path);
    let mut checkpoints = 0u64;
    loop {
        let whole = reader.is_at_checkpoint() && reader.offset() == file.len();
        match reader.next_in_place() {
            Ok(Some(Event::Checkpoint)) => checkpoints += 1,
            Ok(Some(Event::End) | None) => return Ok(Extent { checkpoints: None, notice: None }),
            Ok(Some(_)) => {}
            Err(error) if checkpoints == 0 => return Err(error),
            // The ordinary end of a stream of Remus, which has no other.
            Err(_) if whole => {
                return Ok(Extent { checkpoints: Some(checkpoints), notice: None });
            }
            Err(error) => {
                let reason = format!("memory is that of checkpoint {checkpoints}: {}", error.reason);
                let notice = Some(file.error(error.offset, reason));
                return Ok(Extent { checkpoints: Some(checkpoints), notice });
            }
        }
    }
}

/// Puts frames where their contents are, in pieces as long as they come.
fn place(frames: &mut Runs<Offset>, pages: &Pages<'_>) {
    let mut at = Offset(pages.offset);
    let mut run: Option<(Gfn, u64, Offset)> = None;
    for frame in pages.frames {
        if !frame.kind.has_contents() {
            finish(frames, run.take());
            frames.clear(frame.gfn.0, 1);
            continue;
        }
        run = match run {
            Some((first, count, offset)) if first.0 + count == frame.gfn.0 => {
                Some((first, count + 1, offset))
            }
            other => {
                finish(frames, other);
                Some((frame.gfn, 1, at))
            }
        };
        at = at.further(1);
    }
    finish(frames, run);
}

fn finish(frames: &mut Runs<Offset>, run: Option<(Gfn, u64, Offset)>) {
    if let Some((first, count, offset)) = run {
        frames.set(first.0, count, offset);
    }
}

fn segments(frames: &Runs<Offset>) -> Vec<Segment> {
    let segment = |(first, count, Offset(offset))| {
        Some(Segment { start: Gfn(first).gpa()?, len: count * PAGE_SIZE as u64, offset })
    };
    frames.iter().filter_map(segment).collect()
}
