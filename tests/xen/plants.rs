//! The history of all plants, lived through by a domain: the one the QEMU guests of `tests/guests.rs` have, held to the same.
//!
//! One capture goes through it, and is told when to take an epoch.

use std::time::Duration;

use varve_fixtures::XenGuestConfig;
use varve_fixtures::history::{EPOCHS, SCHEDULE, history};

use super::host::host;
use crate::guests::Recorded;

/// Longest wait for an epoch.
const PATIENCE: Duration = Duration::from_secs(200);

#[test]
fn every_list_and_every_finding_of_a_domain() {
    // Named as the VM that the archive is looked at for.
    let name = "web1";
    let mut host = host();
    // As much memory as those have: the workload needs it.
    let mut guest = host.guest_with(name, XenGuestConfig::default());
    let kallsyms = String::from_utf8(guest.known_file("/proc/kallsyms").unwrap().to_vec()).unwrap();
    let epochs = history(&mut guest, &SCHEDULE, EPOCHS, |_, number| {
        if number == 0 {
            host.begin_capture(name, "--interval 10h", 1);
        } else {
            host.script(name, "kill -USR1 $(cat /tmp/capture)");
            let taken = host.lines("/tmp/epochs", r#""type":"epoch""#, number as usize + 1, PATIENCE);
            assert!(taken, "epoch {number}: {}", host.script(name, "cat /tmp/said /tmp/epochs"));
        }
    });
    let epochs = epochs.unwrap();
    host.end_capture(name);
    Recorded::new(host.bring(name), epochs, kallsyms).agrees();
}
