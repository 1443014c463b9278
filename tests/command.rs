//! The command as scripts and people meet it: exit statuses, messages, JSON, and inputs that make no sense.

use rustix::process::Signal;

use crate::support::{Archive, having, text};

fn image(archive: &Archive, name: &str, fill: u8) -> std::path::PathBuf {
    let file = archive.beside(name);
    let bytes: Vec<u8> = (0..64u32).flat_map(|frame| [(frame as u8).wrapping_mul(fill); 4096]).collect();
    std::fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn exit_statuses_tell_failures_apart() {
    let missing = Archive::missing();
    let ran = missing.run(&["epochs"]);
    ran.expect_status(10);
    assert!(ran.stderr.contains("varve init"), "{}", ran.stderr);
    missing.run(&["no-such-command"]).expect_status(2);
    missing.run(&["scan", "--scan", "no_such_scan"]).expect_status(2);

    let archive = Archive::create();
    archive.run(&["init"]).expect_status(1);
    archive.run(&["epochs"]).expect_status(1);
    archive.run(&["import", "/no/such/file"]).expect_status(1);
    archive.run(&["check"]).expect_status(0);
}

#[test]
fn output_that_nobody_reads_is_not_a_verdict() {
    let archive = Archive::create();
    archive.run(&["import", text(&image(&archive, "a.raw", 1))]).expect_status(0);
    for command in ["epochs", "sweep"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = archive.command().arg(command).stdout(writer).output().unwrap();
        assert_eq!(ran.status.code(), Some(141), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn an_archive_being_written_is_locked_for_writers_and_open_for_readers() {
    let archive = Archive::create();
    let file = image(&archive, "a.raw", 1);
    archive.run(&["import", text(&file)]).expect_status(0);
    let lock = std::fs::File::open(archive.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let ran = archive.run(&["import", text(&file)]);
    ran.expect_status(11);
    assert!(ran.stderr.contains("locked"), "{}", ran.stderr);
    archive.run(&["epochs"]).expect_status(0);
}

#[test]
fn imported_images_are_epochs_in_the_order_given_and_come_back_bit_for_bit() {
    let archive = Archive::create();
    let (a, b) = (image(&archive, "a.raw", 1), image(&archive, "b.raw", 3));
    let lines = archive.json(&["import", text(&a), text(&b), text(&a)], 0);
    assert_eq!(having(&lines, "type", "epoch").count(), 3);
    let epochs = archive.json(&["epochs"], 0);
    let keys: Vec<&str> = epochs[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "bytes_stored",
            "epoch",
            "id",
            "pages",
            "pages_changed",
            "residue",
            "restorable",
            "root",
            "source",
            "taken_at",
            "vm"
        ]
    );
    assert_eq!(epochs[0]["root"], epochs[2]["root"], "equal memory has an equal root");
    assert_ne!(epochs[0]["id"], epochs[2]["id"], "and the epochs are different ones");
    assert_eq!(epochs[2]["bytes_stored"], 0, "nothing is stored twice");
    for (epoch, file) in [("0", &a), ("latest~1", &b), ("latest", &a)] {
        let out = archive.beside("out.raw");
        archive.run(&["export", epoch, "--format", "raw", "--force", "-o", text(&out)]).expect_status(0);
        assert!(std::fs::read(&out).unwrap() == std::fs::read(file).unwrap(), "epoch {epoch}");
    }
    let out = archive.beside("out.raw");
    let refused = archive.run(&["export", "0", "--format", "raw", "-o", text(&out)]);
    refused.expect_status(1);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
}

#[test]
fn an_image_exported_as_lime_is_the_same_epoch_again() {
    let archive = Archive::create();
    let (file, lime) = (image(&archive, "a.raw", 5), archive.beside("a.lime"));
    archive.run(&["import", text(&file)]).expect_status(0);
    archive.run(&["export", "0", "--format", "lime", "-o", text(&lime)]).expect_status(0);
    archive.run(&["import", text(&lime)]).expect_status(0);
    let epochs = archive.json(&["epochs"], 0);
    assert_eq!(epochs[0]["root"], epochs[1]["root"]);
}

#[test]
fn a_bad_image_changes_nothing_and_what_came_before_it_stays() {
    let archive = Archive::create();
    let good = image(&archive, "good.raw", 1);
    let bad = archive.beside("bad.lime");
    // A LiME header that claims more memory than the file has.
    let mut header = b"EMiL\x01\0\0\0".to_vec();
    header.extend([0; 8]);
    header.extend(0xffff_ffff_u64.to_le_bytes());
    header.extend([0; 8]);
    std::fs::write(&bad, header).unwrap();
    let ran = archive.run(&["import", text(&good), text(&bad)]);
    ran.expect_status(1);
    assert!(ran.stderr.contains("bad.lime"), "{}", ran.stderr);
    assert_eq!(archive.json(&["epochs"], 0).len(), 1);
}

#[test]
fn memory_without_a_kernel_is_incomplete_and_never_clean() {
    let archive = Archive::create();
    let file = image(&archive, "a.raw", 1);
    archive.run(&["import", text(&file)]).expect_status(0);
    let lines = archive.json(&["sweep"], 3);
    assert_eq!(having(&lines, "type", "fault").count(), 1);
    assert_eq!(lines.last().unwrap()["complete"], false);
    let answer = archive.json(&["first-bad"], 3);
    assert_eq!((&answer[0]["first_bad"], &answer[0]["complete"]), (&serde_json::Value::Null, &false.into()));
    let ran = archive.run(&["show", "pslist"]);
    ran.expect_status(1);
    assert!(ran.stderr.contains("what to try"), "{}", ran.stderr);
}

#[test]
fn a_misspelt_policy_is_an_error_before_anything_is_scanned() {
    let archive = Archive::create();
    let (file, policy) = (image(&archive, "a.raw", 1), archive.beside("policy.toml"));
    archive.run(&["import", text(&file)]).expect_status(0);
    std::fs::write(&policy, "[process]\ndenny = [\"xmrig\"]\n").unwrap();
    let ran = archive.run(&["sweep", "--policy", text(&policy)]);
    ran.expect_status(1);
    assert!(ran.stderr.contains("denny"), "{}", ran.stderr);
}

#[test]
fn a_policy_that_is_not_used_and_a_scan_without_one_are_errors() {
    let archive = Archive::create();
    let policy = archive.beside("policy.toml");
    std::fs::write(&policy, "[process]\ndeny = [\"xmrig\"]\n").unwrap();
    archive.run(&["import", text(&image(&archive, "a.raw", 1))]).expect_status(0);
    for arguments in [vec!["--scan", "process_policy"], vec!["--scan", "idt", "--policy", text(&policy)]] {
        let ran = archive.run(&[vec!["scan"], arguments].concat());
        ran.expect_status(2);
        assert!(ran.stderr.contains("--policy"), "{}", ran.stderr);
    }
    for (arguments, judged) in [(vec![], false), (vec!["--policy", text(&policy)], true)] {
        let lines = archive.json(&[vec!["scan"], arguments].concat(), 3);
        let scans = lines.last().unwrap()["scans"].as_array().unwrap().clone();
        assert_eq!(scans.contains(&"process_policy".into()), judged);
    }
}

#[test]
fn an_interrupted_import_does_not_look_complete() {
    let archive = Archive::create();
    let file = image(&archive, "a.raw", 1);
    let mut import = vec!["import"];
    import.resize(500, text(&file));
    let (lines, ran) = archive.signalled(&import, &[Signal::INT]);
    ran.expect_status(1);
    assert!(ran.stderr.contains("interrupted after"), "{}", ran.stderr);
    assert_eq!(lines.last().unwrap()["complete"], false);
}

#[test]
fn an_export_replaces_files_only() {
    let archive = Archive::create();
    archive.run(&["import", text(&image(&archive, "a.raw", 1))]).expect_status(0);
    let folder = archive.beside("folder");
    std::fs::create_dir(&folder).unwrap();
    for output in [text(&folder), "/dev/null"] {
        let ran = archive.run(&["export", "0", "--format", "raw", "--force", "-o", output]);
        ran.expect_status(1);
        assert!(ran.stderr.contains("is not a file"), "{}", ran.stderr);
    }
    archive.run(&["export", "0", "--format", "raw", "-o", "-"]).expect_status(2);
}

#[test]
fn memory_of_another_size_is_remarked_on() {
    let archive = Archive::create();
    let (file, short) = (image(&archive, "a.raw", 1), archive.beside("short.raw"));
    std::fs::write(&short, vec![1; 16 * 4096]).unwrap();
    let ran = archive.run(&["import", text(&file), text(&short)]);
    assert!(ran.expect_status(0).stderr.contains("epoch 1 has 64.0 KiB of memory"), "{}", ran.stderr);
}

#[test]
fn two_vms_are_kept_apart_and_share_their_pages() {
    let archive = Archive::create();
    let file = image(&archive, "a.raw", 1);
    archive.run(&["import", text(&file)]).expect_status(0);
    archive.run(&["--vm", "db1", "import", text(&file)]).expect_status(0);
    let vms = archive.json(&["vms"], 0);
    let named: Vec<&str> = vms.iter().map(|vm| vm["vm"].as_str().unwrap()).collect();
    assert_eq!(named, ["db1", "web1"]);
    assert_eq!(archive.json(&["--vm", "db1", "epochs"], 0)[0]["bytes_stored"], 0);
    archive.run(&["--vm", "../evil", "import", text(&file)]).expect_status(1);
}
