//! `struct vcpu_guest_context` of a 64-bit domain (`xen/include/public/arch-x86/xen.h`, `xen-x86_64.h`): what
//! `XEN_DOMCTL_getvcpucontext` gives. Save streams of PV domains hold it, and `xl dump-core` writes it of every domain.
//!
//! ```text
//! 512   flags                          u64, bit 2 (VGCF_in_kernel, PV only): in kernel mode
//! 648   user_regs: rip 648, cs 656 (u16), rflags 664, rsp 672
//! 4984  ctrlreg: cr0 4984, cr2 5000, cr3 5008, cr4 5016
//! 5152  gs_base_kernel, gs_base_user   u64
//! ```
//! 5168 bytes in all. It has neither EFER nor the table registers, and of a PV domain no `MSR_LSTAR`: Xen itself takes
//! the system calls of such a guest.

use super::{u16_at, u64_at};
use crate::Vcpu;

/// `sizeof(struct vcpu_guest_context)` of a 64-bit domain.
pub const BYTES: usize = 5168;

const VGCF_IN_KERNEL: u64 = 1 << 2;

/// How to tell whether the vCPU was in kernel mode, and so which of its two GS bases is the one in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// PV domains run both of their rings in ring 3: Xen says it in `flags`.
    Pv,
    /// PVH and HVM domains: by the privilege level in `cs`, as Xen does when it fills in the bases
    /// (`arch_get_info_guest`).
    Hvm,
}

/// The vCPU with number `index` of which `context` is the state; `None` when it is too short.
///
/// The CR3 is what stands there: of a PV domain the machine frame of its page table, in a save stream the guest frame.
pub fn vcpu(index: u32, context: &[u8], mode: Mode) -> Option<Vcpu> {
    if context.len() < BYTES {
        return None;
    }
    let in_kernel = match mode {
        Mode::Pv => u64_at(context, 512)? & VGCF_IN_KERNEL != 0,
        Mode::Hvm => u16_at(context, 656)? & 3 == 0,
    };
    Some(Vcpu {
        index,
        rip: u64_at(context, 648)?,
        rflags: u64_at(context, 664)?,
        rsp: u64_at(context, 672)?,
        cr0: u64_at(context, 4984)?,
        cr3: u64_at(context, 5008)?,
        cr4: u64_at(context, 5016)?,
        gs_base: u64_at(context, if in_kernel { 5152 } else { 5160 }),
        ..Vcpu::default()
    })
}
