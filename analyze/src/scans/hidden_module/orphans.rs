//! Executable memory that nothing accounts for.

use varve_formats::{Gva, PAGE_SIZE, VirtualMemory};

use super::SCAN;
use crate::finding::{FaultReason, Finding, Report, Severity};
use crate::guest::Guest;
use crate::linux::layout::Structure;
use crate::linux::list::List;
use crate::linux::module::Module;
use crate::linux::patching::trampolines;
use crate::linux::walk::Walk;

/// Runs of pages told at most.
const MAX_RUNS: usize = 16;
/// Entries of one register at most.
const MAX_ENTRIES: usize = 1 << 20;
/// A BPF program's header lies in front of it, and padding behind it (`BPF_PROG_CHUNK_SIZE`).
const BPF_MARGIN: u64 = 64;
/// Bytes of a page of BPF programs (`BPF_PROG_PACK_SIZE`) for each memory node.
const BPF_PACK_BYTES: u64 = 2 << 20;

/// Tells of the executable pages among `pages` that belong to no module and are in none of the kernel's registers of
/// generated code. `pages` ascend.
pub(super) fn report<'m>(
    guest: &Guest<'_>,
    pages: Vec<Gva>,
    modules: impl Iterator<Item = &'m Module>,
    report: &mut Report,
) {
    // Before packs (5.18), programs that the kernel makes of socket filters were in no register.
    if pages.is_empty() || guest.symbol("pack_list").is_err() {
        return;
    }
    let mut known: Vec<(u64, u64)> =
        modules.flat_map(|module| &module.regions).map(|region| (region.start.0, region.len)).collect();
    for (what, found) in [
        ("BPF programs", bpf_symbols(guest)),
        ("BPF program packs", bpf_packs(guest)),
        ("ftrace trampolines", trampolines(guest).map_err(FaultReason::from)),
        ("kprobe instructions", probe_pages(guest)),
    ] {
        let walk = report.try_or_note(what, found).unwrap_or_default();
        known.extend(report.absorb(what, Ok(walk)));
    }
    let unknown = pages.into_iter().filter(|page| {
        let end = page.0.saturating_add(PAGE_SIZE as u64);
        let is_known = known.iter().any(|(start, len)| *start < end && start.saturating_add(*len) > page.0);
        !is_known && !is_harmless(guest, *page)
    });
    for (start, count) in runs(unknown).into_iter().take(MAX_RUNS) {
        report.findings.push(Finding {
            scan: SCAN.name,
            severity: Severity::Info,
            title: format!(
                "{} KiB of executable memory at {start} belong to no module, BPF program or other generated code known",
                count * PAGE_SIZE / 1024
            ),
            object: format!("executable:{start}"),
            evidence: vec![super::evidence(guest, start, None, first_bytes(guest, start).as_ref().map(<[u8; 16]>::as_slice))],
            attack: &["T1014"],
        });
    }
}

/// `bpf_kallsyms`: programs that were loaded as such, their trampolines and dispatchers.
fn bpf_symbols(guest: &Guest<'_>) -> Result<Walk<(u64, u64)>, FaultReason> {
    let Ok(head) = guest.symbol("bpf_kallsyms") else { return Ok(Walk::default()) };
    let symbol = Structure::named(guest.btf(), "bpf_ksym")?;
    let (start, end) = (symbol.field("start")?, symbol.field("end")?);
    let list = List { what: "bpf_kallsyms", head, link: symbol.field("lnode")?.offset, limit: MAX_ENTRIES };
    Ok(Walk::read_each(list.walk(guest.space()), |at| {
        let (start, end) = (start.read(guest.space(), at)?, end.read(guest.space(), at)?);
        let len = end.saturating_sub(start).saturating_add(2 * BPF_MARGIN);
        Ok((start.saturating_sub(BPF_MARGIN), len))
    }))
}

/// `pack_list`: where programs share pages. What is free there is filled with breakpoints.
fn bpf_packs(guest: &Guest<'_>) -> Result<Walk<(u64, u64)>, FaultReason> {
    let head = guest.symbol("pack_list")?;
    let pack = Structure::named(guest.btf(), "bpf_prog_pack")?;
    let start = pack.field("ptr")?;
    let nodes = guest.symbol("nr_node_ids").map_or(Ok(1), |at| guest.space().read_u32(at))?;
    let len = u64::from(nodes.clamp(1, 1024)) * BPF_PACK_BYTES;
    let list = List { what: "pack_list", head, link: pack.field("list")?.offset, limit: MAX_ENTRIES };
    Ok(Walk::read_each(list.walk(guest.space()), |at| Ok((start.read(guest.space(), at)?, len))))
}

/// The pages of `kprobe_insn_slots` and `kprobe_optinsn_slots`.
fn probe_pages(guest: &Guest<'_>) -> Result<Walk<(u64, u64)>, FaultReason> {
    let mut walk = Walk::default();
    for cache in ["kprobe_insn_slots", "kprobe_optinsn_slots"] {
        let Ok(cache) = guest.symbol(cache) else { continue };
        let head = Structure::named(guest.btf(), "kprobe_insn_cache")?.field("pages")?.of(cache)?;
        let page = Structure::named(guest.btf(), "kprobe_insn_page")?;
        let insns = page.field("insns")?;
        let list = List { what: "kprobe pages", head, link: page.field("list")?.offset, limit: MAX_ENTRIES };
        let pages = walk.absorb(list.walk(guest.space()));
        for at in pages {
            walk.push(insns.read(guest.space(), at).map(|page| (page, PAGE_SIZE as u64)));
        }
    }
    Ok(walk)
}

/// Whether a page holds nothing that does anything: unused memory, filled with breakpoints or zeros, or the kernel's
/// indirect jumps (`its_init_thunk`, `arch/x86/kernel/alternative.c`), which are `jmp *reg; int3`.
fn is_harmless(guest: &Guest<'_>, page: Gva) -> bool {
    let mut bytes = [0; PAGE_SIZE];
    guest.space().read(page, &mut bytes).is_ok() && is_filling(&bytes)
}

fn is_filling(page: &[u8]) -> bool {
    const INT3: u8 = 0xcc;
    page.iter().all(|byte| *byte == 0)
        || page.iter().all(|byte| matches!(byte, &INT3 | 0x41 | 0xff | 0xe0..=0xe7))
}

fn first_bytes(guest: &Guest<'_>, start: Gva) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    guest.space().read(start, &mut bytes).ok()?;
    Some(bytes)
}

/// Adjacent pages as runs: first page, and how many.
fn runs(pages: impl Iterator<Item = Gva>) -> Vec<(Gva, usize)> {
    let mut runs: Vec<(Gva, usize)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((start, count)) if start.0.wrapping_add((*count * PAGE_SIZE) as u64) == page.0 => {
                *count += 1
            }
            _ => runs.push((page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pages_are_one_run() {
        let pages = [0x1000, 0x2000, 0x4000, 0x5000, 0x6000].map(Gva);
        assert_eq!(runs(pages.into_iter()), [(Gva(0x1000), 2), (Gva(0x4000), 3)]);
    }

    #[test]
    fn only_filling_and_indirect_jumps_are_harmless() {
        assert!(is_filling(&[0; 64]) && is_filling(&[0xcc; 64]));
        assert!(is_filling(&[0xcc, 0xff, 0xe0, 0xcc, 0x41, 0xff, 0xe7, 0xcc]));
        assert!(!is_filling(&[0xcc, 0x0f, 0x05, 0xcc]));
        assert!(!is_filling(&[0, 0xcc]));
    }
}
