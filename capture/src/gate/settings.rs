//! What the owner of a guest wants of a gate, and the decisions that follow from it: functions of what is known, without any I/O.

use std::time::Duration;

use crate::Options;

/// How a gate is to behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the start of one epoch to the start of the next.
    pub interval: Duration,
    /// For every so many epochs, beginning with the first, the guest suspends itself, so that it can be started from them; 0 for none.
    pub suspend_every: u64,
    /// As [`Options::recheck_epochs`].
    pub recheck_epochs: u64,
    /// How long packets may wait while no verdict comes and the guest runs on; then it is paused.
    pub hold_budget: Duration,
    /// How long they may wait while verdicts come that are incomplete, as of a guest that is booting; then it is paused.
    pub incomplete_budget: Duration,
    /// How long the scanner may look at one epoch; then it is taken to hang and replaced, and the next has twice the
    /// time.
    pub scan_limit: Duration,
    /// Most bytes held for each network card. The guest is paused before so many are.
    pub limit_bytes: u32,
    /// Whether what is sent to the guest is held while its memory is copied.
    pub hold_inbound: bool,
    /// What becomes of a guest in which something was found.
    pub on_finding: Remedy,
    /// What becomes of one that had to be paused because no verdict came, and after how long; `None`: it stays paused.
    pub on_undecided: Option<(Duration, Quarantine)>,
    /// Whether packets pass when there is no verdict in time, or the gate fails. Each use is in the journal.
    pub fail_open: bool,
}

/// What becomes of a guest that is bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is paused and stays so; its packets stay held.
    Freeze,
    /// It runs on where it can harm nobody.
    Quarantine(Quarantine),
}

/// Where a guest can harm nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// A bridge that leads nowhere. Packets that are held go there, and all that follow.
    pub bridge: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(200),
            suspend_every: 0,
            recheck_epochs: Options::default().recheck_epochs,
            hold_budget: Duration::from_secs(2),
            incomplete_budget: Duration::from_secs(60),
            scan_limit: Duration::from_secs(30),
            limit_bytes: 64 << 20,
            hold_inbound: false,
            on_finding: Remedy::Freeze,
            on_undecided: None,
            fail_open: false,
        }
    }
}

/// What the scanner says of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was looked at, and nothing was found.
    Passed,
    /// Something was found: a sentence for each.
    Bad(Vec<String>),
    /// Nothing was found, but not everything could be looked at, for this reason.
    Incomplete(String),
    /// The scanner did not answer, for this reason.
    Missing(String),
}

impl Verdict {
    /// Its name in the journal.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Bad(_) => "bad",
            Self::Incomplete(_) => "incomplete",
            Self::Missing(_) => "missing",
        }
    }
}

/// What is to be done about packets that wait for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// They go.
    Release,
    /// They wait for the next epoch, which was not looked at yet.
    LookAgain,
    /// They never go.
    Condemn,
}

/// Decides for an epoch that is durable.
pub(super) fn decide(verdict: &Verdict) -> Decision {
    match verdict {
        Verdict::Passed => Decision::Release,
        Verdict::Bad(_) => Decision::Condemn,
        Verdict::Incomplete(_) | Verdict::Missing(_) => Decision::LookAgain,
    }
}

/// What is known of a guest whose packets wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// For how long an interval has been undecided; `None` when none is.
    pub(super) undecided: Option<Duration>,
    /// For how long no verdict has come on it, be it an incomplete one.
    pub(super) silent: Duration,
    /// The most bytes that wait for one card.
    pub(super) bytes: u32,
    /// For how long the gate has paused the guest; `None` when it runs.
    pub(super) braked: Option<Duration>,
}

/// What is to be done because there is no verdict yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Escalation {
    /// The guest is paused.
    Brake(&'static str),
    /// What is held goes without a verdict.
    Open(&'static str),
    /// The guest goes where it can harm nobody.
    Quarantine(Quarantine),
}

/// Decides what waiting has come to.
pub(super) fn escalate(settings: &Settings, waiting: Waiting) -> Option<Escalation> {
    let reason = reason(settings, waiting);
    let late = reason.is_some() && waiting.undecided.is_some();
    match (waiting.braked, &settings.on_undecided) {
        // Packets of an interval that is still open cannot go: it must end first.
        (None, _) if late && settings.fail_open => reason.map(Escalation::Open),
        (None, _) => reason.map(Escalation::Brake),
        (Some(since), Some((limit, quarantine))) if since > *limit && waiting.undecided.is_some() => {
            Some(Escalation::Quarantine(quarantine.clone()))
        }
        _ => None,
    }
}

/// Why the guest cannot run on.
fn reason(settings: &Settings, waiting: Waiting) -> Option<&'static str> {
    // What fits behind this is what the guest can send until it is paused.
    if waiting.bytes > settings.limit_bytes / 4 * 3 {
        return Some("nearly as many bytes are held as may be");
    }
    let undecided = waiting.undecided?;
    if waiting.silent > settings.hold_budget {
        Some("no verdict in time")
    } else if undecided > settings.incomplete_budget {
        Some("it could not be looked at completely in time")
    } else {
        None
    }
}

/// Whether a guest that was paused may run on for another look at it, though its packets cannot go yet.
pub(super) fn may_run_on(settings: &Settings, waiting: Waiting) -> bool {
    // Nor would it ever be seen whole if it stood still: what there is no room for is dropped meanwhile.
    reason(settings, Waiting { silent: Duration::ZERO, bytes: 0, ..waiting }).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn waiting(undecided: u32, bytes: u32, braked: Option<u32>) -> Waiting {
        let undecided = SECOND * undecided;
        Waiting {
            undecided: Some(undecided),
            silent: undecided,
            bytes,
            braked: braked.map(|time| SECOND * time),
        }
    }

    #[test]
    fn only_a_verdict_that_passed_releases() {
        assert_eq!(decide(&Verdict::Passed), Decision::Release);
        assert_eq!(decide(&Verdict::Bad(Vec::new())), Decision::Condemn);
        for verdict in [Verdict::Incomplete(String::new()), Verdict::Missing(String::new())] {
            assert_eq!(decide(&verdict), Decision::LookAgain, "{verdict:?}");
        }
    }

    #[test]
    fn a_guest_is_paused_when_the_budget_is_used_up_or_the_room() {
        let settings = Settings { limit_bytes: 1000, ..Settings::default() };
        let brakes = |waiting| matches!(escalate(&settings, waiting), Some(Escalation::Brake(_)));
        assert!(!brakes(waiting(2, 750, None)));
        assert!(brakes(waiting(3, 0, None)) && brakes(waiting(0, 751, None)));
        assert!(brakes(Waiting { bytes: 751, ..Waiting::default() }), "also with no epoch undecided");
        assert_eq!(escalate(&settings, waiting(99, 999, Some(99))), None, "it stays paused");
    }

    #[test]
    fn a_guest_that_boots_may_run_on_until_its_own_budget_is_used_up() {
        let settings = Settings::default();
        let heard = |undecided: u32| Waiting { silent: SECOND, ..waiting(undecided, 0, None) };
        assert_eq!(escalate(&settings, heard(59)), None);
        assert!(matches!(escalate(&settings, heard(61)), Some(Escalation::Brake(_))));
        assert!(
            may_run_on(&settings, waiting(59, 0, Some(9))) && !may_run_on(&settings, waiting(61, 0, Some(9)))
        );
        assert!(
            may_run_on(&settings, waiting(1, u32::MAX, Some(9))),
            "what stands still is never seen whole"
        );
    }

    #[test]
    fn quarantine_follows_a_pause_that_lasts() {
        let quarantine = Quarantine { bridge: "island".to_owned() };
        let settings =
            Settings { on_undecided: Some((SECOND * 5, quarantine.clone())), ..Settings::default() };
        assert_eq!(escalate(&settings, waiting(9, 0, Some(5))), None);
        assert_eq!(escalate(&settings, waiting(9, 0, Some(6))), Some(Escalation::Quarantine(quarantine)));
        let decided = Waiting { braked: Some(SECOND * 6), ..Waiting::default() };
        assert_eq!(escalate(&settings, decided), None, "it is about to go on");
    }

    #[test]
    fn packets_pass_unseen_only_when_told_to() {
        let settings = Settings { fail_open: true, limit_bytes: 1000, ..Settings::default() };
        assert_eq!(escalate(&settings, waiting(3, 0, None)), Some(Escalation::Open("no verdict in time")));
        assert_eq!(escalate(&settings, waiting(1, 0, None)), None);
        let full = Waiting { bytes: 999, ..Waiting::default() };
        assert!(matches!(escalate(&settings, full), Some(Escalation::Brake(_))), "nothing is undecided");
        for time in 0..100 {
            let closed = escalate(&Settings::default(), waiting(time, time, None));
            assert!(!matches!(closed, Some(Escalation::Open(_))), "{closed:?}");
        }
    }
}
