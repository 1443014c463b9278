//! The vCPU section of an epoch record. Its layout is shown in the parent module.

use varve_formats::{TableRegister, Vcpu};

use crate::StoreError;
use crate::bytes::{Malformed, Put, Reader};

/// Most vCPUs of a guest. (KVM's own limit, `KVM_MAX_VCPUS`, is 4096 on x86.)
const MAX_VCPUS: usize = 4096;

const EFER: u8 = 1 << 0;
const GS_BASE: u8 = 1 << 1;
const IDTR: u8 = 1 << 2;
const GDTR: u8 = 1 << 3;
const LSTAR: u8 = 1 << 4;
const ALL: u8 = EFER | GS_BASE | IDTR | GDTR | LSTAR;

pub(super) fn encode(vcpus: &[Vcpu]) -> Result<Vec<u8>, StoreError> {
    if vcpus.len() > MAX_VCPUS {
        return Err(StoreError::TooLarge { what: "the list of vCPUs", limit: MAX_VCPUS as u64 });
    }
    let mut out = (vcpus.len() as u16).to_le_bytes().to_vec();
    for vcpu in vcpus {
        out.put(&vcpu.index.to_le_bytes());
        let present = [
            (EFER, vcpu.efer.is_some()),
            (GS_BASE, vcpu.gs_base.is_some()),
            (IDTR, vcpu.idtr.is_some()),
            (GDTR, vcpu.gdtr.is_some()),
            (LSTAR, vcpu.lstar.is_some()),
        ];
        out.put(&[present.iter().filter(|(_, is)| *is).fold(0, |flags, (bit, _)| flags | bit)]);
        for register in [vcpu.rip, vcpu.rsp, vcpu.rflags, vcpu.cr0, vcpu.cr3, vcpu.cr4] {
            out.put(&register.to_le_bytes());
        }
        [vcpu.efer, vcpu.gs_base].iter().flatten().for_each(|value| out.put(&value.to_le_bytes()));
        for table in [vcpu.idtr, vcpu.gdtr].iter().flatten() {
            out.put(&table.base.to_le_bytes());
            out.put(&table.limit.to_le_bytes());
        }
        vcpu.lstar.iter().for_each(|value| out.put(&value.to_le_bytes()));
    }
    Ok(out)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Vcpu>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = usize::from(reader.u16()?);
    if count == 0 || count > MAX_VCPUS {
        return Err(Malformed::new(format!("it says it has {count} vCPUs (1 to {MAX_VCPUS} are possible)")));
    }
    let vcpus = (0..count).map(|_| decode_one(&mut reader)).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(vcpus)
}

fn decode_one(reader: &mut Reader<'_>) -> Result<Vcpu, Malformed> {
    let index = reader.u32()?;
    let present = reader.u8()?;
    if present & !ALL != 0 {
        return Err(Malformed::new(format!("vCPU registers {present:#04x} are unknown to this varve")));
    }
    Ok(Vcpu {
        index,
        rip: reader.u64()?,
        rsp: reader.u64()?,
        rflags: reader.u64()?,
        cr0: reader.u64()?,
        cr3: reader.u64()?,
        cr4: reader.u64()?,
        efer: optional(present & EFER, reader, Reader::u64)?,
        gs_base: optional(present & GS_BASE, reader, Reader::u64)?,
        idtr: optional(present & IDTR, reader, table)?,
        gdtr: optional(present & GDTR, reader, table)?,
        lstar: optional(present & LSTAR, reader, Reader::u64)?,
    })
}

fn optional<'a, T>(
    bit: u8,
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if bit == 0 { Ok(None) } else { read(reader).map(Some) }
}

fn table(reader: &mut Reader<'_>) -> Result<TableRegister, Malformed> {
    Ok(TableRegister { base: reader.u64()?, limit: reader.u16()? })
}
