//! Fields and attributes of netlink messages: reading them within bounds (`linux/netlink.h`, `struct nlattr`).

use super::NetlinkError;

/// What lengths are rounded up to, in bytes.
pub(super) const ALIGN: usize = 4;

/// Length of an attribute's header: its length with the header as `u16`, its type as `u16`.
const ATTRIBUTE_HEADER: usize = 4;

/// The bits of an attribute's type that are no flag (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// A part of a message, which knows where in the message it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    bytes: &'a [u8],
    /// Offset of the first byte, from the start of what was received.
    at: usize,
}

impl<'a> Bytes<'a> {
    /// All that was received.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(self) -> usize {
        self.bytes.len()
    }

    /// An error about this part.
    pub(super) fn malformed(self, reason: &'static str) -> NetlinkError {
        NetlinkError::Malformed { at: self.at, reason }
    }

    /// The first `len` bytes and the rest.
    pub(super) fn split(self, len: usize) -> Result<(Self, Self), NetlinkError> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or_else(|| self.malformed("it ends early"))?;
        Ok((Self { bytes: head, at: self.at }, Self { bytes: tail, at: self.at + len }))
    }

    /// All behind the first `len` bytes.
    pub(super) fn skip(self, len: usize) -> Result<Self, NetlinkError> {
        self.split(len).map(|(_, rest)| rest)
    }

    /// The number at `offset`, in the byte order of this machine.
    pub(super) fn u16(self, offset: usize) -> Result<u16, NetlinkError> {
        self.array(offset).map(u16::from_ne_bytes)
    }

    /// The number at `offset`, in the byte order of this machine.
    pub(super) fn u32(self, offset: usize) -> Result<u32, NetlinkError> {
        self.array(offset).map(u32::from_ne_bytes)
    }

    /// The number at `offset`, in the byte order of this machine.
    pub(super) fn u64(self, offset: usize) -> Result<u64, NetlinkError> {
        self.array(offset).map(u64::from_ne_bytes)
    }

    fn array<const N: usize>(self, offset: usize) -> Result<[u8; N], NetlinkError> {
        let field = self.bytes.get(offset..).and_then(<[u8]>::first_chunk);
        field.copied().ok_or_else(|| self.malformed("a field is missing"))
    }

    /// The text up to the first NUL. What is no UTF-8 is replaced: names can hold any bytes.
    pub(super) fn text(self) -> String {
        let text = self.bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// The attributes this is made of.
    pub(super) fn attributes(self) -> Attributes<'a> {
        Attributes { rest: self }
    }

    /// The first attribute of type `wanted`.
    pub(super) fn attribute(self, wanted: u16) -> Result<Option<Self>, NetlinkError> {
        for attribute in self.attributes() {
            let (kind, value) = attribute?;
            if kind == wanted {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// Attributes one after the other: type and value. Ends after an error.
pub(super) struct Attributes<'a> {
    rest: Bytes<'a>,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, Bytes<'a>), NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Less than a header is padding.
        if self.rest.len() < ATTRIBUTE_HEADER {
            return None;
        }
        let item = self.advance();
        if item.is_err() {
            self.rest = Bytes::new(&[]);
        }
        Some(item)
    }
}

impl<'a> Attributes<'a> {
    fn advance(&mut self) -> Result<(u16, Bytes<'a>), NetlinkError> {
        let len = usize::from(self.rest.u16(0)?);
        if len < ATTRIBUTE_HEADER {
            return Err(self.rest.malformed("an attribute is shorter than its header"));
        }
        let kind = self.rest.u16(2)? & TYPE_MASK;
        let (attribute, rest) = self.rest.split(len)?;
        // The last one need not be padded.
        let padding = (len.next_multiple_of(ALIGN) - len).min(rest.len());
        self.rest = rest.skip(padding)?;
        Ok((kind, attribute.skip(ATTRIBUTE_HEADER)?))
    }
}
