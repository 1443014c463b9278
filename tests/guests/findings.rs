//! What the scans find, against what was planted.

use serde_json::Value;
use varve_fixtures::plant::{Edit, Expected};

use super::Recorded;
use crate::support::having;

/// Holds every epoch's findings against its plants, both ways.
pub(crate) fn agree(recorded: &Recorded) {
    let lines = recorded.archive.json(&["sweep", "--policy", &recorded.policy], 4);
    assert_eq!(
        having(&lines, "type", "fault").collect::<Vec<_>>(),
        Vec::<&Value>::new(),
        "nothing is unreadable"
    );
    for epoch in &recorded.epochs {
        let found: Vec<&Value> =
            having(&lines, "type", "finding").filter(|finding| finding["epoch"] == epoch.number).collect();
        for expected in &epoch.expected {
            let reports =
                |finding: &&&Value| finding["scan"] == *expected.scan && concerns(finding, expected);
            assert!(
                found.iter().any(|finding| reports(&finding)),
                "epoch {}: missed {expected:?} in {found:#?}",
                epoch.number
            );
        }
        for finding in found {
            let explains = |expected: &&Expected| {
                let scan = finding["scan"].as_str().unwrap();
                (expected.scan == scan || expected.also.iter().any(|also| also == scan))
                    && concerns(finding, expected)
            };
            assert!(
                epoch.expected.iter().any(|expected| explains(&expected)),
                "epoch {}: false alarm {finding:#}",
                epoch.number
            );
        }
    }
    let summary = lines.last().unwrap();
    let bad: Vec<u64> =
        recorded.epochs.iter().filter(|epoch| !epoch.expected.is_empty()).map(|epoch| epoch.number).collect();
    assert_eq!(summary["bad_epochs"], Value::from(bad.clone()));
    assert_eq!((&summary["complete"], &summary["epochs"]), (&true.into(), &recorded.epochs.len().into()));
    first_bad(recorded, bad[0]);
}

/// The first bad epoch, and the second visit of an intruder who had gone.
fn first_bad(recorded: &Recorded, expected: u64) {
    let answer = |arguments: &[&str], status| {
        let lines = recorded.archive.json(arguments, status);
        lines.last().cloned().unwrap()
    };
    let first = answer(&["first-bad", "--policy", &recorded.policy], 4);
    assert_eq!(first["first_bad"], expected, "{first}");
    assert_eq!((&first["last_clean"], &first["complete"]), (&(expected - 1).into(), &true.into()), "{first}");
    let second = answer(&["first-bad", "5..latest", "--policy", &recorded.policy], 4);
    let next = recorded.epochs.iter().find(|epoch| epoch.number > 5 && !epoch.expected.is_empty()).unwrap();
    assert_eq!(second["first_bad"], next.number, "{second}");
    let clean = answer(&["first-bad", "0..2", "--policy", &recorded.policy], 0);
    assert_eq!((&clean["first_bad"], &clean["last_clean"]), (&Value::Null, &2.into()), "{clean}");
}

/// Whether a finding is about what a plant did: it shows bytes the plant changed, or names the process.
fn concerns(finding: &Value, expected: &Expected) -> bool {
    if let Some(pid) = expected.pid {
        return finding["object"].as_str().unwrap().split(':').any(|part| part == pid.to_string());
    }
    let evidence = finding["evidence"].as_array().unwrap();
    expected.edits.iter().any(|edit| evidence.iter().any(|evidence| shows(evidence, edit)))
        || finding["object"].as_str().unwrap().split(':').any(|part| part == expected.object)
}

/// Whether a piece of evidence lies where a plant wrote, and tells both what was there and what is.
fn shows(evidence: &Value, edit: &Edit) -> bool {
    let address = |key: &str| evidence[key].as_str().map(|text| u64::from_str_radix(&text[2..], 16).unwrap());
    let bytes = |key: &str| evidence[key].as_str().map(hex);
    let (Some(gva), Some(after)) = (address("gva"), bytes("after")) else { return false };
    let overlap = gva.max(edit.gva)..(gva + after.len() as u64).min(edit.gva + edit.after.len() as u64);
    let same = |shown: &[u8], planted: &[u8]| {
        overlap.clone().all(|at| shown.get((at - gva) as usize) == planted.get((at - edit.gva) as usize))
    };
    !overlap.is_empty()
        && address("gpa").is_none_or(|gpa| gpa.wrapping_sub(gva) == edit.gpa.wrapping_sub(edit.gva))
        && same(&after, &edit.after)
        && bytes("before").is_none_or(|before| same(&before, &edit.before))
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
