//! What a scan says: findings, and how much of its work it could do.

use serde::Serialize;
use varve_formats::{Fault, Gpa, Gva};

use crate::linux::{Missing, Walk};

/// How bad a finding is. [`Severity::Info`] is worth telling and does not make an epoch bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; ordinary operation explains it.
    Info,
    /// Unusual.
    Low,
    /// Suspicious: a person should look.
    Medium,
    /// The kernel or the policy is violated.
    High,
    /// Nothing the guest says can be trusted any more.
    Critical,
}

/// Bytes that prove a finding. Serialised with hexadecimal addresses and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Evidence {
    /// Where, as the guest's kernel addresses it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex_address")]
    pub gva: Option<Gva>,
    /// Where, in guest physical memory.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex_physical")]
    pub gpa: Option<Gpa>,
    /// The bytes as they should be, or as they were in the baseline epoch.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex_bytes")]
    pub before: Option<Vec<u8>>,
    /// The bytes as they are.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex_bytes")]
    pub after: Option<Vec<u8>>,
}

/// Something a responder must look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Finding {
    /// Name of the scan.
    pub scan: &'static str,
    /// How bad.
    pub severity: Severity,
    /// One sentence that a tired person understands. Guest strings in it are escaped.
    pub title: String,
    /// Identity of the object, stable across epochs: `task:<start_time_ns>:<pid>:<address>`, `syscall:<number>`,
    /// `symbol+offset`, …
    pub object: String,
    /// The bytes that prove it.
    pub evidence: Vec<Evidence>,
    /// MITRE ATT&CK technique ids.
    pub attack: &'static [&'static str],
}

/// What one scan of one epoch gives.
///
/// Only a complete report without findings is clean.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// What was found, in a stable order.
    pub findings: Vec<Finding>,
    /// What could not be read, with what was being read.
    pub faults: Vec<ScanFault>,
    /// Whether everything the scan looks at was looked at.
    pub complete: bool,
}

/// A fault and what it kept a scan from seeing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScanFault {
    /// What was being read: `task list`, `sys_call_table[59]`, …
    pub what: String,
    /// Why it could not be.
    pub reason: FaultReason,
}

/// Why a part of a scan could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FaultReason {
    /// Guest memory could not be read.
    #[error(transparent)]
    Memory(#[from] Fault),
    /// A symbol, type or member the scan needs is not in this kernel.
    #[error("{0}")]
    Missing(String),
}

impl Report {
    /// A report of a scan that has nothing to look at in this kernel and therefore is done.
    pub fn done() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// A report of a scan that could not begin.
    pub fn impossible(what: impl Into<String>, reason: impl Into<FaultReason>) -> Self {
        let mut report = Self::default();
        report.fault(what, reason);
        report
    }

    /// Records that `what` could not be read: the report is no longer complete.
    pub fn fault(&mut self, what: impl Into<String>, reason: impl Into<FaultReason>) {
        self.complete = false;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(ScanFault { what: what.into(), reason: reason.into() });
        }
    }

    /// Takes over the faults of a walk through `what`, and gives what it saw. What the kernel does not have or describe
    /// is a fault too.
    pub(crate) fn absorb<T>(&mut self, what: &str, walk: Result<Walk<T>, Missing>) -> Vec<T> {
        match walk {
            Ok(walk) => {
                self.complete &= walk.complete;
                for fault in walk.faults {
                    self.fault(what, fault);
                }
                walk.items
            }
            Err(missing) => {
                self.fault(what, missing);
                Vec::new()
            }
        }
    }

    /// The value, or `None` and the fault on record.
    pub(crate) fn try_or_note<T, E: Into<FaultReason>>(
        &mut self,
        what: &str,
        value: Result<T, E>,
    ) -> Option<T> {
        value.map_err(|reason| self.fault(what, reason)).ok()
    }

    /// Whether nothing was found at `threshold` or above *and* everything was looked at.
    pub fn is_clean(&self, threshold: Severity) -> bool {
        self.complete && !self.is_bad(threshold)
    }

    /// Whether anything was found at `threshold` or above.
    pub fn is_bad(&self, threshold: Severity) -> bool {
        self.findings.iter().any(|finding| finding.severity >= threshold)
    }
}

/// Faults kept in one report; a hostile guest can produce any number.
const MAX_FAULTS: usize = 64;

impl From<String> for FaultReason {
    fn from(missing: String) -> Self {
        Self::Missing(missing)
    }
}

impl From<Missing> for FaultReason {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing.to_string())
    }
}

// serde's `serialize_with` hands over a reference to the field.
#[allow(clippy::ref_option)]
fn hex_address<S: serde::Serializer>(at: &Option<Gva>, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&format_args!("{:#x}", at.unwrap_or_default().0))
}

#[allow(clippy::ref_option)]
fn hex_physical<S: serde::Serializer>(at: &Option<Gpa>, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&format_args!("{:#x}", at.unwrap_or_default().0))
}

#[allow(clippy::ref_option)]
fn hex_bytes<S: serde::Serializer>(bytes: &Option<Vec<u8>>, out: S) -> Result<S::Ok, S::Error> {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in bytes.iter().flatten() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    out.serialize_str(&text)
}
