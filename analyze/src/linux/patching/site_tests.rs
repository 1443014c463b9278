//! Expected bytes are written out by hand from the Intel SDM, not made with the code under test.

use proptest::prelude::*;
use varve_formats::Gva;

use super::*;

const AT: Gva = Gva(0xffff_ffff_8100_0000);
const FUNCTION: Gva = Gva(0xffff_ffff_8100_1005);
/// `call 0xffffffff81001005` and `jmp` to it, at [`AT`].
const CALL_FUNCTION: [u8; 6] = [0xe8, 0x00, 0x10, 0x00, 0x00, 0x90];
const JMP_FUNCTION: [u8; 6] = [0xe9, 0x00, 0x10, 0x00, 0x00, 0x90];
const CALL_ELSEWHERE: [u8; 6] = [0xe8, 0x01, 0x10, 0x00, 0x00, 0x90];
const NOP: [u8; 6] = [0x0f, 0x1f, 0x44, 0x00, 0x00, 0x90];

fn explains(kind: &Kind, code: &[u8]) -> Option<usize> {
    kind.explains(AT, code, &Targets::default())
}

fn patching() -> Targets {
    Targets { patching: true, ..Targets::default() }
}

#[test]
fn a_static_branch_is_a_nop_or_jumps_to_its_one_target() {
    let near = Kind::JumpLabel { target: Gva(AT.0 + 0x12) };
    assert_eq!(explains(&near, &[0x66, 0x90, 0, 0, 0, 0]), Some(2));
    assert_eq!(explains(&near, &[0xeb, 0x10, 0, 0, 0, 0]), Some(2));
    assert_eq!(explains(&near, &[0xeb, 0x11, 0, 0, 0, 0]), None);
    assert_eq!(explains(&near, &[0xe9, 0x0d, 0, 0, 0, 0]), Some(5));
    let far = Kind::JumpLabel { target: FUNCTION };
    assert_eq!(explains(&far, &NOP), Some(5));
    assert_eq!(explains(&far, &JMP_FUNCTION), Some(5));
    assert_eq!(explains(&far, &CALL_FUNCTION), None);
    assert_eq!(explains(&far, &[0x90; 6]), None);
}

#[test]
fn a_static_call_calls_what_its_key_says() {
    let set = Kind::StaticCall { function: Some(FUNCTION), tail: false };
    assert_eq!(explains(&set, &CALL_FUNCTION), Some(5));
    assert_eq!(explains(&set, &CALL_ELSEWHERE), None);
    assert_eq!(explains(&set, &NOP), None, "only a null key is a nop");
    let null = Kind::StaticCall { function: None, tail: false };
    assert_eq!(explains(&null, &NOP), Some(5));
    assert_eq!(explains(&null, &CALL_FUNCTION), None);
}

#[test]
fn a_static_call_of_return0_is_one_instruction() {
    let kind = Kind::StaticCall { function: Some(FUNCTION), tail: false };
    let code = [0x2e, 0x2e, 0x2e, 0x31, 0xc0, 0x90];
    assert_eq!(explains(&kind, &code), None);
    let inlined = Inlined { return0: Some(FUNCTION), ..Inlined::default() };
    let targets = Targets { inlined, ..Targets::default() };
    assert_eq!(kind.explains(AT, &code, &targets), Some(5));
}

#[test]
fn call_depth_tracking_calls_into_the_padding() {
    let kind = Kind::StaticCall { function: Some(FUNCTION), tail: false };
    let into_padding = [0xe8, 0xf0, 0x0f, 0x00, 0x00, 0x90];
    assert_eq!(explains(&kind, &into_padding), None);
    let targets = Targets { call_depth: true, ..Targets::default() };
    assert_eq!(kind.explains(AT, &into_padding, &targets), Some(5));
    assert_eq!(kind.explains(AT, &CALL_ELSEWHERE, &targets), None);
}

#[test]
fn a_tail_call_jumps_or_returns() {
    let set = Kind::StaticCall { function: Some(FUNCTION), tail: true };
    assert_eq!(explains(&set, &JMP_FUNCTION), Some(5));
    assert_eq!(explains(&set, &CALL_FUNCTION), None);
    assert_eq!(explains(&set, &[0x0f, 0x84, 0xff, 0x0f, 0x00, 0x00]), Some(6));
    let null = Kind::Trampoline { function: None };
    assert_eq!(explains(&null, &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f]), Some(5));
    assert_eq!(explains(&null, &JMP_FUNCTION), None);
    let targets = Targets { return_thunks: vec![FUNCTION], ..Targets::default() };
    assert_eq!(null.explains(AT, &JMP_FUNCTION, &targets), Some(5));
}

#[test]
fn a_function_entry_calls_only_what_is_registered() {
    assert_eq!(explains(&Kind::Fentry, &NOP), Some(5));
    assert_eq!(explains(&Kind::Fentry, &CALL_FUNCTION), None);
    let ops = Targets { entry_calls: vec![FUNCTION], ..Targets::default() };
    assert_eq!(Kind::Fentry.explains(AT, &CALL_FUNCTION, &ops), Some(5));
    assert_eq!(Kind::Fentry.explains(AT, &JMP_FUNCTION, &ops), None);
    let direct = Targets { direct: vec![(AT, FUNCTION)], ..Targets::default() };
    assert_eq!(Kind::Fentry.explains(AT, &CALL_FUNCTION, &direct), Some(5));
    assert_eq!(Kind::Fentry.explains(Gva(AT.0 + 1), &CALL_ELSEWHERE, &direct), None);
    let far: [u8; 6] = [0xe9, 0x01, 0x10, 0, 0, 0];
    let jump = Targets { direct: vec![(AT, Gva(AT.0 + 0x1007))], ..Targets::default() };
    assert_eq!(Kind::Fentry.explains(AT, &far, &jump), Some(5), "bit 0 of the direct target: a jump");
}

#[test]
fn ftrace_trampolines_call_only_callbacks() {
    assert_eq!(explains(&Kind::FtraceCall, &CALL_FUNCTION), None);
    let targets = Targets { callbacks: vec![FUNCTION], ..Targets::default() };
    assert_eq!(Kind::FtraceCall.explains(AT, &CALL_FUNCTION, &targets), Some(5));
    assert_eq!(Kind::FtraceCall.explains(AT, &NOP, &targets), None);
}

#[test]
fn a_lock_prefix_becomes_a_segment_prefix() {
    assert_eq!(explains(&Kind::LockPrefix, &[0xf0]), Some(1));
    assert_eq!(explains(&Kind::LockPrefix, &[0x3e]), Some(1));
    assert_eq!(explains(&Kind::LockPrefix, &[0x90]), None);
    assert_eq!(explains(&Kind::LockPrefix, &[]), None);
}

#[test]
fn a_kprobe_is_a_breakpoint_or_the_original() {
    let kind = Kind::Kprobe(Kprobe { opcode: 0x55, detour: None });
    assert_eq!(explains(&kind, &[0xcc, 1, 2, 3, 4, 5]), Some(1));
    assert_eq!(explains(&kind, &[0x55, 1, 2, 3, 4, 5]), Some(1));
    assert_eq!(explains(&kind, &[0x90, 1, 2, 3, 4, 5]), None);
}

#[test]
fn an_optimised_kprobe_jumps_to_its_detour() {
    let kprobe = Kprobe { opcode: 0x55, detour: Some((FUNCTION, [1, 2, 3, 4])) };
    let kind = Kind::Kprobe(kprobe.clone());
    assert_eq!(explains(&kind, &JMP_FUNCTION), Some(5));
    assert_eq!(explains(&kind, &[0xe9, 1, 0x10, 0, 0, 9]), None);
    assert_eq!(explains(&kind, &[0xcc, 0, 0x10, 0, 0, 9]), Some(5), "on the way back");
    assert_eq!(explains(&kind, &[0xcc, 1, 2, 3, 4, 9]), Some(5), "not yet optimised");
    assert_eq!(explains(&kind, &[0xcc, 1, 2, 3, 9, 9]), None);
    let mut code = JMP_FUNCTION;
    kprobe.restore(&mut code);
    assert_eq!(code, [0x55, 1, 2, 3, 4, 0x90]);
    assert_eq!(explains(&kind, &code), Some(5));
}

#[test]
fn a_breakpoint_is_explained_only_while_text_is_patched() {
    let kind = Kind::JumpLabel { target: FUNCTION };
    let old = [0xcc, 0x1f, 0x44, 0x00, 0x00, 0x90];
    let new = [0xcc, 0x00, 0x10, 0x00, 0x00, 0x90];
    let foreign = [0xcc, 0x01, 0x10, 0x00, 0x00, 0x90];
    assert_eq!(explains(&kind, &old), None);
    assert_eq!(kind.explains(AT, &old, &patching()), Some(5));
    assert_eq!(kind.explains(AT, &new, &patching()), Some(5));
    assert_eq!(kind.explains(AT, &foreign, &patching()), None);
}

proptest! {
    #[test]
    fn explained_bytes_are_never_more_than_there_are(
        code in prop::collection::vec(any::<u8>(), 0..8),
        at: u64,
        target: u64,
        patching: bool,
    ) {
        let targets = Targets { patching, callbacks: vec![Gva(target)], ..Targets::default() };
        for kind in [
            Kind::JumpLabel { target: Gva(target) },
            Kind::StaticCall { function: Some(Gva(target)), tail: false },
            Kind::StaticCall { function: None, tail: true },
            Kind::Fentry,
            Kind::FtraceCall,
            Kind::LockPrefix,
            Kind::Kprobe(Kprobe { opcode: 0x55, detour: Some((Gva(target), [0; 4])) }),
        ] {
            prop_assert!(kind.explains(Gva(at), &code, &targets).is_none_or(|len| len <= code.len()));
        }
    }
}
