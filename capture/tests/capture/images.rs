//! Image files become epochs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use varve_capture::{Ended, Observer, Options, import};
use varve_formats::PAGE_SIZE;

use super::support::*;

/// A raw image whose frames are filled with these bytes, written `age` seconds ago.
fn image(path: PathBuf, frames: &[u8], age: u64) -> PathBuf {
    let bytes: Vec<u8> = frames.iter().flat_map(|byte| [*byte; PAGE_SIZE]).collect();
    std::fs::write(&path, bytes).unwrap();
    let written = SystemTime::now() - Duration::from_secs(age);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    path
}

fn bring_in(scratch: &Scratch, files: &[PathBuf], observer: &dyn Observer) -> Ended {
    import(files, &scratch.archive, VM, &Options::default(), &(), observer)
}

fn names(directory: &Path, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| directory.join(name)).collect()
}

#[test]
fn files_become_epochs_in_the_order_given() {
    let scratch = scratch();
    let [first, second] = &names(scratch.path(), &["b.raw", "a.raw"])[..] else { panic!() };
    image(first.clone(), &[1, 0, 3, 0], 100);
    image(second.clone(), &[1, 2, 0, 0], 50);
    let seen = Memory::default();
    let ended = bring_in(&scratch, &[first.clone(), second.clone()], &seen);
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(scratch.frames(0), [1, 0, 3, 0].map(Some));
    assert_eq!(scratch.frames(1), [1, 2, 0, 0].map(Some));
    let reports = seen.reports.into_inner().unwrap();
    let [base, later] = &reports[..] else { panic!() };
    assert_eq!((base.record.pages_changed, later.record.pages_changed), (4, 2));
    assert_eq!(base.pause, None);
    assert_eq!(later.record.source, format!("image:{}", second.display()));
    let written = std::fs::metadata(second).unwrap().modified().unwrap();
    let nanoseconds = written.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    assert_eq!(later.record.taken_at_ns as u128, nanoseconds);
    assert_eq!(seen.remarks.into_inner().unwrap(), [""; 0]);
}

#[test]
fn a_bad_file_ends_the_import_by_name_and_what_came_before_stays() {
    let scratch = scratch();
    let files = names(scratch.path(), &["good.raw", "bad.raw", "never.raw"]);
    image(files[0].clone(), &[1, 2], 0);
    image(files[2].clone(), &[3, 4], 0);
    std::fs::write(&files[1], [0x1f, 0x8b, 8, 0]).unwrap();
    let ended = bring_in(&scratch, &files, &());
    let bad = files[1].display();
    assert_eq!(
        ended.error.unwrap().to_string(),
        format!("image:{bad}: {bad}: offset 0x0: looks like gzip: decompress it first")
    );
    assert_eq!((ended.summary.epochs, scratch.epoch_count()), (1, 1));
    assert_eq!(scratch.frames(0), [1, 2].map(Some));
}

#[test]
fn a_file_older_than_the_epoch_before_is_remarked_on() {
    let scratch = scratch();
    let files = names(scratch.path(), &["new.raw", "old.raw"]);
    image(files[0].clone(), &[1], 10);
    image(files[1].clone(), &[2], 20);
    let seen = Memory::default();
    assert!(bring_in(&scratch, &files, &seen).error.is_none());
    let remarks = seen.remarks.into_inner().unwrap();
    assert_eq!(remarks.len(), 1);
    assert!(
        remarks[0].ends_with("old.raw was written before what the last epoch holds was taken"),
        "{remarks:?}"
    );
}

#[test]
fn memory_that_grows_and_shrinks_keeps_its_frames() {
    let scratch = scratch();
    let files = names(scratch.path(), &["a", "b", "c"]);
    image(files[0].clone(), &[1, 2], 9);
    image(files[1].clone(), &[1, 2, 3, 4], 8);
    image(files[2].clone(), &[5], 7);
    assert!(bring_in(&scratch, &files, &()).error.is_none());
    assert_eq!(scratch.frames(1), [1, 2, 3, 4].map(Some));
    assert_eq!(scratch.frames(2), [Some(5)]);
    assert_eq!(scratch.archive.record(VM, 1).unwrap().pages_changed, 2);
}

#[test]
fn an_import_can_be_interrupted_between_files() {
    let scratch = scratch();
    let files = names(scratch.path(), &["a", "b"]);
    files.iter().for_each(|file| drop(image(file.clone(), &[1], 0)));
    let interrupt = after(Finish(1));
    let ended = import(&files, &scratch.archive, VM, &Options::default(), &interrupt, &());
    assert!(ended.error.is_none());
    assert_eq!(scratch.epoch_count(), 1);
}
