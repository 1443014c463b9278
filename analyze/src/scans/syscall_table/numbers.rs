//! The ways into the kernel, and how each numbers and names its system calls.

use std::collections::HashSet;

use varve_formats::Gva;
use varve_formats::symbols::kallsyms::Symbol;

use crate::guest::Guest;

/// Entries of a table at most. Real ones end below 600.
const MAX_ENTRIES: u64 = 2048;

/// One way into the kernel.
pub(super) struct Abi {
    /// The table, an array of function pointers.
    pub(super) table: &'static str,
    /// The function that dispatches without a table.
    pub(super) dispatcher: &'static str,
    /// How the kernel's own functions are called since 4.17, when their wrappers got these names.
    prefixes: &'static [&'static str],
    /// And before.
    old_prefixes: &'static [&'static str],
    /// What a finding's title adds to the system call.
    pub(super) suffix: &'static str,
    /// What the identity of a system call begins with.
    pub(super) object_prefix: &'static str,
}

/// All of them: `arch/x86/entry/syscall_64.c`, `syscall_32.c`, `syscall_x32.c`.
pub(super) const ABIS: [Abi; 3] = [
    Abi {
        table: "sys_call_table",
        dispatcher: "x64_sys_call",
        // Some kernels keep the x32 calls, whose names have `compat`, in the same table.
        prefixes: &["__x64_sys_", "__x64_compat_sys_", "__x32_compat_sys_"],
        old_prefixes: &["sys_", "SyS_", "compat_sys_", "stub_", "ptregs_sys_"],
        suffix: "",
        object_prefix: "",
    },
    Abi {
        table: "ia32_sys_call_table",
        dispatcher: "ia32_sys_call",
        prefixes: &["__ia32_sys_", "__ia32_compat_sys_"],
        old_prefixes: &["sys_", "SyS_", "compat_sys_", "compat_SyS_", "sys32_", "stub32_"],
        suffix: " of 32-bit programs",
        object_prefix: "ia32:",
    },
    Abi {
        table: "x32_sys_call_table",
        dispatcher: "x32_sys_call",
        prefixes: &["__x64_sys_", "__x64_compat_sys_", "__x32_compat_sys_"],
        old_prefixes: &["sys_", "SyS_", "compat_sys_", "compat_SyS_", "stub_x32_"],
        suffix: " of x32 programs",
        object_prefix: "x32:",
    },
];

/// The addresses of the kernel's own system calls for each of [`ABIS`], and of what stands for those it is built without
/// (`sys_ni_syscall`).
pub(super) fn functions(guest: &Guest<'_>) -> [HashSet<Gva>; ABIS.len()] {
    let mut found: [(HashSet<Gva>, HashSet<Gva>); ABIS.len()] = Default::default();
    // Compilers split functions into parts called `NAME.cold` and the like.
    let code =
        |symbol: &Symbol<'_>| matches!(symbol.kind, 't' | 'T' | 'w' | 'W') && !symbol.name.contains('.');
    for symbol in guest.symbols().filter(|symbol| symbol.name.contains("sys") || symbol.name.contains("SyS"))
    {
        if !code(&symbol) {
            continue;
        }
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| symbol.name.starts_with(prefix));
        for (abi, (named, named_before)) in ABIS.iter().zip(&mut found) {
            let none = symbol.name == "sys_ni_syscall";
            if none || begins(abi.prefixes) {
                named.insert(symbol.address);
            }
            if none || begins(abi.old_prefixes) {
                named_before.insert(symbol.address);
            }
        }
    }
    found.map(|(named, named_before)| if named.len() > 1 { named } else { named_before })
}

impl Abi {
    /// How many entries the table at `table` can have. Behind it may be other data without a symbol.
    pub(super) fn max_entries(&self, guest: &Guest<'_>, table: Gva) -> u64 {
        let space = distance_to_next_symbol(guest, table).unwrap_or(u64::MAX) / 8;
        // `struct trace_array` has an element for each system call (`NR_syscalls`), where they are traced.
        let traced = guest.btf().member("trace_array", "enter_syscall_files").and_then(|member| member.array);
        let traced = traced.filter(|_| self.object_prefix.is_empty()).map_or(u64::MAX, |array| array.count);
        space.min(traced).min(MAX_ENTRIES)
    }
}

/// Bytes from a symbol of the kernel image to the next one.
pub(super) fn distance_to_next_symbol(guest: &Guest<'_>, at: Gva) -> Option<u64> {
    let moved = guest.placement().kernel_offset.wrapping_sub(guest.profile().kernel_offset());
    guest.profile().kallsyms().distance_to_next(Gva(at.0.wrapping_sub(moved)))
}
