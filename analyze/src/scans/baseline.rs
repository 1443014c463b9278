//! Whether two epochs are of the same boot, and far enough in it to be compared.

use varve_formats::{Fault, VirtualMemory};

use super::ScanInput;
use crate::finding::{FaultReason, Report};
use crate::guest::Guest;
use crate::linux::layout::Structure;

impl<'a> ScanInput<'a> {
    /// Begins a scan of `what`, which exists once the kernel has booted: an empty report, and the baseline if it can be
    /// compared with.
    ///
    /// # Errors
    /// The report of a scan that cannot be done.
    pub(super) fn begin(&self, what: &str) -> Result<(Report, Option<&'a Guest<'a>>), Report> {
        match has_booted(self.guest) {
            Ok(true) => {}
            Ok(false) => return Err(Report::impossible(what, "the guest is still booting".to_owned())),
            Err(reason) => return Err(Report::impossible("system_state", reason)),
        }
        let mut report = Report::done();
        let baseline = report.try_or_note("system_state of the baseline", self.comparable_baseline());
        Ok((report, baseline.flatten()))
    }

    /// The baseline, when its kernel image can be compared with that of the epoch: the same kernel at the same place, and
    /// no longer booting. A kernel patches itself freely while it boots.
    fn comparable_baseline(&self) -> Result<Option<&'a Guest<'a>>, FaultReason> {
        let Some(baseline) = self.baseline else { return Ok(None) };
        let comparable = baseline.placement() == self.guest.placement() && has_booted(baseline)?;
        Ok(comparable.then_some(baseline))
    }
}

/// Whether the kernel had finished booting (`system_state`, `include/linux/kernel.h`). What halts or restarts had.
fn has_booted(guest: &Guest<'_>) -> Result<bool, FaultReason> {
    let at = guest.symbol("system_state")?;
    let state = guest.space().read_u32(at).map_err(FaultReason::from)?;
    let running = guest.btf().enum_value("system_states", "SYSTEM_RUNNING");
    let running = running.ok_or_else(|| "SYSTEM_RUNNING is not in the kernel's BTF".to_owned())?;
    Ok(i128::from(state) >= running)
}

/// Whether both epochs are of one boot. Without KASLR a kernel is at the same place after a reboot; the first task's stack
/// canary is random at each boot (`boot_init_stack_canary`). Kernels without canaries are taken as not rebooted.
pub(super) fn same_boot(one: &Guest<'_>, other: &Guest<'_>) -> Result<bool, Fault> {
    let canary = |guest: &Guest<'_>| {
        let Ok(init_task) = guest.symbol("init_task") else { return Ok(None) };
        let task = Structure::named(guest.btf(), "task_struct").ok();
        let field = task.and_then(|task| task.optional("stack_canary"));
        field.map(|field| field.read(guest.space(), init_task)).transpose()
    };
    Ok(canary(one)? == canary(other)?)
}
