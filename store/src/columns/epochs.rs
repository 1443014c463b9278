//! Epoch records: what was captured, when, by whom, after which epoch.
//!
//! ```text
//! key    0  4  number of the VM, big-endian
//!        4  8  number of the epoch, big-endian
//! value  0  4  "VEPR"
//!        4  1  layout version, 1
//!        5  1  flags: bit 0 restorable
//!        6  8  number of the epoch                       (integers little-endian)
//!       14  8  taken, nanoseconds since 1970-01-01 UTC
//!       22  8  committed, likewise
//!       30  8  pages: frames with content
//!       38  8  pages_zero: of these, zero pages
//!       46  8  pages_changed: frames whose content differs from the epoch before
//!       54  8  pages_stored: pages that were new to the archive
//!       62  8  bytes_stored: bytes of the packs that hold them
//!       70 32  Merkle root
//!      102 32  id of the record before, zeros in the first
//!      134  .  name of the VM: length u8, text
//!        .  .  version of varve: length u8, text
//!        .  .  source: length u16, text
//!        .  .  regions: count u16, then start u64 and length u64 of each, in bytes
//!        .  .  sections: count u16, then tag u16, length u32 and content of each, tags ascending
//!
//! section 1, vCPUs, there unless none: count u16, then of each: index u32; which of the optional registers follow u8 (bit 0 EFER,
//! 1 GS base, 2 IDTR, 3 GDTR, 4 LSTAR); RIP, RSP, RFLAGS, CR0, CR3, CR4 u64 each; the optional ones in bit order, u64
//! each, a table register with its limit u16 behind
//! section 2, residue, there unless none: count u32, then start u64 and length u64 of each run of frames, in bytes
//! section 3, state, there if the domain's state is kept: its BLAKE3 hash
//! section 4, disk snapshot, there if one was taken: what it is called, in UTF-8
//! ```
//!
//! The id of a record is the BLAKE3 hash of these bytes, which hold the id of the record before: a hash chain. A
//! section with another tag is refused (room for signatures).

mod vcpus;

use varve_formats::{Gpa, PAGE_SIZE, Region};

use super::{Column, EpochKey, decode_epoch_key, epoch_key, expect_header};
use crate::bytes::{Malformed, Put, Reader};
use crate::columns::vms::check_name;
use crate::frames::FrameLayout;
use crate::record::{EpochId, EpochRecord};
use crate::{Digest, Place, StoreError};

const MAGIC: &[u8; 4] = b"VEPR";
const VERSION: u8 = 1;
const RESTORABLE: u8 = 1 << 0;
const SECTION_VCPUS: u16 = 1;
const SECTION_RESIDUE: u16 = 2;
const SECTION_STATE: u16 = 3;
const SECTION_DISK_SNAPSHOT: u16 = 4;

/// Longest source description, in bytes.
pub(crate) const MAX_SOURCE_LEN: usize = 4096;

/// Most runs of frames that were not quiet.
pub(crate) const MAX_RESIDUE: usize = 1 << 16;

/// Longest name of a snapshot of disks, in bytes.
pub(crate) const MAX_SNAPSHOT_LEN: usize = 4096;

/// (VM, epoch) to record.
pub(crate) struct Epochs;

impl Column for Epochs {
    const NAME: &'static str = "epochs";
    type Key = EpochKey;
    type KeyBytes = [u8; 12];
    type Value = EpochRecord;

    fn key(key: &EpochKey) -> [u8; 12] {
        epoch_key(key)
    }

    fn decode_key(bytes: &[u8]) -> Result<EpochKey, Malformed> {
        decode_epoch_key(bytes)
    }

    fn decode((_, epoch): &EpochKey, bytes: &[u8]) -> Result<EpochRecord, Malformed> {
        let record = decode(bytes)?;
        match record.number == *epoch {
            true => Ok(record),
            false => Err(Malformed::new(format!("it says it is epoch {}", record.number))),
        }
    }

    fn place((vm, epoch): &EpochKey) -> Place {
        Place::Record(*vm, *epoch)
    }
}

/// The bytes of a record. `record.id` is not among them: it is their hash ([`id_of`]).
pub(crate) fn encode(record: &EpochRecord) -> Result<Vec<u8>, StoreError> {
    if record.source.len() > MAX_SOURCE_LEN {
        return Err(StoreError::TooLarge { what: "the source description", limit: MAX_SOURCE_LEN as u64 });
    }
    let mut out = MAGIC.to_vec();
    out.put(&[VERSION, if record.restorable { RESTORABLE } else { 0 }]);
    out.put(&record.number.to_le_bytes());
    out.put(&record.taken_at_ns.to_le_bytes());
    out.put(&record.committed_at_ns.to_le_bytes());
    let counts =
        [record.pages, record.pages_zero, record.pages_changed, record.pages_stored, record.bytes_stored];
    counts.iter().for_each(|count| out.put(&count.to_le_bytes()));
    out.put(&record.root.0);
    out.put(&record.previous.map_or([0; 32], |id| id.0));
    out.put_short_text(&record.vm);
    out.put_short_text(&record.varve_version);
    out.put_long_text(&record.source);
    out.put(&(record.regions.len() as u16).to_le_bytes());
    for region in &record.regions {
        out.put(&region.start.0.to_le_bytes());
        out.put(&region.len.to_le_bytes());
    }
    let mut sections = Vec::new();
    if !record.vcpus.is_empty() {
        sections.push((SECTION_VCPUS, vcpus::encode(&record.vcpus)?));
    }
    if !record.residue.is_empty() {
        sections.push((SECTION_RESIDUE, encode_residue(&record.residue)));
    }
    if let Some(state) = &record.state {
        sections.push((SECTION_STATE, state.0.to_vec()));
    }
    if let Some(snapshot) = &record.disk_snapshot {
        sections.push((SECTION_DISK_SNAPSHOT, snapshot.clone().into_bytes()));
    }
    out.put(&(sections.len() as u16).to_le_bytes());
    for (tag, content) in sections {
        out.put(&tag.to_le_bytes());
        out.put(&(content.len() as u32).to_le_bytes());
        out.put(&content);
    }
    Ok(out)
}

fn encode_residue(residue: &[Region]) -> Vec<u8> {
    let mut out = (residue.len() as u32).to_le_bytes().to_vec();
    for run in residue {
        out.put(&run.start.0.to_le_bytes());
        out.put(&run.len.to_le_bytes());
    }
    out
}

fn decode_residue(bytes: &[u8]) -> Result<Vec<Region>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.u32()? as usize;
    if count == 0 || count > MAX_RESIDUE {
        return Err(Malformed::new(format!(
            "{count} runs of frames were not quiet (1 to {MAX_RESIDUE} are possible)"
        )));
    }
    let runs = (0..count).map(|_| Ok(Region { start: Gpa(reader.u64()?), len: reader.u64()? }));
    let runs = runs.collect::<Result<Vec<_>, Malformed>>()?;
    reader.finish()?;
    match runs
        .iter()
        .all(|run| run.len > 0 && (run.start.0 | run.len) % PAGE_SIZE as u64 == 0 && run.end().is_some())
    {
        true => Ok(runs),
        false => Err(Malformed::new("the frames that were not quiet are no frames")),
    }
}

/// The id of the record with these bytes.
pub(crate) fn id_of(bytes: &[u8]) -> EpochId {
    EpochId(*blake3::hash(bytes).as_bytes())
}

fn decode(bytes: &[u8]) -> Result<EpochRecord, Malformed> {
    let mut reader = Reader::new(bytes);
    expect_header(&mut reader, MAGIC, VERSION)?;
    let flags = reader.u8()?;
    if flags & !RESTORABLE != 0 {
        return Err(Malformed::new(format!("flags {flags:#04x} are unknown to this varve")));
    }
    let mut record = EpochRecord {
        id: id_of(bytes),
        restorable: flags & RESTORABLE != 0,
        number: reader.u64()?,
        taken_at_ns: reader.i64()?,
        committed_at_ns: reader.i64()?,
        pages: reader.u64()?,
        pages_zero: reader.u64()?,
        pages_changed: reader.u64()?,
        pages_stored: reader.u64()?,
        bytes_stored: reader.u64()?,
        root: Digest(reader.array()?),
        previous: Some(reader.array()?).filter(|id| *id != [0; 32]).map(EpochId),
        vm: reader.short_text()?,
        varve_version: reader.short_text()?,
        source: reader.long_text()?,
        regions: decode_regions(&mut reader)?,
        vcpus: Vec::new(),
        residue: Vec::new(),
        state: None,
        disk_snapshot: None,
    };
    if record.previous.is_some() != (record.number > 0) {
        return Err(Malformed::new("every record but the first names the one before"));
    }
    if record.source.len() > MAX_SOURCE_LEN {
        return Err(Malformed::new(format!("the source description is longer than {MAX_SOURCE_LEN} bytes")));
    }
    check_name(&record.vm).map_err(|error| Malformed::new(error.to_string()))?;
    decode_sections(&mut reader, &mut record)?;
    reader.finish()?;
    Ok(record)
}

fn decode_regions(reader: &mut Reader<'_>) -> Result<Vec<Region>, Malformed> {
    let count = reader.u16()?;
    let regions = (0..count)
        .map(|_| Ok(Region { start: Gpa(reader.u64()?), len: reader.u64()? }))
        .collect::<Result<Vec<_>, Malformed>>()?;
    match FrameLayout::new(&regions) {
        Ok(_) => Ok(regions),
        Err(error) => Err(Malformed::new(error.to_string())),
    }
}

fn decode_sections(reader: &mut Reader<'_>, record: &mut EpochRecord) -> Result<(), Malformed> {
    let mut previous = 0;
    for _ in 0..reader.u16()? {
        let tag = reader.u16()?;
        let len = reader.u32()? as usize;
        let content = reader.take(len)?;
        if tag <= previous {
            return Err(Malformed::new("sections are not ascending"));
        }
        previous = tag;
        match tag {
            SECTION_VCPUS => record.vcpus = vcpus::decode(content)?,
            SECTION_RESIDUE => record.residue = decode_residue(content)?,
            SECTION_STATE => record.state = Some(decode_digest(content)?),
            SECTION_DISK_SNAPSHOT => record.disk_snapshot = Some(decode_snapshot(content)?),
            tag => return Err(Malformed::new(format!("section {tag} is unknown to this varve"))),
        }
    }
    Ok(())
}

fn decode_snapshot(bytes: &[u8]) -> Result<String, Malformed> {
    match std::str::from_utf8(bytes) {
        Ok(name) if bytes.len() <= MAX_SNAPSHOT_LEN => Ok(name.to_owned()),
        _ => Err(Malformed::new(format!(
            "the snapshot of disks is not called by {MAX_SNAPSHOT_LEN} bytes of text"
        ))),
    }
}

fn decode_digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    let mut reader = Reader::new(bytes);
    let digest = Digest(reader.array()?);
    reader.finish()?;
    Ok(digest)
}

#[cfg(test)]
mod tests;
