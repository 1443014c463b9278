//! Records: what a save stream is made of between its headers.
//!
//! ```text
//! 0  type    u32   below 2^31: whoever does not know it must refuse the stream
//! 4  length  u32   of the body
//! 8  body, then zeros up to a multiple of 8
//! ```
//! The same at both levels; the types are counted separately.

use crate::xen::u32_at;

/// Most bytes in the body of a record: what libxc takes (`REC_LENGTH_MAX`, 128 MiB).
pub const MAX_RECORD_BYTES: usize = 128 << 20;

/// Bit of the types that may be passed over by whoever does not know them.
const OPTIONAL: u32 = 1 << 31;

/// Types of libxc's records, named and numbered as in `docs/specs/libxc-migration-stream.pandoc`.
#[allow(missing_docs, reason = "the names are the specification's, which says what each holds")]
pub mod libxc {
    pub const END: u32 = 0;
    pub const PAGE_DATA: u32 = 1;
    pub const X86_PV_INFO: u32 = 2;
    pub const X86_PV_P2M_FRAMES: u32 = 3;
    pub const X86_PV_VCPU_BASIC: u32 = 4;
    pub const X86_PV_VCPU_EXTENDED: u32 = 5;
    pub const X86_PV_VCPU_XSAVE: u32 = 6;
    pub const SHARED_INFO: u32 = 7;
    pub const X86_TSC_INFO: u32 = 8;
    pub const HVM_CONTEXT: u32 = 9;
    pub const HVM_PARAMS: u32 = 10;
    pub const TOOLSTACK: u32 = 11;
    pub const X86_PV_VCPU_MSRS: u32 = 12;
    pub const VERIFY: u32 = 13;
    pub const CHECKPOINT: u32 = 14;
    pub const CHECKPOINT_DIRTY_PFN_LIST: u32 = 15;
    pub const STATIC_DATA_END: u32 = 16;
    pub const X86_CPUID_POLICY: u32 = 17;
    pub const X86_MSR_POLICY: u32 = 18;
}

/// Types of libxl's records, named and numbered as in `docs/specs/libxl-migration-stream.pandoc`.
#[allow(missing_docs, reason = "the names are the specification's, which says what each holds")]
pub mod libxl {
    pub const END: u32 = 0;
    pub const LIBXC_CONTEXT: u32 = 1;
    pub const EMULATOR_XENSTORE_DATA: u32 = 2;
    pub const EMULATOR_CONTEXT: u32 = 3;
    pub const CHECKPOINT_END: u32 = 4;
    pub const CHECKPOINT_STATE: u32 = 5;
}

/// Whose record it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The domain: its memory, processors and parameters.
    Libxc,
    /// What emulates devices for it.
    Libxl,
}

/// A record other than memory and the marks that structure a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Whose it is.
    pub level: Level,
    /// Its type: of [`libxc`] or [`libxl`], or an optional one that nobody here knows.
    pub kind: u32,
    /// Its body, without padding.
    pub body: Vec<u8>,
}

impl Record {
    fn libxc(kind: u32, body: Vec<u8>) -> Self {
        Self { level: Level::Libxc, kind, body }
    }

    /// HVM_CONTEXT, from the bytes of `xc_domain_hvm_getcontext`.
    pub fn hvm_context(context: Vec<u8>) -> Self {
        Self::libxc(libxc::HVM_CONTEXT, context)
    }

    /// HVM_PARAMS, from indices and values of `xc_hvm_param_get`. Those that are 0 should be left out, as libxc does.
    pub fn hvm_params(params: &[(u64, u64)]) -> Self {
        let count = u32::try_from(params.len()).unwrap_or(u32::MAX);
        let head = count.to_le_bytes().into_iter().chain([0; 4]);
        let values = params.iter().flat_map(|(index, value)| [index.to_le_bytes(), value.to_le_bytes()]);
        Self::libxc(libxc::HVM_PARAMS, head.chain(values.flatten()).collect())
    }

    /// X86_TSC_INFO, from `xc_domain_get_tsc_info`: frequency in kHz, elapsed time in nanoseconds.
    pub fn tsc_info(mode: u32, khz: u32, nsec: u64, incarnation: u32) -> Self {
        let mut body = Vec::with_capacity(24);
        body.extend(mode.to_le_bytes());
        body.extend(khz.to_le_bytes());
        body.extend(nsec.to_le_bytes());
        body.extend(incarnation.to_le_bytes());
        body.extend([0; 4]);
        Self::libxc(libxc::X86_TSC_INFO, body)
    }

    /// X86_CPUID_POLICY, from an array of `xen_cpuid_leaf_t`.
    pub fn cpuid_policy(leaves: Vec<u8>) -> Self {
        Self::libxc(libxc::X86_CPUID_POLICY, leaves)
    }

    /// X86_MSR_POLICY, from an array of `xen_msr_entry_t`.
    pub fn msr_policy(msrs: Vec<u8>) -> Self {
        Self::libxc(libxc::X86_MSR_POLICY, msrs)
    }

    /// Whether it is part of a domain's state: neither memory nor a mark, of a type that is known or optional.
    pub fn is_state(level: Level, kind: u32) -> bool {
        match level {
            Level::Libxc => {
                let marks = [
                    libxc::VERIFY,
                    libxc::CHECKPOINT,
                    libxc::CHECKPOINT_DIRTY_PFN_LIST,
                    libxc::STATIC_DATA_END,
                ];
                let known = (libxc::X86_PV_INFO..=libxc::X86_MSR_POLICY).contains(&kind);
                kind >= OPTIONAL || known && !marks.contains(&kind)
            }
            Level::Libxl => {
                kind >= OPTIONAL || matches!(kind, libxl::EMULATOR_XENSTORE_DATA | libxl::EMULATOR_CONTEXT)
            }
        }
    }

    /// Which record of its type this is, where a domain has several: the vCPU, or the emulator and its index. A later
    /// record takes the place of an earlier one with the same type and instance.
    pub(super) fn instance(&self) -> u64 {
        let field = |at| u32_at(&self.body, at).map_or(0, u64::from);
        match (self.level, self.kind) {
            (
                Level::Libxc,
                libxc::X86_PV_VCPU_BASIC
                | libxc::X86_PV_VCPU_EXTENDED
                | libxc::X86_PV_VCPU_XSAVE
                | libxc::X86_PV_VCPU_MSRS,
            ) => field(0),
            (Level::Libxl, libxl::EMULATOR_XENSTORE_DATA | libxl::EMULATOR_CONTEXT) => {
                field(0) << 32 | field(4)
            }
            _ => 0,
        }
    }
}
