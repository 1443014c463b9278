//! A whole emulated machine: its memory is also written to by the emulator of its devices, which Xen does not see.

use std::collections::HashSet;

use varve_fixtures::{XenGuestConfig, XenGuestKind, digest};

use super::exact::archived;
use super::host::{GUEST_MIB, host};
use super::{lists_agree, undisturbed_epoch};

/// A disk that is like nothing else, and its content.
const DISK: &str = "head -c 4194304 /dev/urandom >/run/lab/emulated; losetup --find --show /run/lab/emulated";

/// Loads the driver of the emulated disk, with what it depends on.
const DRIVER: &str = "for name in scsi_common scsi_mod libata ata_piix sd_mod; do \
                      [ ! -e /lib/varve/$name.ko ] || busybox insmod /lib/varve/$name.ko; done; \
                      until [ -b /dev/sda ]; do sleep 0.1; done";

#[test]
fn an_emulated_machine_is_captured_with_what_its_emulator_writes() {
    let mut host = host();
    let disk = host.script("web1", DISK);
    // As constant as those of other disks.
    let disk: &'static str = disk.trim().to_owned().leak();
    let content = host.read("/run/lab/emulated");
    let config = XenGuestConfig {
        kind: XenGuestKind::Hvm,
        memory_mib: GUEST_MIB,
        disk: Some(disk),
        ..XenGuestConfig::default()
    };
    let mut guest = host.guest_with("web1", config);
    guest.script(DRIVER).unwrap();
    let (epoch, truth) = undisturbed_epoch(&mut host, &mut guest, &[]);
    lists_agree(&mut host, "web1", epoch, &truth);

    host.begin_capture("web1", "--interval 300ms", 2);
    guest.script("cat /dev/sda >/dev/null").unwrap();
    host.more_epochs("web1", 2);
    host.end_capture("web1");
    let last = host.json("web1", &["epochs"], 0).len() as u64 - 1;
    let archive = host.bring("web1");
    let memory: HashSet<u64> = archived(&archive, last).into_values().collect();
    let missing = content.chunks(4096).filter(|page| !memory.contains(&digest(page))).count();
    assert_eq!(missing, 0, "pages of the disk that the guest has read and epoch {last} has not");

    for arguments in [&["capture", "xen:web1", "--quiesce", "suspend"][..], &["rollback", "0"]] {
        let refused = host.varve("web1", arguments);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
    }
    assert!(guest.truth().is_ok(), "the guest runs on");
}
