//! Writing epochs and reading them back.

mod common;

use common::{Frame, assert_epoch, commit, guest, meta, page, regions};
use varve_formats::{Fault, Gfn, Gpa, PhysicalMemory, Vcpu};
use varve_store::hash::digest_page;
use varve_store::{Access, Archive, Content, Digest, EpochMeta, FrameChange, PageId, StoreError};

const RUNS: &[(u64, u64)] = &[(0, 160), (0x100, 200)];

fn archive() -> (tempfile::TempDir, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::create(&dir.path().join("a")).unwrap();
    (dir, archive)
}

#[test]
fn epochs_come_back_bit_for_bit() {
    let (dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Zero);
    let mut history = Vec::new();
    for epoch in 0..70u64 {
        for n in 0..30 {
            let gfn = *model.keys().nth(((epoch * 37 + n * 11) % model.len() as u64) as usize).unwrap();
            let frame = match (epoch + n) % 7 {
                0 => Frame::Zero,
                1 => Frame::Absent,
                // Some contents come back later, some at other frames.
                _ => Frame::Seed((epoch * 30 + n) % 400),
            };
            model.insert(gfn, frame);
        }
        let record = commit(&archive, "web1", RUNS, &model);
        assert_eq!(record.number, epoch);
        history.push(model.clone());
    }
    for archive in [archive.clone(), {
        drop(archive);
        Archive::open(&dir.path().join("a"), Access::Read).unwrap()
    }] {
        for (number, model) in history.iter().enumerate() {
            assert_epoch(&archive.epoch("web1", number as u64).unwrap(), RUNS, model);
        }
    }
}
