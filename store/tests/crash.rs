//! Writers that die: killed at any moment, or out of disk.
//!
//! The children of these tests are this test binary again, started with `VARVE_CRASH_CHILD` set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Frame, Guest, assert_epoch, commit, page, regions};
use varve_store::hash::digest_page;
use varve_store::{Access, Archive, Content, FrameChange, StoreError};

const CHILD: &str = "VARVE_CRASH_CHILD";
const ROUNDS: &str = "VARVE_CRASH_ROUNDS";
const RUNS: &[(u64, u64)] = &[(0, 600)];

/// Epoch n of the model, which any process can compute: a third of the frames change each time, some are zero.
fn model(n: u64) -> Guest {
    let frame = |gfn: u64| match (gfn + n) / 3 {
        step if step % 11 == 0 => Frame::Zero,
        step => Frame::Seed(gfn * 1_000_000 + step),
    };
    (0..600).map(|gfn| (gfn, frame(gfn))).collect()
}

fn process(role: &str, archive: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, role).env("VARVE_CRASH_ARCHIVE", archive);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// What a child does. Without a role this is not a child, and there is nothing to do.
#[test]
fn child() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let path = std::env::var("VARVE_CRASH_ARCHIVE").unwrap();
    let archive = Archive::open(path.as_ref(), Access::Write).unwrap();
    match role.as_str() {
        "commit" => {
            let first = archive.epoch_count("web1").unwrap_or(0);
            for n in first.. {
                commit(&archive, "web1", RUNS, &model(n));
                println!("acknowledged {n}");
            }
        }
        "fill" => {
            fill(&archive);
        }
        "fill-and-recover" => {
            let big = fill(&archive);
            drop(archive);
            // Space comes back when the first, half-written files of the failed epoch are gone, and a little more.
            std::fs::remove_file(format!("{path}/ballast")).unwrap();
            assert_recovers(path.as_ref(), big);
        }
        other => panic!("{other}"),
    }
}

/// Kills a writer again and again, each time at another moment from its start to somewhere in its later epochs. What it
/// acknowledged must read back bit for bit, and of what it did not, either all or nothing.
#[test]
fn a_writer_killed_at_any_moment_loses_nothing_it_acknowledged() {
    let rounds: u64 = std::env::var(ROUNDS).map_or(25, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    drop(Archive::create(dir.path()).unwrap());
    let mut epochs = 0;
    let mut unacknowledged = 0;
    for round in 0..rounds {
        let acknowledged = kill_at_random(process("commit", dir.path()).spawn().unwrap(), round);
        let archive = Archive::open(dir.path(), Access::Read).unwrap();
        let found = archive.epoch_count("web1").unwrap_or(0);
        let expected = acknowledged.map_or(epochs, |last| last + 1);
        assert!(
            (expected..=expected + 1).contains(&found),
            "round {round}: {found} epochs, {expected} acknowledged"
        );
        for n in epochs.saturating_sub(1)..found {
            assert_epoch(&archive.epoch("web1", n).unwrap(), RUNS, &model(n));
        }
        unacknowledged += found - expected;
        epochs = found;
    }
    let archive = Archive::open(dir.path(), Access::Write).unwrap();
    for n in 0..epochs {
        assert_epoch(&archive.epoch("web1", n).unwrap(), RUNS, &model(n));
    }
    let report = archive.check(true, &|_, _, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert!(
        epochs >= rounds / 2,
        "{epochs} epochs in {rounds} rounds: the kills come too early to show anything"
    );
    println!("{rounds} kills, {epochs} epochs, {unacknowledged} of them durable but not yet acknowledged");
}

/// Kills a child some time after its n-th acknowledgement, n from 0 (any moment since its start) to 3; the last epoch it
/// acknowledged.
fn kill_at_random(mut child: Child, round: u64) -> Option<u64> {
    let hash = blake3::hash(&round.to_le_bytes());
    let random = u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
    let mut acknowledged = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.split("acknowledged ").nth(1)?.parse().ok());
    let seen = acknowledged.by_ref().take(random as usize % 4).last();
    // Not to wait for anything: the moment of death is what is tried out.
    std::thread::sleep(Duration::from_micros(random / 4 % 120_000));
    child.kill().unwrap();
    let last = acknowledged.last().or(seen);
    child.wait().unwrap();
    last
}

const FULL_RUNS: &[(u64, u64)] = &[(0, 2000)];

/// Commits epochs of 2000 new pages until one fails, and looks at what is left; how many it committed.
fn fill(archive: &Archive) -> u64 {
    std::fs::write(archive.path().join("ballast"), vec![1; 1 << 19]).unwrap();
    let before = archive.epoch_count("web1").unwrap();
    let refused =
        (0..100).find_map(|n| write_pages(archive, n * 10_000).err()).expect("the disk never got full");
    assert!(matches!(refused, StoreError::Database { .. } | StoreError::Poisoned { .. }), "{refused:?}");

    // Nothing more is written, and the reason is kept; reading goes on.
    let poisoned = write_pages(archive, 0).unwrap_err();
    assert!(matches!(poisoned, StoreError::Poisoned { .. }), "{poisoned:?}");
    assert!(matches!(archive.set_pin("web1", "x", b"x"), Err(StoreError::Poisoned { .. })));
    for n in 0..before {
        assert_epoch(&archive.epoch("web1", n).unwrap(), RUNS, &model(n));
    }
    let big = archive.epoch_count("big").unwrap_or(0);
    println!("full: {big}: {poisoned}");
    big
}

fn write_pages(archive: &Archive, seed: u64) -> Result<(), StoreError> {
    let pages: Vec<_> = (0..2000).map(|frame| page(1 << 40 | (seed + frame))).collect();
    let change =
        |(frame, bytes)| FrameChange { frame, content: Content::Page { digest: digest_page(bytes), bytes } };
    let changes: Vec<_> = (0..).zip(&pages).map(change).collect();
    let mut writer = archive.begin("big", &regions(FULL_RUNS))?;
    writer.store(&changes)?;
    writer.commit(common::meta("full")).map(drop)
}

fn assert_recovers(dir: &Path, big: u64) {
    let archive = Archive::open(dir, Access::Write).unwrap();
    assert_eq!(archive.epoch_count("web1").unwrap(), 3);
    let found = archive.epoch_count("big").unwrap_or(0);
    assert!((big..=big + 1).contains(&found), "{found} epochs, {big} acknowledged");
    for n in 0..3 {
        assert_epoch(&archive.epoch("web1", n).unwrap(), RUNS, &model(n));
    }
    commit(&archive, "web1", RUNS, &model(3));
    let report = archive.check(true, &|_, _, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}

fn three_epochs(dir: &Path) {
    let archive = Archive::create(dir).unwrap();
    for n in 0..3 {
        commit(&archive, "web1", RUNS, &model(n));
    }
}

/// Number of big epochs a child says it committed before the disk was full.
fn big_epochs(mut child: Child) -> u64 {
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    let line = said.lines().find_map(|line| line.split("full: ").nth(1)).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("an earlier write failed"), "{line}");
    line.split(':').next().unwrap().parse().unwrap()
}

/// A limit on the size of files stands for a full disk: it needs no privilege, and writes fail just the same.
#[test]
fn a_write_that_fails_stops_writing_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path());
    let command = process("fill", dir.path());
    // In POSIX units of 512 bytes: 1 MiB. The signal for going beyond it is ignored, so that the write fails instead.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "sh"]).arg(command.get_program());
    limited.args(command.get_args()).envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    limited.stdout(Stdio::piped()).stderr(Stdio::null());
    let big = big_epochs(limited.spawn().unwrap());
    assert_recovers(dir.path(), big);
}

/// A real full disk: a small tmpfs in a mount namespace of our own.
#[test]
fn a_full_disk_stops_writing_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(&dir.path().join("archive"));
    let command = process("fill-and-recover", &dir.path().join("disk/archive"));
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let script = "mount -t tmpfs -o size=24m tmpfs disk && cp -r archive disk/ && exec \"$@\"";
    let user: &[&str] =
        if std::fs::read_dir("/root").is_ok() { &["--mount"] } else { &["--mount", "--map-root-user"] };
    let allowed = Command::new("unshare").args(user).args(["sh", "-c", "mount -t tmpfs tmpfs /tmp"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mount namespaces are not allowed here, so no small disk can be made to fill up");
        return;
    }
    let mut inside = Command::new("unshare");
    inside.args(user).args(["sh", "-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?)))).current_dir(dir.path());
    inside.stdout(Stdio::piped()).stderr(Stdio::null());
    big_epochs(inside.spawn().unwrap());
}
