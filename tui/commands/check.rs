//! `varve check`: is everything there, and as it was written?

use std::sync::Mutex;

use clap::Args;
use serde_json::json;
use varve_store::{CheckReport, Stage};

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::Output,
    progress::Progress,
    scanning::count,
};

/// Check the archive's structure, and with --read-data every page in it
#[derive(Args)]
#[command(
    after_help = "Examples:\n  varve -r /srv/varve check\n  varve -r /srv/varve check --read-data\n\nDamage is named with the epochs and frames it affects; everything else stays readable."
)]
pub(crate) struct Check {
    /// Read, decompress and hash every page, and read every file in full
    #[arg(long)]
    read_data: bool,
}

impl Check {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let archive = context.open()?;
        let bar: Mutex<Option<(Stage, Progress)>> = Mutex::new(None);
        let report = archive.check(self.read_data, &|stage, done, total| {
            let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
                *bar = Some((stage, context.progress(total, name(stage))));
            }
            if let Some((_, progress)) = &*bar {
                progress.set(done);
            }
        })?;
        drop(bar);
        let mut out = context.output();
        print(&mut out, &report)?;
        out.flush()?;
        Ok(if report.is_clean() { Status::Nothing } else { Status::Error })
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Files => "checking files",
        Stage::Packs => "checking packs",
        Stage::Epochs => "checking epochs",
    }
}

fn print(out: &mut Output, report: &CheckReport) -> Result<(), Failure> {
    for problem in &report.problems {
        match out.is_json() {
            true => out.line(&json!({"type": "problem", "what": problem.what, "reason": problem.reason}))?,
            false => out.text(&format!("damaged: {problem}"))?,
        }
    }
    for epoch in &report.affected {
        if out.is_json() {
            let runs: Vec<_> =
                epoch.runs.iter().map(|(gfn, len)| json!({"gfn": gfn.0, "frames": len})).collect();
            out.line(&json!({"type": "affected_epoch", "vm": epoch.vm, "epoch": epoch.number, "opens": epoch.opens, "frames": epoch.frames, "runs": runs}))?;
        } else {
            let what = match epoch.opens {
                true => format!("{} cannot be read", count(epoch.frames, "frame")),
                false => "cannot be opened".to_owned(),
            };
            out.text(&format!("affected: {} epoch {}: {what}", epoch.vm, epoch.number))?;
        }
    }
    let problems = report.problems.len() as u64 + report.problems_omitted;
    if out.is_json() {
        let all_known = report.read_data || report.is_clean();
        out.line(&json!({
            "type": "summary", "clean": report.is_clean(), "read_data": report.read_data,
            "problems": problems, "affected_epochs": all_known.then_some(report.affected.len()),
            "files": report.files, "packs": report.packs, "pages": report.pages, "epochs": report.epochs,
        }))?;
        return Ok(());
    }
    let problems = count(problems, "problem");
    let looked = format!(
        "{}, {}, {}, {}",
        count(report.files, "file"),
        count(report.packs, "pack"),
        count(report.pages, "page"),
        count(report.epochs, "epoch")
    );
    // A file that is damaged is known without reading; what is in it is not.
    let verdict = match (report.is_clean(), report.read_data) {
        (true, true) => "no damage".to_owned(),
        (true, false) => "no damage (pages were not read: --read-data does)".to_owned(),
        (false, true) => format!("{problems}, {} affected", count(report.affected.len() as u64, "epoch")),
        (false, false) => format!("{problems}; --read-data tells all epochs that they reach"),
    };
    out.text(&format!("{looked}: {verdict}"))?;
    Ok(())
}
