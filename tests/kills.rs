//! `kill -9` at random moments: what was acknowledged is there, bit for bit, and nothing is there by half.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use varve_fixtures::{Guest, GuestConfig};

use crate::support::{Archive, text, times};

/// Kills of an import, and of a live capture, in one run of the suite; `VARVE_KILLS` asks for another number.
const IMPORT_KILLS: usize = 40;
const CAPTURE_KILLS: usize = 8;

/// Image files of one import.
const IMAGES: usize = 6;

/// Frames of an image.
const FRAMES: usize = 512;

#[test]
fn an_import_killed_at_any_moment_loses_no_acknowledged_epoch() {
    let kills = times("VARVE_KILLS", IMPORT_KILLS);
    let archive = Archive::create();
    let images: Vec<PathBuf> = (0..IMAGES).map(|number| archive.beside(&format!("{number}.raw"))).collect();
    for (number, image) in images.iter().enumerate() {
        std::fs::write(image, contents(number)).unwrap();
    }
    let mut acknowledged = HashMap::new();
    for _ in 0..kills {
        let mut child = archive.command();
        child.args(["--json", "import"]).args(&images);
        acknowledged.extend(kill_after(&mut child, random(400)));
        let epochs = archive_epochs(&archive);
        for (epoch, id) in &acknowledged {
            assert_eq!(epochs[*epoch as usize]["id"], *id, "an acknowledged epoch is there, and the same");
        }
    }
    assert!(acknowledged.len() >= kills, "kills must come late enough for something to be acknowledged");
    for row in archive_epochs(&archive) {
        let number: usize = row["source"].as_str().unwrap().rsplit('/').next().unwrap()[..1].parse().unwrap();
        let exported = archive.beside("exported");
        let epoch = row["epoch"].to_string();
        archive
            .run(&["export", &epoch, "--format", "raw", "--force", "-o", text(&exported)])
            .expect_status(0);
        assert!(
            std::fs::read(&exported).unwrap() == contents(number),
            "epoch {epoch} is image {number}, bit for bit"
        );
    }
    archive.run(&["check", "--read-data"]).expect_status(0);
}

#[test]
fn a_capture_killed_at_any_moment_loses_no_acknowledged_epoch_and_the_guest_runs_again() {
    let mut guest = Guest::boot(&GuestConfig::default()).unwrap();
    guest.start_workload(8, 8).unwrap();
    let archive = Archive::create();
    let source = format!("qemu:{}", text(&guest.qmp_socket()));
    let mut acknowledged = HashMap::new();
    for _ in 0..times("VARVE_KILLS", CAPTURE_KILLS) {
        let mut child = archive.command();
        child.args(["--json", "capture", &source, "--interval", "50ms"]);
        acknowledged.extend(kill_after(&mut child, random(1500)));
        // Whatever the killed one left behind, the next one takes an epoch and lets the guest go.
        let lines = archive.json(&["capture", &source, "--epochs", "1"], 0);
        acknowledged.insert(lines[0]["epoch"].as_u64().unwrap(), lines[0]["id"].clone());
        assert!(guest.truth().is_ok(), "the guest answers");
        let epochs = archive_epochs(&archive);
        for (epoch, id) in &acknowledged {
            assert_eq!(epochs[*epoch as usize]["id"], *id, "an acknowledged epoch is there, and the same");
        }
    }
    archive.run(&["check", "--read-data"]).expect_status(0);
}

/// Starts a command, kills it after `delay`, and gives the epochs it acknowledged, with their ids.
fn kill_after(command: &mut std::process::Command, delay: Duration) -> Vec<(u64, Value)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let killer = thread::spawn(move || {
        thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    // A line is complete or was not acknowledged.
    let lines =
        stdout.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let acknowledged = lines
        .filter(|line| line["type"] == "epoch")
        .map(|line| (line["epoch"].as_u64().unwrap(), line["id"].clone()));
    let acknowledged = acknowledged.collect();
    killer.join().unwrap();
    acknowledged
}

fn archive_epochs(archive: &Archive) -> Vec<Value> {
    // Before the first epoch there is no VM yet.
    let ran = archive.command().args(["--json", "epochs"]).output().unwrap();
    String::from_utf8(ran.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The bytes of image `number`: a third zeros, a third the same in all, a third its own.
fn contents(number: usize) -> Vec<u8> {
    let page = |frame: usize| {
        let seed = match frame % 3 {
            0 => return vec![0; 4096],
            1 => frame,
            _ => frame + 1000 * (number + 1),
        };
        let mut state = seed as u64 + 1;
        let mut bytes = Vec::with_capacity(4096);
        while bytes.len() < 4096 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&(state >> 32).to_le_bytes());
        }
        bytes
    };
    (0..FRAMES).flat_map(page).collect()
}

/// A random time below `milliseconds`.
fn random(milliseconds: u64) -> Duration {
    Duration::from_millis(RandomState::new().hash_one(0) % milliseconds)
}
