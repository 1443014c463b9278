//! All of a stream that is not memory: kept with an epoch, it makes the epoch one that can be restored.
//!
//! Encoded, version 1 (numbers are LEB128 varints without superfluous bytes, unless a width is given):
//! ```text
//! magic "vxenstat", version u8 = 1
//! domain type u8 (1 PV, 2 HVM), Xen's major and minor version
//! configuration: 0 none, 1 text, 2 JSON (u8); if there is one, its length and bytes
//! number of runs of page types; each: frames since the end of the run before, frames - 1, type u8
//! number of records; each: level u8 (0 libxc, 1 libxl), type u32, length, body
//! ```
//! There is one encoding of a state, and nothing may follow it.

mod codec;

use super::headers::{Config, DomainType, Header};
use super::page_type::{PageType, PageTypes};
use super::pages::Frame;
use super::record::{Level, MAX_RECORD_BYTES, Record, libxc};
use crate::xen::pv_context::{self, Mode};
use crate::xen::{hvm_context, u32_at};
use crate::{FormatError, Vcpu};

/// Most records of a state. A PV domain has four for each vCPU, others some ten in all.
pub const MAX_RECORDS: usize = 1 << 14;

/// Most bytes of a state, encoded or in records. Most have some 10 KiB; an emulator's can have some MiB.
pub const MAX_STATE_BYTES: usize = 256 << 20;

/// What a domain is besides its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveState {
    /// The domain's type.
    pub domain: DomainType,
    /// Major and minor version of the Xen it ran on.
    pub xen: (u32, u32),
    /// Its configuration.
    pub config: Option<Config>,
    types: PageTypes,
    records: Vec<Record>,
    record_bytes: usize,
}

impl SaveState {
    /// The state of a domain of which only the headers are known.
    pub fn new(header: Header) -> Self {
        let Header { domain, xen, config, .. } = header;
        let types = PageTypes::default();
        Self { domain, xen, config, types, records: Vec::new(), record_bytes: 0 }
    }

    /// The records in order, the latest of each kind, vCPU and emulator.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What the frames are used for.
    pub const fn types(&self) -> &PageTypes {
        &self.types
    }

    /// The libxc record of this type, the first if there are several.
    pub fn libxc(&self, kind: u32) -> Option<&Record> {
        self.records.iter().find(|record| record.level == Level::Libxc && record.kind == kind)
    }

    /// Bytes in a word of the domain: 4 for PV domains that say so, else 8.
    pub fn guest_width(&self) -> u8 {
        let info = self.libxc(libxc::X86_PV_INFO).and_then(|record| record.body.first());
        info.copied().unwrap_or(8)
    }

    /// Adds a record. One of the same type, vCPU and emulator gives up its place to it: so does a receiver of a
    /// checkpointed stream.
    ///
    /// # Errors
    /// [`FormatError`] past [`MAX_RECORD_BYTES`], [`MAX_RECORDS`] or [`MAX_STATE_BYTES`], and when
    /// the record is [no part of a state](Record::is_state).
    pub fn keep(&mut self, record: Record) -> Result<(), FormatError> {
        if !Record::is_state(record.level, record.kind) || record.body.len() > MAX_RECORD_BYTES {
            return Err(bad(0, format!("a record of type {:#x} is no part of a state", record.kind)));
        }
        let key = |record: &Record| (record.level, record.kind, record.instance());
        let place = self.records.iter().position(|other| key(other) == key(&record));
        let replaced = place.and_then(|place| self.records.get_mut(place));
        let theirs = replaced.as_ref().map_or(0, |replaced| replaced.body.len());
        let bytes = (self.record_bytes - theirs).saturating_add(record.body.len());
        if bytes > MAX_STATE_BYTES {
            return Err(bad(0, format!("records of more than {MAX_STATE_BYTES} bytes")));
        }
        if let Some(replaced) = replaced {
            *replaced = record;
        } else if self.records.len() < MAX_RECORDS {
            self.records.push(record);
        } else {
            return Err(bad(0, format!("more than {MAX_RECORDS} records")));
        }
        self.record_bytes = bytes;
        Ok(())
    }

    /// Takes note of what frames are used for, as the pages of a stream come.
    ///
    /// # Errors
    /// [`FormatError`] past [`MAX_TYPE_RUNS`](super::MAX_TYPE_RUNS).
    pub fn keep_types(&mut self, frames: &[Frame]) -> Result<(), FormatError> {
        if self.types.is_empty()
            && frames.iter().all(|frame| matches!(frame.kind, PageType::Normal | PageType::Absent))
        {
            return Ok(());
        }
        for frame in frames {
            self.types.set(frame.gfn, 1, frame.kind).map_err(|error| bad(0, error.to_string()))?;
        }
        Ok(())
    }

    /// The vCPUs that were up, by number. The CR3 of a PV domain holds guest frames, as its page tables in a stream do.
    ///
    /// # Errors
    /// [`FormatError`] with an offset in the record: it is too short or not what it should be. A 32-bit PV domain, too.
    pub fn vcpus(&self) -> Result<Vec<Vcpu>, FormatError> {
        match self.domain {
            DomainType::Hvm => match self.libxc(libxc::HVM_CONTEXT) {
                Some(record) => hvm_context::vcpus(&record.body),
                None => Ok(Vec::new()),
            },
            DomainType::Pv => self.pv_vcpus(),
        }
    }

    fn pv_vcpus(&self) -> Result<Vec<Vcpu>, FormatError> {
        if self.guest_width() != 8 {
            return Err(bad(0, "a 32-bit PV domain: its registers are not read"));
        }
        let is_basic =
            |record: &&Record| record.level == Level::Libxc && record.kind == libxc::X86_PV_VCPU_BASIC;
        let mut vcpus = Vec::new();
        // An empty context is what Xen 4.6 to 4.8 wrote by mistake (the specification, Errata).
        for record in self.records.iter().filter(is_basic).filter(|record| record.body.len() != 8) {
            let vcpu = record
                .body
                .split_at_checked(8)
                .and_then(|(head, context)| pv_context::vcpu(u32_at(head, 0)?, context, Mode::Pv));
            vcpus.push(vcpu.ok_or_else(|| bad(0, "the registers of a vCPU are cut off"))?);
        }
        vcpus.sort_by_key(|vcpu| vcpu.index);
        Ok(vcpus)
    }
}

fn bad(at: usize, reason: impl Into<String>) -> FormatError {
    FormatError::new("state of the domain", at as u64, reason)
}

#[cfg(test)]
mod tests;
