//! `syscall_table`: where system calls lead.
//!
//! - The tables of system calls: each entry is exactly one of the kernel's own system calls and, with a baseline, the one it
//!   was. From 6.9 on, and in stable kernels, tables are used for tracing only.
//! - The functions that dispatch instead (`x64_sys_call` and its siblings): with a baseline, their code is as it was; without
//!   one, every branch that leaves them leads to a system call.
//! - The entry point of the `syscall` instruction of each processor (`MSR_LSTAR`), where the source of the epoch can tell.
//!
//! Which system call belongs to which number is taken from the baseline: what the first epoch of a boot has is trusted to
//! be in its place.

mod dispatch;
mod entries;
mod numbers;

use varve_formats::Gva;

use self::numbers::{ABIS, Abi};
use super::{Scan, ScanInput, evidence, place};
use crate::finding::{Evidence, Finding, Report, Severity};
use crate::guest::Guest;

pub(super) const SCAN: Scan = Scan {
    name: "syscall_table",
    summary: "system calls that lead elsewhere than to the kernel's own functions",
    run,
};

fn run(input: &ScanInput<'_>) -> Report {
    let (mut report, baseline) = match input.begin("system calls") {
        Ok(begun) => begun,
        Err(report) => return report,
    };
    let mut any = false;
    let functions = numbers::functions(input.guest);
    for (abi, functions) in ABIS.iter().zip(&functions) {
        any |= entries::check(input.guest, baseline, abi, functions, &mut report);
    }
    any |= dispatch::check(input.guest, baseline, &functions, &mut report);
    if !any {
        report.fault("system calls", "neither a table nor a dispatching function was found".to_owned());
    }
    check_entry_points(input.guest, &mut report);
    report
}

/// A finding about one system call.
fn finding(abi: &Abi, call: &str, problem: &str, evidence: Evidence) -> Finding {
    Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title: format!("System call {call}{} {problem}", abi.suffix),
        object: format!("syscall:{}{call}", abi.object_prefix),
        evidence: vec![evidence],
        attack: &["T1014"],
    }
}

/// `MSR_LSTAR` of each processor. It is 0 on one that was not started, or that uses FRED.
fn check_entry_points(guest: &Guest<'_>, report: &mut Report) {
    /// `entry_SYSCALL_64_trampoline` was where it led with page table isolation up to 4.19.
    const ENTRIES: [&str; 2] = ["entry_SYSCALL_64", "entry_SYSCALL_64_trampoline"];
    let expected: Vec<Gva> = ENTRIES.iter().filter_map(|name| guest.symbol(name).ok()).collect();
    for vcpu in guest.vcpus() {
        let Some(lstar) = vcpu.lstar.filter(|lstar| *lstar != 0).map(Gva) else { continue };
        if expected.is_empty() {
            report.fault("entry_SYSCALL_64", "the kernel has no such symbol".to_owned());
        } else if !expected.contains(&lstar) {
            report.findings.push(Finding {
                scan: SCAN.name,
                severity: Severity::High,
                title: format!(
                    "System calls of vCPU {} enter the kernel at {} and not at entry_SYSCALL_64",
                    vcpu.index,
                    place(guest, lstar)
                ),
                object: format!("syscall:lstar:vcpu{}", vcpu.index),
                evidence: vec![evidence(guest, lstar, None, None)],
                attack: &["T1014"],
            });
        }
    }
}
