//! `varve sweep`: the scans, on a whole history.

use std::ops::ControlFlow;

use clap::Args;
use varve_analyze::engine::{History, Sweep as Engine};

use crate::{
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
    scanning::{Selection, Tally, help},
};

/// Look for intruders in every epoch
#[derive(Args)]
#[command(after_help = help("  varve -r /srv/varve --vm web1 sweep --policy web.toml\n  varve -r /srv/varve --vm web1 --json sweep 10..latest --scan kernel_text"))]
pub(crate) struct Sweep {
    /// Which epochs, as A..B; all of them if left out
    #[arg(value_name = "A..B")]
    range: Option<String>,
    #[command(flatten)]
    selection: Selection,
}

impl Sweep {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let (scans, policy) = self.selection.resolve()?;
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epochs = context.range(&archive, &vm, self.range.as_deref())?;
        let history = History::open(&archive, &vm)?;
        let interrupt = Interrupt::install()?;
        let wanted = epochs.end - epochs.start;
        let progress = context.progress(wanted, "epochs scanned");
        let mut out = context.output();
        let mut tally = Tally::default();
        let mut printed = Ok(());
        Engine { history: &history, scans: &scans, policy: &policy }.run(epochs, |result| {
            printed = tally.print(&mut out, &result);
            progress.advance(1);
            match printed.is_err() || interrupt.finish() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        printed?;
        drop(progress);
        let looked_at = tally.epochs();
        if looked_at < wanted {
            let unknown =
                format!("interrupted after {looked_at} of {wanted} epochs: nothing is said of the others");
            return Err(Failure::new(unknown));
        }
        tally.conclude(&mut out, &vm, &scans)
    }
}
