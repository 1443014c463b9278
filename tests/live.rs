//! Live captures: the epoch is the guest's memory bit for bit, and Ctrl-C loses nothing and lets the guest go.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::process::Signal;
use serde_json::{Value, json};
use varve_fixtures::{Guest, GuestConfig};

use crate::support::{Archive, having, text};

#[test]
fn a_live_epoch_is_the_guests_memory_bit_for_bit() {
    let mut guest = Guest::boot(&GuestConfig::default()).unwrap();
    guest.start_workload(8, 8).unwrap();
    let archive = Archive::create();
    let source = format!("qemu:{}", text(&guest.qmp_socket()));
    for _ in 0..3 {
        let (copied, exported) = (archive.beside("copied"), archive.beside("exported"));
        // Paused by somebody else, the guest stays paused: so the copy is of the moment of the epoch.
        let mut ran = None;
        guest
            .paused(|paused| {
                ran = Some(archive.run(&["capture", &source, "--epochs", "1"]));
                paused.memory().copy_to(&copied)
            })
            .unwrap()
            .unwrap();
        let ran = ran.unwrap();
        ran.expect_status(0);
        assert!(
            ran.stderr.contains("paused"),
            "a guest that stood still before is remarked on: {}",
            ran.stderr
        );
        archive
            .run(&["export", "latest", "--format", "raw", "--force", "-o", text(&exported)])
            .expect_status(0);
        assert!(std::fs::read(&exported).unwrap() == std::fs::read(&copied).unwrap(), "bit for bit");
    }
}

/// With QEMU's own `pmemsave` as the second opinion on what is at which guest physical address.
#[test]
fn a_guest_with_a_hole_below_4_gib_is_captured_at_its_physical_addresses() {
    const MIB: u64 = 1 << 20;
    let memory_mib = 3072;
    let mut guest = Guest::boot(&GuestConfig { memory_mib, ..GuestConfig::default() }).unwrap();
    let archive = Archive::create();
    let source = format!("qemu:{}", text(&guest.qmp_socket()));
    // The first megabytes, both sides of the hole, and the last.
    let (hole, above) = (2048 * MIB, 4096 * MIB);
    let parts = [(0, 16), (hole - 8 * MIB, 8), (above, 16), (above + 1024 * MIB - 16 * MIB, 16)];
    let saved = |index: usize| archive.beside(&format!("part{index}"));
    guest
        .paused(|paused| {
            archive.run(&["capture", &source, "--epochs", "1"]).expect_status(0);
            for (index, (from, mib)) in parts.iter().enumerate() {
                let arguments = json!({"val": from, "size": mib * MIB, "filename": saved(index)});
                paused.qmp().execute("pmemsave", arguments).unwrap();
            }
        })
        .unwrap();
    assert_eq!(archive.json(&["epochs"], 0)[0]["pages"], memory_mib * 256);
    let exported = archive.beside("exported");
    archive.run(&["export", "0", "--format", "raw", "-o", text(&exported)]).expect_status(0);
    let exported = File::open(exported).unwrap();
    assert_eq!(exported.metadata().unwrap().len(), above + 1024 * MIB);
    for (index, (from, mib)) in parts.iter().enumerate() {
        let expected = std::fs::read(saved(index)).unwrap();
        let mut found = vec![0; (mib * MIB) as usize];
        exported.read_exact_at(&mut found, *from).unwrap();
        assert!(found == expected, "the {mib} MiB from {from:#x} on");
        assert!(found.iter().any(|byte| *byte != 0), "the {mib} MiB from {from:#x} on prove something");
    }
    // The symbols and lists are read through page tables that lead to both sides.
    assert!(archive.json(&["show", "pslist"], 0).len() > 50);
}

#[test]
fn ctrl_c_ends_a_capture_after_the_epoch_in_hand_and_the_guest_runs_on() {
    let mut guest = Guest::boot(&GuestConfig::default()).unwrap();
    guest.start_workload(8, 8).unwrap();
    let archive = Archive::create();
    let source = format!("qemu:{}", text(&guest.qmp_socket()));
    // SIGUSR1 has epochs taken long before they are due.
    for (interval, signals, at_least) in
        [("50ms", &[Signal::INT][..], 1), ("1h", &[Signal::USR1, Signal::USR1, Signal::TERM], 3)]
    {
        let (lines, ran) = archive.signalled(&["capture", &source, "--interval", interval], signals);
        ran.expect_status(0);
        assert!(having(&lines, "type", "epoch").count() >= at_least, "{lines:?}");
        let summary = lines.last().unwrap();
        assert_eq!((&summary["type"], &summary["complete"]), (&json!("summary"), &json!(true)));
        let acknowledged: Vec<&Value> = having(&lines, "type", "epoch").map(|line| &line["id"]).collect();
        let epochs = archive.json(&["epochs"], 0);
        let kept = &epochs[epochs.len() - acknowledged.len()..];
        assert_eq!(kept.iter().map(|row| &row["id"]).collect::<Vec<_>>(), acknowledged);
        assert!(guest.truth().is_ok(), "the guest answers");
    }
    archive.run(&["check", "--read-data"]).expect_status(0);
}
