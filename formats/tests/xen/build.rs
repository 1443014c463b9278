//! Streams that several tests use.

use varve_fixtures::synth::xl_save::{BROKEN, Cpu, HVM, L1, L4_PINNED, NORMAL, PV, Stream, XTAB};
use varve_fixtures::synth::xl_save::{hvm_context, vcpu_context};

pub(crate) const PAGE: usize = 4096;

pub(crate) const JSON: &str = r#"{"c_info":{"type":"pvh"}}"#;

/// A page that no other salt gives.
pub(crate) fn page(salt: u8) -> Vec<u8> {
    (0..PAGE).map(|at| (at as u8).wrapping_mul(31) ^ salt).collect()
}

pub(crate) fn cpu(index: u16) -> Cpu {
    let salt = u64::from(index) << 32;
    Cpu {
        index,
        rip: salt | 1,
        rsp: salt | 2,
        rflags: salt | 3,
        cr: [salt | 4, salt | 5, salt | 6],
        gs_base: salt | 7,
        gdt: (salt | 8, 0x7f),
        idt: (salt | 9, 0xfff),
        lstar: salt | 10,
        efer: salt | 11,
    }
}

/// A PVH domain saved live: frame 3 was sent again, frame 8 went away.
pub(crate) fn pvh() -> Vec<u8> {
    let mut out = Stream::default();
    out.xl(JSON).libxl().record(1, &[]).libxc(HVM);
    out.record(17, &[0x11; 24]).record(18, &[0x12; 16]).record(16, &[]);
    let [two, three, eight, again] = [page(2), page(3), page(8), page(33)];
    out.pages(&[(NORMAL, 2, Some(&two)), (NORMAL, 3, Some(&three)), (NORMAL, 8, Some(&eight))]);
    out.pages(&[(NORMAL, 3, Some(&again)), (XTAB, 8, None), (XTAB, 9, None)]);
    out.record(8, &[8; 24]).record(9, &hvm_context(&[cpu(1), cpu(0)])).record(10, &[0; 8]);
    out.record(0x8000_0077, b"odd").record(0, &[]);
    out.record(3, b"\x02\0\0\0\0\0\0\0emulator").record(0, &[]);
    out.bytes().to_vec()
}

/// A PV domain with two vCPUs, without xl's header.
pub(crate) fn pv() -> Vec<u8> {
    let mut out = Stream::default();
    out.libxl().record(1, &[]).libxc(PV);
    out.record(2, &[8, 4, 0, 0, 0, 0, 0, 0]).record(16, &[]).record(3, &[0; 16]);
    let [table, pinned, normal] = [page(1), page(4), page(5)];
    out.pages(&[
        (L1, 5, Some(&table)),
        (BROKEN, 6, None),
        (L4_PINNED, 7, Some(&pinned)),
        (NORMAL, 1, Some(&normal)),
    ]);
    out.record(8, &[8; 24]).record(7, &page(7));
    let basic = |number: u16, kernel: bool| {
        let mut body = [u32::from(number).to_le_bytes(), [0; 4]].concat();
        body.extend(vcpu_context(&cpu(number), if kernel { 1 << 2 } else { 0 }, 0xe033, 99, kernel));
        body
    };
    out.record(4, &basic(0, true)).record(5, &[0; 16]).record(4, &basic(1, false)).record(0, &[]);
    out.record(0, &[]);
    out.bytes().to_vec()
}

/// Two checkpoints of Remus, and where each ends; the second changes frame 1.
pub(crate) fn remus() -> (Vec<u8>, [usize; 2]) {
    let mut out = Stream::default();
    out.xl(JSON).libxl().record(1, &[]).libxc(HVM).record(16, &[]);
    let [zero, one, again] = [page(10), page(11), page(12)];
    out.pages(&[(NORMAL, 0, Some(&zero)), (NORMAL, 1, Some(&one))]);
    out.record(9, &hvm_context(&[cpu(0)])).record(14, &[]);
    out.record(3, b"\x02\0\0\0\0\0\0\0first").record(4, &[]);
    let first = out.bytes().len();
    out.pages(&[(NORMAL, 1, Some(&again))]);
    out.record(9, &hvm_context(&[cpu(1)])).record(14, &[]);
    out.record(3, b"\x02\0\0\0\0\0\0\0second").record(4, &[]);
    (out.bytes().to_vec(), [first, out.bytes().len()])
}
