//! Netlink messages: writing requests, and taking apart what is received (`linux/netlink.h`, `struct nlmsghdr`).

use rustix::io::Errno;

use super::NetlinkError;
use super::bytes::{ALIGN, Bytes};

/// Length of a message's header: length of the message as `u32`, type and flags as `u16`, sequence number and port as `u32`.
const HEADER: usize = 16;

/// A request (`NLM_F_REQUEST`).
pub(super) const REQUEST: u16 = 1;
/// The kernel is to say how it went (`NLM_F_ACK`).
pub(super) const ACK: u16 = 4;
/// The thing must not exist yet (`NLM_F_EXCL`).
pub(super) const EXCLUSIVE: u16 = 0x200;
/// The thing is to be made (`NLM_F_CREATE`).
pub(super) const CREATE: u16 = 0x400;
/// A listing is wanted (`NLM_F_DUMP`).
pub(super) const DUMP: u16 = 0x300;
/// What is listed changed while it was listed (`NLM_F_DUMP_INTR`).
const INTERRUPTED: u16 = 0x10;

/// How a request went (`NLMSG_ERROR`).
const ERROR: u16 = 2;
/// The end of a listing (`NLMSG_DONE`).
const DONE: u16 = 3;

/// Writes requests one behind the other, to be sent together.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// Where what is being written begins: the message, and the nested attributes in it.
    open: Vec<usize>,
}

impl Writer {
    /// What was written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was written, but keeps the room.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.open.clear();
    }

    /// Begins a message with its header of the netlink family and the fixed part of its kind.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, fixed: &[u8]) -> &mut Self {
        self.open.push(self.bytes.len());
        self.raw(&0_u32.to_ne_bytes()).raw(&kind.to_ne_bytes()).raw(&(REQUEST | flags).to_ne_bytes());
        self.raw(&sequence.to_ne_bytes()).raw(&0_u32.to_ne_bytes()).raw(fixed)
    }

    /// Appends an attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind).raw(value).end_nest()
    }

    /// Appends a text that ends with a NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind).raw(value.as_bytes()).raw(&[0]).end_nest()
    }

    /// Begins an attribute of attributes.
    pub(super) fn nest(&mut self, kind: u16) -> &mut Self {
        self.open.push(self.bytes.len());
        self.raw(&0_u16.to_ne_bytes()).raw(&kind.to_ne_bytes())
    }

    /// Ends it. The padding behind is not part of its length.
    pub(super) fn end_nest(&mut self) -> &mut Self {
        let start = self.open.pop().unwrap_or_default();
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// Ends the message.
    pub(super) fn end(&mut self) {
        let start = self.open.pop().unwrap_or_default();
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &len.to_ne_bytes());
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.bytes.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// The number of the request it answers.
    pub(super) sequence: u32,
    /// Whether what is listed changed meanwhile.
    pub(super) interrupted: bool,
    /// What it says.
    pub(super) content: Content<'a>,
}

/// What a message says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// How a request or a listing ended.
    End(Result<(), Errno>),
    /// An entry of a listing: its type and what is behind the header.
    Entry(u16, Bytes<'a>),
}

/// Takes the first message off `bytes`.
pub(super) fn next<'a>(bytes: &mut Bytes<'a>) -> Result<Option<Message<'a>>, NetlinkError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let len = usize::try_from(bytes.u32(0)?).unwrap_or(usize::MAX);
    if len < HEADER {
        return Err(bytes.malformed("a message is shorter than its header"));
    }
    let (kind, flags, sequence) = (bytes.u16(4)?, bytes.u16(6)?, bytes.u32(8)?);
    let (message, rest) = bytes.split(len)?;
    *bytes = rest.skip((len.next_multiple_of(ALIGN) - len).min(rest.len()))?;
    let body = message.skip(HEADER)?;
    let content = match kind {
        ERROR | DONE => Content::End(ending(body)?),
        _ => Content::Entry(kind, body),
    };
    Ok(Some(Message { sequence, interrupted: flags & INTERRUPTED != 0, content }))
}

/// Both kinds of end begin with an `int`: 0, or an error number with a minus (`linux/err.h`, `MAX_ERRNO`).
fn ending(body: Bytes<'_>) -> Result<Result<(), Errno>, NetlinkError> {
    match body.u32(0)?.cast_signed() {
        0 => Ok(Ok(())),
        number @ -4095..=-1 => Ok(Err(Errno::from_raw_os_error(-number))),
        _ => Err(body.malformed("no error number")),
    }
}
