//! `varve stats`: how much is in the archive, and what it takes.

use clap::Args;
use serde_json::json;

use crate::{
    context::Context,
    exit::{Failure, Status},
    output::bytes,
    scanning::count,
};

/// Show what the archive holds and what it takes on disk
#[derive(Args)]
pub(crate) struct Stats {}

impl Stats {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let stats = context.open()?.stats()?;
        let mut out = context.output();
        if out.is_json() {
            out.line(&json!({
                "vms": stats.vms, "epochs": stats.epochs, "bytes_captured": stats.bytes_captured,
                "pages": stats.pages, "packs": stats.packs, "bytes_packed": stats.bytes_packed,
                "bytes_on_disk": stats.bytes_on_disk,
            }))?;
        } else {
            out.text(&format!("{} of {}", count(stats.epochs, "epoch"), count(stats.vms, "VM")))?;
            out.text(&format!("captured   {}", bytes(stats.bytes_captured)))?;
            out.text(&format!("distinct   {} ({})", bytes(stats.pages * 4096), count(stats.pages, "page")))?;
            out.text(&format!("packed     {} ({})", bytes(stats.bytes_packed), count(stats.packs, "pack")))?;
            out.text(&format!("on disk    {}", bytes(stats.bytes_on_disk)))?;
        }
        out.flush()?;
        Ok(Status::Nothing)
    }
}
