//! Finding the kernel of a guest in its memory.

use std::sync::Arc;

use varve_formats::symbols::vmcoreinfo::VmCoreInfo;
use varve_formats::{Gpa, Gva, PhysicalMemory, Vcpu};

use super::Guest;
use super::cache::Profiles;
use super::candidate::Candidate;
use super::continuity::Continuity;
use super::error::{BringUpError, Failure, Origin, Reason, Step};
use super::pin::Pin;
use super::place::Placement;
use super::profile::{Comparison, Profile};
use super::search;

/// VMCOREINFO notes tried before the search goes on without them. A hostile guest can write any number.
const MAX_NOTES_TRIED: usize = 16;

/// What all attempts have in common.
struct Search<'s, 'm> {
    memory: &'m dyn PhysicalMemory,
    vcpus: &'s [Vcpu],
    pins: &'s [Pin],
    profiles: &'s Profiles,
    error: BringUpError,
    /// A kernel that passed every check but that of its task list.
    doubtful: Option<Guest<'m>>,
}

/// See [`Guest::open`].
pub(super) fn open<'m>(
    memory: &'m dyn PhysicalMemory,
    vcpus: &[Vcpu],
    pins: &[Pin],
    profiles: &Profiles,
) -> Result<Guest<'m>, BringUpError> {
    let mut search = Search { memory, vcpus, pins, profiles, error: BringUpError::default(), doubtful: None };
    let found = search
        .by_pin()
        .or_else(|| search.by_note())
        .or_else(|| search.among(search::by_vcpu(memory, vcpus)))
        .or_else(|| search.among(search::by_scan(memory)))
        .or_else(|| search.doubtful.take());
    found.ok_or_else(|| {
        if search.error.attempts.is_empty() {
            search.error.add(Origin::Search, Failure { step: Step::Location, reason: Reason::Nothing });
        }
        search.error
    })
}

impl<'m> Search<'_, 'm> {
    /// Where a kernel was before. The latest pin first.
    fn by_pin(&mut self) -> Option<Guest<'m>> {
        let candidates = self.pins.iter().rev().filter_map(|pin| Candidate::from_pin(self.memory, pin));
        let candidates: Vec<_> = candidates.take(1).collect();
        self.among(candidates)
    }

    fn by_note(&mut self) -> Option<Guest<'m>> {
        let memory = self.memory;
        let mut tried: Vec<VmCoreInfo> = Vec::new();
        let notes = memory.regions().iter().flat_map(|region| VmCoreInfo::find_in(memory, *region));
        for (at, note) in notes {
            if tried.contains(&note) {
                continue;
            }
            if tried.len() == MAX_NOTES_TRIED {
                break;
            }
            let found = match Candidate::from_note(memory, self.vcpus, at, &note) {
                Ok(candidate) => self.try_candidate(candidate),
                Err(failure) => {
                    self.error.add(Origin::Note(at), failure);
                    None
                }
            };
            if found.is_some() {
                return found;
            }
            tried.push(note);
        }
        None
    }

    fn among(&mut self, candidates: Vec<Candidate>) -> Option<Guest<'m>> {
        candidates.into_iter().find_map(|candidate| self.try_candidate(candidate))
    }

    /// Brings the guest up at one place. A kernel whose task list does not close is kept for when there is no better.
    fn try_candidate(&mut self, candidate: Candidate) -> Option<Guest<'m>> {
        let origin = candidate.origin;
        match self.bring_up(candidate) {
            Ok(guest) if task_list_closes(&guest) => Some(guest),
            Ok(guest) => {
                self.doubtful.get_or_insert(guest);
                None
            }
            Err(failure) => {
                self.error.add(origin, failure);
                None
            }
        }
    }

    fn bring_up(&self, candidate: Candidate) -> Result<Guest<'m>, Failure> {
        check_translation(self.memory, &candidate)?;
        let (profile, comparison) = self.profile(&candidate)?;
        let mut placement = candidate.placement;
        placement.root = own_root(self.memory, &candidate, &profile)?;
        let banner = profile.banner();
        let release = candidate.release.unwrap_or_default();
        let expected = format!("Linux version {release}");
        if !banner.as_bytes().starts_with(expected.as_bytes()) {
            let reason = Reason::Banner { banner: banner.clone(), release };
            return Err(Failure { step: Step::Banner, reason });
        }
        let pin = Pin {
            placement,
            note: candidate.note,
            banner_at: profile.banner_at(placement.kernel_offset),
            banner: banner.clone(),
            digests: profile.digests(),
        };
        let continuity = Continuity::judge(&pin, self.pins, comparison);
        let guest = Guest::new(self.memory, self.vcpus.to_vec(), profile, pin, continuity);
        check_init_task(&guest)?;
        Ok(guest)
    }

    /// The profile of the kernel: one that is known, if the kernel still describes itself so, or else a new one.
    ///
    /// A known profile is also used when a pin vouches for it and the kernel's own description has changed: the pinned
    /// one is to be trusted.
    fn profile(&self, candidate: &Candidate) -> Result<(Arc<Profile>, Comparison), Failure> {
        let space = candidate.placement.space(self.memory);
        let kernel_offset = candidate.placement.kernel_offset;
        for known in self.profiles.with_banner(&space, kernel_offset, candidate.hints.stext) {
            let Ok(comparison) = known.compare(&space, kernel_offset) else { continue };
            let pinned = || self.pins.iter().any(|pin| pin.digests == known.digests());
            if comparison == Comparison::SAME || pinned() {
                return Ok((known, comparison));
            }
        }
        let profile = Profile::read(&space, &candidate.placement, &candidate.hints)?;
        Ok((self.profiles.add(profile), Comparison::SAME))
    }
}

/// The page table has to map the kernel where the candidate says it is.
fn check_translation(memory: &dyn PhysicalMemory, candidate: &Candidate) -> Result<(), Failure> {
    let Some(stext) = candidate.hints.stext else { return Ok(()) };
    let fail = |reason| Failure { step: Step::PageTables, reason };
    let mapped = candidate.placement.space(memory).translate(stext).map_err(|fault| fail(fault.into()))?.gpa;
    match candidate.placement.linear(memory).translate(stext) {
        Some(expected) if expected == mapped => Ok(()),
        expected => {
            let expected = expected.unwrap_or_default();
            Err(fail(Reason::Elsewhere { symbol: "_stext", mapped, expected }))
        }
    }
}

/// The kernel's own top page table: the pinned one, or by its symbols. On x86-64 `swapper_pg_dir` is a macro for `init_top_pgt`
/// (`arch/x86/include/asm/pgtable_64.h`).
fn own_root(memory: &dyn PhysicalMemory, candidate: &Candidate, profile: &Profile) -> Result<Gpa, Failure> {
    let fail = |reason| Failure { step: Step::PageTables, reason };
    let Placement { kernel_offset, root, .. } = candidate.placement;
    if candidate.origin == Origin::Pin {
        return Ok(root);
    }
    let symbol =
        ["init_top_pgt", "swapper_pg_dir"].iter().find_map(|name| profile.address(name, kernel_offset));
    let at: Gva = symbol.ok_or_else(|| fail(Reason::NoSymbol("init_top_pgt")))?;
    let own = candidate
        .placement
        .linear(memory)
        .translate(at)
        .ok_or_else(|| fail(Reason::NoSymbol("init_top_pgt")))?;
    if matches!(candidate.origin, Origin::Note(_)) && own != root {
        return Err(fail(Reason::Elsewhere { symbol: "init_top_pgt", mapped: own, expected: root }));
    }
    Ok(own)
}

/// The first task of every kernel is called `swapper`, with its CPU behind it on kernels for several.
fn check_init_task(guest: &Guest<'_>) -> Result<(), Failure> {
    let fail = |reason| Failure { step: Step::InitTask, reason };
    let layout = guest.layouts().task.as_ref().map_err(|missing| fail(missing.clone().into()))?;
    let init_task = guest.symbol("init_task").map_err(|missing| fail(missing.into()))?;
    let comm = layout.read_comm(guest.space(), init_task).map_err(|fault| fail(fault.into()))?;
    if comm == "swapper/0" || comm == "swapper" {
        return Ok(());
    }
    Err(fail(Reason::InitTask(comm)))
}

/// Whether the task list leads back to its beginning, and the first entry is there to be read.
fn task_list_closes(guest: &Guest<'_>) -> bool {
    guest.process_addresses().is_ok_and(|walk| walk.complete && !walk.items.is_empty())
}
