//! The state of a CPU in a vmcore of QEMU: `struct QEMUCPUState` of its `target/i386/arch_dump.c`, a note named
//! `QEMU`, type 0.
//!
//! ```text
//! 0     version u32 (1), size u32
//! 8     rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags     18 × u64
//! 152   cs ds es fs gs ss ldt tr gdt idt                       10 × { selector limit flags pad: u32; base: u64 }
//! 392   cr0..cr4                                                5 × u64
//! 432   kernel_gs_base                                          u64, since QEMU 3.0, not used here
//! ```
//! The extended feature register and the `MSR_LSTAR` are not in it.

use crate::{TableRegister, Vcpu};

/// The note's name.
pub(super) const NAME: &str = "QEMU";

/// `QEMUCPUSTATE_VERSION`.
const VERSION: u32 = 1;

const RSP: usize = 56;
const RIP: usize = 136;
const RFLAGS: usize = 144;
const GS: usize = 248;
const GDT: usize = 344;
const IDT: usize = 368;
const CR0: usize = 392;
const CR3: usize = 416;
const CR4: usize = 424;

/// The CPU with number `index` of which `desc` is the note's contents; `None` when they are too short or of another
/// version.
pub(super) fn parse(desc: &[u8], index: usize) -> Option<Vcpu> {
    if u32_at(desc, 0)? != VERSION {
        return None;
    }
    Some(Vcpu {
        index: u32::try_from(index).ok()?,
        rip: u64_at(desc, RIP)?,
        rsp: u64_at(desc, RSP)?,
        rflags: u64_at(desc, RFLAGS)?,
        cr0: u64_at(desc, CR0)?,
        cr3: u64_at(desc, CR3)?,
        cr4: u64_at(desc, CR4)?,
        gs_base: Some(u64_at(desc, GS + 16)?),
        gdtr: table_register(desc, GDT),
        idtr: table_register(desc, IDT),
        efer: None,
        lstar: None,
    })
}

fn table_register(desc: &[u8], at: usize) -> Option<TableRegister> {
    let limit = u16::try_from(u32_at(desc, at + 4)?).ok()?;
    Some(TableRegister { base: u64_at(desc, at + 16)?, limit })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|field| u64::from_le_bytes(*field))
}
