//! The HVM context of a domain: what the hypervisor keeps of a PVH or HVM guest beside its memory.
//!
//! `xc_domain_hvm_getcontext` gives it, and save streams carry it in their `HVM_CONTEXT` record. It is a list of
//! entries, each behind a descriptor (`struct hvm_save_descriptor`, `xen/include/public/hvm/save.h`):
//! ```text
//! 0  typecode  u16   1 HEADER, 2 CPU, … 0 END
//! 2  instance  u16   which one of this type: the vCPU's number
//! 4  length    u32   bytes that follow, without this descriptor
//! ```
//! The first entry is the header, which begins with a magic number; the last is END, of length 0. Of a CPU entry
//! (`struct hvm_hw_cpu`, `xen/include/public/arch-x86/hvm/save.h`) this is used:
//! ```text
//! 568  rsp          640  rip, rflags, cr0, cr2, cr3, cr4          u64
//! 800  idtr_limit   804  gdtr_limit                               u32
//! 840  gs_base      872  idtr_base   880  gdtr_base               u64
//! 960  msr_lstar    992  msr_efer                                 u64
//! ```
//! Entries were only ever made longer at their end: 1016 bytes before Xen 3.4, 1032 now. A vCPU that is down has none.

use super::{u16_at, u32_at, u64_at};
use crate::{FormatError, TableRegister, Vcpu};

/// `HVM_FILE_MAGIC`.
const MAGIC: u32 = 0x5438_1286;

const DESCRIPTOR_BYTES: usize = 8;

/// Shortest CPU entry of any version.
const CPU_BYTES_MIN: usize = 1016;

/// Typecode of the entry behind the last one.
pub const END: u16 = 0;
/// Typecode of the entry that every context begins with.
pub const HEADER: u16 = 1;
/// Typecode of a vCPU's registers.
pub const CPU: u16 = 2;

/// One entry of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it describes, such as [`CPU`].
    pub kind: u16,
    /// Which one of those, from 0.
    pub instance: u16,
    /// Where the body begins in the context, in bytes.
    pub offset: usize,
    /// What the descriptor announced.
    pub body: &'a [u8],
}

/// The entries of a context in its order, END left out. Ends with an error when the context does not end with END.
pub fn entries(context: &[u8]) -> Entries<'_> {
    Entries { context, at: 0, over: false }
}

/// See [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    context: &'a [u8],
    at: usize,
    over: bool,
}

impl<'a> Entries<'a> {
    fn next_entry(&mut self) -> Result<Option<Entry<'a>>, FormatError> {
        let at = self.at;
        let descriptor = self.context.get(at..).and_then(|rest| {
            Some((u16_at(rest, 0)?, u16_at(rest, 2)?, usize::try_from(u32_at(rest, 4)?).ok()?))
        });
        let Some((kind, instance, len)) = descriptor else {
            return Err(bad(at, "the HVM context is cut off: no END entry"));
        };
        let offset = at + DESCRIPTOR_BYTES;
        let body = offset.checked_add(len).and_then(|end| self.context.get(offset..end));
        let Some(body) = body else {
            let reason =
                format!("an entry of type {kind} of {len} bytes reaches past the end of the HVM context");
            return Err(bad(at, reason));
        };
        if at == 0 && (kind != HEADER || u32_at(body, 0) != Some(MAGIC)) {
            return Err(bad(at, "no HVM context: it does not begin with a header"));
        }
        if kind == END {
            return Ok(None);
        }
        self.at = offset + len;
        Ok(Some(Entry { kind, instance, offset, body }))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.next_entry().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The vCPUs that are up, by number.
///
/// # Errors
/// [`FormatError`] with an offset in the context: it is cut off, has no header, a CPU entry is too short, or two
/// claim to be the same vCPU.
pub fn vcpus(context: &[u8]) -> Result<Vec<Vcpu>, FormatError> {
    let mut vcpus: Vec<Vcpu> = Vec::new();
    for entry in entries(context) {
        let entry = entry?;
        if entry.kind != CPU {
            continue;
        }
        let vcpu = cpu(entry.instance.into(), entry.body).ok_or_else(|| {
            let len = entry.body.len();
            bad(entry.offset, format!("a CPU entry of {len} bytes, less than {CPU_BYTES_MIN}"))
        })?;
        vcpus.push(vcpu);
    }
    vcpus.sort_by_key(|vcpu| vcpu.index);
    let twice = vcpus.iter().zip(vcpus.iter().skip(1)).find(|(one, other)| one.index == other.index);
    if let Some((twice, _)) = twice {
        return Err(bad(0, format!("vCPU {} is in the HVM context twice", twice.index)));
    }
    Ok(vcpus)
}

/// The vCPU with number `index` of which `body` is the CPU entry, as `xc_domain_hvm_getcontext_partial` also gives it;
/// `None` when it is too short.
pub fn cpu(index: u32, body: &[u8]) -> Option<Vcpu> {
    if body.len() < CPU_BYTES_MIN {
        return None;
    }
    Some(Vcpu {
        index,
        rsp: u64_at(body, 568)?,
        rip: u64_at(body, 640)?,
        rflags: u64_at(body, 648)?,
        cr0: u64_at(body, 656)?,
        cr3: u64_at(body, 672)?,
        cr4: u64_at(body, 680)?,
        gs_base: u64_at(body, 840),
        idtr: table_register(body, 872, 800),
        gdtr: table_register(body, 880, 804),
        lstar: u64_at(body, 960),
        efer: u64_at(body, 992),
    })
}

/// `None` when the limit is none that the register can hold.
fn table_register(body: &[u8], base: usize, limit: usize) -> Option<TableRegister> {
    Some(TableRegister { base: u64_at(body, base)?, limit: u16::try_from(u32_at(body, limit)?).ok()? })
}

fn bad(at: usize, reason: impl Into<String>) -> FormatError {
    FormatError::new("HVM context", at as u64, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use varve_fixtures::synth::xl_save::{Cpu, hvm_context};

    use super::*;

    fn context(indices: &[u16]) -> Vec<u8> {
        let cpus: Vec<_> = indices.iter().map(|index| Cpu { index: *index, ..Cpu::default() }).collect();
        hvm_context(&cpus)
    }

    #[test]
    fn no_part_of_a_context_is_one() {
        let whole = context(&[0, 3]);
        let numbers: Vec<_> = vcpus(&whole).unwrap().iter().map(|vcpu| vcpu.index).collect();
        assert_eq!(numbers, [0, 3]);
        for cut in 0..whole.len() {
            assert!(vcpus(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn refusals_say_where_and_why() {
        let mut short = context(&[0]);
        short[32..40].copy_from_slice(&[2, 0, 0, 0, 16, 0, 0, 0]);
        let mut long = context(&[0]);
        long[36..40].copy_from_slice(&[0xff; 4]);
        let said =
            [context(&[1, 1]), vec![0; 64], vec![9; 64], short, long].map(|bytes| match vcpus(&bytes) {
                Ok(vcpus) => format!("{} vCPUs", vcpus.len()),
                Err(error) => error.to_string(),
            });
        insta::assert_snapshot!(said.join("\n"));
    }

    proptest! {
        #[test]
        fn damaged_contexts_end(at in 0usize..1200, patch in any::<[u8; 4]>()) {
            let mut bytes = context(&[0, 1]);
            let at = at.min(bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(&patch);
            prop_assert!(entries(&bytes).count() <= bytes.len() / 8);
            let _ = vcpus(&bytes);
        }
    }
}
