//! Creating, opening, locking; readers beside a writer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;

use common::{Frame, assert_epoch, commit, guest, regions};
use varve_store::{Access, Archive, StoreError};

const RUNS: &[(u64, u64)] = &[(0, 300)];

fn said(result: Result<Archive, StoreError>) -> String {
    result.err().expect("it was refused").to_string()
}

#[test]
fn a_missing_archive_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    for name in ["nowhere", "", "file"] {
        let path = dir.path().join(name);
        for access in [Access::Read, Access::Write] {
            let refused = Archive::open(&path, access).err().unwrap();
            assert!(
                matches!(&refused, StoreError::NoArchive { path: said } if *said == path),
                "{name}: {refused}"
            );
        }
    }
    assert!(!dir.path().join("lock").exists(), "opening leaves nothing behind");
}

#[test]
fn an_archive_is_created_in_an_empty_directory_only() {
    let dir = tempfile::tempdir().unwrap();
    Archive::create(dir.path()).unwrap();
    assert!(matches!(Archive::create(dir.path()), Err(StoreError::NotEmpty { .. })));
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("x"), "").unwrap();
    assert!(matches!(Archive::create(other.path()), Err(StoreError::NotEmpty { .. })));
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
}

#[test]
fn archives_have_identities() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("deep/a"), dir.path().join("b"));
    let first = Archive::create(&a).unwrap().identity().unwrap();
    assert_ne!(first, Archive::create(&b).unwrap().identity().unwrap());
    assert_eq!(first, Archive::open(&a, Access::Read).unwrap().identity().unwrap());
}

#[test]
fn an_archive_of_a_later_format_is_refused_before_its_database_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    drop(Archive::create(dir.path()).unwrap());
    fs::write(dir.path().join("FORMAT"), "varve archive\nformat 2\n").unwrap();
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    for access in [Access::Read, Access::Write] {
        let refused = Archive::open(dir.path(), access);
        assert!(matches!(&refused, Err(StoreError::NewerFormat { found: 2, supported: 1 })));
        assert_eq!(
            said(refused),
            "the archive has format version 2, this varve reads up to 1: use a newer varve"
        );
    }
    fs::write(dir.path().join("FORMAT"), "something else").unwrap();
    assert!(said(Archive::open(dir.path(), Access::Read)).contains("not a varve archive"));
}

#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let first = Archive::create(dir.path()).unwrap();
    let refused = Archive::open(dir.path(), Access::Write);
    assert!(matches!(&refused, Err(StoreError::Locked { .. })));
    let said = said(refused);
    assert!(said.starts_with(&format!("archive is locked by process {} on ", std::process::id())), "{said}");
    assert!(said.contains("opening") && said.contains(" since 2"), "{said}");
    drop(first);
    Archive::open(dir.path(), Access::Write).unwrap();
}

#[test]
fn a_stale_lock_file_locks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(Archive::create(dir.path()).unwrap());
    fs::write(
        dir.path().join("lock"),
        "process 1 on elsewhere (left over) since ever, and a longer line than any",
    )
    .unwrap();
    let archive = Archive::open(dir.path(), Access::Write).unwrap();
    let text = fs::read_to_string(dir.path().join("lock")).unwrap();
    assert!(
        text.starts_with(&format!("process {} on", std::process::id())) && !text.contains("left over"),
        "{text}"
    );
    drop(archive);
}

#[test]
fn a_handle_for_reading_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::create(dir.path()).unwrap();
    commit(&archive, "web1", RUNS, &guest(RUNS, Frame::Zero));
    drop(archive);
    let listing = || {
        let files = fs::read_dir(dir.path().join("db")).unwrap();
        files.map(|file| file.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = listing();
    let archive = Archive::open(dir.path(), Access::Read).unwrap();
    assert!(matches!(archive.begin("web1", &regions(RUNS)), Err(StoreError::ReadOnly)));
    drop(archive);
    assert_eq!(listing(), before);
}

#[test]
fn a_reader_sees_the_epochs_committed_when_it_opened_and_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::create(dir.path()).unwrap();
    let empty = Archive::open(dir.path(), Access::Read).unwrap();
    assert!(empty.vms().is_empty());

    let model =
        |n: u64| (0..300).map(|gfn| (gfn, Frame::Seed(gfn * (1 + gfn % 7 * n)))).collect::<common::Guest>();
    commit(&archive, "web1", RUNS, &model(0));
    let reader = Archive::open(dir.path(), Access::Read).unwrap();
    // Enough epochs for the writer to merge files the reader has open, and an epoch in the making.
    for n in 1..40 {
        commit(&archive, "web1", RUNS, &model(n));
    }
    let unfinished = archive.begin("web1", &regions(RUNS)).unwrap();
    assert_eq!(reader.epoch_count("web1").unwrap(), 1);
    assert_epoch(&reader.epoch("web1", 0).unwrap(), RUNS, &model(0));
    assert!(reader.check(true, &|_, _, _| {}).unwrap().is_clean());

    let later = Archive::open(dir.path(), Access::Read).unwrap();
    assert_eq!(later.epoch_count("web1").unwrap(), 40);
    for n in [0, 17, 39] {
        assert_epoch(&later.epoch("web1", n).unwrap(), RUNS, &model(n));
    }
    drop(unfinished);
}

#[test]
fn readers_open_while_a_writer_commits() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::create(dir.path()).unwrap();
    let model =
        |n: u64| (0..300).map(|gfn| (gfn, Frame::Seed(gfn + n * (gfn % 3)))).collect::<common::Guest>();
    commit(&archive, "web1", RUNS, &model(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1..150 {
                commit(&archive, "web1", RUNS, &model(n));
            }
        });
        let mut seen = 0;
        while !writer.is_finished() {
            let reader = Archive::open(dir.path(), Access::Read).unwrap();
            let count = reader.epoch_count("web1").unwrap();
            assert!(count >= seen, "{count} after {seen}");
            seen = count;
            assert_epoch(&reader.epoch("web1", count - 1).unwrap(), RUNS, &model(count - 1));
        }
    });
}
