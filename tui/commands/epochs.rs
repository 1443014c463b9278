//! `varve epochs`: the checkpoints of a VM.

use clap::Args;
use serde::Serialize;
use varve_formats::PAGE_SIZE;
use varve_store::EpochRecord;

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::{Table, bytes},
    time::utc,
};

/// List the epochs of a VM, oldest first
#[derive(Args)]
#[command(
    after_help = "Examples:\n  varve -r /srv/varve --vm web1 epochs\n  varve -r /srv/varve --vm web1 --json epochs | jq .root"
)]
pub(crate) struct Epochs {}

/// An epoch as `epochs`, `import` and `capture` print it.
#[derive(Serialize)]
pub(crate) struct Row<'a> {
    epoch: u64,
    vm: &'a str,
    taken_at: String,
    source: &'a str,
    pages: u64,
    pages_changed: u64,
    bytes_stored: u64,
    root: String,
    id: String,
    restorable: bool,
    residue: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_snapshot: Option<&'a str>,
}

impl<'a> From<&'a EpochRecord> for Row<'a> {
    fn from(record: &'a EpochRecord) -> Self {
        Self {
            epoch: record.number,
            vm: &record.vm,
            taken_at: utc(record.taken_at_ns),
            source: &record.source,
            pages: record.pages,
            pages_changed: record.pages_changed,
            bytes_stored: record.bytes_stored,
            root: record.root.to_string(),
            id: record.id.to_string(),
            restorable: record.restorable,
            disk_snapshot: record.disk_snapshot.as_deref(),
            residue: record.residue.iter().map(|run| run.len / PAGE_SIZE as u64).sum(),
        }
    }
}

impl Epochs {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let archive = context.open()?;
        let epochs = archive.epochs(&context.vm(&archive)?)?;
        let mut out = context.output();
        let mut table = Table::new(&["epoch>", "taken at", "pages>", "changed>", "stored>", "id", "source"]);
        for row in epochs.iter().map(Row::from) {
            if out.is_json() {
                out.line(&row)?;
                continue;
            }
            table.row([
                row.epoch.to_string(),
                row.taken_at,
                row.pages.to_string(),
                row.pages_changed.to_string(),
                bytes(row.bytes_stored),
                row.id.chars().take(12).collect(),
                row.source.to_owned(),
            ]);
        }
        if !out.is_json() {
            out.table(&table)?;
        }
        out.flush()?;
        Ok(Status::Nothing)
    }
}
