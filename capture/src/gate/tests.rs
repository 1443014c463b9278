mod ends;
mod scanners;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::Value;
use tempfile::TempDir;
use varve_formats::{Gfn, Gpa, Region};
use varve_store::{Access, Archive};

use super::start::{Plumbing, run_with};
use super::*;
use crate::output::double::{Double, Fail};
use crate::output::{Orphan, OutputBuffer, OutputError, OutputOptions, Vif};
use crate::source::{Devices, DirtyLog, GuestMemory, Pause, Registers, Source};
use crate::testing::Scripted;
use crate::{CaptureError, SourceError};

const REGIONS: [Region; 1] = [Region { start: Gpa(0), len: 0x8000 }];

impl Plumbing for Double {
    fn install(&self, vifs: &[Vif], options: &OutputOptions) -> Result<OutputBuffer, GateError> {
        Ok(self.install(vifs, options)?)
    }

    fn orphans(&self) -> Result<Vec<Orphan>, GateError> {
        Ok(self.orphans()?)
    }

    fn adopt(&self, orphans: Vec<Orphan>) -> Result<OutputBuffer, GateError> {
        Ok(self.adopt(orphans))
    }

    fn isolated(&self, bridge: &str) -> Result<(), GateError> {
        let leads_on = OutputError::Unsuitable { reason: "it leads to a network".to_owned() };
        if bridge == "mainland" { Err(leads_on.into()) } else { Ok(()) }
    }
}

/// A guest with a card that sends two packets before each time it is held: those before the n-th, from 0, are `10 n` and `10 n + 1`.
struct Sender {
    guest: Scripted,
    vifs: Mutex<Vec<Vif>>,
}

impl Sender {
    fn new(kernel: &Double, first: u64) -> Self {
        let kernel = kernel.clone();
        let script = Box::new(move |nth: u64, ram: &mut crate::testing::Ram| {
            ram.fill(Gfn(nth % 8), nth as u8 + 1);
            let base = 10 * (first + nth);
            kernel.send("vif7.0", base);
            kernel.send("vif7.0", base + 1);
        });
        let mut guest = Scripted::new(&REGIONS, script);
        guest.dirty_log = true;
        Self { guest, vifs: Mutex::new(vec![vif(0)]) }
    }
}

fn vif(devid: u32) -> Vif {
    Vif { domid: 7, devid, name: format!("vif7.{devid}") }
}

impl Source for Sender {
    fn spec(&self) -> String {
        "scripted:sender".to_owned()
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        self.guest.memory()
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Source::pause(&self.guest)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        self.guest.registers()
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        self.guest.dirty_log()
    }

    fn devices(&self) -> Option<&dyn Devices> {
        Some(self)
    }
}

impl Devices for Sender {
    fn identity(&self) -> String {
        "68bc6d47".to_owned()
    }

    fn vifs(&self) -> Result<Vec<Vif>, SourceError> {
        Ok(self.vifs.lock().unwrap().clone())
    }

    fn other_channels(&self) -> Result<Vec<String>, SourceError> {
        Ok(vec!["disks (1)".to_owned()])
    }
}

/// Says of each epoch what it was told to, and looks whether packets are out that have not passed.
struct Oracle<'a> {
    verdicts: BTreeMap<u64, Answers>,
    kernel: &'a Double,
    asked: Option<u64>,
    /// The last packet that was sent before the epoch that is looked at, and before the last that passed. Those before the first
    /// epoch are not held.
    last: (Option<u64>, Option<u64>),
    /// What it saw of the mirror, by epoch.
    seen: Vec<(u64, Vec<u8>)>,
    /// When it was asked.
    begun: Instant,
    stops: u32,
    /// Whether packets may be out that have not passed.
    open: bool,
}

/// What is answered to an epoch.
enum Answers {
    Bad,
    Incomplete,
    Refused,
    /// That it passed, when asked for the second time.
    Again,
    /// That it passed, after so long.
    Late(Duration),
}

const NEVER: Answers = Answers::Late(Duration::MAX);

impl<'a> Oracle<'a> {
    fn new(kernel: &'a Double, verdicts: impl IntoIterator<Item = (u64, Answers)>) -> Self {
        Self {
            verdicts: verdicts.into_iter().collect(),
            kernel,
            asked: None,
            last: (None, Some(1)),
            seen: Vec::new(),
            begun: Instant::now(),
            stops: 0,
            open: false,
        }
    }
}

impl Judge for Oracle<'_> {
    fn begin(&mut self, question: &Question<'_>) -> Result<(), String> {
        use std::io::Read;
        if matches!(self.verdicts.get(&question.epoch), Some(Answers::Refused)) {
            return Err("no scanner".to_owned());
        }
        let mut bytes = Vec::new();
        question.mirror.reader().unwrap().read_to_end(&mut bytes).unwrap();
        self.seen.push((question.epoch, bytes.chunks(4096).map(|page| page[0]).collect()));
        self.begun = Instant::now();
        (self.asked, self.last.0) = (Some(question.epoch), self.kernel.last_sent());
        Ok(())
    }

    fn answer(&mut self, until: Instant) -> Option<(Verdict, Duration)> {
        let epoch = self.asked?;
        let verdict = match self.verdicts.get(&epoch) {
            Some(Answers::Bad) => Verdict::Bad(vec!["xmrig runs".to_owned()]),
            Some(Answers::Again) if self.seen.iter().filter(|(seen, _)| *seen == epoch).count() == 1 => {
                self.asked = None;
                return Some((Verdict::Missing("the scanner ended".to_owned()), Duration::ZERO));
            }
            Some(Answers::Late(time)) if self.begun.elapsed() < *time => {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                return None;
            }
            None | Some(Answers::Late(_) | Answers::Again | Answers::Refused) => Verdict::Passed,
            Some(Answers::Incomplete) => Verdict::Incomplete("the guest is still booting".to_owned()),
        };
        self.nothing_is_out_that_has_not_passed();
        self.asked = None;
        if verdict == Verdict::Passed {
            self.last.1 = self.last.0;
        }
        Some((verdict, Duration::from_micros(1)))
    }

    fn stop(&mut self) {
        self.stops += 1;
        self.asked = None;
    }
}

impl Oracle<'_> {
    fn nothing_is_out_that_has_not_passed(&self) {
        let (out, passed) = (self.kernel.network("vif7.0"), self.last.1);
        let home = self.kernel.bridge("vif7.0").is_none();
        assert!(
            self.open || !home || out.iter().all(|packet| Some(*packet) <= passed),
            "{out:?}, {passed:?} passed"
        );
        assert!(out.is_sorted(), "{out:?}");
    }
}

struct Bench {
    folder: TempDir,
    archive: Archive,
    kernel: Double,
    settings: Settings,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::create(&folder.path().join("archive")).unwrap();
        Self { folder, archive, kernel: Double::new(&["vif7.0", "island", "mainland", "vif7.1"]), settings }
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("web1.jsonl")
    }

    fn gate<'a>(&'a self, source: &'a dyn Source, epochs: u64) -> Gate<'a> {
        Gate {
            source,
            archive: &self.archive,
            vm: "web1",
            settings: &self.settings,
            journal: self.journal(),
            disk_snapshot: None,
            thaw: false,
            epochs: Some(epochs),
        }
    }

    fn run(&self, gate: &Gate<'_>, oracle: &mut Oracle<'_>) -> (Totals, Result<GateEnd, GateError>) {
        let mut totals = Totals::default();
        let end = run_with(gate, &self.kernel, oracle, &(), &(), &mut totals);
        (totals, end)
    }

    /// Waits until a gate, which need not have begun, has written of such an act.
    fn wait_for(&self, act: &str) {
        let line = format!("\"act\":\"{act}\"");
        while !fs::read_to_string(self.journal()).is_ok_and(|text| text.contains(&line)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The acts in the journal.
    fn acts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.journal()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["act"].as_str().unwrap().to_owned()).collect()
    }
}

/// Quick, for tests in which nothing waits.
fn settings() -> Settings {
    Settings { interval: Duration::ZERO, hold_budget: Duration::from_secs(60), ..Settings::default() }
}

/// Soon out of patience.
fn impatient() -> Settings {
    let (hold_budget, scan_limit) = (Duration::from_millis(20), Duration::from_millis(200));
    Settings { hold_budget, scan_limit, ..settings() }
}

#[test]
fn packets_leave_in_order_when_their_epoch_is_durable_and_has_passed() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, []);
    let (totals, end) = bench.run(&bench.gate(&sender, 4), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11, 20, 21, 30, 31]);
    assert_eq!((totals.passed, totals.summary.epochs, totals.last_passed), (4, 4, Some(3)));
    // What the scanner saw is what is archived.
    let frames: Vec<u8> = (0..8).map(|frame| if frame < 4 { frame + 1 } else { 0 }).collect();
    assert_eq!(oracle.seen.last(), Some(&(3, frames)));
    let epoch = ["close", "durable", "verdict", "release"];
    let acts =
        [&["begin", "durable", "verdict", "hold", "held"][..], &epoch, &epoch, &epoch, &["end"]].concat();
    assert_eq!(bench.acts(), acts);
    bench.kernel.send("vif7.0", 99);
    assert!(!bench.kernel.network("vif7.0").contains(&99), "a gate that ended leaves packets held");
    assert!(sender.guest.is_running());
}

#[test]
fn nothing_of_a_bad_epoch_or_later_ever_leaves() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(2, Answers::Bad)]);
    let (totals, end) = bench.run(&bench.gate(&sender, 9), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Frozen { epoch: 2, findings: vec!["xmrig runs".to_owned()] });
    assert_eq!((totals.bad, totals.last_passed), (1, Some(1)));
    assert!(!sender.guest.is_running(), "it is frozen");
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11]);
    // The next gate leaves it so, until it is told that it was no harm.
    oracle.verdicts.clear();
    let (_, end) = bench.run(&bench.gate(&sender, 9), &mut oracle);
    assert!(matches!(end, Err(GateError::Frozen { epoch: 2 })), "{end:?}");
    let later = Sender::new(&bench.kernel, 3);
    let (_, end) = bench.run(&Gate { thaw: true, ..bench.gate(&later, 2) }, &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11, 30, 31, 40, 41], "what was held is dropped");
    assert!(later.guest.is_running());
    let acts = bench.acts();
    let act = |name: &str| acts.iter().rposition(|act| act == name).unwrap();
    assert!(act("verdict") > act("thaw") && act("thaw") > act("freeze"), "{acts:?}");
}

#[test]
fn a_frozen_guest_is_so_until_an_epoch_passes() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(0, Answers::Bad), (1, Answers::Bad)]);
    for thaw in [false, true] {
        let (_, end) = bench.run(&Gate { thaw, ..bench.gate(&sender, 9) }, &mut oracle);
        assert!(matches!(end, Ok(GateEnd::Frozen { .. })), "{end:?}");
    }
    assert!(!sender.guest.is_running() && !bench.acts().contains(&"thaw".to_owned()), "{:?}", bench.acts());
}

#[test]
fn an_epoch_that_was_not_seen_whole_lets_nothing_go_and_a_later_one_does() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, Answers::Incomplete), (2, Answers::Incomplete)]);
    let (totals, end) = bench.run(&bench.gate(&sender, 4), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!((totals.passed, totals.incomplete), (2, 2));
    // Those of epochs 2 and 3 came after the interval of epoch 1 was closed: they wait for the next.
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11]);
    let closes = bench.acts().iter().filter(|act| *act == "close").count();
    assert_eq!(closes, 1, "none is closed while one is undecided");
}

#[test]
fn without_a_verdict_packets_pass_only_when_told_to_and_it_is_written_down() {
    let bench = Bench::new(Settings { fail_open: true, ..impatient() });
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle { open: true, ..Oracle::new(&bench.kernel, [(1, NEVER)]) };
    let (_, end) = bench.run(&bench.gate(&sender, 3), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11, 20, 21]);
    let acts = bench.acts();
    assert!(acts.contains(&"fail-open".to_owned()), "{acts:?}");
    assert!(!acts.contains(&"brake".to_owned()));
}

#[test]
fn a_bad_guest_runs_on_in_quarantine_and_goes_on_being_captured() {
    let quarantine = Quarantine { bridge: "island".to_owned() };
    let bench = Bench::new(Settings { on_finding: Remedy::Quarantine(quarantine), ..settings() });
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, Answers::Bad), (2, Answers::Bad)]);
    let (totals, end) = bench.run(&bench.gate(&sender, 4), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!((totals.summary.epochs, totals.bad), (4, 2));
    assert_eq!(bench.kernel.bridge("vif7.0").as_deref(), Some("island"));
    assert!(sender.guest.is_running());
    let acts = bench.acts();
    let moved = acts.iter().position(|act| act == "quarantine").unwrap();
    assert!(!acts[moved..].iter().any(|act| act == "release" || act == "close"), "{acts:?}");
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert!(matches!(end, Err(GateError::InQuarantine { .. })), "{end:?}");
}

#[test]
fn what_was_found_bad_never_goes_though_the_remedy_fails_and_the_gate_is_to_fail_open() {
    ["nowhere", "mainland"]
        .iter()
        .for_each(|bridge| what_was_found_bad_never_goes_though_it_cannot_go_to(bridge));
}

fn what_was_found_bad_never_goes_though_it_cannot_go_to(bridge: &str) {
    let quarantine = Quarantine { bridge: bridge.to_owned() };
    let bench =
        Bench::new(Settings { on_finding: Remedy::Quarantine(quarantine), fail_open: true, ..settings() });
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, [(1, Answers::Bad)]);
    let (_, end) = bench.run(&bench.gate(&sender, 4), &mut oracle);
    assert!(matches!(end, Err(GateError::Output(_))), "{end:?}");
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1]);
    assert!(!sender.guest.is_running());
    assert!(!bench.acts().contains(&"fail-open".to_owned()), "{:?}", bench.acts());
    // The next gate does not take it for one in quarantine: it looks again, and finds the same.
    let mut oracle = Oracle::new(&bench.kernel, [(2, Answers::Bad)]);
    let (_, end) = bench.run(&bench.gate(&Sender::new(&bench.kernel, 2), 4), &mut oracle);
    assert!(matches!(end, Err(GateError::Output(_))), "{end:?}");
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1]);
}

#[test]
fn an_archive_that_fails_ends_the_gate_with_the_guest_paused_and_all_held() {
    let mut bench = Bench::new(settings());
    let path = bench.archive.path().to_owned();
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, []);
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    bench.archive = Archive::open(&path, Access::Read).unwrap();
    let later = Sender::new(&bench.kernel, 1);
    let (_, end) = bench.run(&bench.gate(&later, 3), &mut oracle);
    assert!(matches!(end, Err(GateError::Capture(CaptureError::Store(_)))), "{end:?}");
    assert!(!later.guest.is_running());
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1]);
    assert_eq!(bench.acts().iter().rev().take(2).collect::<Vec<_>>(), ["end", "brake"]);
}

#[test]
fn what_a_killed_gate_left_held_is_dropped_and_the_next_begins_anew() {
    let bench = Bench::new(settings());
    let sender = Sender::new(&bench.kernel, 0);
    let mut oracle = Oracle::new(&bench.kernel, []);
    let (_, end) = bench.run(&bench.gate(&sender, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    // The kernel goes on holding whoever is gone.
    bench.kernel.send("vif7.0", 5);
    let later = Sender::new(&bench.kernel, 1);
    let (_, end) = bench.run(&bench.gate(&later, 1), &mut oracle);
    assert_eq!(end.unwrap(), GateEnd::Finished);
    assert_eq!(bench.kernel.network("vif7.0"), [0, 1, 10, 11]);
    assert!(bench.acts().contains(&"dropped".to_owned()));
}

/// Whatever the kernel refuses or forgets to answer: no packet of an epoch that has not passed gets out, none out of order.
#[test]
fn nothing_leaks_when_any_step_fails() {
    let failures = [Fail::Refuse(Errno::NOMEM), Fail::LoseAnswer, Fail::LoseRequest];
    for (step, fail) in (0..14).flat_map(|step| failures.map(|fail| (step, fail))) {
        let bench = Bench::new(impatient());
        bench.kernel.fail(&[(step, fail)]);
        let sender = Sender::new(&bench.kernel, 0);
        let mut oracle = Oracle::new(&bench.kernel, [(3, Answers::Bad)]);
        let (_, end) = bench.run(&bench.gate(&sender, 6), &mut oracle);
        if !bench.acts().iter().any(|act| act == "close") {
            assert!(end.is_err() && sender.guest.is_running(), "{step} {fail:?}: {end:?}");
            continue;
        }
        oracle.nothing_is_out_that_has_not_passed();
        assert!(end.is_err() || matches!(end, Ok(GateEnd::Frozen { .. })), "{step} {fail:?}: {end:?}");
        assert!(!sender.guest.is_running(), "{step} {fail:?}: {end:?}");
    }
}
