//! What is remembered of a kernel from one epoch to the next.
//!
//! Pins are stored as one small blob per VM. Integers are little-endian:
//!
//! ```text
//! magic "varvepin" | version u16 = 1 | count u16 | count pins
//! pin: kernel_offset u64 | phys_base i64 | root u64 | levels u8 (4 or 5)
//!      note: 0u8, or 1u8 and its address u64
//!      banner address u64 | banner length u16 | banner
//!      BLAKE3 of the kallsyms tables, 32 bytes | BLAKE3 of the BTF section, 32 bytes
//! ```

use varve_formats::{FormatError, Gpa, Gva, VirtualMemory};

use super::place::Placement;
use super::profile::Digests;
use crate::linux::GuestString;
use crate::paging::Levels;

const MAGIC: &[u8; 8] = b"varvepin";
const VERSION: u16 = 1;
/// Pins of one VM at most: one for each boot and kernel in its history. Beyond, the oldest are forgotten.
pub const MAX_PINS: usize = 256;
/// Bytes of a banner at most.
const MAX_BANNER_BYTES: usize = 1024;
/// Name of the blob in errors.
const BLOB: &str = "kernel pins";

/// A kernel that was found in an earlier epoch: where it was, and what it said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Where it was.
    pub placement: Placement,
    /// Where its VMCOREINFO was.
    pub note: Option<Gpa>,
    /// Where its banner was.
    pub banner_at: Gva,
    /// Its banner.
    pub banner: GuestString,
    /// Digests of its symbols and types.
    pub digests: Digests,
}

impl Pin {
    /// Whether the pinned banner is where it was.
    pub(super) fn has_banner(&self, space: &dyn VirtualMemory) -> bool {
        let mut now = vec![0; self.banner.as_bytes().len()];
        space.read(self.banner_at, &mut now).is_ok() && now == self.banner.as_bytes() && !now.is_empty()
    }

    /// Encodes pins, the last [`MAX_PINS`] of them.
    pub fn encode(pins: &[Self]) -> Vec<u8> {
        let pins = pins.get(pins.len().saturating_sub(MAX_PINS)..).unwrap_or_default();
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(pins.len() as u16).to_le_bytes());
        for pin in pins {
            pin.encode_to(&mut out);
        }
        out
    }

    fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.placement.kernel_offset.to_le_bytes());
        out.extend_from_slice(&self.placement.phys_base.to_le_bytes());
        out.extend_from_slice(&self.placement.root.0.to_le_bytes());
        out.push(self.placement.levels.count());
        match self.note {
            Some(note) => {
                out.push(1);
                out.extend_from_slice(&note.0.to_le_bytes());
            }
            None => out.push(0),
        }
        out.extend_from_slice(&self.banner_at.0.to_le_bytes());
        let banner = self.banner.as_bytes();
        let banner = banner.get(..MAX_BANNER_BYTES).unwrap_or(banner);
        out.extend_from_slice(&(banner.len() as u16).to_le_bytes());
        out.extend_from_slice(banner);
        out.extend_from_slice(&self.digests.kallsyms);
        out.extend_from_slice(&self.digests.btf);
    }

    /// Decodes pins.
    ///
    /// # Errors
    /// The offset and what is wrong there: no pins, a version from the future, a blob that ends early or late.
    pub fn decode(blob: &[u8]) -> Result<Vec<Self>, FormatError> {
        let mut reader = Reader { blob, offset: 0 };
        if reader.array::<8>()? != *MAGIC {
            return Err(FormatError::new(BLOB, 0, "no magic \"varvepin\""));
        }
        let version = u16::from_le_bytes(reader.array()?);
        if version != VERSION {
            return Err(FormatError::new(
                BLOB,
                8,
                format!("version {version}; this program reads {VERSION}"),
            ));
        }
        let count = u16::from_le_bytes(reader.array()?);
        if usize::from(count) > MAX_PINS {
            return Err(FormatError::new(BLOB, 10, format!("{count} pins; the limit is {MAX_PINS}")));
        }
        let pins = (0..count).map(|_| Self::decode_one(&mut reader)).collect::<Result<_, _>>()?;
        if reader.offset != blob.len() {
            return Err(FormatError::new(BLOB, reader.offset as u64, "bytes behind the last pin"));
        }
        Ok(pins)
    }

    fn decode_one(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let kernel_offset = reader.u64()?;
        let phys_base = i64::from_le_bytes(reader.array()?);
        let root = Gpa(reader.u64()?);
        let levels = match reader.array()? {
            [4] => Levels::Four,
            [5] => Levels::Five,
            [other] => return Err(reader.error(1, format!("{other} levels of page tables"))),
        };
        let note = match reader.array()? {
            [0] => None,
            [1] => Some(Gpa(reader.u64()?)),
            [other] => return Err(reader.error(1, format!("{other} is no flag"))),
        };
        let banner_at = Gva(reader.u64()?);
        let len = usize::from(u16::from_le_bytes(reader.array()?));
        if len > MAX_BANNER_BYTES {
            return Err(reader.error(2, format!("banner of {len} bytes; the limit is {MAX_BANNER_BYTES}")));
        }
        let banner = reader.take(len)?.to_vec().into();
        let digests = Digests { kallsyms: reader.array()?, btf: reader.array()? };
        Ok(Self {
            placement: Placement { kernel_offset, phys_base, root, levels },
            note,
            banner_at,
            banner,
            digests,
        })
    }
}

struct Reader<'a> {
    blob: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.offset.saturating_add(len);
        let bytes = self.blob.get(self.offset..end).ok_or_else(|| self.error(0, "ends early"))?;
        self.offset = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.error(0, "ends early"))
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// An error about what was read `back` bytes ago.
    fn error(&self, back: usize, reason: impl Into<String>) -> FormatError {
        FormatError::new(BLOB, self.offset.saturating_sub(back) as u64, reason)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pin() -> impl Strategy<Value = Pin> {
        let place = (any::<u64>(), any::<i64>(), any::<u64>(), any::<bool>());
        let digests = (any::<[u8; 32]>(), any::<[u8; 32]>());
        let banner = prop::collection::vec(any::<u8>(), 0..=MAX_BANNER_BYTES);
        (place, any::<Option<u64>>(), any::<u64>(), banner, digests).prop_map(
            |(place, note, at, banner, digests)| Pin {
                placement: Placement {
                    kernel_offset: place.0,
                    phys_base: place.1,
                    root: Gpa(place.2),
                    levels: if place.3 { Levels::Five } else { Levels::Four },
                },
                note: note.map(Gpa),
                banner_at: Gva(at),
                banner: banner.into(),
                digests: Digests { kallsyms: digests.0, btf: digests.1 },
            },
        )
    }

    proptest! {
        #[test]
        fn pins_survive_encoding(pins in prop::collection::vec(pin(), 0..4)) {
            prop_assert_eq!(Pin::decode(&Pin::encode(&pins)).unwrap(), pins);
        }

        #[test]
        fn a_blob_cut_anywhere_is_an_error(pin in pin(), cut in any::<prop::sample::Index>()) {
            let blob = Pin::encode(&[pin]);
            prop_assert!(Pin::decode(&blob[..cut.index(blob.len())]).is_err());
        }

        #[test]
        fn any_bytes_decode_to_pins_that_encode_to_them_or_to_an_error(
            tail in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let blob = [MAGIC.as_slice(), &[1, 0, 1, 0], &tail].concat();
            if let Ok(pins) = Pin::decode(&blob) {
                prop_assert_eq!(Pin::encode(&pins), blob);
            }
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = |blob: &[u8]| Pin::decode(blob).unwrap_err().to_string();
        assert_eq!(error(b"varvepan\x01\0\0\0"), "kernel pins: offset 0x0: no magic \"varvepin\"");
        assert_eq!(error(b"varvepin\x02\0\0\0"), "kernel pins: offset 0x8: version 2; this program reads 1");
        assert_eq!(error(b"varvepin\x01\0\x01\x01"), "kernel pins: offset 0xa: 257 pins; the limit is 256");
        assert_eq!(error(b"varvepin\x01\0\0\0x"), "kernel pins: offset 0xc: bytes behind the last pin");
    }

    #[test]
    fn the_oldest_pins_are_forgotten() {
        let pin = |kernel_offset| Pin {
            placement: Placement { kernel_offset, phys_base: 0, root: Gpa(0), levels: Levels::Four },
            note: None,
            banner_at: Gva(0),
            banner: "Linux version".into(),
            digests: Digests { kallsyms: [0; 32], btf: [0; 32] },
        };
        let pins: Vec<Pin> = (0..=MAX_PINS as u64).map(pin).collect();
        assert_eq!(Pin::decode(&Pin::encode(&pins)).unwrap(), pins[1..]);
    }
}
