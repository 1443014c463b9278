//! The scans on a made-up kernel: healthy, with each kind of intrusion, and with memory that lies.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it does not expect must fail"
)]

mod synthetic;

#[path = "scans/code.rs"]
mod code;
#[path = "scans/hostile.rs"]
mod hostile;
#[path = "scans/kernel.rs"]
mod kernel;
#[path = "scans/modules.rs"]
mod modules;
#[path = "scans/tasks.rs"]
mod tasks;

use varve_analyze::guest::{Guest, Profiles};
use varve_analyze::policy::Policy;
use varve_analyze::scans::{self, SCANS, ScanInput};
use varve_analyze::{Report, Severity};
use varve_formats::Vcpu;

use kernel::Healthy;
use synthetic::Memory;

/// Runs one scan.
fn scan(name: &str, memory: &Memory, baseline: Option<&Memory>, policy: &str, vcpus: &[Vcpu]) -> Report {
    let profiles = Profiles::new();
    let baseline = baseline.map(|memory| Guest::open(memory, vcpus, &[], &profiles).unwrap());
    let input = ScanInput {
        guest: &Guest::open(memory, vcpus, &[], &profiles).unwrap(),
        baseline: baseline.as_ref(),
        policy: &Policy::parse(policy).unwrap(),
    };
    (scans::named(name).unwrap().run)(&input)
}

/// The objects of what a scan finds, after checking that it could look at everything.
fn found(name: &str, memory: &Memory, baseline: Option<&Memory>) -> Vec<String> {
    objects(&scan(name, memory, baseline, "", &[]))
}

fn objects(report: &Report) -> Vec<String> {
    assert!(report.complete && report.faults.is_empty(), "{:?}", report.faults);
    report.findings.iter().map(|finding| finding.object.clone()).collect()
}

#[test]
fn a_healthy_kernel_is_clean_alone_and_compared_with_itself() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let memory = &healthy.kernel.memory;
    for baseline in [None, Some(memory)] {
        for known in SCANS {
            let report = scan(known.name, memory, baseline, "[process]\ndeny = [\"xmrig\"]", &[]);
            assert!(report.is_clean(Severity::Info), "{}: {report:?}", known.name);
        }
    }
}

#[test]
fn scans_keep_their_names_and_order() {
    let names: Vec<&str> = SCANS.iter().map(|scan| scan.name).collect();
    assert_eq!(
        names,
        [
            "process_policy",
            "hidden_task",
            "hidden_module",
            "syscall_table",
            "idt",
            "kernel_text",
            "symbols_changed"
        ]
    );
    assert!(scans::named("no_such_scan").is_none());
}

#[test]
fn an_epoch_during_boot_is_not_clean() {
    let mut healthy = Healthy::new();
    let state = healthy.kernel.symbol("system_state");
    healthy.kernel.finish();
    let booted = healthy.kernel.memory.clone();
    healthy.kernel.write(state, &1u32.to_le_bytes());
    for name in ["syscall_table", "idt", "kernel_text"] {
        let report = scan(name, &healthy.kernel.memory, Some(&booted), "", &[]);
        assert!(!report.complete && report.findings.is_empty(), "{name}");
        assert_eq!(
            found(name, &booted, Some(&healthy.kernel.memory)),
            [""; 0],
            "{name}: a baseline during boot"
        );
    }
}
