//! Cards that come and go, and gates that are told to stop or find what they cannot hold.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::Interrupt;

#[test]
fn a_card_that_is_added_is_held_from_the_next_interval_on() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, []);
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    sender.vifs.lock().unwrap().push(vif(1));
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    bench.kernel.send("vif7.1", 1);
    assert_eq!(bench.kernel.network("vif7.1"), [0_u64; 0]);
}

#[test]
fn a_card_that_is_added_while_an_interval_is_undecided_is_held_at_once() {
    let bench = Bench::new(impatient());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, []);
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    let later = Sender::new(&bench.kernel, 1);
    let mut oracle = Oracle::new(&bench.kernel, [(1, NEVER)]);
    let (kernel, vifs, here) = (bench.kernel.clone(), &later.vifs, &bench);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            here.wait_for("close");
            vifs.lock().unwrap().push(vif(1));
            // Some looks of the guard later.
            std::thread::sleep(Duration::from_millis(120));
            kernel.send("vif7.1", 1);
        });
        let (_, end) = bench.run(&bench.gate(&later, 1), &mut oracle);
        assert_eq!(end.unwrap(), GateEnd::Finished);
    });
    assert_eq!(bench.kernel.network("vif7.1"), [0_u64; 0]);
}

#[test]
fn a_card_that_is_taken_away_and_given_again_is_held_at_once() {
    let bench = Bench::new(impatient());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, NEVER)]);
    let (kernel, here) = (bench.kernel.clone(), &bench);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            here.wait_for("close");
            kernel.unplug("vif7.0");
            kernel.plug_in("vif7.0");
            // Some looks of the guard later.
            std::thread::sleep(Duration::from_millis(120));
            kernel.send("vif7.0", 99);
        });
        let (_, end) = bench.run(&bench.gate(&sender, 2), &mut oracle);
        assert_eq!(end.unwrap(), GateEnd::Finished);
    });
    assert_eq!(bench.kernel.network("vif7.0"), [0_u64; 0]);
    assert!(bench.acts().contains(&"extend".to_owned()), "{:?}", bench.acts());
}

#[test]
fn a_guest_whose_packets_are_led_past_is_stopped() {
    let bench = Bench::new(impatient());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, NEVER)]);
    let (kernel, here) = (bench.kernel.clone(), &bench);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            here.wait_for("close");
            kernel.occupy("vif7.0");
        });
        let (_, end) = bench.run(&bench.gate(&sender, 3), &mut oracle);
        assert!(matches!(end, Err(GateError::Output(_))), "{end:?}");
    });
    assert!(!sender.guest.is_running());
}

#[test]
fn a_guest_that_is_bad_from_the_first_is_stopped_also_when_nothing_can_be_held() {
    let quarantine = Remedy::Quarantine(Quarantine { bridge: "island".to_owned() });
    for on_finding in [Remedy::Freeze, quarantine] {
        let bench = Bench::new(Settings { on_finding, ..settings() });
        bench.kernel.occupy("vif7.0");
        let sender = Sender::new(&bench.kernel, 0);
        let mut oracle = Oracle { open: true, ..Oracle::new(&bench.kernel, [(0, Answers::Bad)]) };
        let (totals, end) = bench.run(&bench.gate(&sender, 3), &mut oracle);
        assert!(matches!(end, Ok(GateEnd::Frozen { epoch: 0, .. })), "{end:?}");
        assert_eq!(totals.bad, 1);
        assert!(!sender.guest.is_running());
    }
}

/// Told to stop by whoever holds it.
#[derive(Default)]
struct Stop(AtomicBool);

impl Interrupt for Stop {
    fn finish(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_gate_that_is_told_to_stop_does_not_wait_for_a_scanner_that_hangs() {
    let bench = Bench::new(Settings { scan_limit: Duration::from_secs(3600), ..impatient() });
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, NEVER)]);
    let (stop, mut totals) = (Stop::default(), Totals::default());
    let (told, here) = (&stop, &bench);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            here.wait_for("brake");
            told.0.store(true, Ordering::Relaxed);
        });
        let end = run_with(&bench.gate(&sender, 9), &bench.kernel, &mut oracle, &stop, &(), &mut totals);
        assert_eq!(end.unwrap(), GateEnd::Finished);
    });
    assert_eq!((totals.missing, oracle.stops), (1, 1));
    assert!(sender.guest.is_running(), "it runs on, and its packets stay held");
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1]);
}
