//! Damage of every kind: found, named, contained.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Frame, Guest, commit};
use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory};
use varve_store::{Access, Archive, CheckReport, EpochMemory, Place};

const RUNS: &[(u64, u64)] = &[(0, 400)];
const EPOCHS: u64 = 4;

/// Epoch n of the model: frames below 100 never change, the others do in every epoch.
fn model(n: u64) -> Guest {
    (0..400).map(|gfn| (gfn, Frame::Seed(if gfn < 100 { gfn } else { gfn + n * 1000 }))).collect()
}

/// An archive of four epochs, closed.
fn archive() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::create(dir.path()).unwrap();
    for n in 0..EPOCHS {
        commit(&archive, "web1", RUNS, &model(n));
    }
    archive.set_pin("web1", "symbols", b"pinned").unwrap();
    dir
}

/// The table files, oldest first.
fn tables(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|ext| ext == "sst"))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn check(dir: &Path) -> CheckReport {
    Archive::open(dir, Access::Read).unwrap().check(true, &|_, _, _| {}).unwrap()
}

fn said(report: &CheckReport) -> String {
    report.problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// The table file of the packs of an epoch. Packs are by far the largest thing in this archive.
fn pack_tables(dir: &Path) -> Vec<PathBuf> {
    tables(dir).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 100_000).collect()
}

/// The frames of an epoch that cannot be read; the others must be as they were.
fn unreadable(memory: &EpochMemory, model: &Guest) -> Vec<Gfn> {
    let read = |(gfn, frame): (&u64, &Frame)| {
        let mut found = [0; PAGE_SIZE];
        match memory.read(Gpa(gfn << 12), &mut found) {
            Ok(()) => {
                assert!(Some(found) == frame.page(), "frame {gfn:#x} has other contents");
                None
            }
            Err(Fault::Damaged { at }) => Some(at.gfn()),
            Err(other) => panic!("{other}"),
        }
    };
    model.iter().filter_map(read).collect()
}

#[test]
fn a_whole_archive_is_clean() {
    let dir = archive();
    let archive = Archive::open(dir.path(), Access::Read).unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let report =
        archive.check(true, &|stage, done, total| seen.lock().unwrap().push((stage, done, total))).unwrap();
    assert!(report.is_clean(), "{}", said(&report));
    assert_eq!((report.epochs, report.pages, report.read_data), (4, 400 + 3 * 300, true));
    assert_eq!(report.files, tables(dir.path()).len() as u64);
    let seen = seen.into_inner().unwrap();
    assert!(seen.iter().all(|(_, done, total)| done <= total), "{seen:?}");
    assert!(archive.check(false, &|_, _, _| {}).unwrap().is_clean());
}

#[test]
fn a_flipped_bit_in_a_pack_is_found_named_and_contained() {
    let dir = archive();
    let packs = pack_tables(dir.path());
    assert!(packs.len() >= 2, "{packs:?}");
    let middle = fs::metadata(&packs[0]).unwrap().len() as usize / 2;
    flip(&packs[0], middle);

    let report = check(dir.path());
    let name = format!("db/{}", packs[0].file_name().unwrap().to_str().unwrap());
    assert!(
        report.problems.iter().any(|problem| problem.place == Place::File(name.clone())),
        "{}",
        said(&report)
    );
    let broken: Vec<u64> = report
        .problems
        .iter()
        .filter_map(|p| if let Place::Pack(n) = p.place { Some(n) } else { None })
        .collect();
    assert_eq!(broken.len(), 1, "{}", said(&report));

    // What the report says about frames is what reading shows, and everything else is whole.
    let archive = Archive::open(dir.path(), Access::Read).unwrap();
    let mut reached = 0;
    for n in 0..EPOCHS {
        let memory = archive.epoch("web1", n).unwrap();
        let lost = unreadable(&memory, &model(n));
        assert!(lost.iter().all(|gfn| memory.page_id(*gfn).location().unwrap().0 == broken[0]));
        let affected = report.affected.iter().find(|epoch| epoch.number == n);
        let listed = affected.map_or(Vec::new(), |epoch| {
            assert_eq!((epoch.vm.as_str(), epoch.opens, epoch.frames), ("web1", true, lost.len() as u64));
            epoch.runs.iter().flat_map(|(first, len)| first.0..first.0 + len).map(Gfn).collect()
        });
        assert_eq!(listed, lost, "epoch {n}");
        reached += usize::from(!lost.is_empty());
    }
    assert!((1..EPOCHS as usize).contains(&reached) || broken == [1], "{reached} epochs");
    assert_eq!(report.affected.len(), reached);
}

#[test]
fn a_flipped_bit_anywhere_in_any_table_is_found() {
    let dir = archive();
    let mut tried = 0;
    for table in tables(dir.path()) {
        let len = fs::metadata(&table).unwrap().len() as usize;
        // The first byte, data, and what is at the end of every table: index, filter, properties, footer.
        for at in [0, len / 3, len - 400, len - 60, len - 1] {
            flip(&table, at);
            let archive = Archive::open(dir.path(), Access::Read).unwrap();
            let report = archive.check(true, &|_, _, _| {}).unwrap();
            let name = format!("db/{}", table.file_name().unwrap().to_str().unwrap());
            let named = report.problems.iter().any(|problem| problem.place == Place::File(name.clone()));
            assert!(named && !report.is_clean(), "{} at {at}: {}", table.display(), said(&report));
            // Never other contents than were stored.
            let n = tried % EPOCHS;
            archive.epoch("web1", n).map(|memory| unreadable(&memory, &model(n))).ok();
            flip(&table, at);
            tried += 1;
        }
    }
    assert!(tried > 50, "{tried}");
    assert!(check(dir.path()).is_clean());
}

#[test]
fn a_table_that_is_cut_off_or_missing_is_found_and_contained() {
    for cut in [Some(1000), Some(0), None] {
        let dir = archive();
        let table = pack_tables(dir.path()).pop().unwrap();
        match cut {
            Some(len) => fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(len).unwrap(),
            None => fs::remove_file(&table).unwrap(),
        }
        let archive = Archive::open(dir.path(), Access::Read).unwrap();
        let name = format!("db/{}", table.file_name().unwrap().to_str().unwrap());
        for read_data in [false, true] {
            let report = archive.check(read_data, &|_, _, _| {}).unwrap();
            let named = report.problems.iter().find(|problem| problem.place == Place::File(name.clone()));
            let reason = &named.unwrap_or_else(|| panic!("{}", said(&report))).reason;
            match cut {
                Some(len) => assert!(reason.starts_with(&format!("it has {len} bytes, ")), "{reason}"),
                None => assert_eq!(reason, "it is missing"),
            }
        }
        let report = archive.check(true, &|_, _, _| {}).unwrap();
        let lost: Vec<(u64, u64)> =
            report.affected.iter().map(|epoch| (epoch.number, epoch.frames)).collect();
        let read: Vec<(u64, u64)> = (0..EPOCHS)
            .map(|n| (n, unreadable(&archive.epoch("web1", n).unwrap(), &model(n)).len() as u64))
            .filter(|(_, frames)| *frames > 0)
            .collect();
        assert_eq!(lost, read, "cut to {cut:?}");
        assert!(!lost.is_empty() && lost.len() < EPOCHS as usize, "{lost:?}");

        // Writing on top of it is refused, with the reason.
        drop(archive);
        let refused = Archive::open(dir.path(), Access::Write).err().unwrap();
        assert!(refused.to_string().contains(table.file_name().unwrap().to_str().unwrap()), "{refused}");
    }
}
