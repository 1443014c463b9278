//! Makes a stream that `xl restore` takes, of a domain's state and its memory.
//!
//! The order is that of Xen's own writers (`tools/libs/guest/xg_sr_save.c`, `tools/libs/light/libxl_stream_write.c`):
//! static data, page tables' whereabouts, memory, registers and parameters, then the emulator's state. libxc's stream is
//! of version 3, which Xen 4.14 and later read.
//!
//! Batches end where 4 MiB of guest memory do, as theirs: a receiver that sees 512 frames in a row in one batch gives the
//! domain a page of 2 MiB.

use std::io::Write;

use super::headers::{self, DomainType, LIBXC_ID, LIBXC_MARKER, LIBXL_IDENT, LIBXL_VERSION, XL_MAGIC};
use super::pages::{self, Frame, MAX_BATCH_FRAMES};
use super::record::{Level, Record, libxc, libxl};
use super::state::SaveState;
use crate::write::{Progress, WriteError, Written};
use crate::{Fault, Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE, PhysicalMemory, Region, is_zero};

/// Version of libxc's stream.
const LIBXC_VERSION: u32 = 3;

/// Most frames without contents: those of 1 TiB.
const MAX_EMPTY_FRAMES: u64 = 1 << 28;

/// What becomes of frames that are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    /// They are zeros in the stream, and counted.
    Zeros,
    /// The stream breaks off at the first.
    Refused,
}

/// Writes a stream with xl's header to `out`. Frames that the memory has no page at are not in it.
///
/// Frames of zeros are written like others, as Xen's tools do: the memory that Xen gives a new domain need not be cleared, because what
/// a living domain gave back is not (`free_domheap_pages` of `xen/common/page_alloc.c`).
///
/// # Errors
/// [`WriteError`]; what was written then has no end, and no reader takes it for complete.
pub fn write(
    state: &SaveState,
    memory: &dyn PhysicalMemory,
    damaged: Damaged,
    out: &mut dyn Write,
    progress: Progress<'_>,
) -> Result<Written, WriteError> {
    if let Some(what) = missing(state) {
        return Err(WriteError::Incomplete { what });
    }
    let mut out = Out { out, offset: 0 };
    let mut written = Written::default();
    write_headers(&mut out, state)?;
    let libxc = |phase| {
        state
            .records()
            .iter()
            .filter(move |record| record.level == Level::Libxc && Phase::of(record) == phase)
    };
    for record in libxc(Phase::First).chain(libxc(Phase::Static)) {
        out.record(record.kind, &record.body)?;
    }
    out.record(libxc::STATIC_DATA_END, &[])?;
    for record in libxc(Phase::BeforeMemory) {
        out.record(record.kind, &record.body)?;
    }
    write_memory(&mut out, state, memory, damaged, &mut written, progress)?;
    write_empty(&mut out, state, memory.regions())?;
    for record in libxc(Phase::AfterMemory) {
        out.record(record.kind, &record.body)?;
    }
    out.record(libxc::END, &[])?;
    for record in state.records().iter().filter(|record| record.level == Level::Libxl) {
        out.record(record.kind, &record.body)?;
    }
    out.record(libxl::END, &[])?;
    written.file_bytes = out.offset;
    Ok(written)
}

/// Where in libxc's part a record stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before all that depends on the width of the domain.
    First,
    Static,
    /// A PV domain's page tables are put in order with it.
    BeforeMemory,
    /// Among them HVM_PARAMS, at which the receiver clears pages of the domain.
    AfterMemory,
}

impl Phase {
    const fn of(record: &Record) -> Self {
        match record.kind {
            libxc::X86_PV_INFO => Self::First,
            libxc::X86_CPUID_POLICY | libxc::X86_MSR_POLICY => Self::Static,
            libxc::X86_PV_P2M_FRAMES => Self::BeforeMemory,
            _ => Self::AfterMemory,
        }
    }
}

/// The first record that a domain cannot do without and that is not there.
fn missing(state: &SaveState) -> Option<&'static str> {
    let needed: &[(u32, &str)] = match state.domain {
        DomainType::Hvm => &[(libxc::HVM_CONTEXT, "the HVM context")],
        DomainType::Pv => &[
            (libxc::X86_PV_INFO, "the width of the domain"),
            (libxc::X86_PV_P2M_FRAMES, "the whereabouts of its physical-to-machine table"),
            (libxc::SHARED_INFO, "its shared info page"),
            (libxc::X86_PV_VCPU_BASIC, "the registers of a vCPU"),
        ],
    };
    needed.iter().find(|(kind, _)| state.libxc(*kind).is_none()).map(|(_, what)| *what)
}

fn write_headers(out: &mut Out<'_>, state: &SaveState) -> Result<(), WriteError> {
    let config = state.config.as_ref();
    let json = if config.is_some_and(|config| config.is_json) { headers::XL_JSON } else { 0 };
    let config = config.map(|config| config.bytes.as_slice()).unwrap_or_default();
    let config_len = u32::try_from(config.len()).ok().and_then(|len| len.checked_add(4));
    let data_len = config_len.ok_or(WriteError::TooBig { what: "the configuration" })?;
    out.put(XL_MAGIC)?;
    for field in [headers::XL_BYTE_ORDER, json | headers::XL_STREAM_V2, 0, data_len, data_len - 4] {
        out.put(&field.to_le_bytes())?;
    }
    out.put(config)?;

    out.put(LIBXL_IDENT)?;
    out.put(&LIBXL_VERSION.to_be_bytes())?;
    out.put(&0u32.to_be_bytes())?;
    out.record(libxl::LIBXC_CONTEXT, &[])?;

    out.put(LIBXC_MARKER)?;
    out.put(LIBXC_ID)?;
    out.put(&LIBXC_VERSION.to_be_bytes())?;
    out.put(&[0; 8])?;
    out.put(&state.domain.number().to_le_bytes())?;
    out.put(&PAGE_SHIFT.to_le_bytes())?;
    out.put(&state.xen.0.to_le_bytes())?;
    out.put(&state.xen.1.to_le_bytes())
}

/// Frames that go into one record.
#[derive(Default)]
struct Batch {
    frames: Vec<Frame>,
    contents: Vec<u8>,
}

impl Batch {
    fn write(&mut self, out: &mut Out<'_>) -> Result<(), WriteError> {
        if self.frames.is_empty() {
            return Ok(());
        }
        // At most 1024 frames: far below what a length can say.
        let len = pages::HEAD_BYTES + self.frames.len() * pages::ENTRY_BYTES + self.contents.len();
        out.put(&libxc::PAGE_DATA.to_le_bytes())?;
        out.put(&(len as u32).to_le_bytes())?;
        out.put(&(self.frames.len() as u32).to_le_bytes())?;
        out.put(&[0; 4])?;
        let entries: Vec<u8> = self.frames.iter().flat_map(|frame| frame.entry().to_le_bytes()).collect();
        out.put(&entries)?;
        out.put(&self.contents)?;
        self.frames.clear();
        self.contents.clear();
        Ok(())
    }
}

fn write_memory(
    out: &mut Out<'_>,
    state: &SaveState,
    memory: &dyn PhysicalMemory,
    damaged: Damaged,
    written: &mut Written,
    progress: Progress<'_>,
) -> Result<(), WriteError> {
    let mut batch = Batch::default();
    let mut buffer = vec![0; MAX_BATCH_FRAMES * PAGE_SIZE];
    for region in memory.regions() {
        let mut next = region.start.gfn().0;
        let end = next.saturating_add(region.len >> PAGE_SHIFT);
        while next < end {
            let stop = end.min((next + 1).next_multiple_of(MAX_BATCH_FRAMES as u64));
            let len = (stop - next) as usize * PAGE_SIZE;
            let window = buffer.get_mut(..len).unwrap_or_default();
            let absent = read(memory, Gpa(next << PAGE_SHIFT), window, written);
            if let (Damaged::Refused, Some(at)) = (damaged, written.first_missing) {
                return Err(WriteError::Damaged { at });
            }
            for (gfn, page) in (next..stop).map(Gfn).zip(window.chunks_exact(PAGE_SIZE)) {
                let kind = state.types().get(gfn);
                if kind.has_contents() && absent.contains(&gfn) {
                    continue;
                }
                let zero = is_zero(page);
                batch.frames.push(Frame { gfn, kind });
                if kind.has_contents() {
                    batch.contents.extend_from_slice(page);
                }
                written.frames_zero += u64::from(zero);
                written.frames_data += u64::from(!zero);
            }
            batch.write(out)?;
            progress(len as u64);
            next = stop;
        }
    }
    // Damaged frames were counted as zeros, because that is what stands in the stream.
    written.frames_zero = written.frames_zero.saturating_sub(written.frames_missing);
    Ok(())
}

/// Fills `window` from `start` on, with zeros where memory is damaged, which is counted; the frames at which there is no page.
fn read(memory: &dyn PhysicalMemory, start: Gpa, window: &mut [u8], written: &mut Written) -> Vec<Gfn> {
    let mut absent = Vec::new();
    if memory.read(start, window).is_ok() {
        return absent;
    }
    for (index, page) in window.chunks_exact_mut(PAGE_SIZE).enumerate() {
        let at = Gpa(start.0.saturating_add((index * PAGE_SIZE) as u64));
        match memory.read(at, page) {
            Ok(()) => {}
            Err(Fault::NotCaptured { .. }) => absent.push(at.gfn()),
            Err(_) => {
                page.fill(0);
                written.frames_missing += 1;
                written.first_missing.get_or_insert(at);
            }
        }
    }
    absent
}

/// Writes the frames that the domain has outside its memory, of types that have no contents.
fn write_empty(out: &mut Out<'_>, state: &SaveState, regions: &[Region]) -> Result<(), WriteError> {
    let runs = || state.types().iter().filter(|(_, _, kind)| !kind.has_contents());
    let total = runs().fold(0u64, |total, (_, count, _)| total.saturating_add(count));
    if total > MAX_EMPTY_FRAMES {
        return Err(WriteError::TooBig { what: "the number of frames without contents" });
    }
    let mut batch = Batch::default();
    for (first, count, kind) in runs() {
        for gfn in (first.0..first.0.saturating_add(count)).map(Gfn).filter(|gfn| !holds(regions, *gfn)) {
            batch.frames.push(Frame { gfn, kind });
            if batch.frames.len() == MAX_BATCH_FRAMES {
                batch.write(out)?;
            }
        }
    }
    batch.write(out)
}

/// Whether the frame is in one of the regions, which ascend.
fn holds(regions: &[Region], gfn: Gfn) -> bool {
    let after = regions.partition_point(|region| region.start.gfn() <= gfn);
    let before = after.checked_sub(1).and_then(|index| regions.get(index));
    before.is_some_and(|region| gfn.0 - region.start.gfn().0 < region.len >> PAGE_SHIFT)
}

/// Where a stream goes, counted.
struct Out<'a> {
    out: &'a mut dyn Write,
    offset: u64,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let offset = self.offset;
        self.out.write_all(bytes).map_err(|source| WriteError::Io {
            doing: "a save stream",
            offset,
            source,
        })?;
        self.offset = offset.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn record(&mut self, kind: u32, body: &[u8]) -> Result<(), WriteError> {
        let len = u32::try_from(body.len()).map_err(|_| WriteError::TooBig { what: "a record" })?;
        self.put(&kind.to_le_bytes())?;
        self.put(&len.to_le_bytes())?;
        self.put(body)?;
        let padding = body.len().next_multiple_of(8) - body.len();
        self.put([0; 8].get(..padding).unwrap_or_default())
    }
}
