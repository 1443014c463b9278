//! Whatever fails, wherever: the guest runs, and no half epoch is to be seen.

use std::time::Duration;

use varve_capture::testing::{Scripted, Step};
use varve_capture::{CaptureError, Options, Plan, capture};
use varve_formats::{Gfn, Region};
use varve_store::Access;

use super::support::*;

const STEPS: [Step; 6] =
    [Step::Memory, Step::Pause, Step::DirtyLog, Step::Peek, Step::Registers, Step::Resume];

fn guest() -> Scripted {
    let mut guest = Scripted::new(&[region(0, 600)], one_frame_an_epoch());
    guest.dirty_log = true;
    guest
}

#[test]
fn every_operation_failing_in_every_epoch() {
    let mut said = Vec::new();
    for step in STEPS {
        for nth in 0..3 {
            let scratch = scratch();
            let guest = guest();
            guest.fail(step, nth);
            let ended = take(&guest, &scratch.archive, 3, &());
            assert!(guest.is_running(), "{step:?} {nth}");
            let whole = match step {
                Step::Resume => 3,
                // The first epoch begins the log before it copies ahead, and takes it when the guest is held.
                Step::DirtyLog => nth.saturating_sub(1),
                _ => nth,
            };
            assert_eq!((scratch.epoch_count(), ended.summary.epochs), (whole, whole), "{step:?} {nth}");
            for epoch in 0..whole {
                let expected = (0..600).map(|gfn| Some(if gfn <= epoch { gfn as u8 + 1 } else { 0 }));
                assert_eq!(
                    scratch.frames(epoch),
                    expected.collect::<Vec<_>>(),
                    "{step:?} {nth}, epoch {epoch}"
                );
            }
            match ended.error {
                Some(error) => said.push(error.to_string()),
                // Resuming is tried again, and the epoch was whole.
                None => assert_eq!(step, Step::Resume),
            }
            // The next run goes on as if nothing had been.
            assert!(take(&guest, &scratch.archive, 1, &()).error.is_none(), "{step:?} {nth}");
            assert_eq!(scratch.epoch_count(), whole + 1);
        }
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_guest_that_is_gone_is_not_waited_for() {
    let scratch = scratch();
    let guest = guest();
    guest.fail(Step::There, 0);
    let plan = Plan::every(Duration::from_secs(5), Some(2));
    let ended = capture(&guest, &scratch.archive, VM, &plan, &Options::default(), &(), &());
    insta::assert_snapshot!(ended.error.unwrap(), @"scripted:guest: There 0 was refused: as scripted");
    assert_eq!((ended.summary.epochs, scratch.epoch_count()), (1, 1));
}

#[test]
fn a_guest_that_cannot_be_resumed_is_said_to_stand_still() {
    let scratch = scratch();
    let guest = guest();
    guest.fail(Step::Resume, 0);
    guest.fail(Step::Resume, 1);
    let ended = take(&guest, &scratch.archive, 1, &());
    let error = ended.error.unwrap();
    assert!(matches!(error, CaptureError::LeftHeld { first: None, .. }));
    insta::assert_snapshot!(error, @"scripted:guest: the guest may still stand still, because it could not be resumed (Resume 1 was refused: as scripted): resume it by hand (`cont` in QEMU's monitor, `xl unpause`); a domain that has suspended itself is let go by the next capture");
    assert_eq!(scratch.epoch_count(), 0);
}

#[test]
fn the_first_failure_is_told_too() {
    let scratch = scratch();
    let guest = guest();
    guest.fail(Step::Registers, 0);
    guest.fail(Step::Resume, 0);
    guest.fail(Step::Resume, 1);
    let error = take(&guest, &scratch.archive, 1, &()).error.unwrap();
    insta::assert_snapshot!(error, @"scripted:guest: scripted:guest: Registers 0 was refused: as scripted; the guest may still stand still, because it could not be resumed (Resume 1 was refused: as scripted): resume it by hand (`cont` in QEMU's monitor, `xl unpause`); a domain that has suspended itself is let go by the next capture");
}

#[test]
fn an_epoch_given_up_leaves_nothing_and_the_guest_runs() {
    let scratch = scratch();
    let plan = Plan::every(Duration::ZERO, Some(5));
    let options = Options::default();
    let asked_in_an_epoch = 3;
    for times in 0..2 * asked_in_an_epoch {
        let guest = Scripted::new(&[region(0, 600)], Box::new(|nth, ram| ram.fill(Gfn(nth), 1)));
        let before = scratch.epoch_count();
        let ended = capture(&guest, &scratch.archive, VM, &plan, &options, &after(Abandon(times)), &());
        assert!(matches!(ended.error, Some(CaptureError::Abandoned)), "{:?}", ended.error);
        assert_eq!(ended.summary.epochs_dropped, 1);
        assert_eq!(scratch.epoch_count(), before + ended.summary.epochs);
        assert!(guest.is_running());
    }
}

#[test]
fn an_archive_that_refuses_does_so_before_the_guest_is_held() {
    let scratch = scratch();
    let reader = varve_store::Archive::open(&scratch.path().join("archive"), Access::Read).unwrap();
    let guest = guest();
    let ended = take(&guest, &reader, 1, &());
    assert_eq!(ended.error.unwrap().to_string(), "the archive is open for reading only");
    assert_eq!(guest.done(), [Step::Memory]);
    let writer = scratch.archive.begin("other", &[region(0, 1)]).unwrap();
    assert!(matches!(take(&guest, &scratch.archive, 1, &()).error, Some(CaptureError::Store(_))));
    drop(writer);
    let nonsense = Scripted::new(&[Region { start: varve_formats::Gpa(1), len: 4096 }], one_frame_an_epoch());
    assert!(matches!(take(&nonsense, &scratch.archive, 1, &()).error, Some(CaptureError::Store(_))));
}
