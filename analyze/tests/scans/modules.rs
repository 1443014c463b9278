//! `hidden_module`.

use super::kernel::Healthy;
use super::tasks::unlink;
use super::{found, objects, scan};

fn member(healthy: &Healthy, name: &str) -> u64 {
    healthy.module + healthy.kernel.types.member("module", name).0
}

fn object(healthy: &Healthy) -> String {
    format!("module:made_up:{:#x}", healthy.module)
}

#[test]
fn a_module_unlinked_from_the_list_is_hidden() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let node = member(&healthy, "list");
    unlink(&mut healthy.kernel, node);
    let report = scan("hidden_module", &healthy.kernel.memory, None, "", &[]);
    assert_eq!(objects(&report), [object(&healthy)]);
    assert_eq!(
        report.findings[0].title,
        "Module made_up is hidden: it is missing from the module list and known to sysfs"
    );
    assert_eq!(report.findings[0].evidence[0].before, Some(node.to_le_bytes().to_vec()));
}

#[test]
fn a_module_that_left_sysfs_is_hidden() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let entry = member(&healthy, "mkobj.kobj.entry");
    unlink(&mut healthy.kernel, entry);
    assert_eq!(found("hidden_module", &healthy.kernel.memory, None), [object(&healthy)]);
}

#[test]
fn a_module_that_is_being_loaded_is_not_hidden() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let entry = member(&healthy, "mkobj.kobj.entry");
    unlink(&mut healthy.kernel, entry);
    for state in [1, 2, 3] {
        healthy.kernel.set(healthy.module, "module", "state", state);
        assert_eq!(found("hidden_module", &healthy.kernel.memory, None), [""; 0], "state {state}");
    }
}

#[test]
fn a_module_that_claims_to_be_unformed_is_not_clean() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let node = member(&healthy, "list");
    unlink(&mut healthy.kernel, node);
    healthy.kernel.set(healthy.module, "module", "state", 3);
    let report = scan("hidden_module", &healthy.kernel.memory, None, "", &[]);
    assert!(report.findings.is_empty() && !report.complete);
}
