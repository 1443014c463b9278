//! `varve diff`: what happened between two epochs.

use clap::Args;
use serde::Serialize;
use serde_json::json;
use varve_analyze::engine::{ChangedPage, Diff as Differences, History, ProcessChange};

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::{Output, bytes},
    scanning::count,
};

/// Show what began, ended and changed between two epochs
#[derive(Args)]
#[command(
    after_help = "Examples:\n  varve -r /srv/varve --vm web1 diff 6 7\n  varve -r /srv/varve --vm web1 --json diff latest~1 latest --pages"
)]
pub(crate) struct Diff {
    /// The earlier epoch
    before: String,
    /// The later epoch
    after: String,
    /// List every changed page with the number of bytes that differ
    #[arg(long)]
    pages: bool,
}

#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    change: &'a T,
}

impl Diff {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let before = context.epoch(&archive, &vm, &self.before)?;
        let after = context.epoch(&archive, &vm, &self.after)?;
        let history = History::open(&archive, &vm)?;
        let diff = Differences::between(&history, before, after)?;
        let mut out = context.output();
        objects(&mut out, &diff)?;
        if self.pages {
            let (earlier, later) = (history.memory(before)?, history.memory(after)?);
            for page in diff.pages_changed.iter().map(|gpa| ChangedPage::compare(&earlier, &later, *gpa)) {
                print_page(&mut out, &page)?;
            }
        }
        if out.is_json() {
            let pages = diff.pages_changed.len();
            out.line(&json!({"type": "summary", "vm": vm, "before": before, "after": after, "pages_changed": pages, "complete": diff.complete}))?;
        } else {
            let pages = diff.pages_changed.len() as u64;
            out.text(&format!("{} changed ({})", count(pages, "page"), bytes(pages * 4096)))?;
        }
        out.flush()?;
        for fault in &diff.faults {
            context.remark(format_args!("incomplete: {fault}"));
        }
        Ok(if diff.complete { Status::Nothing } else { Status::Incomplete })
    }
}

fn objects(out: &mut Output, diff: &Differences) -> Result<(), Failure> {
    let processes = [
        ("process_started", "+ process", &diff.processes_started),
        ("process_ended", "- process", &diff.processes_ended),
        ("process_renamed", "~ process", &diff.processes_renamed),
    ];
    for (r#type, sign, changes) in processes {
        for change in changes {
            print(out, r#type, change, &format!("{sign} {}", describe(change)))?;
        }
    }
    let modules = [
        ("module_loaded", "+ module", &diff.modules_loaded),
        ("module_unloaded", "- module", &diff.modules_unloaded),
    ];
    for (r#type, sign, changes) in modules {
        for change in changes {
            print(out, r#type, change, &format!("{sign} {} ({})", change.name, bytes(change.size)))?;
        }
    }
    Ok(())
}

fn print(out: &mut Output, r#type: &'static str, change: &impl Serialize, text: &str) -> Result<(), Failure> {
    match out.is_json() {
        true => out.line(&Line { r#type, change })?,
        false => out.text(text)?,
    }
    Ok(())
}

fn describe(process: &ProcessChange) -> String {
    let ProcessChange { pid, ppid, comm, uid, .. } = process;
    let or_unknown = |number: &Option<u32>| number.map_or("?".to_owned(), |number| number.to_string());
    let before = process.comm_before.as_ref().map_or(String::new(), |before| format!(", was {before}"));
    format!("{pid} {comm} (parent {}, uid {}{before})", or_unknown(ppid), or_unknown(uid))
}

fn print_page(out: &mut Output, page: &ChangedPage) -> Result<(), Failure> {
    let ChangedPage { gpa, bytes_changed, first_offset } = page;
    if out.is_json() {
        out.line(&json!({"type": "page", "gpa": gpa.to_string(), "bytes_changed": bytes_changed, "first_offset": first_offset}))?;
    } else {
        let changed = bytes_changed.map_or("missing in one epoch".to_owned(), |n| count(n as u64, "byte"));
        out.text(&format!("~ page {gpa}: {changed}"))?;
    }
    Ok(())
}
