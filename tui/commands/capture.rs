//! `varve capture`: epochs of a live guest.

use std::time::Duration;

use clap::{Args, ValueEnum};
use varve_capture::{Plan, Quiesce, hook::Hook, source};

use crate::{
    capturing::{Reporter, conclude},
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
};

/// Checkpoint a live VM every interval, until interrupted
///
/// The guest is paused while its memory is compared with the epoch before and what changed is copied; everything else
/// happens behind its back. Ctrl-C finishes the epoch in hand; a second one drops it. The guest always runs on. SIGUSR1 has
/// an epoch taken at once, for instance when something else raises an alarm (not of xen-stream: there `xl` says when).
#[derive(Args)]
#[command(after_help = "\
Examples:
  varve -r /srv/varve --vm web1 capture qemu:/run/web1.qmp --interval 10s
  varve -r /srv/varve --vm web1 capture qemu:/run/web1.qmp --epochs 12 --interval 500ms
  varve -r /srv/varve --vm web1 capture xen:web1 --interval 200ms --restore-point-every 50
  xl remus -F -n -d -i 10000 -s \"\" web1 \"exec varve -r /srv/varve --vm web1 capture xen-stream:-\"

A guest under QEMU needs a monitor of its own for varve and memory in a shared file:
  -qmp unix:/run/web1.qmp,server=on,wait=off
  -object memory-backend-file,id=ram,size=1G,mem-path=/dev/shm/web1,share=on -machine memory-backend=ram")]
pub(crate) struct Capture {
    /// Where the guest is: qemu:SOCKET, xen:DOMAIN; or what Xen's tools save of it: xen-stream:FILE, xen-stream:- for
    /// standard input, with results on standard error. They say when an epoch is due: --interval is not asked
    source: String,
    /// Time from the start of one epoch to the start of the next, such as 200ms, 10s or 5m
    #[arg(long, default_value = "10s", value_parser = duration)]
    interval: Duration,
    /// Stop after this many epochs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// How to hold the guest still: pause its vCPUs, or have its kernel suspend itself (slower, but a guest can be
    /// started again from such an epoch)
    #[arg(long, value_enum, default_value_t = Hold::Pause)]
    quiesce: Hold,
    /// Have the guest suspend itself for every K-th epoch, and pause it for the others
    #[arg(long, value_name = "K", conflicts_with = "quiesce", value_parser = clap::value_parser!(u64).range(1..))]
    restore_point_every: Option<u64>,
    /// Run this command to take a snapshot of the disks while the guest has suspended itself, and keep with the epoch what it
    /// prints: rollback gives that to --disk-restore. $VARVE_VM and $VARVE_SOURCE say which guest; after 30 s it is killed
    #[arg(long, value_name = "CMD")]
    disk_snapshot: Option<String>,
    /// Look at every frame again within so many epochs, also at those that Xen's log says nobody has written to: it does not see
    /// all. 0: never
    #[arg(long, value_name = "N", default_value_t = varve_capture::Options::default().recheck_epochs)]
    recheck: u64,
}

/// How a guest is held still.
#[derive(Clone, Copy, ValueEnum)]
enum Hold {
    Pause,
    Suspend,
}

impl Capture {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let interrupt = Interrupt::install()?;
        let vm = context.vm_to_write()?;
        let archive = context.open_for_writing()?;
        let source = source::open(&self.source).map_err(Failure::new)?;
        let out = if source.owns_standard_output() { context.output_aside() } else { context.output() };
        let reporter = Reporter::on(out, context, &archive, vm);
        let suspend_every = match (self.restore_point_every, self.quiesce) {
            (Some(every), _) => every,
            (None, Hold::Suspend) => 1,
            (None, Hold::Pause) => 0,
        };
        let quiesce = Quiesce { suspend_every };
        let plan = Plan { quiesce, ..Plan::every(self.interval, self.epochs) };
        if suspend_every == 0 && self.disk_snapshot.is_some() {
            return Err(Failure::usage(
                "--disk-snapshot needs --quiesce suspend or --restore-point-every: the disks of a guest \
                                       that is only paused are not in order",
            ));
        }
        let disk_snapshot = self.disk_snapshot.as_deref().map(Hook::for_disks);
        let options = varve_capture::Options {
            disk_snapshot,
            recheck_epochs: self.recheck,
            ..varve_capture::Options::default()
        };
        let ended = varve_capture::capture(&*source, &archive, vm, &plan, &options, &interrupt, &reporter);
        conclude(context, reporter, ended, true)
    }
}

/// Parses a duration with its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let parsed = units.iter().find_map(|(unit, milliseconds)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*milliseconds).filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis)
    });
    parsed.ok_or_else(|| "give a whole number from 1 and a unit: 200ms, 10s, 5m, 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["10", "0s", "s", "1.5s", "-1s", "18446744073709551615h", "", "ten s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
