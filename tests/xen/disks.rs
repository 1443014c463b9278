//! A domain goes back together with its disk, by the recipes that the documentation has.

use varve_fixtures::XenGuestConfig;

use super::host::{GUEST_MIB, host};

/// A disk, and how it is kept in step.
struct Disk {
    /// The name of the domain.
    domain: &'static str,
    /// Where it is in dom0.
    path: &'static str,
    /// The recipe's name and text.
    recipe: (&'static str, &'static [u8]),
    /// What the recipe calls the disk.
    called: &'static str,
    /// Makes it, with an empty file system.
    make: &'static str,
    /// Looks at it when the domain is gone, and takes it away.
    check: &'static str,
}

/// A thin volume. What it was until the rollback is kept.
const VOLUME: Disk = Disk {
    domain: "volume",
    path: "/dev/varvelab/disk",
    recipe: ("disks-lvm-thin", include_bytes!("../../docs/recipes/disks-lvm-thin")),
    called: "varvelab/disk",
    make: "truncate -s 512M /run/lab/disks
loop=$(losetup --show -f /run/lab/disks)
vgcreate varvelab $loop
lvcreate --type thin-pool --size 256M --poolmetadatasize 8M --name pool varvelab
lvcreate --thin --virtualsize 64M --name disk varvelab/pool
mke2fs -q -t ext4 /dev/varvelab/disk",
    check: "e2fsck -fn /dev/varvelab/disk
until=/dev/varvelab/$(lvs --noheadings -o name varvelab | grep -o 'disk-until-.*')
e2fsck -fp $until || [ $? = 1 ]
[ \"$(debugfs -R 'cat evidence' $until)\" = later ]
vgremove -qff varvelab
losetup --detach $(losetup --noheadings --output NAME --associated /run/lab/disks)
rm /run/lab/disks",
};

/// A file of QEMU's format, which a QEMU in dom0 serves.
const FILE: Disk = Disk {
    domain: "file",
    path: "/run/lab/disk.qcow2",
    recipe: ("disks-qcow2", include_bytes!("../../docs/recipes/disks-qcow2")),
    called: "/run/lab/disk.qcow2",
    make: "truncate -s 64M /run/lab/raw
mke2fs -q -t ext4 /run/lab/raw
qemu-img convert -O qcow2 /run/lab/raw /run/lab/disk.qcow2
rm /run/lab/raw",
    check: "qemu-img check /run/lab/disk.qcow2
qemu-img convert -O raw /run/lab/disk.qcow2 /run/lab/raw
e2fsck -fn /run/lab/raw
rm /run/lab/raw /run/lab/disk.qcow2",
};

/// Loads the file system, of which parts may be built in.
const MODULES: &str = "for name in crc32c_generic crc16 mbcache jbd2 ext4; do \
                       [ ! -e /lib/varve/$name.ko ] || busybox insmod /lib/varve/$name.ko; done";

/// Writes a number a line, each on the disk before the next, and ends at a line that is not the one before.
const WRITER: &str =
    "while [ \"$(tail -n 1 /mnt/log)\" = $n ]; do n=$((n + 1)); echo $n >>/mnt/log; sync /mnt/log; done";

#[test]
fn a_domain_goes_back_with_its_thin_volume_and_not_without() {
    a_domain_goes_back_with(&VOLUME);
}

#[test]
fn a_domain_goes_back_with_its_qcow2_file_and_not_without() {
    a_domain_goes_back_with(&FILE);
}

fn a_domain_goes_back_with(disk: &Disk) {
    let Disk { domain, path, recipe: (recipe, text), called, make, check } = *disk;
    let mut host = host();
    if path.ends_with(".qcow2") {
        host.emulator();
    }
    host.put(&format!("/run/lab/bin/{recipe}"), text);
    host.script(domain, make);
    let config = XenGuestConfig { memory_mib: GUEST_MIB, disk: Some(path), ..XenGuestConfig::default() };
    let mut guest = host.guest_with(domain, config);
    guest.script(MODULES).unwrap();
    guest.script("busybox mkdir /mnt; busybox mount -t ext4 /dev/xvda /mnt; echo first >/mnt/evidence; echo 0 >/mnt/log; sync").unwrap();
    let writer = guest.spawn("writer", 0, "/usr/bin/bash", &["-c", &format!("n=0; {WRITER}")]).unwrap();
    // Not on the disk yet, but in the memory of the epoch.
    guest.script("seq 5000 >/mnt/unwritten").unwrap();
    let source = format!("xen:{domain}");
    let capture = ["capture", &source, "--epochs", "1", "--quiesce", "suspend"];
    let snapshot = ["--disk-snapshot", &format!("{recipe} snapshot {called}")];
    let captured = host.varve(domain, &[&capture[..], &snapshot].concat());
    assert_eq!(captured.status, Some(0), "{}", captured.output);
    assert!(host.json(domain, &["epochs"], 0)[0]["disk_snapshot"].is_string(), "{}", captured.output);
    guest.script("echo later >/mnt/evidence; rm /mnt/unwritten; seq 9000 >/mnt/more; sync").unwrap();
    host.json(domain, &capture, 0);

    let restore = ["--disk-restore", &format!("{recipe} restore {called}")];
    for (arguments, reason) in [
        (vec!["rollback", "0", "--replace"], "nothing says that they are of the same moment"),
        (
            [&["rollback", "1", "--replace"][..], &restore].concat(),
            "no snapshot of them was taken with this epoch",
        ),
    ] {
        let refused = host.varve(domain, &arguments);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
        assert!(refused.output.contains(reason), "{}", refused.output);
    }
    assert_eq!(guest.script("cat /mnt/evidence").unwrap(), "later\n", "nothing has changed so far");

    let done = &host.json(domain, &[&["rollback", "0", "--replace"][..], &restore].concat(), 0)[0];
    assert_eq!(done["disks"][0], format!("xvda ({path})"), "{done}");
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
    host.script(domain, &format!("xl destroy {domain}\n{check}"));
}
