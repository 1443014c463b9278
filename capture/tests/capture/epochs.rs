//! Epochs of a scripted guest that behaves.

use std::time::Duration;

use varve_capture::testing::{Scripted, Step};
use varve_capture::{Options, Plan, capture};
use varve_formats::{Gfn, Vcpu};

use super::support::*;

#[test]
fn each_epoch_holds_the_memory_of_the_moment_the_guest_stood_still() {
    let scratch = scratch();
    // More than one block of windows, a hole, and a last window that is not full.
    let regions = [region(0, 9_000), region(0x1_0000_0000, 700)];
    let guest = Scripted::new(
        &regions,
        Box::new(|nth, ram| {
            ram.fill(Gfn(nth), nth as u8 + 1);
            ram.fill(Gfn(0x10_0000 + 699), 0x80 + nth as u8);
            ram.fill(Gfn(8_999), if nth == 2 { 0 } else { 7 });
        }),
    );
    let seen = Memory::default();
    let ended = take(&guest, &scratch.archive, 4, &seen);
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(ended.summary.epochs, 4);
    assert!(guest.is_running());
    for epoch in 0..4 {
        let mut expected = vec![Some(0); 9_700];
        (0..=epoch).for_each(|nth| expected[nth as usize] = Some(nth as u8 + 1));
        expected[9_699] = Some(0x80 + epoch as u8);
        expected[8_999] = Some(if epoch == 2 { 0 } else { 7 });
        assert_eq!(scratch.frames(epoch), expected, "epoch {epoch}");
    }
    let reports = seen.reports.into_inner().unwrap();
    assert_eq!(
        reports.iter().map(|report| report.record.pages_changed).collect::<Vec<_>>(),
        [9_700, 2, 3, 3]
    );
    assert_eq!(reports[1].record.vcpus, [Vcpu { rip: 1, ..Vcpu::default() }]);
    assert_eq!(reports[1].record.source, "scripted:guest");
    assert_eq!(reports[0].frames_scanned, 2 * 9_700, "the first epoch copies ahead, then compares");
    assert_eq!(reports[1].frames_scanned, 9_700);
    assert_eq!(ended.summary.pauses.count(), 4);
    assert_eq!(seen.scanned.into_inner(), 5 * 9_700 * 4_096);
}

#[test]
fn a_run_continues_where_the_archive_ends() {
    let scratch = scratch();
    let guest = || Scripted::new(&[region(0, 100)], Box::new(|nth, ram| ram.fill(Gfn(3), nth as u8 + 1)));
    take(&guest(), &scratch.archive, 2, &());
    let seen = Memory::default();
    take(&guest(), &scratch.archive, 1, &seen);
    let report = &seen.reports.into_inner().unwrap()[0];
    assert_eq!((report.record.number, report.record.pages_changed, report.record.pages_stored), (2, 1, 0));
    assert_eq!(scratch.frames(2)[3], Some(1));
}

#[test]
fn a_dirty_log_is_trusted_only_for_what_it_covers() {
    let scratch = scratch();
    let mut guest =
        Scripted::new(&[region(0, 2_000)], Box::new(|nth, ram| ram.fill(Gfn(600 + nth), nth as u8 + 1)));
    guest.dirty_log = true;
    // The third epoch is lost after its log was taken; what it said must not be missing from the next.
    guest.fail(Step::Registers, 2);
    let ended = take(&guest, &scratch.archive, 4, &());
    assert!(ended.error.is_some());
    assert_eq!(scratch.epoch_count(), 2);
    assert_eq!((scratch.frames(1)[600], scratch.frames(1)[601]), (Some(1), Some(2)));
    let ended = take(&guest, &scratch.archive, 2, &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    let last = scratch.frames(3);
    assert_eq!(last[600..606], [1, 2, 3, 4, 5, 0].map(Some));
}

#[test]
fn what_a_device_writes_while_the_guest_is_held_is_copied_again() {
    let scratch = scratch();
    let mut guest = Scripted::new(&[region(0, 1_000)], one_frame_an_epoch());
    guest.dirty_log = true;
    // Every other look finds two frames written to, one of them copied already.
    guest.attach(Box::new(|nth, ram| {
        if nth % 2 == 0 {
            ram.fill(Gfn(nth / 2), 0x40 + nth as u8);
            ram.fill(Gfn(900), 0x80 + nth as u8);
        }
    }));
    let seen = Memory::default();
    let ended = take(&guest, &scratch.archive, 3, &seen);
    assert!(ended.error.is_none(), "{:?}", ended.error);
    for epoch in 0..3 {
        let frames = scratch.frames(epoch);
        for gfn in 0..=epoch {
            assert_eq!(frames[gfn as usize], Some(0x40 + 2 * gfn as u8), "epoch {epoch}");
        }
        assert_eq!(frames[900], Some(0x80 + 2 * epoch as u8));
    }
    let reports = seen.reports.into_inner().unwrap();
    assert!(reports.iter().all(|report| report.record.residue.is_empty()));
    assert_eq!(reports[1].record.pages_changed, 2, "compared when the guest ran again");
}

#[test]
fn what_does_not_come_to_rest_is_recorded() {
    let scratch = scratch();
    let mut guest = Scripted::new(&[region(0, 1_000)], one_frame_an_epoch());
    guest.dirty_log = true;
    guest.attach(Box::new(|nth, ram| {
        ram.fill(Gfn(700), nth as u8);
        ram.fill(Gfn(701), nth as u8);
        ram.fill(Gfn(704), nth as u8);
    }));
    let ended = take(&guest, &scratch.archive, 2, &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    let record = scratch.archive.record(VM, 1).unwrap();
    assert_eq!(record.residue, [region(700 << 12, 2), region(704 << 12, 1)]);
    assert_eq!(scratch.frames(1)[..3], [Some(1), Some(2), Some(0)]);
}

#[test]
fn frames_that_cannot_be_read_are_absent_and_come_back() {
    let scratch = scratch();
    let guest = Scripted::new(
        &[region(0, 1_000)],
        Box::new(|nth, ram| {
            ram.fill(Gfn(5), 5);
            if nth == 1 {
                ram.lose(Gfn(5));
                ram.lose(Gfn(6));
            }
        }),
    );
    take(&guest, &scratch.archive, 2, &());
    assert_eq!(scratch.frames(0)[4..8], [Some(0), Some(5), Some(0), Some(0)]);
    assert_eq!(scratch.frames(1)[4..8], [Some(0), None, None, Some(0)]);
    assert_eq!(scratch.archive.record(VM, 1).unwrap().pages_changed, 2);
}

#[test]
fn a_guest_somebody_else_paused_stays_paused() {
    let scratch = scratch();
    let mut guest = Scripted::new(&[region(0, 10)], one_frame_an_epoch());
    guest.paused_by_others = true;
    let seen = Memory::default();
    take(&guest, &scratch.archive, 1, &seen);
    assert_eq!(scratch.epoch_count(), 1);
    assert_eq!(*seen.remarks.lock().unwrap(), ["the guest stood still already (paused), and stays so"]);
}

#[test]
fn an_epoch_somebody_tore_is_dropped_and_the_next_is_whole() {
    let scratch = scratch();
    let guest = Scripted::new(&[region(0, 10)], one_frame_an_epoch());
    guest.disturb();
    let seen = Memory::default();
    let ended = take(&guest, &scratch.archive, 1, &seen);
    assert!(ended.error.is_none());
    assert_eq!((ended.summary.epochs, ended.summary.epochs_dropped), (1, 1));
    assert_eq!(scratch.frames(0)[..3], [1, 2, 0].map(Some));
    assert!(seen.remarks.lock().unwrap()[0].starts_with("epoch dropped: somebody else resumed"));
}

#[test]
fn a_small_staging_limit_loses_nothing() {
    let scratch = scratch();
    let guest = Scripted::new(
        &[region(0, 20_000)],
        Box::new(|nth, ram| {
            (0..20_000).for_each(|gfn| ram.fill(Gfn(gfn), (gfn % 250) as u8 + nth as u8 + 1))
        }),
    );
    let plan = Plan::every(Duration::ZERO, Some(2));
    let options = Options { staging_bytes: 1, ..Options::default() };
    let ended = capture(&guest, &scratch.archive, VM, &plan, &options, &(), &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    for epoch in 0..2 {
        let expected: Vec<_> = (0..20_000).map(|gfn| Some((gfn % 250) as u8 + epoch as u8 + 1)).collect();
        assert!(scratch.frames(epoch) == expected, "epoch {epoch}");
    }
    let memory = scratch.archive.record(VM, 1).unwrap();
    assert_eq!(memory.pages_stored, 1, "249 of 250 pages were there");
    assert_ne!(digest(1), digest(2));
}

#[test]
fn what_no_log_tells_of_is_found_when_its_turn_comes() {
    for (recheck_epochs, expected) in [(4, 9), (0, 1)] {
        let scratch = scratch();
        let mut guest = Scripted::new(
            &[region(0, 20)],
            Box::new(|nth, ram| match nth {
                0 => (0..20).for_each(|gfn| ram.fill(Gfn(gfn), 1)),
                1 => (0..20).for_each(|gfn| ram.slip(Gfn(gfn), 9)),
                _ => {}
            }),
        );
        guest.dirty_log = true;
        let plan = Plan::every(Duration::ZERO, Some(8));
        let options = Options { recheck_epochs, ..Options::default() };
        let ended = capture(&guest, &scratch.archive, VM, &plan, &options, &(), &());
        assert!(ended.error.is_none(), "{:?}", ended.error);
        assert_eq!(scratch.frames(0), [Some(1); 20]);
        assert_eq!(scratch.frames(7), [Some(expected); 20], "within {recheck_epochs} epochs");
    }
}

#[test]
fn finish_ends_the_wait_for_the_next_epoch() {
    let scratch = scratch();
    let guest = Scripted::new(&[region(0, 10)], one_frame_an_epoch());
    let plan = Plan::every(Duration::from_secs(3600), None);
    let ended = capture(&guest, &scratch.archive, VM, &plan, &Options::default(), &after(Finish(1)), &());
    assert!(ended.error.is_none());
    assert_eq!((ended.summary.epochs, scratch.epoch_count()), (1, 1));
}
