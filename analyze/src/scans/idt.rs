//! `idt`: the 256 gates of the interrupt descriptor table, and that every processor uses that table.
//!
//! The kernel fills the table while it boots, makes it read-only and maps it a second time into the CPU entry area, which
//! is where the processors' IDTR points (`arch/x86/kernel/idt.c`). Nothing changes it later. A gate must lead to the entry
//! code that the kernel itself puts there: the exceptions have one handler each; the others an `asm_…` stub, or their
//! place in the arrays of stubs.
//!
//! A processor that delivers events by FRED does not look at the table.

use std::collections::HashSet;

use varve_formats::{Fault, Gva, Vcpu, VirtualMemory};

use super::{Scan, ScanInput, evidence, place};
use crate::finding::{Finding, Report, Severity};
use crate::guest::Guest;

pub(super) const SCAN: Scan =
    Scan { name: "idt", summary: "interrupt gates that do not lead to the kernel's own entry code", run };

/// Gates in the table, and bytes of each (Intel SDM volume 3A, "64-Bit Mode IDT").
const GATES: usize = 256;
const GATE_BYTES: usize = 16;

/// `CR4.FRED`.
const CR4_FRED: u64 = 1 << 32;

/// `CR0.PG`: clear on a processor that has not been started.
const CR0_PAGING: u64 = 1 << 31;

/// `__KERNEL_CS`.
const KERNEL_CODE: u16 = 0x10;
/// Type of an interrupt gate.
const INTERRUPT_GATE: u8 = 0xe;
/// What user mode may raise: breakpoint, overflow, 32-bit system call.
const USER_VECTORS: [u8; 3] = [3, 4, 0x80];
/// First vector that is no exception (`FIRST_EXTERNAL_VECTOR`).
const FIRST_EXTERNAL: u8 = 0x20;

/// The 32-bit system call, and what handles it: the latter since 6.7 and in stable kernels.
const SYSTEM_CALL: u8 = 0x80;
const SYSTEM_CALL_STUBS: [&str; 2] = ["entry_INT80_compat", "asm_int80_emulation"];

/// Bytes of a stub for an external interrupt (`IDT_ALIGN`, `asm/irq_vectors.h`): by how the kernel is built.
const STRIDES: [u64; 3] = [8, 16, 32];
/// Bytes of an early stub at most (`EARLY_IDT_HANDLER_SIZE`, `asm/segment.h`: 9, or 13 with indirect branch tracking).
const MAX_EARLY_STUB_BYTES: u64 = 16;

/// The handler of each exception, where the kernel is built with it (`asm/idtentry.h`, 5.8 on). Vectors without one keep
/// the early boot handler, whose code is gone; the processor does not raise them.
const EXCEPTIONS: [(u8, &str); 23] = [
    (0, "asm_exc_divide_error"),
    (1, "asm_exc_debug"),
    (2, "asm_exc_nmi"),
    (3, "asm_exc_int3"),
    (4, "asm_exc_overflow"),
    (5, "asm_exc_bounds"),
    (6, "asm_exc_invalid_op"),
    (7, "asm_exc_device_not_available"),
    (8, "asm_exc_double_fault"),
    (9, "asm_exc_coproc_segment_overrun"),
    (10, "asm_exc_invalid_tss"),
    (11, "asm_exc_segment_not_present"),
    (12, "asm_exc_stack_segment"),
    (13, "asm_exc_general_protection"),
    (14, "asm_exc_page_fault"),
    (15, "asm_exc_spurious_interrupt_bug"),
    (16, "asm_exc_coprocessor_error"),
    (17, "asm_exc_alignment_check"),
    (18, "asm_exc_machine_check"),
    (19, "asm_exc_simd_coprocessor_error"),
    (20, "asm_exc_virtualization_exception"),
    (21, "asm_exc_control_protection"),
    (29, "asm_exc_vmm_communication"),
];

/// A gate of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gate {
    handler: Gva,
    selector: u16,
    kind: u8,
    privilege: u8,
    present: bool,
}

impl Gate {
    /// What is odd about a gate besides its handler.
    fn oddity(self, vector: u8) -> Option<&'static str> {
        if self.selector != KERNEL_CODE {
            Some("does not switch to the kernel's code segment")
        } else if self.kind != INTERRUPT_GATE {
            Some("is not an interrupt gate")
        } else if self.privilege != 0 && !USER_VECTORS.contains(&vector) {
            Some("can be raised by user mode")
        } else {
            None
        }
    }

    /// From `struct gate_struct` (`asm/desc_defs.h`).
    const fn decode(raw: &[u8; GATE_BYTES]) -> Self {
        let [o0, o1, s0, s1, _ist, bits, o2, o3, o4, o5, o6, o7, ..] = *raw;
        Self {
            handler: Gva(u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7])),
            selector: u16::from_le_bytes([s0, s1]),
            kind: bits & 0x1f,
            privilege: bits >> 5 & 3,
            present: bits & 0x80 != 0,
        }
    }
}

fn run(input: &ScanInput<'_>) -> Report {
    const WHAT: &str = "interrupt descriptor table";
    let guest = input.guest;
    let (mut report, baseline) = match input.begin(WHAT) {
        Ok(begun) => begun,
        Err(report) => return report,
    };
    let vcpus = guest.vcpus();
    if !vcpus.is_empty() && vcpus.iter().all(|vcpu| vcpu.cr4 & CR4_FRED != 0) {
        return report;
    }
    let Some(at) = report.try_or_note(WHAT, guest.symbol("idt_table")) else { return report };
    if let Some(table) = report.try_or_note(WHAT, read_table(guest, at)) {
        let before = baseline.map(|baseline| read_table(baseline, at));
        let before = before
            .and_then(|before| report.try_or_note("interrupt descriptor table of the baseline", before));
        let rules = Rules::new(guest, &table);
        for (vector, raw) in (0..=u8::MAX).zip(&table) {
            let before = before.as_ref().and_then(|table| table.get(usize::from(vector)));
            report.findings.extend(check_gate(guest, at, vector, raw, before, &rules));
        }
    }
    for vcpu in vcpus.iter().filter(|vcpu| vcpu.cr0 & CR0_PAGING != 0 && vcpu.cr4 & CR4_FRED == 0) {
        check_register(guest, at, vcpu, &mut report);
    }
    report
}

fn read_table(guest: &Guest<'_>, at: Gva) -> Result<Vec<[u8; GATE_BYTES]>, Fault> {
    let mut bytes = [0; GATES * GATE_BYTES];
    guest.space().read(at, &mut bytes)?;
    Ok(bytes.as_chunks::<GATE_BYTES>().0.to_vec())
}

/// What a gate is judged by.
struct Rules {
    /// Where the arrays of stubs begin: for external interrupts and for spurious ones.
    stubs: [Option<Gva>; 2],
    /// Bytes of a stub, and the vector of the first spurious one.
    stride: u64,
    first_spurious: u8,
    /// The code of an exception that has no handler any more.
    early: Option<Gva>,
    /// Stubs with names of their own: of system interrupts, and of the 32-bit system call.
    system: HashSet<Gva>,
    system_call: HashSet<Gva>,
    /// Whether handlers have the names of [`EXCEPTIONS`]; before 5.8 they lie between two symbols.
    named: bool,
    entry_text: Option<(Gva, Gva)>,
}

impl Rules {
    fn new(guest: &Guest<'_>, table: &[[u8; GATE_BYTES]]) -> Self {
        let stubs = ["irq_entries_start", "spurious_entries_start"].map(|name| guest.symbol(name).ok());
        let handlers = || (0..=u8::MAX).zip(table).map(|(vector, raw)| (vector, Gate::decode(raw).handler));
        let [irq, spurious] = stubs;
        let strides = STRIDES.into_iter().map(|stride| {
            let fits = |(vector, handler): &(u8, Gva)| irq_stub(irq, stride, *vector) == Some(*handler);
            (handlers().filter(fits).count(), stride)
        });
        let (_, stride) = strides.max().unwrap_or_default();
        let firsts = handlers().filter_map(|(vector, handler)| {
            let number = u8::try_from(handler.offset_from(spurious?)?.checked_div(stride)?).ok()?;
            vector.checked_sub(number).filter(|first| *first >= FIRST_EXTERNAL)
        });
        let entry_text = ["__entry_text_start", "__entry_text_end"].map(|name| guest.symbol(name).ok());
        Self {
            stubs,
            stride,
            first_spurious: most_common(firsts).unwrap_or(u8::MAX),
            early: guest.symbol("early_idt_handler_array").ok(),
            system: addresses(guest, |name| name.starts_with("asm_sysvec_")),
            system_call: addresses(guest, |name| SYSTEM_CALL_STUBS.contains(&name)),
            named: guest.symbol("asm_exc_page_fault").is_ok(),
            entry_text: entry_text[0].zip(entry_text[1]),
        }
    }

    /// Whether a vector may have this handler.
    fn allow(&self, guest: &Guest<'_>, vector: u8, handler: Gva) -> bool {
        if vector < FIRST_EXTERNAL {
            let own = EXCEPTIONS.iter().find(|(exception, _)| *exception == vector);
            return match own.and_then(|(_, name)| guest.symbol(name).ok()) {
                Some(own) => handler == own,
                None => self.is_early(handler) || !self.named && self.is_entry(handler),
            };
        }
        let [irq, spurious] = self.stubs;
        let spurious = spurious.and_then(|start| {
            let number = u64::from(vector.checked_sub(self.first_spurious)?);
            start.checked_add(number * self.stride)
        });
        irq_stub(irq, self.stride, vector) == Some(handler)
            || spurious == Some(handler)
            || self.system.contains(&handler)
            || vector == SYSTEM_CALL && self.system_call.contains(&handler)
            || !self.named && self.is_entry(handler)
    }

    fn is_early(&self, handler: Gva) -> bool {
        let offset = self.early.and_then(|early| handler.offset_from(early));
        offset.is_some_and(|offset| offset < u64::from(FIRST_EXTERNAL) * MAX_EARLY_STUB_BYTES)
    }

    fn is_entry(&self, handler: Gva) -> bool {
        self.entry_text.is_some_and(|(start, end)| start <= handler && handler < end)
    }
}

fn addresses(guest: &Guest<'_>, is_wanted: impl Fn(&str) -> bool) -> HashSet<Gva> {
    guest.symbols().filter(|symbol| is_wanted(symbol.name)).map(|symbol| symbol.address).collect()
}

/// Where the stub of an external interrupt is.
fn irq_stub(stubs: Option<Gva>, stride: u64, vector: u8) -> Option<Gva> {
    let number = u64::from(vector.checked_sub(FIRST_EXTERNAL)?);
    stubs?.checked_add(number * stride)
}

/// The value that occurs most often.
fn most_common(values: impl Iterator<Item = u8>) -> Option<u8> {
    let mut counts = [0u32; 256];
    for value in values {
        if let Some(count) = counts.get_mut(usize::from(value)) {
            *count += 1;
        }
    }
    let (value, count) = (0..=u8::MAX).zip(counts).max_by_key(|(_, count)| *count)?;
    (count > 0).then_some(value)
}

fn check_gate(
    guest: &Guest<'_>,
    table: Gva,
    vector: u8,
    raw: &[u8; GATE_BYTES],
    before: Option<&[u8; GATE_BYTES]>,
    rules: &Rules,
) -> Option<Finding> {
    let gate = Gate::decode(raw);
    let leads_to = |gate: Gate| if gate.present { place(guest, gate.handler) } else { "nothing".to_owned() };
    let problem = match before {
        Some(before) if before != raw => {
            format!(
                "was changed: it led to {} and leads to {}",
                leads_to(Gate::decode(before)),
                leads_to(gate)
            )
        }
        _ if !gate.present => return None,
        _ if !rules.allow(guest, vector, gate.handler) => {
            format!("leads to {}, which is not the kernel's entry for it", leads_to(gate))
        }
        _ => gate.oddity(vector)?.to_owned(),
    };
    let at = Gva(table.0.wrapping_add(u64::from(vector) * GATE_BYTES as u64));
    Some(Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title: format!("Interrupt gate {vector} {problem}"),
        object: format!("idt:{vector}"),
        evidence: vec![evidence(guest, at, before.map(<[u8; GATE_BYTES]>::as_slice), Some(raw))],
        attack: &["T1014"],
    })
}

/// Checks that a processor uses the table at `table`, under that address or another one.
fn check_register(guest: &Guest<'_>, table: Gva, vcpu: &Vcpu, report: &mut Report) {
    let Some(register) = vcpu.idtr else { return };
    let what = format!("IDT of vCPU {}", vcpu.index);
    let at = |address: Gva| guest.space().translate(address).map(|found| found.gpa);
    let Some(own) = report.try_or_note(&what, at(table)) else { return };
    let Some(used) = report.try_or_note(&what, at(Gva(register.base))) else { return };
    if used == own && usize::from(register.limit) == GATES * GATE_BYTES - 1 {
        return;
    }
    report.findings.push(Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title: format!(
            "vCPU {} uses an interrupt descriptor table at {} (limit {:#x}) that is not the kernel's own",
            vcpu.index,
            Gva(register.base),
            register.limit
        ),
        object: format!("idt:vcpu{}", vcpu.index),
        evidence: vec![evidence(guest, Gva(register.base), None, None)],
        attack: &["T1014"],
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gate 3 of a Debian 6.1 guest, as its memory holds it: `asm_exc_int3`, for user mode.
    const INT3: [u8; GATE_BYTES] =
        [0x50, 0x0b, 0x10, 0x00, 0x00, 0xee, 0x00, 0x82, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

    #[test]
    fn gates_decode_as_the_processor_reads_them() {
        let gate = Gate {
            handler: Gva(0xffff_ffff_8200_0b50),
            selector: 0x10,
            kind: INTERRUPT_GATE,
            privilege: 3,
            present: true,
        };
        assert_eq!(Gate::decode(&INT3), gate);
        assert!(!Gate::decode(&[0; GATE_BYTES]).present);
    }

    #[test]
    fn odd_gates_are_told() {
        let gate = Gate::decode(&INT3);
        assert_eq!(gate.oddity(3), None);
        assert_eq!(gate.oddity(14), Some("can be raised by user mode"));
        assert!(Gate { selector: 0x33, ..gate }.oddity(3).is_some());
        assert!(Gate { kind: 0xf, ..gate }.oddity(3).is_some());
    }

    #[test]
    fn stubs_are_counted_from_the_first_external_vector() {
        assert_eq!(irq_stub(Some(Gva(0x1000)), 16, 0x21), Some(Gva(0x1010)));
        assert_eq!(irq_stub(Some(Gva(0x1000)), 16, 0x1f), None);
        assert_eq!(irq_stub(None, 16, 0x21), None);
        assert_eq!(most_common([5, 7, 7, 3].into_iter()), Some(7));
        assert_eq!(most_common(std::iter::empty()), None);
    }
}
