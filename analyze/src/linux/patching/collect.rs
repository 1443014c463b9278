//! Reading the sites of every mechanism.

use varve_formats::{Fault, Gva, VirtualMemory};

use super::ftrace::{self, FtraceLayout};
use super::jump_label::JumpEntryLayout;
use super::site::{Inlined, Kind, Targets};
use super::static_call::{Functions, StaticCallLayout};
use super::table::Table;
use super::{Changing, Patching, Text, probes, smp_lock};
use crate::finding::{FaultReason, Report};
use crate::guest::Guest;
use crate::linux::layout::{Missing, Structure};
use crate::linux::mutex::mutex_is_held;

const STATIC_BRANCHES: &str = "static branches";
const STATIC_CALLS: &str = "static calls";
const FTRACE: &str = "ftrace";

/// Functions that ftrace's own trampolines call besides the registered callbacks (`kernel/trace/ftrace.c`,
/// `update_ftrace_function`).
const OWN_CALLBACKS: [&str; 5] = [
    "ftrace_stub",
    "ftrace_ops_list_func",
    "arch_ftrace_ops_list_func",
    "ftrace_ops_assist_func",
    "ftrace_graph_func",
];

/// The kernel's own trampolines (`FTRACE_ADDR`, `FTRACE_REGS_ADDR`; `FTRACE_GRAPH_ADDR` to 5.x).
const OWN_TRAMPOLINES: [&str; 3] = ["ftrace_caller", "ftrace_regs_caller", "ftrace_graph_caller"];

/// Where functions may return through (`arch/x86/lib/retpoline.S`); which is chosen at boot.
const RETURN_THUNKS: [&str; 7] = [
    "__x86_return_thunk",
    "retbleed_return_thunk",
    "srso_return_thunk",
    "srso_alias_return_thunk",
    "call_depth_return_thunk",
    "its_return_thunk",
    "__x86_return_skl",
];

/// Where the trampolines call: labels on the call instruction (`arch/x86/kernel/ftrace_64.S`).
const CALLS_IN_TRAMPOLINES: [&str; 2] = ["ftrace_call", "ftrace_regs_call"];

/// Reads what [`Patching::read`] gives.
pub(super) struct Collector<'a, 'm> {
    now: &'a Guest<'m>,
    texts: &'a [Text<'a, 'm>],
    report: &'a mut Report,
    sites: Vec<(Gva, Kind)>,
    targets: Targets,
}

impl<'a, 'm> Collector<'a, 'm> {
    pub(super) fn new(now: &'a Guest<'m>, texts: &'a [Text<'a, 'm>], report: &'a mut Report) -> Self {
        Self { now, texts, report, sites: Vec::new(), targets: Targets::default() }
    }

    pub(super) fn collect(mut self) -> Patching {
        self.static_branches();
        self.static_calls();
        self.tracing();
        self.smp_locks();
        let probes = probes(self.now, self.report);
        self.sites.extend(probes.into_iter().map(|(at, kprobe)| (at, Kind::Kprobe(kprobe))));
        self.sites.sort_by_key(|(at, _)| *at);
        self.targets.call_depth = self.flag("thunks_initialized");
        self.targets.patching = self.held("text_mutex");
        let changing = Changing {
            static_calls: self.held("static_call_mutex"),
            ftrace: self.held("ftrace_lock") || self.held("direct_mutex"),
        };
        Patching { sites: self.sites, targets: self.targets, changing }
    }

    fn static_branches(&mut self) {
        let layout = JumpEntryLayout::resolve(self.now.btf());
        let Some(layout) = self.layout("jump_entry", STATIC_BRANCHES, layout) else { return };
        let bounds = ["__start___jump_table", "__stop___jump_table"];
        let members = ["jump_entries", "num_jump_entries"];
        for (text, table) in self.tables(STATIC_BRANCHES, bounds, members, layout.size()) {
            let sites = layout.sites(text.tables.space(), &table);
            self.add(STATIC_BRANCHES, text, sites);
        }
    }

    fn static_calls(&mut self) {
        let layout = StaticCallLayout::resolve(self.now.btf());
        let Some(layout) = self.layout("static_call_site", STATIC_CALLS, layout) else { return };
        let bounds = ["__start_static_call_sites", "__stop_static_call_sites"];
        let members = ["static_call_sites", "num_static_call_sites"];
        let mut functions = Functions::default();
        let now = self.now.space();
        for (text, table) in self.tables(STATIC_CALLS, bounds, members, layout.site_size()) {
            let sites = layout.sites(text.tables.space(), &table, now, &mut functions);
            self.add(STATIC_CALLS, text, sites);
        }
        let trampolines = layout.trampolines(self.now, &mut functions);
        self.sites.extend(self.report.try_or_note(STATIC_CALLS, trampolines).unwrap_or_default());
        self.targets.static_functions = functions.all();
        self.targets.return_thunks = self.return_thunks();
        self.targets.inlined = Inlined {
            return0: self.now.symbol("__static_call_return0").ok(),
            warn: self.now.symbol("__WARN_trap").ok(),
            unlock: self.now.symbol("__raw_callee_save___native_queued_spin_unlock").ok(),
        };
    }

    /// Function entries, and what they and ftrace's own trampolines may call.
    fn tracing(&mut self) {
        let layout = FtraceLayout::resolve(self.now.btf());
        let Some(layout) = self.layout("dyn_ftrace", FTRACE, layout) else { return };
        for guest in self.table_guests() {
            let entries = self.report.absorb("ftrace records", layout.entries(guest));
            let of_guest = entries.into_iter().filter(|at| {
                self.texts.iter().any(|text| std::ptr::eq(text.tables, guest) && text.contains(*at))
            });
            self.sites.extend(of_guest.map(|at| (at, Kind::Fentry)));
        }
        self.sites.extend(self.symbols(&CALLS_IN_TRAMPOLINES).map(|at| (at, Kind::FtraceCall)));
        let mut callbacks: Vec<Gva> = self.symbols(&OWN_CALLBACKS).collect();
        let mut entry_calls: Vec<Gva> = self.symbols(&OWN_TRAMPOLINES).collect();
        for ops in self.report.absorb("registered tracers", layout.ops(self.now)) {
            callbacks.extend(ops.functions.into_iter().flatten());
            entry_calls.extend(ops.trampolines.into_iter().flatten());
        }
        callbacks.sort_unstable();
        entry_calls.sort_unstable();
        let mut direct = self.report.absorb("direct ftrace calls", ftrace::direct_calls(self.now));
        direct.sort_unstable();
        self.targets = Targets { callbacks, entry_calls, direct, ..std::mem::take(&mut self.targets) };
    }

    fn smp_locks(&mut self) {
        for guest in self.table_guests() {
            let locks = self.report.absorb("SMP lock prefixes", smp_lock::sites(guest));
            self.sites.extend(locks);
        }
        // Both epochs may list the same prefix.
        self.sites.sort_by_key(|(at, _)| *at);
        self.sites.dedup();
    }

    /// The layout of a mechanism, unless the kernel is built without it.
    fn layout<T>(&mut self, structure: &str, what: &str, layout: Result<T, Missing>) -> Option<T> {
        self.now.btf().struct_named(structure)?;
        self.report.try_or_note(what, layout)
    }

    /// The table of each text: between two symbols for the kernel, by two members of `struct module` for modules.
    fn tables(
        &mut self,
        what: &'static str,
        bounds: [&str; 2],
        members: [&str; 2],
        entry_size: u64,
    ) -> Vec<(&'a Text<'a, 'm>, Table)> {
        let mut found = Vec::new();
        for text in self.texts {
            let table = match text.module {
                None => linked_table(text.tables, what, bounds),
                Some(module) => module_table(text.tables, module, what, members, entry_size),
            };
            found.extend(self.report.try_or_note(what, table).map(|table| (text, table)));
        }
        found
    }

    /// Adds the sites that lie in `text`; the others were in init sections and are gone.
    fn add(&mut self, what: &str, text: &Text<'_, '_>, sites: Result<Vec<(Gva, Kind)>, Fault>) {
        let sites = self.report.try_or_note(what, sites).unwrap_or_default();
        self.sites.extend(sites.into_iter().filter(|(at, _)| text.contains(*at)));
    }

    /// The epochs that tables are taken from, each once.
    fn table_guests(&self) -> Vec<&'a Guest<'m>> {
        let mut guests: Vec<&'a Guest<'m>> = Vec::new();
        for text in self.texts {
            if !guests.iter().any(|known| std::ptr::eq(*known, text.tables)) {
                guests.push(text.tables);
            }
        }
        guests
    }

    fn symbols<'n>(&self, names: &'n [&'n str]) -> impl Iterator<Item = Gva> + use<'n, 'a, 'm> {
        let now = self.now;
        names.iter().filter_map(move |name| now.symbol(name).ok())
    }

    /// `x86_return_thunk`, and the thunks it may be.
    fn return_thunks(&mut self) -> Vec<Gva> {
        let mut thunks: Vec<Gva> = self.symbols(&RETURN_THUNKS).collect();
        if let Ok(variable) = self.now.symbol("x86_return_thunk") {
            let thunk = self.now.space().read_u64(variable).map(Gva);
            thunks.extend(self.report.try_or_note("x86_return_thunk", thunk));
        }
        thunks.sort_unstable();
        thunks
    }

    /// A `bool` of the kernel; false where it is not built in.
    fn flag(&mut self, symbol: &str) -> bool {
        let Ok(at) = self.now.symbol(symbol) else { return false };
        let value = self.now.space().read_u8(at);
        self.report.try_or_note(symbol, value).is_some_and(|value| value != 0)
    }

    fn held(&mut self, mutex: &str) -> bool {
        let Ok(at) = self.now.symbol(mutex) else { return false };
        let held = mutex_is_held(self.now, at);
        self.report.try_or_note(mutex, held).unwrap_or(false)
    }
}

/// The linker's table between two symbols.
fn linked_table(guest: &Guest<'_>, what: &'static str, bounds: [&str; 2]) -> Result<Table, FaultReason> {
    let [start, stop] = bounds;
    Ok(Table::between(what, guest.symbol(start)?, guest.symbol(stop)?)?)
}

/// A module's table: a pointer, and how many entries there are.
fn module_table(
    guest: &Guest<'_>,
    module: Gva,
    what: &'static str,
    members: [&str; 2],
    entry_size: u64,
) -> Result<Table, FaultReason> {
    let layout = Structure::named(guest.btf(), "module")?;
    let [start, count] = members;
    let start = layout.field(start)?.pointer(guest.space(), module)?;
    let count = u64::from(layout.field(count)?.read_u32(guest.space(), module)?);
    Ok(Table { what, start, len: count * entry_size })
}
