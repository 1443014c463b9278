//! `varve first-bad`: where a history turns bad, with proof.

use std::ops::ControlFlow;

use clap::Args;
use serde_json::json;
use varve_analyze::engine::{EpochResult, FirstBad as Answer, History, Sweep, Verdict};

use crate::{
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
    output::Output,
    scanning::{Selection, THRESHOLD, help, print_finding, runs},
};

/// Find the first compromised epoch and the bytes that prove it
///
/// Every epoch from the first on is scanned until one is bad, so the answer is exact also when the intruder came and
/// went. It says so when an epoch before that could not be looked at completely.
#[derive(Args)]
#[command(after_help = help("  varve -r /srv/varve --vm web1 first-bad --policy web.toml\n  varve -r /srv/varve --vm web1 --json first-bad 100..latest"))]
pub(crate) struct FirstBad {
    /// Which epochs, as A..B; all of them if left out
    #[arg(value_name = "A..B")]
    range: Option<String>,
    #[command(flatten)]
    selection: Selection,
}

impl FirstBad {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let (scans, policy) = self.selection.resolve()?;
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epochs = context.range(&archive, &vm, self.range.as_deref())?;
        let history = History::open(&archive, &vm)?;
        let interrupt = Interrupt::install()?;
        let progress = context.progress(epochs.end - epochs.start, "epochs scanned");
        let mut verdicts = Vec::new();
        let mut bad = None;
        Sweep { history: &history, scans: &scans, policy: &policy }.run(epochs, |result| {
            progress.advance(1);
            let verdict = result.verdict(THRESHOLD);
            verdicts.push((result.epoch, verdict));
            if verdict == Verdict::Bad {
                bad = Some(result);
            }
            match verdict == Verdict::Bad || interrupt.finish() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        drop(progress);
        if bad.is_none() && interrupt.finish() {
            return Err(Failure::new("interrupted before an answer was found"));
        }
        let answer = Answer::decide(verdicts);
        let names: Vec<&str> = scans.iter().map(|scan| scan.name).collect();
        let mut out = context.output();
        print(&mut out, &vm, &answer, &names, bad.as_ref())?;
        out.flush()?;
        Ok(match answer {
            Answer { first_bad: Some(_), .. } => Status::Findings,
            Answer { complete: false, .. } => Status::Incomplete,
            Answer { .. } => Status::Nothing,
        })
    }
}

fn print(
    out: &mut Output,
    vm: &str,
    answer: &Answer,
    scans: &[&str],
    bad: Option<&EpochResult>,
) -> Result<(), Failure> {
    let results = bad.and_then(|result| result.scans.as_ref().ok()).map(Vec::as_slice).unwrap_or_default();
    let epoch = answer.first_bad.unwrap_or_default();
    for finding in results.iter().flat_map(|result| &result.report.findings) {
        print_finding(out, epoch, finding)?;
    }
    if out.is_json() {
        let hits = results.iter().filter(|result| result.report.is_bad(THRESHOLD)).map(|result| result.scan);
        out.line(&json!({
            "type": "first_bad",
            "vm": vm,
            "first_bad": answer.first_bad,
            "last_clean": answer.last_clean,
            "scans": hits.collect::<Vec<_>>(),
            "scans_run": scans,
            "incomplete_epochs": answer.incomplete_epochs,
            "complete": answer.complete,
        }))?;
        return Ok(());
    }
    out.text(&match (answer.first_bad, answer.last_clean) {
        (Some(bad), Some(clean)) => format!("first bad epoch: {bad} (last clean one before it: {clean})"),
        (Some(bad), None) => format!("first bad epoch: {bad} (none before it is proved clean)"),
        (None, Some(clean)) => format!("no bad epoch (last clean one: {clean})"),
        (None, None) => "no bad epoch, and none that is proved clean".to_owned(),
    })?;
    if !answer.complete {
        let epochs = runs(&answer.incomplete_epochs);
        out.text(&format!(
            "NOT exact: epochs {epochs} could not be looked at completely (`varve sweep` says why); the intruder may have come there"
        ))?;
    }
    Ok(())
}
