//! `varve scan`: the scans, on one epoch.

use std::ops::ControlFlow;

use clap::Args;
use varve_analyze::engine::{History, Sweep};

use crate::{
    context::Context,
    exit::{Failure, Status},
    scanning::{Selection, Tally, help},
};

/// Look for intruders in one epoch
#[derive(Args)]
#[command(after_help = help("  varve -r /srv/varve --vm web1 scan\n  varve -r /srv/varve --vm web1 scan --epoch latest~3 --policy web.toml"))]
pub(crate) struct Scan {
    /// Which epoch
    #[arg(long, default_value = "latest")]
    epoch: String,
    #[command(flatten)]
    selection: Selection,
}

impl Scan {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let (scans, policy) = self.selection.resolve()?;
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epoch = context.epoch(&archive, &vm, &self.epoch)?;
        let history = History::open(&archive, &vm)?;
        let mut out = context.output();
        let mut tally = Tally::default();
        let mut printed = Ok(());
        Sweep { history: &history, scans: &scans, policy: &policy }.run(epoch..epoch + 1, |result| {
            printed = tally.print(&mut out, &result);
            ControlFlow::Break(())
        })?;
        printed?;
        tally.conclude(&mut out, &vm, &scans)
    }
}
