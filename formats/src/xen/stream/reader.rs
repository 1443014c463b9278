//! Takes a stream apart as it comes.

use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;

use super::headers::{self, Header, Outer};
use super::input::Input;
use super::pages::{self, Frame, MAX_BATCH_FRAMES, Pages};
use super::record::{Level, MAX_RECORD_BYTES, Record, libxc, libxl};
use crate::{FormatError, PAGE_SIZE};

/// What came next in a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The headers are complete. Comes first, and once.
    Header(Header),
    /// Memory. A frame that comes again has changed.
    Pages(Pages<'a>),
    /// Anything else that belongs to the domain's state.
    Record(Record),
    /// All since the last one, or since the beginning, is one consistent state.
    Checkpoint,
    /// The stream is complete: all of it is one consistent state.
    End,
}

/// What came next, pages not yet read.
enum Step {
    Pages,
    Other(Event<'static>),
}

/// Whose records come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was read.
    Start,
    /// libxl's, the domain still to come, with the configuration that xl's header had.
    BeforeDomain,
    /// libxc's.
    Domain,
    /// libxl's, which complete a checkpoint.
    Checkpoint,
    /// libxl's, behind the domain.
    AfterDomain,
    Ended,
    Failed,
}

/// An incremental reader of a stream from a file, a pipe or a socket.
///
/// It reads no byte more than the event it returns needs: that of a live stream is there as soon as its last byte has
/// come. At most [`MAX_RECORD_BYTES`] of a record are in memory, as they come, and [`MAX_BATCH_FRAMES`] pages.
///
/// ```no_run
/// # use varve_formats::{FormatError, xen::stream::{Event, Reader}};
/// # fn f() -> Result<(), FormatError> {
/// let mut reader = Reader::new(std::io::stdin().lock(), "standard input");
/// while let Some(event) = reader.next_event()? {
///     if let Event::Pages(pages) = event {
///         println!("{} frames", pages.frames.len());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    state: State,
    /// Whether libxl's layer is around the domain.
    wrapped: bool,
    /// Kept until the header is complete.
    config: Option<headers::Config>,
    /// Whether pages come again only to be compared.
    verifying: bool,
    /// Frames of the record in hand, and which of them have been returned.
    frames: Vec<Frame>,
    returned: usize,
    /// Zeros to skip behind the record in hand.
    padding: usize,
    contents: Vec<u8>,
    checkpoint_end: Option<u64>,
}

impl<R: Read> Reader<R> {
    /// A reader of the stream that begins with the next byte of `source`; errors call it `name`.
    pub fn new(source: R, name: impl Into<PathBuf>) -> Self {
        Self {
            input: Input::new(source, name.into()),
            state: State::Start,
            wrapped: false,
            config: None,
            verifying: false,
            frames: Vec::new(),
            returned: 0,
            padding: 0,
            contents: Vec::new(),
            checkpoint_end: None,
        }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// Whether nothing has come since the last checkpoint: a stream that is cut off here has lost nothing. That is how
    /// those of Remus end.
    pub fn is_at_checkpoint(&self) -> bool {
        self.checkpoint_end == Some(self.offset())
    }

    /// Waits for what comes next; `None` behind [`Event::End`].
    ///
    /// # Errors
    /// [`FormatError`] with the offset in the stream: it ends too early, is of a kind that is not supported (legacy,
    /// big-endian, other page sizes, COLO, mandatory records that are not known), or is not what it says. Every
    /// checkpoint before stays good; there are no more events.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, FormatError> {
        match self.advance()? {
            None => Ok(None),
            Some(Step::Other(event)) => Ok(Some(event)),
            Some(Step::Pages) => {
                let offset = self.offset();
                let batch = self.next_batch();
                let frames = self.frames.get(batch).unwrap_or_default();
                self.contents.resize(pages::with_contents(frames) * PAGE_SIZE, 0);
                if let Err(error) = self.input.fill(&mut self.contents, "a page") {
                    self.state = State::Failed;
                    return Err(error);
                }
                Ok(Some(Event::Pages(Pages { frames, contents: &self.contents, offset })))
            }
        }
    }

    /// The next frames to return, and marks them as returned.
    fn next_batch(&mut self) -> Range<usize> {
        let start = self.returned;
        self.returned = self.frames.len().min(start.saturating_add(MAX_BATCH_FRAMES));
        start..self.returned
    }

    fn advance(&mut self) -> Result<Option<Step>, FormatError> {
        let step = self.step();
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    fn step(&mut self) -> Result<Option<Step>, FormatError> {
        loop {
            if self.returned < self.frames.len() {
                return Ok(Some(Step::Pages));
            }
            self.skip_padding()?;
            let event = match self.state {
                State::Ended => return Ok(None),
                State::Failed => {
                    return Err(self
                        .input
                        .error(self.offset(), "the stream was given up at an error before"));
                }
                State::Start => self.start()?,
                State::Domain => self.domain_record()?,
                State::BeforeDomain | State::Checkpoint | State::AfterDomain => self.libxl_record()?,
            };
            if let Some(event) = event {
                return Ok(Some(Step::Other(event)));
            }
        }
    }

    fn skip_padding(&mut self) -> Result<(), FormatError> {
        let padding = std::mem::take(&mut self.padding);
        self.input.bytes(padding, "the padding of a record").map(drop)
    }

    fn start(&mut self) -> Result<Option<Event<'static>>, FormatError> {
        match headers::outer(&mut self.input)? {
            Outer::Libxc => self.domain_header().map(Some),
            Outer::Libxl(config) => {
                self.wrapped = true;
                self.config = config;
                self.state = State::BeforeDomain;
                Ok(None)
            }
        }
    }

    /// The headers of libxc, of which the marker has been read.
    fn domain_header(&mut self) -> Result<Event<'static>, FormatError> {
        let header = headers::libxc(&mut self.input, self.config.take())?;
        self.state = State::Domain;
        Ok(Event::Header(header))
    }

    /// Type and length of the next record, and where it begins.
    fn record_head(&mut self) -> Result<(u32, usize, u64), FormatError> {
        let at = self.offset();
        let kind = u32::from_le_bytes(self.input.array("the head of a record")?);
        let len = u32::from_le_bytes(self.input.array("the head of a record")?) as usize;
        if len > MAX_RECORD_BYTES {
            let reason = format!("a record of type {kind:#x} has {len} bytes, more than {MAX_RECORD_BYTES}");
            return Err(self.input.error(at, reason));
        }
        self.padding = len.next_multiple_of(8) - len;
        Ok((kind, len, at))
    }

    fn record(&mut self, level: Level, kind: u32, len: usize) -> Result<Event<'static>, FormatError> {
        let body = self.input.bytes(len, "the body of a record")?;
        self.skip_padding()?;
        Ok(Event::Record(Record { level, kind, body }))
    }

    /// The body of a record that is only a mark: none, but one is passed over.
    fn mark(&mut self, len: usize) -> Result<(), FormatError> {
        self.input.bytes(len, "the body of a record")?;
        self.skip_padding()
    }

    fn domain_record(&mut self) -> Result<Option<Event<'static>>, FormatError> {
        let (kind, len, at) = self.record_head()?;
        match kind {
            libxc::PAGE_DATA => self.page_data(len, at).map(|()| None),
            libxc::END => {
                self.mark(len)?;
                self.state = if self.wrapped { State::AfterDomain } else { State::Ended };
                Ok((!self.wrapped).then_some(Event::End))
            }
            libxc::CHECKPOINT => {
                self.mark(len)?;
                if self.wrapped {
                    self.state = State::Checkpoint;
                    return Ok(None);
                }
                Ok(Some(self.checkpoint()))
            }
            libxc::STATIC_DATA_END => self.mark(len).map(|()| None),
            libxc::VERIFY => {
                self.verifying = true;
                self.mark(len).map(|()| None)
            }
            libxc::CHECKPOINT_DIRTY_PFN_LIST => {
                Err(self.input.error(at, "a COLO stream (a list of dirty frames): not supported"))
            }
            _ if Record::is_state(Level::Libxc, kind) => self.record(Level::Libxc, kind, len).map(Some),
            _ => Err(self.unknown(kind, "libxc", at)),
        }
    }

    fn libxl_record(&mut self) -> Result<Option<Event<'static>>, FormatError> {
        let (kind, len, at) = self.record_head()?;
        match (kind, self.state) {
            (libxl::LIBXC_CONTEXT, State::BeforeDomain) => {
                self.mark(len)?;
                let at = self.offset();
                if self.input.array("libxc's header")? != *headers::LIBXC_MARKER {
                    return Err(self
                        .input
                        .error(at, "no header of libxc: a legacy stream (Xen 4.5 or older)?"));
                }
                self.domain_header().map(Some)
            }
            (libxl::END, State::AfterDomain) => {
                self.mark(len)?;
                self.state = State::Ended;
                Ok(Some(Event::End))
            }
            (libxl::CHECKPOINT_END, State::Checkpoint) => {
                self.mark(len)?;
                self.state = State::Domain;
                Ok(Some(self.checkpoint()))
            }
            (libxl::END | libxl::LIBXC_CONTEXT | libxl::CHECKPOINT_END, _) => {
                Err(self.input.error(at, format!("a record of libxl's of type {kind} where none can be")))
            }
            (libxl::CHECKPOINT_STATE, _) => {
                Err(self.input.error(at, "a COLO stream (CHECKPOINT_STATE): not supported"))
            }
            _ if Record::is_state(Level::Libxl, kind) => self.record(Level::Libxl, kind, len).map(Some),
            _ => Err(self.unknown(kind, "libxl", at)),
        }
    }

    fn unknown(&self, kind: u32, whose: &str, at: u64) -> FormatError {
        self.input
            .error(at, format!("a mandatory record of {whose}'s of unknown type {kind:#x}: of a newer Xen?"))
    }

    fn checkpoint(&mut self) -> Event<'static> {
        self.checkpoint_end = Some(self.offset());
        Event::Checkpoint
    }

    /// Reads a PAGE_DATA record up to the contents.
    fn page_data(&mut self, len: usize, at: u64) -> Result<(), FormatError> {
        self.returned = 0;
        self.frames = pages::read_frames(&mut self.input, len, at)?;
        if self.verifying {
            // The same pages once more, for the receiver to compare; it does not take them over either.
            let contents = pages::with_contents(&self.frames) * PAGE_SIZE;
            self.frames.clear();
            self.skip(contents)?;
        }
        Ok(())
    }

    fn skip(&mut self, mut len: usize) -> Result<(), FormatError> {
        while len > 0 {
            let step = len.min(MAX_BATCH_FRAMES * PAGE_SIZE);
            self.contents.resize(step, 0);
            self.input.fill(&mut self.contents, "a page")?;
            len -= step;
        }
        Ok(())
    }
}

impl Reader<&[u8]> {
    /// As [`Reader::next_event`], with contents where they lie: nothing is copied, nor read that is passed over.
    pub(crate) fn next_in_place(&mut self) -> Result<Option<Event<'_>>, FormatError> {
        match self.advance()? {
            None => Ok(None),
            Some(Step::Other(event)) => Ok(Some(event)),
            Some(Step::Pages) => {
                let offset = self.offset();
                let batch = self.next_batch();
                let frames = self.frames.get(batch).unwrap_or_default();
                match self.input.slice(pages::with_contents(frames) * PAGE_SIZE, "a page") {
                    Ok(contents) => Ok(Some(Event::Pages(Pages { frames, contents, offset }))),
                    Err(error) => {
                        self.state = State::Failed;
                        Err(error)
                    }
                }
            }
        }
    }
}
