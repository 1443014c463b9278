//! `symbols_changed`: whether the kernel still describes itself as it did.
//!
//! Symbols (kallsyms), types (BTF) and banner are read-only data of the kernel image. A reboot moves them, or brings those
//! of another kernel: worth knowing, and no alarm. Changed in place they are an attempt to mislead whoever reads them:
//! debuggers, and this program.
//!
//! The comparison is that of the bring-up ([`Continuity`]): with the kernels pinned in earlier epochs.

use varve_formats::symbols::kallsyms::Table;
use varve_formats::{Gva, VirtualMemory};

use super::{Scan, ScanInput, evidence};
use crate::finding::{Evidence, Finding, Report, Severity};
use crate::guest::{Continuity, Guest};

pub(super) const SCAN: Scan = Scan {
    name: "symbols_changed",
    summary: "the kernel's symbols or types changed; the guest was rebooted",
    run,
};

/// Compared at a time, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes shown of a difference.
const SHOWN_BYTES: usize = 16;

fn run(input: &ScanInput<'_>) -> Report {
    let mut report = Report::done();
    match input.guest.continuity() {
        Continuity::First | Continuity::Same => {}
        Continuity::Rebooted => report.findings.push(rebooted(input.guest, "The guest was rebooted")),
        Continuity::OtherKernel => {
            let title =
                format!("The guest was rebooted into another kernel: {}", input.guest.profile().banner());
            report.findings.push(rebooted(input.guest, &title));
        }
        Continuity::Altered { kallsyms, btf, banner } => {
            let parts = [
                (kallsyms, "kallsyms", "symbol table"),
                (btf, "btf", "types (BTF)"),
                (banner, "banner", "banner"),
            ];
            for (_, part, name) in parts.into_iter().filter(|(altered, ..)| *altered) {
                report.findings.push(altered(input, part, name));
            }
        }
    }
    report
}

fn rebooted(guest: &Guest<'_>, title: &str) -> Finding {
    let banner = guest.pin().banner_at;
    Finding {
        scan: SCAN.name,
        severity: Severity::Info,
        title: title.to_owned(),
        object: "kernel:boot".to_owned(),
        evidence: vec![evidence(guest, banner, None, None)],
        attack: &[],
    }
}

fn altered(input: &ScanInput<'_>, part: &str, name: &str) -> Finding {
    Finding {
        scan: SCAN.name,
        severity: Severity::Critical,
        title: format!("The kernel's {name} changed while the kernel was running"),
        object: format!("kernel:{part}"),
        evidence: input
            .baseline
            .and_then(|baseline| first_difference(input.guest, baseline, part))
            .into_iter()
            .collect(),
        attack: &["T1014"],
    }
}

/// The first bytes that differ from the baseline.
fn first_difference(guest: &Guest<'_>, baseline: &Guest<'_>, part: &str) -> Option<Evidence> {
    if baseline.placement() != guest.placement() {
        return None;
    }
    tables(baseline, part).into_iter().find_map(|(start, len)| {
        let (mut now, mut before) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        for offset in (0..len).step_by(CHUNK_BYTES) {
            let at = start.checked_add(offset)?;
            let here = usize::try_from(len - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let (now, before) = (now.get_mut(..here)?, before.get_mut(..here)?);
            guest.space().read(at, now).ok()?;
            baseline.space().read(at, before).ok()?;
            if let Some(first) = now.iter().zip(&*before).position(|(now, before)| now != before) {
                let last = here.min(first + SHOWN_BYTES);
                let at = at.checked_add(first as u64)?;
                return Some(evidence(guest, at, before.get(first..last), now.get(first..last)));
            }
        }
        None
    })
}

/// Where a part of the kernel's description is.
fn tables(guest: &Guest<'_>, part: &str) -> Vec<(Gva, u64)> {
    let moved = guest.placement().kernel_offset.wrapping_sub(guest.profile().kernel_offset());
    match part {
        "kallsyms" => {
            let tables = guest.profile().kallsyms().tables().iter();
            tables.map(|Table { start, len, .. }| (Gva(start.0.wrapping_add(moved)), *len)).collect()
        }
        "btf" => {
            let section =
                guest.symbol("__start_BTF").and_then(|start| Ok((start, guest.symbol("__stop_BTF")?)));
            section
                .ok()
                .and_then(|(start, stop)| Some((start, stop.offset_from(start)?)))
                .into_iter()
                .collect()
        }
        _ => vec![(guest.pin().banner_at, guest.pin().banner.as_bytes().len() as u64)],
    }
}
