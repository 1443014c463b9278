//! What becomes of a vif's packets, and what its plug may be told next: the state machine that keeps epochs apart.
//!
//! ```text
//!           close_epoch                  release_all
//!   Held ───────────────▶ Undecided    any ─────────▶ Released
//!     ◀───────────────────
//!         release_closed
//! ```
//!
//! Closing is possible in `Held` only. The plug has room for one closed epoch, and its counters cannot be read back
//! (`net/sched/sch_plug.c`): once an answer of the kernel is lost nobody knows where an epoch ends, and all that is left is to
//! release everything or to remove the plug with what it holds.

use std::fmt;

use rustix::io::Errno;

use super::netlink::Refusal;
use super::plug::Action;
use super::step::Answer;

/// What becomes of the packets that a guest sends through a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Traffic {
    /// They pass as if there were no output buffer.
    Passes,
    /// They are held; the open epoch is all there is.
    Held,
    /// They are held; those of a closed epoch wait for a verdict in front of those of the open one.
    Undecided,
    /// They pass the output buffer without a stop.
    Released,
    /// They are dropped.
    Dropped,
    /// There are none: the vif is gone.
    Absent,
    /// They may be held or pass the output buffer: an answer of the kernel was lost, or another process drove it before.
    Unknown,
}

impl Traffic {
    /// Whether a plug in this state may be told that.
    pub(super) fn allows(self, action: Action) -> bool {
        match action {
            Action::Buffer => self == Self::Held,
            Action::ReleaseOne => self == Self::Undecided,
            Action::ReleaseIndefinite | Action::Limit { .. } => {
                matches!(self, Self::Held | Self::Undecided | Self::Released | Self::Unknown)
            }
        }
    }

    /// The state after a plug was told that.
    pub(super) fn after(self, action: Action, answer: Answer) -> Self {
        match (answer, action) {
            (Ok(()), Action::Buffer) => Self::Undecided,
            (Ok(()), Action::ReleaseOne) => Self::Held,
            (Ok(()), Action::ReleaseIndefinite) => Self::Released,
            (_, Action::Limit { .. }) => self,
            // There is no plug of ours: whoever removed it decided what becomes of the packets.
            (Err(Refusal::Refused(Errno::NODEV | Errno::NOENT)), _) => Self::Unknown,
            (Err(Refusal::Refused(_)), _) => self,
            (Err(Refusal::Lost), _) => Self::Unknown,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passes => "passes",
            Self::Held => "held",
            Self::Undecided => "held, with a closed epoch undecided",
            Self::Released => "released",
            Self::Dropped => "dropped",
            Self::Absent => "gone",
            Self::Unknown => "held or released, which is not known",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Traffic; 7] = [
        Traffic::Passes,
        Traffic::Held,
        Traffic::Undecided,
        Traffic::Released,
        Traffic::Dropped,
        Traffic::Absent,
        Traffic::Unknown,
    ];

    #[test]
    fn an_epoch_is_closed_only_when_none_is_undecided() {
        let closable: Vec<_> = ALL.into_iter().filter(|traffic| traffic.allows(Action::Buffer)).collect();
        assert_eq!(closable, [Traffic::Held]);
        let releasable: Vec<_> =
            ALL.into_iter().filter(|traffic| traffic.allows(Action::ReleaseOne)).collect();
        assert_eq!(releasable, [Traffic::Undecided]);
        assert_eq!(Traffic::Held.after(Action::Buffer, Ok(())), Traffic::Undecided);
        assert_eq!(Traffic::Undecided.after(Action::ReleaseOne, Ok(())), Traffic::Held);
    }

    #[test]
    fn a_refusal_changes_nothing_and_a_lost_answer_ends_all_certainty() {
        let refused = Err(Refusal::Refused(Errno::PERM));
        for (traffic, action) in [(Traffic::Held, Action::Buffer), (Traffic::Undecided, Action::ReleaseOne)] {
            assert_eq!(traffic.after(action, refused), traffic);
            assert_eq!(traffic.after(action, Err(Refusal::Lost)), Traffic::Unknown);
            assert_eq!(traffic.after(action, Err(Refusal::Refused(Errno::NOENT))), Traffic::Unknown);
        }
        assert!(!Traffic::Unknown.allows(Action::Buffer) && !Traffic::Unknown.allows(Action::ReleaseOne));
        assert!(Traffic::Unknown.allows(Action::ReleaseIndefinite));
    }
}
