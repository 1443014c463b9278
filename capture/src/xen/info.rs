//! What Xen tells of a domain, as plain data.

use varve_formats::Gfn;

/// `SHUTDOWN_suspend` of `xen/sched.h`.
const SHUTDOWN_SUSPEND: u32 = 2;

/// What Xen knows of a domain (`xen_domctl_getdomaininfo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DomainInfo {
    pub(super) id: u32,
    /// The UUID the toolstack gave it.
    pub(super) uuid: [u8; 16],
    /// PVH or HVM, not PV.
    pub(super) hvm: bool,
    /// Whether Xen translates its memory with the processor's second level of page tables.
    pub(super) hap: bool,
    pub(super) dying: bool,
    /// Paused by somebody in control of the host.
    pub(super) paused: bool,
    /// Why it shut down, if it did (`SHUTDOWN_*` of `xen/sched.h`).
    pub(super) shutdown: Option<u32>,
    /// Pages it owns.
    pub(super) pages: u64,
    /// Where in its memory the page is that it shares with Xen.
    pub(super) shared_info: Gfn,
}

impl DomainInfo {
    /// Whether it has suspended itself.
    pub(super) fn suspended(&self) -> bool {
        self.shutdown == Some(SHUTDOWN_SUSPEND)
    }
}

/// CPUID leaves and model-specific registers of a domain's processors, in the layout of a save stream.
pub(super) struct CpuPolicy {
    /// Of each leaf: number, sub-number, EAX, EBX, ECX, EDX; u32 (`xen_cpuid_leaf_t`).
    pub(super) leaves: Vec<u8>,
    /// Of each register: number u32, flags u32, value u64 (`xen_msr_entry_t`).
    pub(super) msrs: Vec<u8>,
}

/// The time stamp counter of a domain (`XEN_DOMCTL_gettscinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TscInfo {
    pub(super) mode: u32,
    pub(super) elapsed_ns: u64,
    pub(super) khz: u32,
    pub(super) incarnation: u32,
}
