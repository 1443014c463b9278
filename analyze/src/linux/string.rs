//! Strings that a guest wrote.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};
use varve_formats::{Fault, Gva, VirtualMemory};

/// Bytes of a string as the guest holds it: any bytes, kept as they are.
///
/// Displayed and serialised escaped, so that a name cannot move the cursor, forge a line or pass for another: `\xNN` for
/// bytes that are not UTF-8, `\xNN` and `\u{N}` for control and formatting characters, `\\` for the backslash.
/// Nothing is lost: different bytes never display the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestString(Box<[u8]>);

impl GuestString {
    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes before the first NUL of a fixed field, or all of them.
    pub fn from_field(field: &[u8]) -> Self {
        Self(field.split(|byte| *byte == 0).next().unwrap_or_default().into())
    }

    /// Reads a NUL-terminated string of at most `limit` bytes. A longer one is cut there, as the kernel does with
    /// names that fill their field.
    ///
    /// # Errors
    /// The fault of the first page that cannot be read before a NUL or the limit was met.
    pub fn read(memory: &dyn VirtualMemory, at: Gva, limit: usize) -> Result<Self, Fault> {
        /// Read at a time; a multiple of it starts each further step, so that no step crosses a page for nothing.
        const STEP: usize = 64;
        let mut bytes = Vec::new();
        let mut here = at;
        while bytes.len() < limit {
            let step = (STEP - here.page_offset() % STEP).min(limit - bytes.len());
            let mut chunk = [0; STEP];
            let (chunk, _) = chunk.split_at_mut(step);
            memory.read(here, chunk)?;
            if let Some(end) = chunk.iter().position(|byte| *byte == 0) {
                bytes.extend(chunk.iter().take(end));
                break;
            }
            bytes.extend_from_slice(chunk);
            here = here.checked_add(step as u64).ok_or(Fault::Overflow { at: at.0 })?;
        }
        Ok(bytes.into())
    }
}

impl From<Vec<u8>> for GuestString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for GuestString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl PartialEq<str> for GuestString {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for GuestString {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Display for GuestString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    _ if character.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(character))?,
                    _ if is_deceptive(character) => write!(f, "\\u{{{:x}}}", u32::from(character))?,
                    _ => f.write_char(character)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for GuestString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for GuestString {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// Characters that a terminal or a reader does not see as what they are: C1 controls, invisible characters, line
/// separators, and those that change the direction of text (Unicode general categories Cc, Cf, Zl, Zp, and the tags).
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            u32::from(character),
            0xad | 0x34f
                | 0x600..=0x605
                | 0x61c
                | 0x6dd
                | 0x70f
                | 0x180b..=0x180f
                | 0x200b..=0x200f
                | 0x2028..=0x202e
                | 0x2060..=0x206f
                | 0xfe00..=0xfe0f
                | 0xfeff
                | 0xfff9..=0xfffb
                | 0x1_d173..=0x1_d17a
                | 0xe_0000..=0xe_0fff
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Sparse;

    fn display(bytes: &[u8]) -> String {
        GuestString::from(bytes.to_vec()).to_string()
    }

    #[test]
    fn terminal_controls_and_broken_text_are_escaped() {
        assert_eq!(display(b"\x1b[2Jsh\n"), "\\x1b[2Jsh\\x0a");
        assert_eq!(display(b"a\\b"), "a\\\\b");
        assert_eq!(display("grün".as_bytes()), "grün");
        assert_eq!(display(b"\xff\xfe\xc3"), "\\xff\\xfe\\xc3");
        assert_eq!(display("gpj\u{202e}exe\u{9b}".as_bytes()), "gpj\\u{202e}exe\\u{9b}");
        assert_eq!(serde_json::to_string(&GuestString::from("\u{7}")).unwrap(), r#""\\x07""#);
    }

    #[test]
    fn a_string_ends_at_its_nul_its_limit_or_a_fault() {
        let mut memory = Sparse::default();
        memory.write(0xffe, b"init\0rest");
        memory.write(0x3ff0, &[b'x'; 16]);
        let read = |at, limit| GuestString::read(&memory, Gva(at), limit);
        assert_eq!(read(0xffe, 9).unwrap(), "init");
        assert_eq!(read(0x3ff0, 16).unwrap(), "xxxxxxxxxxxxxxxx");
        assert_eq!(read(0x3ff0, 3).unwrap(), "xxx");
        assert!(matches!(read(0x3ff0, 17), Err(Fault::NotPresent { at: Gva(0x4000), .. })));
        assert_eq!(read(0x9000, 0).unwrap(), "");
    }

    proptest! {
        #[test]
        fn escaping_is_printable_and_reversible(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let shown = display(&bytes);
            prop_assert!(shown.chars().all(|c| !is_deceptive(c)));
            let mut back = Vec::new();
            let mut rest = shown.as_str();
            while let Some(character) = rest.chars().next() {
                if let Some(hex) = rest.strip_prefix("\\x") {
                    back.push(u8::from_str_radix(&hex[..2], 16).unwrap());
                    rest = &hex[2..];
                } else if let Some(hex) = rest.strip_prefix("\\u{") {
                    let (code, tail) = hex.split_once('}').unwrap();
                    let code = char::from_u32(u32::from_str_radix(code, 16).unwrap()).unwrap();
                    back.extend(code.to_string().bytes());
                    rest = tail;
                } else if let Some(tail) = rest.strip_prefix("\\\\") {
                    back.push(b'\\');
                    rest = tail;
                } else {
                    back.extend(character.to_string().bytes());
                    rest = &rest[character.len_utf8()..];
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
