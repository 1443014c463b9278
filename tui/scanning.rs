//! What `scan`, `sweep` and `first-bad` have in common: which scans, which policy, and how results are printed.

use std::{fs::File, io::Read, path::PathBuf};

use clap::{Args, builder::PossibleValuesParser};
use serde::Serialize;
use serde_json::json;
use varve_analyze::{
    Finding, ScanFault, Severity,
    engine::EpochResult,
    policy::{MAX_POLICY_BYTES, Policy},
    scans::{self, SCANS, Scan},
};

use crate::{
    exit::{Failure, Status},
    output::Output,
};

/// Findings below this are told and do not make an epoch bad.
pub(crate) const THRESHOLD: Severity = Severity::Low;

/// The scan that has nothing to say without a policy.
const JUDGED_BY_POLICY: &str = "process_policy";

/// Which scans to run, and what they judge by.
#[derive(Args)]
pub(crate) struct Selection {
    /// Only this scan; may be given several times
    #[arg(long = "scan", value_name = "NAME", value_parser = PossibleValuesParser::new(SCANS.iter().map(|scan| scan.name)))]
    scans: Vec<String>,
    /// What is allowed in the VM: a TOML file with deny and allow lists
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// The scans, for help texts.
pub(crate) fn help(examples: &str) -> String {
    let mut text = String::from("Scans:\n");
    for scan in SCANS {
        text.push_str(&format!("  {:<17}{}\n", scan.name, scan.summary));
    }
    text + "\nA policy file:\n  [process]\n  deny = [\"xmrig\", \"nc*\"]     # or, to deny all others: allow = [\"systemd*\", \"sshd\", …]\n\nExamples:\n"
        + examples
}

impl Selection {
    /// The scans to run and the policy: the scans that are named, or all that have something to judge by.
    pub(crate) fn resolve(&self) -> Result<(Vec<&'static Scan>, Policy), Failure> {
        let policy = self.policy()?;
        let is_named = |name: &str| self.scans.iter().any(|scan| scan == name);
        if is_named(JUDGED_BY_POLICY) && policy.process.is_empty() {
            let missing = "has nothing to judge by: give it --policy FILE with a deny or an allow list";
            return Err(Failure::usage(format_args!("{JUDGED_BY_POLICY} {missing}")));
        }
        if self.policy.is_some() && !self.scans.is_empty() && !is_named(JUDGED_BY_POLICY) {
            let unused = "none of the scans named uses the policy: add --scan";
            return Err(Failure::usage(format_args!("{unused} {JUDGED_BY_POLICY}, or leave --policy out")));
        }
        let scans = match self.scans.as_slice() {
            [] if policy.process.is_empty() => {
                SCANS.iter().filter(|scan| scan.name != JUDGED_BY_POLICY).collect()
            }
            [] => SCANS.iter().collect(),
            named => named.iter().filter_map(|name| scans::named(name)).collect(),
        };
        Ok((scans, policy))
    }

    /// The policy from its file; one that allows everything without a file.
    fn policy(&self) -> Result<Policy, Failure> {
        let Some(path) = &self.policy else { return Ok(Policy::default()) };
        let failure = |reason: String| Failure::new(format_args!("policy {}: {reason}", path.display()));
        Policy::parse(&self.policy_text()?).map_err(|error| failure(error.to_string()))
    }

    /// The text of the policy file; nothing without one.
    pub(crate) fn policy_text(&self) -> Result<String, Failure> {
        let Some(path) = &self.policy else { return Ok(String::new()) };
        let failure = |reason: String| Failure::new(format_args!("policy {}: {reason}", path.display()));
        let file = File::open(path).map_err(|error| failure(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_POLICY_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|error| failure(error.to_string()))?;
        if text.len() as u64 > MAX_POLICY_BYTES {
            return Err(failure(format!("is larger than {MAX_POLICY_BYTES} bytes")));
        }
        Ok(text)
    }
}

/// Counts what was printed, for the summary and the exit status.
#[derive(Default)]
pub(crate) struct Tally {
    epochs: u64,
    findings: u64,
    bad_epochs: Vec<u64>,
    incomplete_epochs: Vec<u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    epoch: u64,
    #[serde(flatten)]
    finding: &'a Finding,
}

impl Tally {
    /// Prints the findings and faults of an epoch, and counts them.
    pub(crate) fn print(&mut self, out: &mut Output, result: &EpochResult) -> Result<(), Failure> {
        let epoch = result.epoch;
        self.epochs += 1;
        if !result.is_complete() {
            self.incomplete_epochs.push(epoch);
        }
        match &result.scans {
            Err(error) => {
                let told = ("opening the epoch".to_owned(), error.to_string());
                print_faults(out, epoch, std::iter::once(("all", told)))?;
            }
            Ok(scans) => {
                for scan in scans {
                    for finding in &scan.report.findings {
                        self.findings += 1;
                        print_finding(out, epoch, finding)?;
                    }
                }
                let faults = scans.iter().flat_map(|scan| {
                    let told = |missed: &ScanFault| (missed.what.clone(), missed.reason.to_string());
                    scan.report.faults.iter().map(move |missed| (scan.scan, told(missed)))
                });
                print_faults(out, epoch, faults)?;
                if scans.iter().any(|scan| scan.report.is_bad(THRESHOLD)) {
                    self.bad_epochs.push(epoch);
                }
            }
        }
        out.flush()?;
        Ok(())
    }

    /// How many epochs were looked at.
    pub(crate) const fn epochs(&self) -> u64 {
        self.epochs
    }

    /// Whether everything was looked at.
    pub(crate) fn is_complete(&self) -> bool {
        self.incomplete_epochs.is_empty()
    }

    /// Prints the summary and gives the exit status.
    pub(crate) fn conclude(&self, out: &mut Output, vm: &str, scans: &[&Scan]) -> Result<Status, Failure> {
        if out.is_json() {
            out.line(&json!({
                "type": "summary",
                "vm": vm,
                "epochs": self.epochs,
                "findings": self.findings,
                "complete": self.is_complete(),
                "bad_epochs": self.bad_epochs,
                "incomplete_epochs": self.incomplete_epochs,
                "scans": scans.iter().map(|scan| scan.name).collect::<Vec<_>>(),
            }))?;
        } else {
            let complete = match self.incomplete_epochs.as_slice() {
                [] => String::new(),
                epochs => format!("; NOT everything could be looked at in epochs {}", runs(epochs)),
            };
            let found = match self.bad_epochs.as_slice() {
                [] => "nothing bad found".to_owned(),
                epochs => format!("bad epochs: {}", runs(epochs)),
            };
            out.text(&format!(
                "{}, {}: {found}{complete}",
                count(self.epochs, "epoch"),
                count(self.findings, "finding")
            ))?;
        }
        out.flush()?;
        Ok(match (self.bad_epochs.is_empty(), self.is_complete()) {
            (false, _) => Status::Findings,
            (true, false) => Status::Incomplete,
            (true, true) => Status::Nothing,
        })
    }
}

/// Prints a finding with its evidence.
pub(crate) fn print_finding(out: &mut Output, epoch: u64, finding: &Finding) -> Result<(), Failure> {
    if out.is_json() {
        out.line(&Line { r#type: "finding", epoch, finding })?;
        return Ok(());
    }
    let attack =
        if finding.attack.is_empty() { String::new() } else { format!(" [{}]", finding.attack.join(", ")) };
    out.text(&format!(
        "epoch {epoch}  {}  {}: {}{attack}",
        severity(finding.severity),
        finding.scan,
        finding.title
    ))?;
    for evidence in &finding.evidence {
        let gva = evidence.gva.map_or(String::new(), |gva| format!(" {gva}"));
        let gpa = evidence.gpa.map_or(String::new(), |gpa| format!(" (physical {gpa})"));
        out.text(&format!("         at{gva}{gpa}"))?;
        for (what, bytes) in [("before", &evidence.before), ("after ", &evidence.after)] {
            if let Some(bytes) = bytes {
                out.text(&format!("         {what}  {}", dump(bytes)))?;
            }
        }
    }
    Ok(())
}

/// The bytes of one line of evidence at most; the rest is in the JSON.
const MAX_DUMP_BYTES: usize = 32;

fn dump(bytes: &[u8]) -> String {
    let shown = bytes.get(..MAX_DUMP_BYTES).unwrap_or(bytes);
    let hex: Vec<String> = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    let text: String =
        shown.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
    let more = if shown.len() < bytes.len() { format!(" … {} bytes", bytes.len()) } else { String::new() };
    format!("{}  |{text}|{more}", hex.join(" "))
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Low => "LOW",
        Severity::Medium => "MEDIUM",
        Severity::High => "HIGH",
        Severity::Critical => "CRITICAL",
    }
}

/// Prints what scans could not look at: what, and why. For a person, what several of them missed is one line.
fn print_faults<'a>(
    out: &mut Output,
    epoch: u64,
    faults: impl Iterator<Item = (&'a str, (String, String))>,
) -> Result<(), Failure> {
    let mut missed: Vec<((String, String), Vec<&str>)> = Vec::new();
    for (scan, told) in faults {
        if out.is_json() {
            let (what, reason) = told;
            let line = json!({"type": "fault", "epoch": epoch, "scan": scan, "what": what, "reason": reason});
            out.line(&line)?;
        } else if let Some((_, scans)) = missed.iter_mut().find(|(known, _)| *known == told) {
            scans.push(scan);
        } else {
            missed.push((told, vec![scan]));
        }
    }
    for ((what, reason), mut scans) in missed {
        let reason = reason.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let times = scans.len();
        scans.dedup();
        let times = if times > scans.len() { format!(" ({times} times)") } else { String::new() };
        out.text(&format!("epoch {epoch}  incomplete  {}: {what}: {reason}{times}", scans.join(", ")))?;
    }
    Ok(())
}

/// `1 epoch`, `2 epochs`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Ascending numbers as runs: `3-5, 9`.
pub(crate) fn runs(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let shown = runs
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_told_as_runs() {
        assert_eq!(runs(&[3, 4, 5, 9, u64::MAX]), "3-5, 9, 18446744073709551615");
        assert_eq!(runs(&[]), "");
    }

    #[test]
    fn evidence_is_shown_in_hex_and_cut() {
        assert_eq!(dump(b"A\x1b\x00"), "41 1b 00  |A..|");
        assert!(dump(&[0; 33]).ends_with(" … 33 bytes"));
    }
}
