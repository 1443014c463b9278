//! The few instructions the kernel writes into its own text.
//!
//! Source: `arch/x86/include/asm/text-patching.h` (opcodes, `text_gen_insn`) and `asm/nops.h` (`BYTES_NOP2`, `BYTES_NOP5`).

use varve_formats::Gva;

/// `call rel32`, 5 bytes.
pub(crate) const CALL: u8 = 0xe8;
/// `jmp rel32`, 5 bytes.
pub(crate) const JMP32: u8 = 0xe9;
/// `jmp rel8`, 2 bytes.
pub(crate) const JMP8: u8 = 0xeb;
/// `int3`, what `text_poke_bp` writes first while it replaces an instruction, and what a kprobe is.
pub(crate) const INT3: u8 = 0xcc;
/// The 2-byte no-operation.
pub(crate) const NOP2: [u8; 2] = [0x66, 0x90];
/// The 5-byte no-operation.
pub(crate) const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];

/// Length in bytes of [`CALL`] and [`JMP32`].
pub(crate) const BRANCH32_LEN: usize = 5;

/// The target of the `call` or `jmp` with this opcode at `at`, if that is what `code` begins with.
pub(crate) fn branch32(opcode: u8, at: Gva, code: &[u8]) -> Option<Gva> {
    let [op, displacement @ ..] = code.first_chunk::<5>()?;
    let displacement = i64::from(i32::from_le_bytes(*displacement));
    (*op == opcode).then(|| Gva(at.0.wrapping_add(5).wrapping_add_signed(displacement)))
}

/// The target of the two-byte `jmp` at `at`, if `code` begins with one.
pub(crate) fn branch8(at: Gva, code: &[u8]) -> Option<Gva> {
    let [op, displacement] = *code.first_chunk::<2>()?;
    let displacement = i64::from(displacement.cast_signed());
    (op == JMP8).then(|| Gva(at.0.wrapping_add(2).wrapping_add_signed(displacement)))
}

/// The target of the six-byte conditional jump at `at`, if `code` begins with one.
pub(crate) fn conditional32(at: Gva, code: &[u8]) -> Option<Gva> {
    let [0x0f, condition, displacement @ ..] = code.first_chunk::<6>()? else { return None };
    let displacement = i64::from(i32::from_le_bytes(*displacement));
    (condition & 0xf0 == 0x80).then(|| Gva(at.0.wrapping_add(6).wrapping_add_signed(displacement)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_count_from_the_end_of_the_instruction() {
        assert_eq!(branch32(CALL, Gva(0x1000), &[CALL, 0xfb, 0xff, 0xff, 0xff]), Some(Gva(0x1000)));
        assert_eq!(branch32(JMP32, Gva(0x1000), &[CALL, 0, 0, 0, 0]), None);
        assert_eq!(branch32(CALL, Gva(0x1000), &[CALL, 0, 0, 0]), None);
        assert_eq!(branch8(Gva(0x1000), &[JMP8, 0xfe, 0x90]), Some(Gva(0x1000)));
        assert_eq!(conditional32(Gva(0x1000), &[0x0f, 0x84, 0x10, 0, 0, 0]), Some(Gva(0x1016)));
        assert_eq!(conditional32(Gva(0x1000), &[0x0f, 0x1f, 0x44, 0, 0, 0]), None);
    }

    #[test]
    fn a_branch_may_wrap_around_the_address_space() {
        assert_eq!(branch32(JMP32, Gva(u64::MAX - 1), &[JMP32, 0, 0, 0, 0]), Some(Gva(3)));
    }
}
