//! The test for bytes that are all zero, which every stage that sees pages wants to be fast.

/// Whether every byte is zero.
///
/// Works through 64 bytes at a time without a branch inside, so that the compiler makes vector code of it.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lines, tail) = bytes.as_chunks::<64>();
    let clear = |line: &[u8; 64]| line.iter().fold(0, |seen, byte| seen | byte) == 0;
    lines.iter().all(clear) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_seen() {
        let mut bytes = [0; 200];
        assert!(is_zero(&bytes));
        for at in 0..bytes.len() {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }
}
