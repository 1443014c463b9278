//! Writing epochs and reading them back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use common::{Frame, assert_epoch, commit, content, guest, meta, page, regions};
use varve_formats::{Fault, Gfn, Gpa, PhysicalMemory, Region, Vcpu};
use varve_store::hash::digest_page;
use varve_store::{
    Access, Archive, Content, Digest, EpochMeta, EpochWriter, FrameChange, PageId, StoreError,
};

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

#[test]
fn a_page_is_stored_once_across_frames_epochs_and_vms() {
    let (_dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Zero);
    model.insert(1, Frame::Seed(1));
    model.insert(2, Frame::Seed(1));
    let first = commit(&archive, "web1", RUNS, &model);
    assert_eq!((first.pages_stored, first.pages_changed, first.pages, first.pages_zero), (1, 360, 360, 358));

    model.insert(0x101, Frame::Seed(1));
    let second = commit(&archive, "web1", RUNS, &model);
    assert_eq!((second.pages_stored, second.pages_changed, second.bytes_stored), (0, 1, 0));

    model.insert(3, Frame::Seed(2));
    let other = commit(&archive, "db-1", RUNS, &model);
    assert_eq!((other.number, other.pages_stored), (0, 1));
    assert_eq!(archive.vms(), ["db-1", "web1"]);

    let ids = [(("web1", 0), 1), (("web1", 1), 0x101), (("db-1", 0), 2)]
        .map(|((vm, epoch), gfn)| archive.epoch(vm, epoch).unwrap().page_id(Gfn(gfn)));
    assert!(ids[0].is_stored() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(archive.epoch("web1", 0).unwrap().page_identity(Gfn(1)), Some(ids[0].get()));
    assert_eq!(archive.epoch("web1", 0).unwrap().page_identity(Gfn(0)), Some(PageId::ZERO.get()));
    assert_eq!(archive.epoch("web1", 0).unwrap().page_identity(Gfn(0xff)), None);

    let stats = archive.stats().unwrap();
    assert_eq!((stats.vms, stats.epochs, stats.pages, stats.packs), (2, 3, 2, 2));
    assert_eq!(stats.bytes_captured, 3 * 360 * 4096);
    assert_eq!(stats.bytes_packed, first.bytes_stored + other.bytes_stored);
    assert!(stats.bytes_on_disk > stats.bytes_packed);
}

#[test]
fn records_say_what_was_captured_and_form_a_chain() {
    let (_dir, archive) = archive();
    let model = guest(RUNS, Frame::Seed(7));
    let vcpus = vec![Vcpu { index: 1, cr3: 0x1000, lstar: Some(2), ..Vcpu::default() }];
    let mut records = vec![commit(&archive, "web1", RUNS, &model)];
    let writer = archive.begin("web1", &regions(RUNS)).unwrap();
    assert_eq!((writer.number(), writer.layout().frames()), (1, 360));
    let residue = vec![Region { start: Gpa(0x3000), len: 0x1000 }];
    let meta = EpochMeta {
        taken_at_ns: -5,
        source: "double".into(),
        vcpus: vcpus.clone(),
        residue: residue.clone(),
        disk_snapshot: Some("vg/web1-0".into()),
        state: Some(b"vCPU contexts".repeat(9)),
        restorable: true,
    };
    records.push(writer.commit(meta).unwrap());
    assert_eq!(archive.epochs("web1").unwrap(), records);
    assert_eq!(archive.record("web1", 1).unwrap(), records[1]);
    assert_eq!(archive.epoch_count("web1").unwrap(), 2);

    let [first, second] = &records[..] else { panic!() };
    assert_eq!((first.previous, second.previous), (None, Some(first.id)));
    assert_eq!((second.taken_at_ns, second.source.as_str(), second.restorable), (-5, "double", true));
    assert_eq!((second.pages_changed, second.root), (0, first.root));
    assert_eq!(second.vm, "web1");
    assert!(second.committed_at_ns >= first.committed_at_ns);
    assert_eq!((first.state, &second.residue), (None, &residue));
    assert_eq!(second.disk_snapshot.as_deref(), Some("vg/web1-0"));
    let memory = archive.epoch("web1", 1).unwrap();
    assert_eq!(memory.vcpus(), vcpus);
    assert_eq!(memory.state().unwrap().unwrap(), b"vCPU contexts".repeat(9));
    assert_eq!(archive.epoch("web1", 0).unwrap().state().unwrap(), None);
}

#[test]
fn the_root_is_that_of_the_pages() {
    let (_dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Seed(7));
    model.insert(0, Frame::Zero);
    model.insert(1, Frame::Absent);
    let record = commit(&archive, "web1", RUNS, &model);
    let digests: Vec<[u8; 32]> = model
        .values()
        .map(|frame| match frame {
            Frame::Absent => [0xff; 32],
            Frame::Zero => [0; 32],
            Frame::Seed(seed) => *blake3::hash(&page(*seed)).as_bytes(),
        })
        .collect();
    assert_eq!(record.root, varve_store::root::root(&regions(RUNS), &digests));
}

#[test]
fn nothing_of_a_dropped_epoch_is_seen() {
    let (dir, archive) = archive();
    let model = guest(RUNS, Frame::Seed(7));
    let digest = digest_page(&page(9));
    let bytes = page(9);
    let change = FrameChange { frame: 0, content: Content::Page { digest, bytes: &bytes } };
    let others: Vec<_> = (100..300).map(page).collect();
    let many: Vec<_> = others
        .iter()
        .zip(1..)
        .map(|(bytes, frame)| FrameChange {
            frame,
            content: Content::Page { digest: digest_page(bytes), bytes },
        })
        .collect();

    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    writer.store(&[change]).unwrap();
    writer.store(&many).unwrap();
    drop(writer);
    assert!(archive.vms().is_empty());
    assert!(matches!(archive.epoch("web1", 0), Err(StoreError::UnknownVm { .. })));

    let first = commit(&archive, "web1", RUNS, &model);
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    writer.store(&[change]).unwrap();
    drop(writer);
    assert_eq!(archive.epochs("web1").unwrap(), [first]);
    drop(archive);

    let archive = Archive::open(&dir.path().join("a"), Access::Write).unwrap();
    assert_eq!(archive.epoch_count("web1").unwrap(), 1);
    assert_epoch(&archive.epoch("web1", 0).unwrap(), RUNS, &model);
    let writer = archive.begin("web1", &regions(RUNS)).unwrap();
    assert_eq!(writer.previous().digest(0), digest_page(&page(7)));
    drop(writer);
    assert!(archive.check(true, &|_, _, _| {}).unwrap().is_clean());
}

#[test]
fn frames_not_stored_stay_as_they_were() {
    let (_dir, archive) = archive();
    let writer = archive.begin("web1", &regions(RUNS)).unwrap();
    assert_eq!(writer.previous().digest(5), Digest::ABSENT);
    let record = writer.commit(meta("nothing")).unwrap();
    assert_eq!((record.pages, record.pages_changed), (0, 0));
    let memory = archive.epoch("web1", 0).unwrap();
    assert_eq!(memory.read(Gpa(0x10), &mut [0; 4]), Err(Fault::NotCaptured { at: Gpa(0x10) }));
}

#[test]
fn the_last_content_of_a_frame_counts() {
    let (_dir, archive) = archive();
    let (a, b) = (page(1), page(2));
    let change =
        |bytes| FrameChange { frame: 3, content: Content::Page { digest: digest_page(bytes), bytes } };
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    writer.store(&[change(&a), change(&b)]).unwrap();
    writer.store(&[FrameChange { frame: 4, content: Content::Zero }, change(&a)]).unwrap();
    let record = writer.commit(meta("x")).unwrap();
    assert_eq!((record.pages, record.pages_changed), (2, 2));
    let mut found = [0; 4096];
    archive.epoch("web1", 0).unwrap().read(Gpa(3 << 12), &mut found).unwrap();
    assert!(found == a);

    // Changed and changed back is no change.
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    writer.store(&[change(&b)]).unwrap();
    writer.store(&[change(&a)]).unwrap();
    assert_eq!(writer.commit(meta("x")).unwrap().pages_changed, 0);
}

#[test]
fn a_zero_page_handed_over_as_bytes_is_not_stored() {
    let (_dir, archive) = archive();
    let zero = [0; 4096];
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    let content = Content::Page { digest: digest_page(&zero), bytes: &zero };
    writer.store(&[FrameChange { frame: 0, content }]).unwrap();
    let record = writer.commit(meta("x")).unwrap();
    assert_eq!((record.pages_zero, record.pages_stored), (1, 0));
    assert_eq!(archive.epoch("web1", 0).unwrap().frame_id(0), PageId::ZERO);
}

#[test]
fn a_page_that_is_not_what_its_digest_says_stops_the_epoch() {
    let (_dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Zero);
    commit(&archive, "web1", RUNS, &model);
    let bytes = page(1);
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    let content = Content::Page { digest: digest_page(&page(2)), bytes: &bytes };
    writer.store(&[FrameChange { frame: 8, content }]).unwrap();
    assert!(matches!(writer.commit(meta("x")), Err(StoreError::DigestMismatch { frame: 8 })));

    // In a pack that is full, storing finds it; the epoch is lost, the archive is not.
    let pages: Vec<_> = (0..64).map(page).collect();
    let lie = |(frame, bytes)| FrameChange {
        frame,
        content: Content::Page { digest: digest_page(&page(if frame == 9 { 1009 } else { frame })), bytes },
    };
    let batch: Vec<_> = (0..).zip(&pages).map(lie).collect();
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    assert!(matches!(writer.store(&batch), Err(StoreError::DigestMismatch { frame: 9 })));
    assert!(matches!(writer.commit(meta("x")), Err(StoreError::Abandoned)));

    model.insert(9, Frame::Seed(9));
    assert_eq!(commit(&archive, "web1", RUNS, &model).number, 1);
    assert_epoch(&archive.epoch("web1", 1).unwrap(), RUNS, &model);
    assert!(archive.check(true, &|_, _, _| {}).unwrap().is_clean());
}

#[test]
fn one_epoch_is_written_at_a_time() {
    let (_dir, archive) = archive();
    let writer = archive.begin("web1", &regions(RUNS)).unwrap();
    let refused = archive.begin("db1", &regions(RUNS)).err().unwrap();
    assert_eq!(refused.to_string(), "an epoch of web1 is being written: commit or drop it first");
    drop(writer);
    assert!(archive.begin("db1", &regions(RUNS)).is_ok());
}

#[test]
fn what_cannot_be_an_epoch_is_refused() {
    let (_dir, archive) = archive();
    assert!(matches!(archive.begin("a/b", &regions(RUNS)), Err(StoreError::InvalidName { .. })));
    assert!(matches!(archive.begin("web1", &[]), Err(StoreError::Regions(_))));
    let mut writer = archive.begin("web1", &regions(RUNS)).unwrap();
    let refused = writer.store(&[FrameChange { frame: 360, content: Content::Zero }]);
    assert!(matches!(refused, Err(StoreError::FrameOutOfRange { frame: 360, frames: 360 })));
    drop(writer);
    let writer = archive.begin("web1", &regions(RUNS)).unwrap();
    assert!(matches!(writer.commit(meta(&"x".repeat(4097))), Err(StoreError::TooLarge { .. })));
    assert_eq!(commit(&archive, "web1", RUNS, &guest(RUNS, Frame::Zero)).number, 0);
    assert!(matches!(archive.epoch("web1", 1), Err(StoreError::UnknownEpoch { number: 1, count: 1, .. })));
    let unknown = archive.epochs("web2").unwrap_err().to_string();
    assert_eq!(unknown, "no epoch of \"web2\" in the archive (it holds: web1)");
}

#[test]
fn memory_may_be_plugged_and_unplugged_between_epochs() {
    let (_dir, archive) = archive();
    let layouts: [&[(u64, u64)]; 4] =
        [&[(0, 100)], &[(0, 100), (0x100, 50)], &[(0x20, 10), (0x110, 70)], &[(0, 300)]];
    let mut history = Vec::new();
    for (n, runs) in layouts.iter().enumerate() {
        let mut model = guest(runs, Frame::Zero);
        for (gfn, frame) in &mut model {
            if gfn % 3 != 0 {
                *frame = Frame::Seed(gfn % 50 + n as u64 / 2);
            }
        }
        commit(&archive, "web1", runs, &model);
        history.push((*runs, model));
    }
    for (number, (runs, model)) in history.iter().enumerate() {
        assert_epoch(&archive.epoch("web1", number as u64).unwrap(), runs, model);
    }
    assert_history(&archive, &history);
    assert!(archive.check(true, &|_, _, _| {}).unwrap().is_clean());
}

/// What a source is that learns only little by little which frames there are.
#[test]
fn an_epoch_may_be_laid_out_anew_while_it_is_written() {
    let (_directory, archive) = archive();
    let store = |writer: &mut EpochWriter, frames: std::ops::Range<u64>, seed: u64| {
        for gfn in frames {
            let page = page(gfn + seed);
            let frame = writer.layout().frame(Gfn(gfn)).unwrap();
            writer.store(&[FrameChange { frame, content: content(Some(&page)) }]).unwrap();
        }
    };
    let expected = |runs: &[(u64, u64)], seed: u64| -> common::Guest {
        let frames = runs.iter().flat_map(|(start, count)| *start..start + count);
        frames.map(|gfn| (gfn, Frame::Seed(gfn + seed))).collect()
    };
    let mut writer = archive.begin("a", &regions(&[(10, 100)])).unwrap();
    store(&mut writer, 10..110, 0);
    for more in [&[(10, 2000)][..], &[(10, 2000), (5000, 10)]] {
        // Nothing comes before what there was: every number stays.
        writer.lay_out(&regions(more)).unwrap();
        assert_eq!(writer.previous().len(), writer.layout().frames());
    }
    store(&mut writer, 110..2010, 0);
    assert!(writer.lay_out(&regions(&[(3, 1), (3, 1)])).is_err());
    let runs = [(5, 1000), (5000, 10)];
    writer.lay_out(&regions(&runs)).unwrap();
    store(&mut writer, 5..10, 0);
    store(&mut writer, 5000..5010, 0);
    writer.commit(meta("a")).unwrap();
    assert_epoch(&archive.epoch("a", 0).unwrap(), &runs, &expected(&runs, 0));

    // The next has a frame less and others more; of the rest some come again as they were.
    let mut writer = archive.begin("a", &regions(&[(5, 1000), (5000, 10)])).unwrap();
    store(&mut writer, 100..200, 0);
    store(&mut writer, 300..310, 7);
    store(&mut writer, 300..305, 0);
    let runs = [(5, 1020), (5001, 9)];
    writer.lay_out(&regions(&runs)).unwrap();
    store(&mut writer, 1005..1025, 0);
    let record = writer.commit(meta("a")).unwrap();
    assert_eq!(record.pages_changed, 5 + 20);
    let mut guest = expected(&runs, 0);
    guest.extend((305..310).map(|gfn| (gfn, Frame::Seed(gfn + 7))));
    assert_epoch(&archive.epoch("a", 1).unwrap(), &runs, &guest);
    assert!(archive.check(true, &|_, _, _| {}).unwrap().is_clean());
}

#[test]
fn a_history_says_exactly_what_changed() {
    let (_dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Zero);
    let mut history = Vec::new();
    for epoch in 0..40u64 {
        for n in 0..epoch % 4 {
            model.insert((epoch * 7 + n) % 160, Frame::Seed((epoch + n) % 5));
        }
        commit(&archive, "web1", RUNS, &model);
        history.push((RUNS, model.clone()));
    }
    assert_history(&archive, &history);
    assert!(matches!(archive.history("web1", 0..41), Err(StoreError::UnknownEpoch { number: 40, .. })));
    assert_eq!(archive.history("web1", 40..40).unwrap().count(), 0);
}

/// Compares steps and pairs of epochs with the model.
fn assert_history(archive: &Archive, history: &[(&[(u64, u64)], common::Guest)]) {
    let content = |model: &common::Guest, gfn| model.get(&gfn).copied().unwrap_or(Frame::Absent);
    let differing = |a: &common::Guest, b: &common::Guest| -> Vec<Gfn> {
        let all = a.keys().chain(b.keys()).collect::<std::collections::BTreeSet<_>>();
        all.into_iter().filter(|gfn| content(a, **gfn) != content(b, **gfn)).map(|gfn| Gfn(*gfn)).collect()
    };
    for (number, step) in archive.history("web1", 0..history.len() as u64).unwrap().enumerate() {
        let step = step.unwrap();
        let (runs, model) = &history[number];
        assert_epoch(&step.memory, runs, model);
        let expected = number.checked_sub(1).map(|before| differing(&history[before].1, model));
        assert_eq!(step.changed, expected, "epoch {number}");
    }
    for (a, b) in [(0, history.len() - 1), (2, 1)] {
        let expected = differing(&history[a].1, &history[b].1);
        assert_eq!(archive.changed_frames("web1", a as u64, b as u64).unwrap(), expected);
    }
}

#[test]
fn reads_may_begin_and_end_anywhere() {
    let (_dir, archive) = archive();
    let mut model = guest(RUNS, Frame::Seed(1));
    model.insert(1, Frame::Zero);
    model.insert(2, Frame::Seed(2));
    commit(&archive, "web1", RUNS, &model);
    let memory = archive.epoch("web1", 0).unwrap();
    let expected = [page(1), [0; 4096], page(2), page(1)].concat();
    for (from, to) in [(0, 16384), (4000, 4200), (4095, 8193), (8000, 12300), (5, 6), (7, 7)] {
        let mut found = vec![0x5a; to - from];
        memory.read(Gpa(from as u64), &mut found).unwrap();
        assert!(found == expected[from..to], "{from}..{to}");
    }
    let end = Gpa(160 << 12);
    assert_eq!(memory.read(Gpa(end.0 - 2), &mut [0; 4]), Err(Fault::NotCaptured { at: end }));
    assert_eq!(memory.read(Gpa(u64::MAX), &mut [0; 4]), Err(Fault::Overflow { at: u64::MAX }));
}

#[test]
fn epochs_are_read_by_many_threads_with_little_cache() {
    let (_dir, archive) = archive();
    let runs: &[(u64, u64)] = &[(0, 700)];
    let model: common::Guest = (0..700).map(|gfn| (gfn, Frame::Seed(gfn))).collect();
    commit(&archive, "web1", runs, &model);
    archive.set_cache_limit(3 << 20);
    let memory = archive.epoch("web1", 0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_epoch(&memory, runs, &model));
        }
    });
    archive.set_cache_limit(0);
    assert_epoch(&memory, runs, &model);
}

#[test]
fn blobs_are_pinned_to_vms() {
    let (dir, archive) = archive();
    assert!(matches!(archive.set_pin("web1", "symbols", b"x"), Err(StoreError::UnknownVm { .. })));
    commit(&archive, "web1", RUNS, &guest(RUNS, Frame::Zero));
    commit(&archive, "db1", RUNS, &guest(RUNS, Frame::Zero));
    assert_eq!(archive.pin("web1", "symbols").unwrap(), None);
    archive.set_pin("web1", "symbols", b"first").unwrap();
    archive.set_pin("web1", "symbols", b"second").unwrap();
    archive.set_pin("db1", "symbols", &vec![7; 1 << 20]).unwrap();
    assert!(matches!(archive.set_pin("web1", "a b", b"x"), Err(StoreError::InvalidName { .. })));
    drop(archive);
    let archive = Archive::open(&dir.path().join("a"), Access::Read).unwrap();
    assert_eq!(archive.pin("web1", "symbols").unwrap().unwrap(), b"second");
    assert_eq!(archive.pin("db1", "symbols").unwrap().unwrap(), vec![7; 1 << 20]);
    assert!(matches!(archive.set_pin("web1", "symbols", b"x"), Err(StoreError::ReadOnly)));
}

#[test]
fn an_epoch_outlives_its_archive_handle() {
    let (_dir, archive) = archive();
    let model = guest(RUNS, Frame::Seed(3));
    commit(&archive, "web1", RUNS, &model);
    let memory = archive.epoch("web1", 0).unwrap();
    drop(archive);
    assert_epoch(&memory, RUNS, &model);
}

#[test]
fn many_short_epochs_leave_few_files() {
    let (dir, archive) = archive();
    let runs: &[(u64, u64)] = &[(0, 20)];
    let mut model = guest(runs, Frame::Zero);
    for epoch in 0..100u64 {
        model.insert(epoch % 20, Frame::Seed(epoch));
        commit(&archive, "web1", runs, &model);
    }
    let tables = || {
        let files = std::fs::read_dir(dir.path().join("a/db")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|ext| ext == "sst")).count()
    };
    // Four columns would have a file for each epoch.
    assert!(tables() < 250, "{} files", tables());
    for number in [0, 31, 32, 63, 99] {
        let expected: common::Guest = (0..20)
            .map(|gfn| match (number + 20 - gfn) / 20 * 20 + gfn {
                after if after >= 20 => (gfn, Frame::Seed(after - 20)),
                _ => (gfn, Frame::Zero),
            })
            .collect();
        assert_epoch(&archive.epoch("web1", number).unwrap(), runs, &expected);
    }
    assert!(archive.check(true, &|_, _, _| {}).unwrap().is_clean());
}
