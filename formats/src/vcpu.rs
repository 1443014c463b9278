//! The registers of a virtual CPU that introspection needs.

/// A segment table register: where the table is and its last valid offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Last valid byte offset in it.
    pub limit: u16,
}

/// Registers of one vCPU at a checkpoint. What a source cannot tell is `None`, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// Number of the vCPU, from 0.
    pub index: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Page table root and PCID. In user mode under KPTI it does not map the kernel.
    pub cr3: u64,
    /// Control register 4 (bit 12: 5-level paging).
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: Option<u64>,
    /// Base of GS as it stands.
    pub gs_base: Option<u64>,
    /// Interrupt descriptor table.
    pub idtr: Option<TableRegister>,
    /// Global descriptor table.
    pub gdtr: Option<TableRegister>,
    /// System call entry point (`MSR_LSTAR`).
    pub lstar: Option<u64>,
}
