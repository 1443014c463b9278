//! `varve rollback`: a domain as it was at an epoch.

use std::time::Instant;

use clap::Args;
use serde_json::json;
use varve_capture::{
    hook::Hook,
    restore::{self, Plan, Restored, Wishes},
};
use varve_formats::PhysicalMemory;
use varve_store::EpochMemory;

use crate::{
    commands::export::restorable,
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
    output::bytes,
};

/// Start a Xen domain again as it was at an epoch
///
/// Only restorable epochs can be rolled back to: those taken with --quiesce suspend or --restore-point-every, or imported from
/// `xl save`. Every page is read and every condition checked before anything is changed. Run it in dom0, as root.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  varve -r /srv/varve --vm web1 rollback 41 --replace\n  varve -r /srv/varve --vm web1 rollback latest~3 --dry-run\n  varve -r /srv/varve --vm web1 rollback 41 --name web1-before --bridge island --paused"
)]
pub(crate) struct Rollback {
    /// Which epoch
    epoch: String,
    /// Another name: it is then a domain of its own, with a UUID of its own
    #[arg(long)]
    name: Option<String>,
    /// Connect its network interfaces to this bridge
    #[arg(long)]
    bridge: Option<String>,
    #[command(flatten)]
    disks: Disks,
    /// End the domain of that name that runs now: what it is since its last epoch is lost
    #[arg(long)]
    replace: bool,
    /// Leave the domain paused; `xl unpause` lets it run
    #[arg(long)]
    paused: bool,
    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What becomes of the disks.
#[derive(Args)]
pub(crate) struct Disks {
    /// Take the disks as they are now, though its memory knows them as they were
    #[arg(long, conflicts_with = "disk_restore")]
    without_disk: bool,
    /// Run this command to put the disks back: $VARVE_SNAPSHOT is what --disk-snapshot of `varve capture` printed at
    /// the epoch, $VARVE_DOMAIN the name; it prints VDEV=PATH for a disk that is another file or device now
    #[arg(long, value_name = "CMD")]
    disk_restore: Option<String>,
}

impl Disks {
    /// What is wanted of the domain, with these disks.
    pub(crate) fn wishes(
        &self,
        memory: &EpochMemory,
        name: Option<String>,
        bridge: Option<String>,
        replace: bool,
    ) -> Wishes {
        let disks = match &self.disk_restore {
            Some(command) => restore::Disks::PutBack {
                command: Hook::for_disks(command),
                snapshot: memory.record().disk_snapshot.clone(),
            },
            None if self.without_disk => restore::Disks::AsTheyAre,
            None => restore::Disks::Refuse,
        };
        Wishes { name, bridge, isolated: false, replace, disks }
    }
}

/// The plan to start a domain from this epoch.
pub(crate) fn plan(memory: &EpochMemory, wishes: Wishes) -> Result<Plan, Failure> {
    Plan::new(restorable(memory)?, wishes).map_err(Failure::new)
}

impl Rollback {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let archive = context.open()?;
        let vm = context.vm(&archive)?;
        let epoch = context.epoch(&archive, &vm, &self.epoch)?;
        let memory = archive.epoch(&vm, epoch)?;
        let started = Instant::now();
        let wishes = self.disks.wishes(&memory, self.name.clone(), self.bridge.clone(), self.replace);
        let plan = plan(&memory, wishes)?;
        let (replaced, disks) = (plan.replaces().cloned(), plan.disks());
        let restored = carry_out(context, plan, &memory, &Interrupt::install()?, self.dry_run)?;
        if let Some(done) = restored.done.as_ref().filter(|_| !self.paused) {
            done.unpause().map_err(Failure::new)?;
        }
        let mut out = context.output();
        if out.is_json() {
            let (domid, uuid) = restored.done.as_ref().map(|done| (done.id, done.uuid.as_str())).unzip();
            out.line(&json!({
                "type": "rollback", "vm": vm, "epoch": epoch, "domain": restored.name, "domid": domid, "uuid": uuid,
                "replaced": replaced.map(|replaced| replaced.id), "disks": disks, "paused": self.paused,
                "stream_bytes": restored.stream_bytes, "dry_run": self.dry_run,
                "total_us": u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            }))?;
        } else {
            let size = bytes(restored.stream_bytes);
            let took = started.elapsed().as_secs_f64();
            out.text(&match (&restored.done, replaced) {
                (Some(done), _) => {
                    let state = if self.paused { "paused" } else { "running" };
                    format!(
                        "{} is domain {}, {state}, as it was at epoch {epoch}: {size} in {took:.1} s",
                        done.name, done.id
                    )
                }
                (None, Some(old)) => format!(
                    "{} can be started as of epoch {epoch} ({size}); domain {} would be ended for it",
                    restored.name, old.id
                ),
                (None, None) => format!("{} can be started as of epoch {epoch} ({size})", restored.name),
            })?;
        }
        out.flush()?;
        Ok(Status::Nothing)
    }
}

/// What became of a plan.
pub(crate) struct Outcome {
    name: String,
    stream_bytes: u64,
    /// The domain; `None` when it was to be tried only.
    pub(crate) done: Option<Restored>,
}

/// Rehearses a plan and, unless that is all, carries it out.
pub(crate) fn carry_out(
    context: &Context<'_>,
    plan: Plan,
    memory: &EpochMemory,
    interrupt: &Interrupt,
    dry_run: bool,
) -> Result<Outcome, Failure> {
    let total = memory.regions().iter().map(|region| region.len).sum();
    let progress = context.progress_of_bytes(total, "checking");
    let rehearsed = plan.rehearse(memory, &|bytes| progress.advance(bytes)).map_err(Failure::new)?;
    drop(progress);
    let (name, mut stream_bytes) = (plan.name().to_owned(), rehearsed.file_bytes);
    let mut done = None;
    if !dry_run {
        let progress = context.progress_of_bytes(total, "starting");
        let restored = plan.carry_out(memory, interrupt, &|bytes| progress.advance(bytes));
        let restored = restored.map_err(Failure::new)?;
        stream_bytes = restored.stream_bytes;
        done = Some(restored);
    }
    Ok(Outcome { name, stream_bytes, done })
}
