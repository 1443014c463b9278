//! Archive-wide settings.
//!
//! ```text
//! key    "archive"
//! value  0   4  "VARC"
//!        4   1  layout version, 1
//!        5  16  identity of the archive, random
//!       21   8  created, nanoseconds since 1970-01-01 UTC, little-endian
//!       29   .  version of the varve that created it: length u8, text
//! ```

use super::{Column, expect_header};
use crate::Place;
use crate::bytes::{Malformed, Put, Reader};

const MAGIC: &[u8; 4] = b"VARC";
const VERSION: u8 = 1;

/// The key of [`Settings`], the only entry so far.
pub(crate) const ARCHIVE: &str = "archive";

/// Name to settings.
pub(crate) struct Meta;

/// What holds for the whole archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) identity: [u8; 16],
    pub(crate) created_at_ns: i64,
    pub(crate) created_by: String,
}

impl Settings {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.put(&[VERSION]);
        out.put(&self.identity);
        out.put(&self.created_at_ns.to_le_bytes());
        out.put_short_text(&self.created_by);
        out
    }
}

impl Column for Meta {
    const NAME: &'static str = "meta";
    type Key = String;
    type KeyBytes = Vec<u8>;
    type Value = Settings;

    fn key(name: &String) -> Vec<u8> {
        name.as_bytes().to_vec()
    }

    fn decode_key(bytes: &[u8]) -> Result<String, Malformed> {
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::new("the key is not UTF-8"))
    }

    fn decode(_: &String, bytes: &[u8]) -> Result<Settings, Malformed> {
        let mut reader = Reader::new(bytes);
        expect_header(&mut reader, MAGIC, VERSION)?;
        let settings = Settings {
            identity: reader.array()?,
            created_at_ns: reader.i64()?,
            created_by: reader.short_text()?,
        };
        reader.finish()?;
        Ok(settings)
    }

    fn place(name: &String) -> Place {
        Place::Meta(name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let settings = Settings { identity: [9; 16], created_at_ns: 1, created_by: "0.1.0".into() };
        let bytes = settings.encode();
        assert_eq!(bytes, *b"VARC\x01\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x01\0\0\0\0\0\0\0\x050.1.0");
        assert_eq!(Meta::decode(&ARCHIVE.into(), &bytes).unwrap(), settings);
        for cut in 0..bytes.len() {
            assert!(Meta::decode(&ARCHIVE.into(), &bytes[..cut]).is_err());
        }
    }
}
