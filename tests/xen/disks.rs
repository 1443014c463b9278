//! A domain goes back together with its disk, by the recipe that the documentation has for thin LVM volumes.

use varve_fixtures::XenGuestConfig;

use super::host::{GUEST_MIB, host};

const RECIPE: &[u8] = include_bytes!("../../docs/recipes/disks-lvm-thin");

/// A volume with an empty file system.
const VOLUME: &str = "vgs varvelab >/dev/null 2>&1 || {
    truncate -s 512M /run/lab/disks
    loop=$(losetup --show -f /run/lab/disks)
    vgcreate varvelab $loop
    lvcreate --type thin-pool --size 256M --poolmetadatasize 8M --name pool varvelab
}
lvcreate --thin --virtualsize 64M --name disks varvelab/pool
mke2fs -q -t ext4 /dev/varvelab/disks";

/// Loads the file system, of which parts may be built in.
const MODULES: &str = "for name in crc32c_generic crc16 mbcache jbd2 ext4; do \
                       [ ! -e /lib/varve/$name.ko ] || busybox insmod /lib/varve/$name.ko; done";

/// Writes a number a line, each on the disk before the next, and ends at a line that is not the one before.
const WRITER: &str =
    "while [ \"$(tail -n 1 /mnt/log)\" = $n ]; do n=$((n + 1)); echo $n >>/mnt/log; sync /mnt/log; done";

#[test]
fn a_domain_goes_back_with_its_disk_and_not_without() {
    let mut host = host();
    host.put("/run/lab/bin/disks-lvm-thin", RECIPE);
    host.script("disks", VOLUME);
    let config = XenGuestConfig {
        memory_mib: GUEST_MIB,
        disk: Some("/dev/varvelab/disks"),
        ..XenGuestConfig::default()
    };
    let mut guest = host.guest_with("disks", config);
    guest.script(MODULES).unwrap();
    guest.script("busybox mkdir /mnt; busybox mount -t ext4 /dev/xvda /mnt; echo first >/mnt/evidence; echo 0 >/mnt/log; sync").unwrap();
    let writer = guest.spawn("writer", 0, "/usr/bin/bash", &["-c", &format!("n=0; {WRITER}")]).unwrap();
    // Not on the disk yet, but in the memory of the epoch.
    guest.script("seq 5000 >/mnt/unwritten").unwrap();
    let capture = ["capture", "xen:disks", "--epochs", "1", "--quiesce", "suspend"];
    let snapshot = ["--disk-snapshot", "disks-lvm-thin snapshot varvelab/disks"];
    let captured = host.varve("disks", &[&capture[..], &snapshot].concat());
    assert_eq!(captured.status, Some(0), "{}", captured.output);
    assert!(host.json("disks", &["epochs"], 0)[0]["disk_snapshot"].is_string(), "{}", captured.output);
    guest.script("echo later >/mnt/evidence; rm /mnt/unwritten; seq 9000 >/mnt/more; sync").unwrap();
    host.json("disks", &capture, 0);

    let restore = ["--disk-restore", "disks-lvm-thin restore varvelab/disks"];
    for (arguments, reason) in [
        (vec!["rollback", "0", "--replace"], "nothing says that they are of the same moment"),
        (
            [&["rollback", "1", "--replace"][..], &restore].concat(),
            "no snapshot of them was taken with this epoch",
        ),
    ] {
        let refused = host.varve("disks", &arguments);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
        assert!(refused.output.contains(reason), "{}", refused.output);
    }
    assert_eq!(guest.script("cat /mnt/evidence").unwrap(), "later\n", "nothing has changed so far");

    let done = &host.json("disks", &[&["rollback", "0", "--replace"][..], &restore].concat(), 0)[0];
    assert_eq!(done["disks"][0], "xvda (/dev/varvelab/disks)", "{done}");
    host.reach_again(&mut guest);
    assert_eq!(
        guest.script("cat /mnt/evidence; busybox ls /mnt").unwrap(),
        "first\nevidence\nlog\nlost+found\nunwritten\n"
    );
    let written = |log: &str| log.lines().map(|line| line.parse().unwrap()).collect::<Vec<usize>>();
    let before = written(&guest.script("cat /mnt/log").unwrap());
    guest
        .script(
            "n=$(tail -n 1 /mnt/log); until [ $(tail -n 1 /mnt/log) -gt $((n + 10)) ]; do sleep 0.1; done",
        )
        .unwrap();
    // What the disk holds is read, not what the kernel remembers of it.
    guest.kill(writer, 15).unwrap();
    guest.script("sync; echo 3 >/proc/sys/vm/drop_caches").unwrap();
    let after = written(&guest.script("cat /mnt/log").unwrap());
    assert!(after.len() > before.len() + 10, "it goes on writing");
    assert!(after.iter().copied().eq(0..after.len()), "no line is missing or there twice: {after:?}");
    guest.script("[ \"$(cat /mnt/unwritten)\" = \"$(seq 5000)\" ]").unwrap();
    guest.script("busybox umount /mnt").unwrap();
    host.script("disks", "xl destroy disks; e2fsck -fn /dev/varvelab/disks");
    let until = host.script(
        "disks",
        "until=/dev/varvelab/$(lvs --noheadings -o name varvelab | grep -o 'disks-until-.*')\n\
         e2fsck -fp $until >/dev/null || [ $? = 1 ]\ndebugfs -R 'cat evidence' $until 2>/dev/null",
    );
    assert_eq!(until, "later\n", "what the disk was until the rollback is kept");
    host.script("disks", "lvremove -y -q varvelab/pool");
}
