//! `varve vms`: the VMs in the archive.

use clap::Args;
use serde::Serialize;

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::Table,
    time::utc,
};

/// List the VMs in the archive
#[derive(Args)]
pub(crate) struct Vms {}

#[derive(Serialize)]
struct Row {
    vm: String,
    epochs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
}

impl Vms {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let archive = context.open()?;
        let mut out = context.output();
        let mut table = Table::new(&["vm", "epochs>", "first", "last"]);
        for vm in archive.vms() {
            let epochs = archive.epochs(&vm)?;
            let row = Row {
                vm,
                epochs: epochs.len() as u64,
                first: epochs.first().map(|epoch| utc(epoch.taken_at_ns)),
                last: epochs.last().map(|epoch| utc(epoch.taken_at_ns)),
            };
            if out.is_json() {
                out.line(&row)?;
            } else {
                table.row([
                    row.vm,
                    row.epochs.to_string(),
                    row.first.unwrap_or_default(),
                    row.last.unwrap_or_default(),
                ]);
            }
        }
        if !out.is_json() {
            out.table(&table)?;
        }
        out.flush()?;
        Ok(Status::Nothing)
    }
}
