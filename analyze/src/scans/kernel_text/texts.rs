//! Which code is checked, and what it is compared with.

use varve_formats::{Fault, Gva, PAGE_SIZE};

use super::super::baseline::same_boot;
use crate::finding::{FaultReason, Report};
use crate::guest::Guest;
use crate::linux::layout::Structure;
use crate::linux::module::{Module, ModuleState};
use crate::linux::patching::Text;

/// Bytes of one text at most. A distribution's kernel has 20 MiB, one with every debugging aid three times as much.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// Code to check.
pub(super) struct CheckedText<'a, 'm> {
    pub(super) text: Text<'a, 'm>,
    /// The module's name, escaped.
    pub(super) module: Option<String>,
    /// What to compare with.
    pub(super) baseline: Option<&'a Guest<'m>>,
}

impl CheckedText<'_, '_> {
    /// What it is the code of.
    pub(super) fn what(&self) -> String {
        match &self.module {
            Some(name) => format!("module {name}"),
            None => "the kernel".to_owned(),
        }
    }
}

/// What tells one loading of a module from another.
#[derive(PartialEq, Eq)]
struct Identity {
    module: Gva,
    start: Gva,
    len: u64,
    /// Number of its node in sysfs, which is given once.
    node: Option<u64>,
}

/// The kernel's own code and that of the modules in use. A module that the baseline does not have, or had before it was
/// loaded anew, is compared with nothing.
pub(super) fn checked_texts<'a, 'm>(
    guest: &'a Guest<'m>,
    baseline: Option<&'a Guest<'m>>,
    report: &mut Report,
) -> Vec<CheckedText<'a, 'm>> {
    let mut texts = Vec::new();
    let kernel = kernel_text(guest);
    if let Some((start, len)) = report.try_or_note("kernel text", kernel) {
        let text = Text { start, len, module: None, tables: baseline.unwrap_or(guest) };
        texts.push(CheckedText { text, module: None, baseline });
    }
    let same_boot = baseline.map(|baseline| (baseline, same_boot(guest, baseline)));
    let same_boot = same_boot.and_then(|(baseline, same)| {
        let same = report.try_or_note("stack canary", same)?;
        same.then_some(baseline)
    });
    let earlier = same_boot.map(|baseline| (baseline, live_modules(baseline, report)));
    for (name, identity) in live_modules(guest, report) {
        let baseline = earlier.as_ref().and_then(|(baseline, modules)| {
            modules.iter().any(|(_, earlier)| *earlier == identity).then_some(*baseline)
        });
        let Identity { module, start, len, .. } = identity;
        let text = Text { start, len, module: Some(module), tables: baseline.unwrap_or(guest) };
        texts.push(CheckedText { text, module: Some(name), baseline });
    }
    texts
}

/// From `_stext` to the end of the last page: the padding there can be executed too (`mark_rodata_ro`,
/// `arch/x86/mm/init_64.c`).
fn kernel_text(guest: &Guest<'_>) -> Result<(Gva, u64), FaultReason> {
    let (start, end) = (guest.symbol("_stext")?, guest.symbol("_etext")?);
    let malformed = Fault::Malformed { what: "_etext", at: end.0 };
    let end = end.0.checked_next_multiple_of(PAGE_SIZE as u64).ok_or(malformed)?;
    let len = Gva(end).offset_from(start).ok_or(malformed)?;
    within_limit(start, len)?;
    Ok((start, len))
}

/// The modules in use that have code. Others are being loaded or unloaded, and their code is being written.
fn live_modules(guest: &Guest<'_>, report: &mut Report) -> Vec<(String, Identity)> {
    let mut live = Vec::new();
    for module in report.absorb("module list", guest.modules()) {
        if module.state != ModuleState::Live {
            continue;
        }
        let what = format!("module {}", module.name);
        let identity = report.try_or_note(&what, identity(guest, &module));
        live.extend(
            identity.filter(|identity| identity.len != 0).map(|identity| (module.name.to_string(), identity)),
        );
    }
    live
}

fn identity(guest: &Guest<'_>, module: &Module) -> Result<Identity, FaultReason> {
    let layout = Structure::named(guest.btf(), "module")?;
    let region = module.regions.iter().find(|region| region.start == module.text);
    // Up to 6.3 code and data are one region, the code in front.
    let len = match layout.optional("core_layout.text_size") {
        Some(size) => size.read_u32(guest.space(), module.address)?.into(),
        None => region.map_or(0, |region| region.len),
    };
    within_limit(module.text, len)?;
    let node = match (layout.optional("mkobj.kobj.sd"), Structure::named(guest.btf(), "kernfs_node")) {
        (Some(sd), Ok(node)) => match sd.pointer_or_null(guest.space(), module.address)? {
            Some(at) => Some(node.any(&["id", "id.id"])?.read(guest.space(), at)?),
            None => None,
        },
        _ => None,
    };
    Ok(Identity { module: module.address, start: module.text, len, node })
}

fn within_limit(start: Gva, len: u64) -> Result<(), Fault> {
    if len > MAX_TEXT_BYTES || start.checked_add(len).is_none() {
        return Err(Fault::Limit { what: "bytes of code", limit: MAX_TEXT_BYTES, at: start.0 });
    }
    Ok(())
}
