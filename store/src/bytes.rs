//! Reading and writing the primitive fields of the disk format: little-endian integers, LEB128 varints, byte runs.

/// Bytes that do not follow the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Malformed {
    reason: String,
}

impl Malformed {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// Takes fields off the front of a byte slice.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total: bytes.len() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes not yet taken.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.short(len))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.short(N))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_le_bytes)
    }

    /// An unsigned LEB128 number; longer than needed or past 64 bits is malformed.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(Malformed::new("a varint is longer than its value needs"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::new("a varint has more than ten bytes"))
    }

    /// A byte run behind a `u8` length.
    pub(crate) fn short_text(&mut self) -> Result<String, Malformed> {
        let len = self.u8()?;
        let bytes = self.take(usize::from(len))?;
        text(bytes)
    }

    /// A byte run behind a `u16` length.
    pub(crate) fn long_text(&mut self) -> Result<String, Malformed> {
        let len = self.u16()?;
        let bytes = self.take(usize::from(len))?;
        text(bytes)
    }

    /// Succeeds when everything was taken.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed::new(format!("{left} bytes follow the end at {}", self.total - left))),
        }
    }

    fn short(&self, wanted: usize) -> Malformed {
        let at = self.total - self.rest.len();
        Malformed::new(format!("cut off at {}: {wanted} bytes expected at {at}", self.total))
    }
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::new("text is not UTF-8"))
}

/// Appends fields to a byte vector.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.put(&[value as u8]);
    }

    /// `text` behind a `u8` length; the caller has bounded it to 255 bytes.
    fn put_short_text(&mut self, text: &str) {
        let text = text.as_bytes().get(..255).unwrap_or(text.as_bytes());
        self.put(&[text.len() as u8]);
        self.put(text);
    }

    /// `text` behind a `u16` length; the caller has bounded it to 65,535 bytes.
    fn put_long_text(&mut self, text: &str) {
        let text = text.as_bytes().get(..65_535).unwrap_or(text.as_bytes());
        self.put(&(text.len() as u16).to_le_bytes());
        self.put(text);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Maps a signed number to an unsigned one so that small magnitudes stay small.
pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

/// The inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(values in proptest::collection::vec(any::<u64>(), 0..20)) {
            let mut bytes = Vec::new();
            for value in &values {
                bytes.put_varint(*value);
            }
            let mut reader = Reader::new(&bytes);
            for value in values {
                prop_assert_eq!(reader.varint().unwrap(), value);
            }
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn zigzag_comes_back(value: i64) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }

        #[test]
        fn any_bytes_are_a_varint_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut again = Vec::new();
                again.put_varint(value);
                prop_assert_eq!(&again[..], &bytes[..again.len()]);
            }
        }
    }

    #[test]
    fn zigzag_keeps_small_magnitudes_small() {
        assert_eq!([0, -1, 1, -2, 2].map(zigzag), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn overlong_and_endless_varints_are_malformed() {
        for bytes in [
            &[0x80, 0x00][..],
            &[0xff; 11][..],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..],
        ] {
            assert!(Reader::new(bytes).varint().is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_cut_off_field_says_where() {
        let mut reader = Reader::new(&[1, 2, 3]);
        reader.u16().unwrap();
        assert_eq!(reader.u32().unwrap_err().to_string(), "cut off at 3: 4 bytes expected at 2");
    }
}
