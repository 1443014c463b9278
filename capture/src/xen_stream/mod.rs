//! A save stream of Xen's tools: `xen-stream:FILE`, or `xen-stream:-` for standard input.
//!
//! What `xl save` wrote is one epoch. What `xl remus` sends is one for every checkpoint, as it comes: the domain, of any type,
//! is suspended by its own toolstack, and all it takes to start it again is kept with every epoch.
//!
//! `xl remus` starts a program to feed, and waits until that prints one line ([`READY`]). Then it writes to the program's
//! standard input and reads nothing more (`tools/xl/xl_migrate.c`; the way back is COLO's alone). When the program ends, in
//! whatever way, the next write fails, and `xl` lets the domain run on.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use varve_formats::xen::stream::{Event, FrameSet, MAX_BATCH_FRAMES, Reader, SaveState};
use varve_formats::{Fault, FormatError, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region};

use crate::source::{Fed, Feed, GuestMemory, Registers, Remainder, Source, SourceKind};
use crate::{Interrupt, SourceError};

/// The line for [`SOURCES`](crate::source::SOURCES).
pub(crate) const KIND: SourceKind =
    SourceKind { name: "xen-stream", argument: "FILE", available: || Ok(()), open };

/// What `xl` waits for before it sends anything: `migrate_receiver_banner` in `tools/xl/xl.h`.
const READY: &[u8] = b"xl migration receiver ready, send binary domain data.\n";

/// Longest time between two looks at the interrupt while nothing comes.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Said when whoever feeds standard input does so no more.
const SENDER_GONE: &str = "nothing more comes on standard input. If xl was killed, the domain may stand still (`s` in \
                           `xl list`): `varve rollback latest --replace` starts it again";

/// A stream.
struct XenStream {
    place: String,
    input: Arc<File>,
    /// When a file was last written.
    modified: Option<SystemTime>,
    state: Mutex<State>,
}

struct State {
    reader: Reader<Arc<File>>,
    /// What is known of the domain besides its memory.
    domain: Option<SaveState>,
    frames: FrameSet,
    /// Whether something has come since the last state that was whole.
    begun: bool,
    /// Whether it was remarked that registers cannot be read.
    registers_unread: bool,
    remarks: Vec<String>,
}

fn open(place: &str) -> Result<Box<dyn Source>, SourceError> {
    let failed = |source| SourceError::Io { doing: format!("opening {}", name(place)), source };
    let input = if place == "-" { standard_input()? } else { File::open(place).map_err(failed)? };
    let metadata = input.metadata().map_err(failed)?;
    let input = Arc::new(input);
    let state = State {
        reader: Reader::new(Arc::clone(&input), name(place)),
        domain: None,
        frames: FrameSet::default(),
        begun: false,
        registers_unread: false,
        remarks: Vec::new(),
    };
    let modified = metadata.is_file().then(|| metadata.modified().ok()).flatten();
    Ok(Box::new(XenStream { place: place.to_owned(), input, modified, state: Mutex::new(state) }))
}

/// What errors call the stream.
fn name(place: &str) -> &str {
    if place == "-" { "standard input" } else { place }
}

/// Standard input, without a buffer of this process's; tells whoever feeds it to begin.
fn standard_input() -> Result<File, SourceError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let reason = "a save stream cannot come from a terminal: `xl remus` feeds it, or a pipe";
        return Err(SourceError::Unsuitable { reason: reason.to_owned() });
    }
    let failed = |source| SourceError::Io { doing: "answering xl".to_owned(), source };
    let input = stdin.as_fd().try_clone_to_owned().map_err(failed)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(failed)?;
    Ok(File::from(input))
}

impl XenStream {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something comes; `false` if told to stop before.
    fn wait(&self, interrupt: &dyn Interrupt) -> Result<bool, SourceError> {
        while !interrupt.finish() {
            let mut files = [PollFd::new(&*self.input, PollFlags::IN)];
            match poll(&mut files, Some(&LOOK_UP)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => {
                    let doing = format!("waiting for {}", name(&self.place));
                    return Err(SourceError::Io { doing, source: error.into() });
                }
            }
        }
        Ok(false)
    }
}

impl Source for XenStream {
    fn spec(&self) -> String {
        format!("{}:{}", KIND.name, self.place)
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        Ok(Arc::new(Passed(self.state().frames.regions())))
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn feed(&self) -> Option<&dyn Feed> {
        Some(self)
    }

    fn owns_standard_output(&self) -> bool {
        self.place == "-"
    }

    fn take_remarks(&self) -> Vec<String> {
        std::mem::take(&mut self.state().remarks)
    }
}

impl Feed for XenStream {
    fn next(
        &self,
        frames: usize,
        take: &mut dyn FnMut(Gfn, &[u8; PAGE_SIZE]),
        interrupt: &dyn Interrupt,
    ) -> Result<Fed, SourceError> {
        let mut state = self.state();
        if !state.begun && !self.wait(interrupt)? {
            return Ok(Fed::Nothing);
        }
        let mut came = 0;
        while came + MAX_BATCH_FRAMES <= frames.max(MAX_BATCH_FRAMES) && !interrupt.abandon() {
            let at = state.reader.offset();
            match state.advance(&mut came, take) {
                Ok(Some(fed)) => return Ok(fed),
                Ok(None) => {}
                Err(error) => {
                    if self.place == "-" {
                        state.remarks.push(SENDER_GONE.to_owned());
                    }
                    // The ordinary end of a stream of Remus, which has no other.
                    let ended = error.source.is_none() && state.has_ended_at(at);
                    return if ended { Ok(Fed::Nothing) } else { Err(SourceError::CutOff(error)) };
                }
            }
        }
        Ok(Fed::Part)
    }

    fn taken_at(&self) -> Option<SystemTime> {
        self.modified
    }
}

impl Registers for XenStream {
    fn read(&self) -> Result<Remainder, SourceError> {
        let mut state = self.state();
        let Some(domain) = &state.domain else { return Ok(Remainder::default()) };
        let (encoded, vcpus) = (domain.encode(), domain.vcpus());
        if let Err(error) = &vcpus
            && !std::mem::replace(&mut state.registers_unread, true)
        {
            state.remarks.push(error.to_string());
        }
        Ok(Remainder { vcpus: vcpus.unwrap_or_default(), state: Some(encoded) })
    }
}

impl State {
    /// Whether nothing has come since the stream was whole at this offset.
    fn has_ended_at(&self, offset: u64) -> bool {
        self.reader.is_at_checkpoint() && self.reader.offset() == offset
    }

    /// Takes what comes next; `None` when that completes nothing.
    fn advance(
        &mut self,
        came: &mut usize,
        take: &mut dyn FnMut(Gfn, &[u8; PAGE_SIZE]),
    ) -> Result<Option<Fed>, FormatError> {
        let Self { reader, domain, frames, begun, .. } = self;
        let Some(event) = reader.next_event()? else { return Ok(Some(Fed::Nothing)) };
        match event {
            Event::End if !*begun => return Ok(Some(Fed::Nothing)),
            Event::End | Event::Checkpoint => {
                *begun = false;
                return Ok(Some(Fed::Whole));
            }
            Event::Header(header) => *domain = Some(SaveState::new(header)),
            Event::Record(record) => domain.as_mut().map_or(Ok(()), |domain| domain.keep(record))?,
            Event::Pages(pages) => {
                frames.keep(pages.frames)?;
                domain.as_mut().map_or(Ok(()), |domain| domain.keep_types(pages.frames))?;
                for (frame, page) in pages.iter() {
                    if let Some(page) = page.and_then(<[u8]>::first_chunk) {
                        take(frame.gfn, page);
                        *came += 1;
                    }
                }
            }
        }
        *begun = true;
        Ok(None)
    }
}

/// Memory that has passed by: where it is, is known, and what it was is with whoever took it.
struct Passed(Vec<Region>);

impl PhysicalMemory for Passed {
    fn read(&self, at: Gpa, _buf: &mut [u8]) -> Result<(), Fault> {
        Err(Fault::NotCaptured { at })
    }

    fn regions(&self) -> &[Region] {
        &self.0
    }
}

impl GuestMemory for Passed {
    fn slice(&self, _at: Gpa, _len: usize) -> Option<&[u8]> {
        None
    }
}
