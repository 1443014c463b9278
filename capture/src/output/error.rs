//! What can go wrong with an output buffer, and what then becomes of each vif's packets.

use std::fmt;

use super::Traffic;

/// An output buffer that could not do what it was asked. Whatever was held is still held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// What was asked for makes no sense; nothing was done.
    #[error("{reason}")]
    Unsuitable {
        /// Why not.
        reason: String,
    },
    /// There is no such device; nothing was done.
    #[error("there is no vif {name}")]
    NoVif {
        /// Its name.
        name: String,
    },
    /// The kernel could not be asked; nothing was done.
    #[error("{doing}: {reason}")]
    Netlink {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Nothing was installed, and every vif's packets pass as before.
    #[error("the output buffer was not installed: {}{}; packets pass as before", List(failed), Left(left))]
    NotInstalled {
        /// What failed.
        failed: Vec<Failure>,
        /// Names of devices on which something was left: to be looked at by hand.
        left: Vec<String>,
    },
    /// Some of it was done. What was held before stays held; `now` says for each vif what becomes of its packets.
    #[error("{doing} failed: {}; now {}", List(failed), List(now))]
    Incomplete {
        /// What was being done.
        doing: &'static str,
        /// What failed.
        failed: Vec<Failure>,
        /// The state of every vif.
        now: Vec<VifTraffic>,
    },
    /// An epoch can be closed only when none is undecided, and released only when one is; nothing was done.
    #[error("{doing} is not possible now: {}", List(now))]
    Order {
        /// What was asked for.
        doing: &'static str,
        /// The state of every vif.
        now: Vec<VifTraffic>,
    },
}

/// A request that the kernel did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The vif it was for.
    pub vif: String,
    /// What was asked.
    pub doing: String,
    /// What the kernel says.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.vif, self.doing, self.reason)
    }
}

/// What becomes of a vif's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifTraffic {
    /// The vif.
    pub vif: String,
    /// What becomes of its packets.
    pub traffic: Traffic,
}

impl fmt::Display for VifTraffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.vif, self.traffic)
    }
}

/// Things one after the other.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, item)| {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{item}")
        })
    }
}

/// Devices on which something was left.
struct Left<'a>(&'a [String]);

impl fmt::Display for Left<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (left behind: {})", List(self.0)) }
    }
}
