//! `kernel_text`: the code of the kernel and of its modules, byte by byte.
//!
//! A byte may differ from the baseline only where the kernel itself patches its code, and only by what it may put there
//! ([`Patching`](crate::linux::patching)). The present value of every such place is checked too, with or without a
//! baseline: a function that calls a tracer nobody registered is found in the first epoch already.
//!
//! Limits: the baseline is trusted. A module that was loaded after it has nothing to be compared with; only the places
//! that the kernel patches are checked. Whether a *registered* probe or tracer is wanted is another question.

mod compare;
mod image;
mod texts;

use varve_formats::Fault;

use super::{Scan, ScanInput, evidence, place};
use crate::finding::{Finding, Report, Severity};
use crate::guest::Guest;
use crate::linux::patching::{Patching, probes, static_call_trampolines};

use self::compare::{Difference, compare};
use self::image::TextImage;
use self::texts::{CheckedText, checked_texts};

pub(super) const SCAN: Scan = Scan {
    name: "kernel_text",
    summary: "kernel and module code that differs from the baseline where the kernel does not patch itself",
    run,
};

/// Findings of one report at most. More than that is one finding: the code is another.
const MAX_FINDINGS: usize = 256;

fn run(input: &ScanInput<'_>) -> Report {
    let (mut report, baseline) = match input.begin("kernel text") {
        Ok(begun) => begun,
        Err(report) => return report,
    };
    let checked = checked_texts(input.guest, baseline, &mut report);
    let texts: Vec<_> = checked.iter().map(|checked| checked.text).collect();
    let patching = Patching::read(input.guest, &texts, &mut report);
    for checked in &checked {
        check(input.guest, checked, &patching, &mut report);
    }
    report
}

fn check(guest: &Guest<'_>, checked: &CheckedText<'_, '_>, patching: &Patching, report: &mut Report) {
    let now = TextImage::read(guest, &checked.text, None);
    let before = checked.baseline.map(|baseline| {
        let mut image = TextImage::read(baseline, &checked.text, Some((guest, &now)));
        image.disarm(&probes(baseline, report));
        image
    });
    for image in [Some(&now), before.as_ref()].into_iter().flatten() {
        for fault in &image.faults {
            report.fault(checked.what(), *fault);
        }
    }
    let trampolines = checked.module.as_ref().map(|_| {
        let believed = before.as_ref().unwrap_or(&now);
        static_call_trampolines(believed.start, &believed.bytes)
    });
    let trampolines = trampolines.unwrap_or_default();
    for difference in compare(&now, before.as_ref(), patching, &trampolines) {
        if report.findings.len() == MAX_FINDINGS {
            let limit = Fault::Limit { what: "findings", limit: MAX_FINDINGS as u64, at: difference.at.0 };
            return report.fault(checked.what(), limit);
        }
        if difference.kind.is_some_and(|kind| patching.is_changing(kind)) {
            report.fault(checked.what(), "the kernel is patching its text at this moment".to_owned());
        } else {
            report.findings.push(finding(guest, checked, &difference));
        }
    }
}

fn finding(guest: &Guest<'_>, checked: &CheckedText<'_, '_>, difference: &Difference<'_>) -> Finding {
    let place = match &checked.module {
        Some(module) => format!("{module}+{:#x}", difference.at.0.wrapping_sub(checked.text.start.0)),
        None => place(guest, difference.at),
    };
    let of = checked.what();
    let title = match difference.kind {
        Some(kind) => format!("Code of {of} at {place} is not what {} may put there", kind.name()),
        None => format!("Code of {of} changed at {place}, where the kernel does not patch itself"),
    };
    Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title,
        object: place,
        evidence: vec![evidence(guest, difference.at, difference.before, Some(difference.after))],
        attack: &["T1014"],
    }
}
