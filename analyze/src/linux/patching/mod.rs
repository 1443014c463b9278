//! What the kernel writes into its own text at run time.
//!
//! | mechanism | sites | allowed there |
//! |---|---|---|
//! | static branches | `__jump_table`, `module.jump_entries` | no-operation, jump to the entry's target |
//! | static calls | `.static_call_sites`, `module.static_call_sites`, `__SCT__` symbols | call or jump to `static_call_key.func`, or what stands for it |
//! | ftrace | `ftrace_pages`, the calls in `ftrace_caller` | no-operation, call of a registered tracer or its trampoline |
//! | kprobes | `kprobe_table` | breakpoint, jump to the probe's own detour |
//! | SMP locks | `smp_alt_modules` | `lock` prefix, segment prefix |
//!
//! Everything else that patches text (alternatives, retpolines, return thunks, paravirt calls, call thunks) does so
//! before the first process starts, or before a module is live.

mod collect;
mod ftrace;
pub(crate) mod insn;
mod jump_label;
mod kprobe;
mod site;
mod smp_lock;
mod static_call;
mod table;

use std::collections::HashSet;

use varve_formats::Gva;

pub(crate) use site::{Kind, Kprobe, MAX_SITE_LEN};

use self::collect::Collector;
use self::site::Targets;
use crate::finding::Report;
use crate::guest::Guest;
use crate::linux::{Missing, Walk};

/// The sites of one epoch's text, and what they may hold there.
pub(crate) struct Patching {
    /// By address. No two mechanisms share a site.
    sites: Vec<(Gva, Kind)>,
    targets: Targets,
    changing: Changing,
}

/// What is being changed at this moment, by the locks that are held.
#[derive(Clone, Copy, Debug, Default)]
struct Changing {
    static_calls: bool,
    ftrace: bool,
}

/// A run of executable memory that the kernel patches: its own text, or a module's.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a, 'm> {
    /// First address.
    pub(crate) start: Gva,
    /// Bytes.
    pub(crate) len: u64,
    /// Address of the `struct module`, for a module.
    pub(crate) module: Option<Gva>,
    /// The epoch whose tables say which places are sites. Best an earlier one of the same boot: the tables never
    /// change while the text exists, but an intruder could add to them.
    pub(crate) tables: &'a Guest<'m>,
}

impl Text<'_, '_> {
    /// Whether `address` lies in it.
    pub(crate) fn contains(&self, address: Gva) -> bool {
        address.offset_from(self.start).is_some_and(|offset| offset < self.len)
    }
}

impl Patching {
    /// Reads the sites in `texts`, and what they may hold in the epoch `now`. What could not be read is added to
    /// `report`.
    pub(crate) fn read<'a, 'm>(
        now: &'a Guest<'m>,
        texts: &'a [Text<'a, 'm>],
        report: &'a mut Report,
    ) -> Self {
        Collector::new(now, texts, report).collect()
    }

    /// These sites, with nothing registered anywhere.
    #[cfg(test)]
    pub(crate) fn of(sites: Vec<(Gva, Kind)>) -> Self {
        Self { sites, targets: Targets::default(), changing: Changing::default() }
    }

    /// How many bytes of `code`, which is what stands at `at`, the kernel may have put there; `None` when it has not.
    pub(crate) fn explains(&self, kind: &Kind, at: Gva, code: &[u8]) -> Option<usize> {
        kind.explains(at, code, &self.targets)
    }

    /// Whether a call or jump to `target` calls one of `functions`, or returns.
    pub(crate) fn is_call_of(&self, target: Gva, functions: &HashSet<Gva>) -> bool {
        functions.contains(&target)
            || self.targets.return_thunks.binary_search(&target).is_ok()
            || self.targets.call_depth
                && (1..=site::MAX_THUNK_LEN).any(|before| {
                    target.checked_add(before).is_some_and(|function| functions.contains(&function))
                })
    }

    /// Whether what a site may hold is itself being changed, so that bytes that are not explained prove nothing.
    pub(crate) fn is_changing(&self, kind: &Kind) -> bool {
        match kind {
            Kind::StaticCall { .. } | Kind::Trampoline { .. } | Kind::ModuleTrampoline => {
                self.changing.static_calls
            }
            Kind::Fentry | Kind::FtraceCall => self.changing.ftrace,
            Kind::JumpLabel { .. } | Kind::LockPrefix | Kind::Kprobe(_) => false,
        }
    }

    /// The sites with addresses from `start` up to `end`.
    pub(crate) fn between(&self, start: Gva, end: Gva) -> &[(Gva, Kind)] {
        let from = self.sites.partition_point(|(at, _)| *at < start);
        let to = self.sites.partition_point(|(at, _)| *at < end);
        self.sites.get(from..to).unwrap_or_default()
    }
}

/// The registered kernel probes that change text, by address.
pub(crate) fn probes(guest: &Guest<'_>, report: &mut Report) -> Vec<(Gva, Kprobe)> {
    report.absorb("kprobes", kprobe::probes(guest))
}

/// The trampolines of static calls in the code of a module that stands at `start`.
pub(crate) fn static_call_trampolines(start: Gva, code: &[u8]) -> Vec<(Gva, Kind)> {
    static_call::trampolines_in(start, code)
}

/// The trampolines of registered tracers: address and length in bytes of each.
pub(crate) fn trampolines(guest: &Guest<'_>) -> Result<Walk<(u64, u64)>, Missing> {
    if guest.symbol("ftrace_ops_list").is_err() {
        return Ok(Walk::default());
    }
    let layout = ftrace::FtraceLayout::resolve(guest.btf())?;
    let mut walk = Walk::default();
    for ops in walk.absorb(layout.ops(guest)?) {
        let [own, _] = ops.trampolines;
        walk.items.extend(own.map(|start| (start.0, ops.trampoline_len)));
    }
    Ok(walk)
}
