//! `varve quarantine`: a domain as it was at an epoch, where it can harm nobody, and watched.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use varve_capture::{Options, Plan, output::isolated, restore::Wishes, source};
use varve_formats::xen::stream::DomainType;
use varve_store::{Access, Archive};

use crate::{
    capturing::{Reporter, conclude},
    commands::{capture::duration, export::restorable, rollback},
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
};

/// Start a Xen domain as it was at an epoch on an isolated bridge under another name, and capture it there
///
/// What an intruder does next is seen without harm: the domain has no network but the bridge, which must not lead to a network
/// card, and on which this host has no address. It is a VM of its own in the archive, of the name of the domain, and is captured until interrupted; it then runs on.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  ip link add island type bridge && ip link set island addrgenmode none && ip link set island up\n  varve -r /srv/varve --vm web1 quarantine 41 --bridge island --without-disk\n  varve -r /srv/varve --vm web1 quarantine 41 --bridge island --name trap --capture-to /srv/trap"
)]
pub(crate) struct Quarantine {
    /// Which epoch
    epoch: String,
    /// Its name, there and in the archive [default: the VM's with -quarantine]
    #[arg(long)]
    name: Option<String>,
    /// The bridge that its network interfaces are connected to
    #[arg(long)]
    bridge: String,
    #[command(flatten)]
    disks: rollback::Disks,
    /// Time from the start of one epoch to the start of the next, such as 200ms, 10s or 5m
    #[arg(long, default_value = "10s", value_parser = duration)]
    interval: Duration,
    /// Stop after this many epochs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Capture into another archive, for instance because a capture is still writing to this one
    #[arg(long, value_name = "DIR")]
    capture_to: Option<PathBuf>,
}

impl Quarantine {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        isolated(&self.bridge).map_err(Failure::new)?;
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epoch = context.epoch(&archive, &vm, &self.epoch)?;
        let memory = archive.epoch(&vm, epoch)?;
        let name = self.name.clone().unwrap_or_else(|| format!("{vm}-quarantine"));
        // Whatever keeps it from being captured is found before it is started.
        source::available("xen").map_err(Failure::new)?;
        let target = match &self.capture_to {
            Some(path) => Archive::open(path, Access::Write)?,
            None => context.open_for_writing()?,
        };
        if restorable(&memory)?.domain == DomainType::Pv {
            return Err(Failure::new(format_args!(
                "{vm} is paravirtualised, and cannot be captured while it runs: `varve rollback {epoch} --name {name} --bridge {}` starts it there all the same",
                self.bridge
            )));
        }
        let wishes = self.disks.wishes(&memory, Some(name.clone()), Some(self.bridge.clone()), false);
        let plan = rollback::plan(&memory, Wishes { isolated: true, ..wishes })?;
        let interrupt = Interrupt::install()?;
        let Some(domain) = rollback::carry_out(context, plan, &memory, &interrupt, false)?.done else {
            return Ok(Status::Nothing);
        };
        let source = source::open(&format!("xen:{}", domain.id)).map_err(|error| {
            Failure::new(format_args!(
                "{error}; {name} is there, paused, and not captured: `xl destroy {name}`"
            ))
        })?;
        domain.unpause().map_err(Failure::new)?;
        context.remark(format_args!(
            "{name} is domain {} on bridge {}, as {vm} was at epoch {epoch}; it is captured from here on",
            domain.id, self.bridge
        ));
        let reporter = Reporter::new(context, &target, &name);
        let plan = Plan::every(self.interval, self.epochs);
        let ended = varve_capture::capture(
            &*source,
            &target,
            &name,
            &plan,
            &Options::default(),
            &interrupt,
            &reporter,
        );
        conclude(context, reporter, ended, true)
    }
}
