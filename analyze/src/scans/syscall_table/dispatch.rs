//! The functions that dispatch system calls with a `switch`.

use std::collections::HashSet;
use std::ops::Range;

use varve_formats::{Fault, Gva, VirtualMemory};

use super::entries;
use super::numbers::{ABIS, Abi, distance_to_next_symbol};
use super::{evidence, finding, place};
use crate::finding::{FaultReason, Finding, Report};
use crate::guest::Guest;
use crate::linux::branches::{Branch, Target, branches};
use crate::linux::patching::{Kind, MAX_SITE_LEN, Patching, Text, probes};

/// Bytes of such a function at most. A real one has 8 KiB.
const MAX_FUNCTION_BYTES: u64 = 256 << 10;
/// What stands in for an instruction that the kernel patched: it leads nowhere.
const NOP: u8 = 0x90;

/// A dispatching function with the places neutralised that the kernel patches.
struct Dispatcher<'a, 'm> {
    guest: &'a Guest<'m>,
    abi: &'a Abi,
    start: Gva,
    code: Vec<u8>,
    patching: &'a Patching,
    neutral: Vec<Range<usize>>,
}

/// Checks the dispatchers that the kernel has. Returns whether it has any.
pub(super) fn check(
    guest: &Guest<'_>,
    baseline: Option<&Guest<'_>>,
    functions: &[HashSet<Gva>; ABIS.len()],
    report: &mut Report,
) -> bool {
    let mut any = false;
    let mut found = Vec::new();
    for (abi, functions) in ABIS.iter().zip(functions) {
        let Ok(start) = guest.symbol(abi.dispatcher) else { continue };
        any = true;
        let code = report.try_or_note(abi.dispatcher, read(guest, start));
        found.extend(code.map(|code| (abi, functions, start, code)));
    }
    let tables = baseline.unwrap_or(guest);
    let text = |start, code: &[u8]| Text { start, len: code.len() as u64, module: None, tables };
    let texts: Vec<Text<'_, '_>> = found.iter().map(|(_, _, start, code)| text(*start, code)).collect();
    let patching = Patching::read(guest, &texts, report);
    for (abi, functions, start, mut code) in found {
        let neutral = neutralise(start, &mut code, &patching);
        let dispatcher = Dispatcher { guest, abi, start, code, patching: &patching, neutral };
        match baseline.map(|baseline| (baseline, dispatcher.before(baseline))) {
            None => dispatcher.check_targets(functions, report),
            Some((baseline, before)) => {
                let before = report.try_or_note(abi.dispatcher, before);
                report
                    .findings
                    .extend(before.map(|before| dispatcher.changed(baseline, &before)).unwrap_or_default());
            }
        }
    }
    any
}

fn read(guest: &Guest<'_>, start: Gva) -> Result<Vec<u8>, FaultReason> {
    let len = distance_to_next_symbol(guest, start).unwrap_or(u64::MAX);
    if len > MAX_FUNCTION_BYTES {
        return Err(
            Fault::Limit { what: "bytes of a function", limit: MAX_FUNCTION_BYTES, at: start.0 }.into()
        );
    }
    let mut code = vec![0; len as usize];
    guest.space().read(start, &mut code)?;
    Ok(code)
}

/// Replaces what the kernel has patched in: a probe by what it displaced, anything else by what leads nowhere. Returns
/// where.
fn neutralise(start: Gva, code: &mut [u8], patching: &Patching) -> Vec<Range<usize>> {
    let mut neutral = Vec::new();
    let end = Gva(start.0.wrapping_add(code.len() as u64));
    for (at, kind) in patching.between(start, end) {
        let offset = at.0.wrapping_sub(start.0) as usize;
        let Some(rest) = code.get_mut(offset..) else { continue };
        let shown = rest.get(..MAX_SITE_LEN).unwrap_or(rest);
        let Some(len) = patching.explains(kind, *at, shown) else { continue };
        if let Kind::Kprobe(probe) = kind {
            probe.restore(rest);
        } else if let Some(site) = rest.get_mut(..len) {
            site.fill(NOP);
            neutral.push(offset..offset + len);
        }
    }
    neutral
}

impl Dispatcher<'_, '_> {
    /// The code of an earlier epoch, neutralised at the same places.
    fn before(&self, baseline: &Guest<'_>) -> Result<Vec<u8>, FaultReason> {
        let mut code = read(baseline, self.start)?;
        for (at, probe) in probes(baseline, &mut Report::done()) {
            let offset = at.offset_from(self.start).and_then(|offset| usize::try_from(offset).ok());
            if let Some(rest) = offset.and_then(|offset| code.get_mut(offset..)) {
                probe.restore(rest);
            }
        }
        for range in &self.neutral {
            if let Some(site) = code.get_mut(range.clone()) {
                site.fill(NOP);
            }
        }
        Ok(code)
    }

    /// Each instruction that is not what it was.
    fn changed(&self, baseline: &Guest<'_>, before: &[u8]) -> Vec<Finding> {
        let earlier = branches(self.start, before);
        let mut found: Vec<Finding> = Vec::new();
        let mut reported = 0;
        let differs = |at: &usize| self.code.get(*at) != before.get(*at);
        for offset in (0..before.len()).filter(differs) {
            if offset < reported {
                continue;
            }
            let range = match earlier.iter().find(|branch| self.range(branch).contains(&offset)) {
                Some(branch) => {
                    found.push(self.rerouted(baseline, branch, before));
                    self.range(branch)
                }
                None => {
                    let len = (offset..before.len()).take_while(differs).count();
                    found.push(self.altered(offset..offset + len, before));
                    offset..offset + len
                }
            };
            reported = range.end;
        }
        found
    }

    /// A branch that led to a system call and now is something else.
    fn rerouted(&self, baseline: &Guest<'_>, branch: &Branch, before: &[u8]) -> Finding {
        let range = self.range(branch);
        let (old, new) = (before.get(range.clone()), self.code.get(range.clone()));
        let evidence = evidence(self.guest, branch.at, old, new);
        let leads_to = match branches(branch.at, new.unwrap_or_default()).first() {
            Some(Branch { target: Target::Direct(target), .. }) => place(self.guest, *target),
            _ => "code that was put there".to_owned(),
        };
        let Target::Direct(function) = branch.target else { return self.altered(range, before) };
        let call = self.call(baseline, function);
        let was = place(self.guest, function);
        let dispatcher = self.abi.dispatcher;
        finding(self.abi, &call, &format!("led to {was} and leads to {leads_to} ({dispatcher})"), evidence)
    }

    /// Code of the dispatcher that changed and is not one of its branches.
    fn altered(&self, range: Range<usize>, before: &[u8]) -> Finding {
        let at = Gva(self.start.0.wrapping_add(range.start as u64));
        let evidence = evidence(self.guest, at, before.get(range.clone()), self.code.get(range));
        let place = place(self.guest, at);
        let mut finding = finding(self.abi, &place, "is dispatched by code that changed", evidence);
        finding.title =
            format!("The code that dispatches system calls{} changed at {place}", self.abi.suffix);
        finding
    }

    /// Without a baseline: every branch that leaves the function leads to a system call, or returns.
    fn check_targets(&self, functions: &HashSet<Gva>, report: &mut Report) {
        let found = branches(self.start, &self.code);
        let end = Gva(self.start.0.wrapping_add(self.code.len() as u64));
        let mut foreign = Vec::new();
        for branch in &found {
            match branch.target {
                Target::Direct(target) if self.start <= target && target < end => {}
                Target::Direct(target) if self.patching.is_call_of(target, functions) => {}
                Target::Direct(target) => foreign.push((branch, target)),
                Target::Indirect | Target::Undecodable => {
                    let what = format!("{} at {}", self.abi.dispatcher, branch.at);
                    report.fault(
                        what,
                        "a jump through a table, which is not checked without a baseline".to_owned(),
                    );
                }
            }
        }
        for (branch, target) in &foreign {
            let call = self.only_unreached(&found, functions).filter(|_| foreign.len() == 1);
            let call = call.unwrap_or_else(|| place(self.guest, branch.at));
            let evidence = evidence(self.guest, branch.at, None, self.code.get(self.range(branch)));
            let problem =
                format!("leads to {}, which is no system call of the kernel", place(self.guest, *target));
            report.findings.push(finding(self.abi, &call, &problem, evidence));
        }
    }

    /// The system call that the table has and no branch leads to, if there is just one.
    fn only_unreached(&self, found: &[Branch], functions: &HashSet<Gva>) -> Option<String> {
        let table = self.guest.symbol(self.abi.table).ok()?;
        let table = entries::read(self.guest, self.abi, table).ok()?;
        let reached: HashSet<Gva> = found
            .iter()
            .filter_map(|branch| match branch.target {
                Target::Direct(target) => Some(target),
                Target::Indirect | Target::Undecodable => None,
            })
            .collect();
        let mut unreached = table
            .iter()
            .enumerate()
            .filter(|(_, function)| functions.contains(function) && !reached.contains(function));
        let (number, _) = unreached.next()?;
        unreached.next().is_none().then(|| number.to_string())
    }

    /// The number of the system call that `function` implements or, where no table tells, its name.
    fn call(&self, baseline: &Guest<'_>, function: Gva) -> String {
        let number = || {
            let table = baseline.symbol(self.abi.table).ok()?;
            let table = entries::read(baseline, self.abi, table).ok()?;
            let mut numbers = table.iter().enumerate().filter(|(_, entry)| **entry == function);
            let (number, _) = numbers.next()?;
            // `sys_ni_syscall` has many numbers.
            numbers.next().is_none().then(|| number.to_string())
        };
        number().unwrap_or_else(|| place(self.guest, function))
    }

    fn range(&self, branch: &Branch) -> Range<usize> {
        let offset = branch.at.0.wrapping_sub(self.start.0) as usize;
        offset..offset + branch.len
    }
}
