//! The tables of system calls.

use std::collections::HashSet;

use varve_formats::{Fault, Gva, VirtualMemory};

use super::numbers::Abi;
use super::{evidence, finding, place};
use crate::finding::Report;
use crate::guest::Guest;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 8;

/// Checks the table of one ABI. Returns whether the kernel has it.
pub(super) fn check(
    guest: &Guest<'_>,
    baseline: Option<&Guest<'_>>,
    abi: &Abi,
    functions: &HashSet<Gva>,
    report: &mut Report,
) -> bool {
    let Ok(table) = guest.symbol(abi.table) else { return false };
    let Some(now) = report.try_or_note(abi.table, read(guest, abi, table)) else { return true };
    let before = baseline.and_then(|baseline| report.try_or_note(abi.table, read(baseline, abi, table)));
    for (number, problem) in wrong_entries(&now, before.as_deref(), functions) {
        let (Some(entry), before) = (now.get(number), before.as_ref().and_then(|before| before.get(number)))
        else {
            continue;
        };
        let at = Gva(table.0.wrapping_add((number * ENTRY_BYTES) as u64));
        let before_bytes = before.map(|entry| entry.0.to_le_bytes());
        let evidence =
            evidence(guest, at, before_bytes.as_ref().map(<[u8; 8]>::as_slice), Some(&entry.0.to_le_bytes()));
        let to = place(guest, *entry);
        let problem = match (problem, before) {
            (Problem::Changed, Some(before)) => format!("led to {} and leads to {to}", place(guest, *before)),
            _ => format!("leads to {to}, which is no system call of the kernel"),
        };
        report.findings.push(finding(abi, &number.to_string(), &problem, evidence));
    }
    true
}

/// The system call table as it was read.
pub(super) fn read(guest: &Guest<'_>, abi: &Abi, table: Gva) -> Result<Vec<Gva>, Fault> {
    let count = usize::try_from(abi.max_entries(guest, table)).unwrap_or(0);
    let mut bytes = vec![0; count * ENTRY_BYTES];
    guest.space().read(table, &mut bytes)?;
    Ok(bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(|entry| Gva(u64::from_le_bytes(*entry))).collect())
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// It is another one than before.
    Changed,
    /// It is no system call.
    Foreign,
}

/// The entries that are not what they should be. The table ends behind its last entry that is a system call, now or before:
/// what follows up to the next symbol is other data.
fn wrong_entries(now: &[Gva], before: Option<&[Gva]>, functions: &HashSet<Gva>) -> Vec<(usize, Problem)> {
    let end =
        |table: &[Gva]| table.iter().rposition(|entry| functions.contains(entry)).map_or(0, |last| last + 1);
    let len = end(now).max(before.map_or(0, end));
    let judge = |(number, entry): (usize, &Gva)| {
        let before = before.and_then(|before| before.get(number));
        let problem = match before {
            Some(before) if before != entry => Problem::Changed,
            _ if !functions.contains(entry) => Problem::Foreign,
            _ => return None,
        };
        Some((number, problem))
    };
    now.iter().enumerate().take(len).filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Gva = Gva(0x1000);
    const KILL: Gva = Gva(0x2000);
    const NI: Gva = Gva(0x3000);
    const HOOK: Gva = Gva(0x9000);

    fn wrong(now: &[Gva], before: Option<&[Gva]>) -> Vec<(usize, Problem)> {
        wrong_entries(now, before, &HashSet::from([READ, KILL, NI]))
    }

    #[test]
    fn a_hook_is_found_with_and_without_a_baseline() {
        let clean = [READ, NI, KILL];
        let hooked = [READ, NI, HOOK];
        assert_eq!(wrong(&clean, None), []);
        assert_eq!(wrong(&clean, Some(&clean)), []);
        assert_eq!(wrong(&hooked, Some(&clean)), [(2, Problem::Changed)]);
        assert_eq!(wrong(&[HOOK, NI, KILL], None), [(0, Problem::Foreign)]);
        assert_eq!(wrong(&[HOOK, NI, KILL], Some(&[HOOK, NI, KILL])), [(0, Problem::Foreign)]);
    }

    #[test]
    fn two_calls_that_change_places_are_found_with_a_baseline() {
        let swapped = [KILL, NI, READ];
        assert_eq!(wrong(&swapped, Some(&[READ, NI, KILL])), [(0, Problem::Changed), (2, Problem::Changed)]);
    }

    #[test]
    fn other_data_behind_the_table_is_not_judged() {
        assert_eq!(wrong(&[READ, KILL, Gva(0), Gva(0x6c6c_6568)], None), []);
        assert_eq!(wrong(&[READ, KILL, Gva(1)], Some(&[READ, KILL, Gva(2)])), []);
    }
}
