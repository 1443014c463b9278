//! The branches of a function: what it calls and jumps to.

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};
use varve_formats::Gva;

/// A branch instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// Where the instruction is.
    pub(crate) at: Gva,
    /// Its length in bytes.
    pub(crate) len: usize,
    /// Where it leads.
    pub(crate) target: Target,
}

/// Where a branch leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To an address in the instruction.
    Direct(Gva),
    /// To an address in a register or in memory.
    Indirect,
    /// The bytes are not an instruction.
    Undecodable,
}

/// The calls and jumps in `code`, which stands at `at`, in order. Decoding is linear: the kernel's compilers put no data
/// between the instructions of a function. Returns and interrupts are left out.
pub(crate) fn branches(at: Gva, code: &[u8]) -> Vec<Branch> {
    let mut decoder = Decoder::with_ip(64, code, at.0, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let target = match instruction.flow_control() {
            _ if instruction.is_invalid() => Target::Undecodable,
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                Target::Direct(Gva(instruction.near_branch_target()))
            }
            FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Call
            | FlowControl::IndirectBranch
            | FlowControl::IndirectCall => Target::Indirect,
            _ => continue,
        };
        found.push(Branch { at: Gva(instruction.ip()), len: instruction.len(), target });
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Gva = Gva(0xffff_ffff_8100_3320);

    #[test]
    fn every_kind_of_branch_is_seen() {
        // cmp esi, 0x9c; je +4; call +0; jmp *rax; jmp -2; ret; int3
        let code =
            [0x81, 0xfe, 0x9c, 0, 0, 0, 0x74, 0x04, 0xe8, 0, 0, 0, 0, 0xff, 0xe0, 0xeb, 0xfe, 0xc3, 0xcc];
        let at = |offset| Gva(AT.0 + offset);
        assert_eq!(
            branches(AT, &code),
            [
                Branch { at: at(6), len: 2, target: Target::Direct(at(12)) },
                Branch { at: at(8), len: 5, target: Target::Direct(at(13)) },
                Branch { at: at(13), len: 2, target: Target::Indirect },
                Branch { at: at(15), len: 2, target: Target::Direct(at(15)) },
            ]
        );
    }

    #[test]
    fn bytes_that_are_no_instruction_are_told() {
        let [branch] = branches(AT, &[0x06, 0x90])[..] else { panic!("one branch") };
        assert_eq!((branch.at, branch.target), (AT, Target::Undecodable));
        assert_eq!(branches(AT, &[0xe8, 0, 0])[0].target, Target::Undecodable, "cut off");
    }

    proptest! {
        #[test]
        fn branches_lie_inside_the_code(at: u64, code in prop::collection::vec(any::<u8>(), 0..256)) {
            for branch in branches(Gva(at), &code) {
                let offset = branch.at.0.wrapping_sub(at);
                prop_assert!(offset + branch.len as u64 <= code.len() as u64);
            }
        }
    }
}
