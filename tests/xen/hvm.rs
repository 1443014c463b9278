//! A whole emulated machine: its memory is also written to by the emulator of its devices, which Xen does not see.

use std::collections::HashSet;

use varve_fixtures::{Hypervisor, XenGuestConfig, XenGuestKind, digest};

use super::exact::{archived, copy_of_an_epoch, differing, frames};
use super::host::{GUEST_MIB, host};
use super::{lists_agree, undisturbed_epoch};

/// A disk that is like nothing else, and its content.
const DISK: &str = "head -c 4194304 /dev/urandom >/run/lab/emulated; losetup --find --show /run/lab/emulated";

/// Loads the driver of the emulated disk, with what it depends on.
const DRIVER: &str = "for name in scsi_common scsi_mod libata ata_piix sd_mod; do \
                      [ ! -e /lib/varve/$name.ko ] || busybox insmod /lib/varve/$name.ko; done; \
                      until [ -b /dev/sda ]; do sleep 0.1; done";

/// Reads the emulated disk. Somebody keeps it open: the last to close a disk takes its pages out of memory.
const READ: &str = "exec 3</dev/sda; sleep infinity >/dev/null 2>&1 & cat /dev/sda >/dev/null";

/// Reads it again, from its device.
const READ_AGAIN: &str = "echo 1 >/proc/sys/vm/drop_caches; cat /dev/sda >/dev/null";

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

    let frames = frames(&guest);
    host.begin_capture("web1", "--interval 300ms", 2);
    guest.script(READ).unwrap();
    guest.host_mut().pause().unwrap();
    let copied = copy_of_an_epoch(&mut host, &guest, &frames);
    guest.host_mut().resume().unwrap();
    host.end_capture("web1");
    let archive = host.bring("web1");

    let pages: HashSet<u64> = content.chunks(4096).map(digest).collect();
    let memory: HashSet<u64> = copied.frames.values().copied().collect();
    assert_eq!(
        pages.difference(&memory).count(),
        0,
        "pages of the disk are not in the guest that has read it"
    );
    let epoch = &archive.json(&["epochs"], 0)[copied.epoch as usize];
    let different = differing(&archived(&archive, copied.epoch), &copied.frames);
    println!("of {} frames, different: {different:x?}; {epoch}", frames.len());
    let of_the_disk = |frame: &u64| copied.frames.get(frame).is_some_and(|digest| pages.contains(digest));
    assert!(!different.iter().any(of_the_disk), "{different:x?}, {epoch}");
    // As with others, Xen tells it of events in three frames, and does not note that.
    assert!(different.len() as u64 <= epoch["residue"].as_u64().unwrap() + 3, "{different:x?}, {epoch}");

    // The next takes back what one that was killed has told the emulator, or was about to tell it.
    host.begin_capture("web1", "--interval 300ms", 2);
    host.script("web1", "kill -9 $(cat /tmp/capture)");
    for about_to_tell in [false, true] {
        if about_to_tell {
            host.leave_journal("web1", "-L");
        }
        host.json("web1", &["capture", "xen:web1", "--epochs", "1"], 0);
        guest.script(READ_AGAIN).expect("the guest has its devices");
    }

    for arguments in [&["capture", "xen:web1", "--quiesce", "suspend"][..], &["rollback", "0"]] {
        let refused = host.varve("web1", arguments);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
    }
    assert!(guest.truth().is_ok(), "the guest runs on");
}
