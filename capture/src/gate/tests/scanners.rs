//! Scanners that hang, die or take long.

use super::*;

#[test]
fn a_scanner_that_hangs_or_is_not_there_pauses_the_guest_until_another_answers() {
    for answers in [NEVER, Answers::Refused] {
        // Each of two scanners is stopped.
        let stops = if matches!(answers, Answers::Late(_)) { 2 } else { 0 };
        let bench = Bench::new(impatient());
        let sender = Sender::new(&bench.kernel, 0);
        let mut oracle = Oracle::new(&bench.kernel, [(1, answers)]);
        let (totals, end) = bench.run(&bench.gate(&sender, 3), &mut oracle);
        assert_eq!(end.unwrap(), GateEnd::Finished);
        assert_eq!((totals.missing, totals.passed, oracle.stops), (1, 2, stops));
        // How many packets the guest came to send depends on when it was paused.
        oracle.nothing_is_out_that_has_not_passed();
        assert!(bench.kernel.network("vif7.0").len() >= 4);
        if stops > 0 {
            let acts = bench.acts();
            let brake = acts.iter().rposition(|act| act == "brake").unwrap();
            let go = acts.iter().rposition(|act| act == "go").unwrap();
            let release = acts.iter().rposition(|act| act == "release").unwrap();
            assert!(brake < release && release < go, "{acts:?}");
        }
        assert!(sender.guest.is_running());
    }
}

#[test]
fn a_scanner_gets_more_time_until_it_has_enough() {
    let bench = Bench::new(impatient());
    let sender = Sender::new(&bench.kernel, 0);
    // Too long for each of the four scanners that look at the first two epochs.
    let late = |epoch| (epoch, Answers::Late(impatient().scan_limit * 17 / 2));
    let mut oracle = Oracle::new(&bench.kernel, (0..4).map(late));
    let (totals, end) = bench.run(&bench.gate(&sender, 4), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert!(totals.missing >= 2 && totals.passed >= 1, "{totals:?}");
    assert!(u64::from(oracle.stops) >= 2 * totals.missing);
}

#[test]
fn another_scanner_looks_at_what_the_one_that_died_did_not() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, Answers::Again)]);
    let (totals, end) = bench.run(&bench.gate(&sender, 3), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!((totals.passed, totals.missing), (3, 0));
    let seen: Vec<_> = oracle.seen.iter().filter(|(epoch, _)| *epoch == 1).collect();
    assert!(seen.len() == 2 && seen[0] == seen[1], "the same memory: {seen:?}");
    let acts = bench.acts();
    let (failed, release) = ["failed", "release"].map(|act| acts.iter().position(|it| it == act)).into();
    assert!(failed.unwrap() < release.unwrap(), "{acts:?}");
}
