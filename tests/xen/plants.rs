//! The history of all plants, lived through by a domain: the one the QEMU guests of `tests/guests.rs` have, held to the same.

use varve_fixtures::XenGuestConfig;
use varve_fixtures::history::{EPOCHS, SCHEDULE, history};

use super::host::host;
use crate::guests::Recorded;

#[test]
fn every_list_and_every_finding_of_a_domain() {
    // Named as the VM that the archive is looked at for.
    let name = "web1";
    let mut host = host();
    // As much memory as those have: the workload needs it.
    let mut guest = host.guest_with(name, XenGuestConfig::default());
    let kallsyms = String::from_utf8(guest.known_file("/proc/kallsyms").unwrap().to_vec()).unwrap();
    let epochs = history(&mut guest, &SCHEDULE, EPOCHS, |_, number| {
        let lines = host.json(name, &["capture", "xen:web1", "--epochs", "1"], 0);
        let epoch = lines.iter().find(|line| line["type"] == "epoch").unwrap();
        assert_eq!(epoch["epoch"], number, "{lines:?}");
    });
    let epochs = epochs.unwrap();
    Recorded::new(host.bring(name), epochs, kallsyms).agrees();
}
