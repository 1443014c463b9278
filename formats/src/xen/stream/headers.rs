//! What a stream begins with: up to three headers, one inside the other.
//!
//! ```text
//! xl     0   magic "Xen saved domain, xl format\n \0 \r"       32 bytes
//!        32  byte order 0x01020304, mandatory flags, optional flags, length of the optional data    4 × u32
//!        48  optional data: length of the configuration u32, configuration; more may follow
//! libxl  0   "LibxlFmt"; version u32 = 2, options u32          big-endian
//! libxc  0   0xffff_ffff_ffff_ffff, "XENF"; version u32 = 2 or 3, options u16, 6 bytes     big-endian
//!        24  type u32 (1 PV, 2 HVM or PVH), page shift u16 = 12, 2 bytes, Xen's version 2 × u32
//! ```
//! Mandatory flags of xl (`tools/xl/xl.h`): bit 0, the configuration is JSON; bit 1, the stream is version 2. Streams of
//! Xen 4.5 and before are version 1 ("legacy"), which nobody has written since 2015.

use std::io::Read;

use super::input::Input;
use crate::{FormatError, PAGE_SHIFT};

/// Most bytes of configuration kept. Real ones have a few KiB.
pub const MAX_CONFIG_BYTES: usize = 16 << 20;

pub(super) const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
pub(super) const XL_BYTE_ORDER: u32 = 0x0102_0304;
pub(super) const XL_JSON: u32 = 1 << 0;
pub(super) const XL_STREAM_V2: u32 = 1 << 1;
pub(super) const LIBXL_IDENT: &[u8; 8] = b"LibxlFmt";
pub(super) const LIBXL_VERSION: u32 = 2;
pub(super) const LIBXC_MARKER: &[u8; 8] = &[0xff; 8];
pub(super) const LIBXC_ID: &[u8; 4] = b"XENF";

/// Bit 0 of the options at both inner levels.
const BIG_ENDIAN: u32 = 1;

/// How Xen builds the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainType {
    /// Paravirtualised: its page tables are Xen's.
    Pv,
    /// With page tables of its own: PVH as well as HVM, which a stream does not tell apart.
    Hvm,
}

impl DomainType {
    /// The type with this number in a domain header.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Pv),
            2 => Some(Self::Hvm),
            _ => None,
        }
    }

    /// Its number in a domain header.
    pub const fn number(self) -> u32 {
        match self {
            Self::Pv => 1,
            Self::Hvm => 2,
        }
    }
}

/// The domain's configuration, as xl puts it before the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// Whether it is libxl's JSON; xl's own text otherwise.
    pub is_json: bool,
    /// The text, with the NUL that xl ends it with.
    pub bytes: Vec<u8>,
}

/// What the headers say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The domain's type.
    pub domain: DomainType,
    /// Major and minor version of the Xen that saved it.
    pub xen: (u32, u32),
    /// The configuration, when the stream has xl's header with one.
    pub config: Option<Config>,
    /// Version of libxc's stream. Version 3 marks where the static data end.
    pub libxc_version: u32,
}

/// Which header comes next.
pub(super) enum Outer {
    Libxl(Option<Config>),
    Libxc,
}

/// Whether a file that begins with `head` has one of the three headers.
pub(crate) fn looks_like_stream(head: &[u8]) -> bool {
    let libxc =
        head.starts_with(LIBXC_MARKER) && head.get(8..).is_some_and(|rest| rest.starts_with(LIBXC_ID));
    libxc || head.starts_with(LIBXL_IDENT) || head.starts_with(b"Xen saved domain")
}

/// Reads up to and with libxl's header, or the marker of libxc's when that is the first.
pub(super) fn outer<R: Read>(input: &mut Input<R>) -> Result<Outer, FormatError> {
    let first: [u8; 8] = input.array("the first header")?;
    if first == *LIBXC_MARKER {
        return Ok(Outer::Libxc);
    }
    if first == *LIBXL_IDENT {
        return libxl(input).map(|()| Outer::Libxl(None));
    }
    if !XL_MAGIC.starts_with(&first) {
        let reason = match &first {
            b"XenSaved" => "a save file of a tool other than xl: not supported",
            _ => "no save stream of Xen 4.6 or later (older ones have another format)",
        };
        return Err(input.error(0, reason));
    }
    let config = xl(input)?;
    let at = input.offset();
    if input.array::<8>("libxl's header")? != *LIBXL_IDENT {
        return Err(input.error(at, "xl's header is not followed by libxl's"));
    }
    libxl(input).map(|()| Outer::Libxl(config))
}

/// xl's header behind its first eight bytes.
fn xl<R: Read>(input: &mut Input<R>) -> Result<Option<Config>, FormatError> {
    let at = input.offset();
    let magic: [u8; 24] = input.array("xl's header")?;
    if !XL_MAGIC.ends_with(&magic) {
        return Err(input.error(at, "a save file of an xl older than Xen 4.1, or damaged"));
    }
    let mut field = || input.array("xl's header").map(u32::from_le_bytes);
    let (byte_order, mandatory, _optional, len) = (field()?, field()?, field()?, field()?);
    if byte_order != XL_BYTE_ORDER {
        return Err(input.error(32, format!("byte order {byte_order:#010x}: not of a little-endian host")));
    }
    if mandatory & XL_STREAM_V2 == 0 {
        return Err(input.error(36, "a legacy stream (version 1, Xen 4.5 or older): not supported"));
    }
    if mandatory & !(XL_JSON | XL_STREAM_V2) != 0 {
        return Err(input.error(36, format!("unknown mandatory flags {mandatory:#x}: of a newer xl?")));
    }
    let len = len as usize;
    if len > MAX_CONFIG_BYTES {
        return Err(input.error(44, format!("{len} bytes of configuration, more than {MAX_CONFIG_BYTES}")));
    }
    let at = input.offset();
    let data = input.bytes(len, "the configuration")?;
    if data.is_empty() {
        return Ok(None);
    }
    let config =
        data.split_first_chunk().and_then(|(len, rest)| rest.get(..u32::from_le_bytes(*len) as usize));
    let Some(config) = config else {
        return Err(input.error(at, "the configuration is longer than the data it is in"));
    };
    Ok(Some(Config { is_json: mandatory & XL_JSON != 0, bytes: config.to_owned() }))
}

/// libxl's header behind its identifier.
fn libxl<R: Read>(input: &mut Input<R>) -> Result<(), FormatError> {
    let at = input.offset();
    let version = u32::from_be_bytes(input.array("libxl's header")?);
    let options = u32::from_be_bytes(input.array("libxl's header")?);
    if version != LIBXL_VERSION {
        return Err(
            input.error(at, format!("version {version} of libxl's stream: only {LIBXL_VERSION} is known"))
        );
    }
    if options & BIG_ENDIAN != 0 {
        return Err(input.error(at + 4, "a big-endian stream: not supported"));
    }
    Ok(())
}

/// libxc's header behind its marker, and the domain's.
pub(super) fn libxc<R: Read>(input: &mut Input<R>, config: Option<Config>) -> Result<Header, FormatError> {
    let at = input.offset();
    if input.array::<4>("libxc's header")? != *LIBXC_ID {
        return Err(input.error(at, "no header of libxc: a legacy stream (Xen 4.5 or older)?"));
    }
    let libxc_version = u32::from_be_bytes(input.array("libxc's header")?);
    let options = u16::from_be_bytes(input.array("libxc's header")?);
    let _reserved: [u8; 6] = input.array("libxc's header")?;
    if !matches!(libxc_version, 2 | 3) {
        return Err(
            input.error(at + 4, format!("version {libxc_version} of libxc's stream: only 2 and 3 are known"))
        );
    }
    if u32::from(options) & BIG_ENDIAN != 0 {
        return Err(input.error(at + 8, "a big-endian stream: not supported"));
    }
    let at = input.offset();
    let kind = u32::from_le_bytes(input.array("the domain header")?);
    let page_shift = u16::from_le_bytes(input.array("the domain header")?);
    let _reserved: [u8; 2] = input.array("the domain header")?;
    let mut version = || input.array("the domain header").map(u32::from_le_bytes);
    let xen = (version()?, version()?);
    let Some(domain) = DomainType::from_number(kind) else {
        return Err(
            input.error(at, format!("a domain of type {kind}: only x86 PV (1) and HVM (2) are known"))
        );
    };
    if u32::from(page_shift) != PAGE_SHIFT {
        return Err(input.error(at + 4, format!("pages of 2^{page_shift} bytes, not 2^{PAGE_SHIFT}")));
    }
    Ok(Header { domain, xen, config, libxc_version })
}
