//! The packs: each has its digests, its pages have them too, and the index finds each page.

use std::sync::Mutex;
use std::sync::PoisonError;

use rayon::prelude::*;

use super::{Findings, PackState, PackStates, Stage};
use crate::archive::Shared;
use crate::columns::digests::{Digests, PackDigests};
use crate::columns::packs::Packs;
use crate::columns::pages::Pages;
use crate::hash::{Page, digest_pages};
use crate::{Digest, PACK_PAGES, PageId, Place, StoreError};

/// Packs looked at in one go.
const WINDOW: u64 = 64;

/// Checks all packs.
pub(super) fn check(
    shared: &Shared,
    read_data: bool,
    progress: &(dyn Fn(Stage, u64, u64) + Sync),
    findings: &mut Findings,
) -> Result<PackStates, StoreError> {
    let windows = windows(shared);
    let total = windows.len() as u64 * WINDOW;
    let shared_state = Mutex::new((PackStates::default(), Findings::default(), 0));
    windows.par_iter().for_each(|first| {
        let (states, found) = check_window(shared, *first, read_data);
        let mut guard = shared_state.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, findings, done) = &mut *guard;
        all.packs.extend(states);
        findings.append(found);
        *done += WINDOW;
        progress(Stage::Packs, *done, total);
    });
    let (states, mut found, _) = shared_state.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.problems.sort_by(|a, b| a.place.cmp(&b.place));
    findings.append(found);
    check_index_size(shared, &states, findings)?;
    Ok(states)
}

/// First pack numbers of windows that together hold every pack. Where keys cannot be listed the numbers are counted
/// through, so that damage to a part of the list hides nothing.
fn windows(shared: &Shared) -> Vec<u64> {
    let last = shared.state().last_pack;
    let mut windows = Vec::new();
    let mut next = 1;
    while next <= last {
        next = match shared.database.next_key::<Digests>(&next) {
            Ok(Some(number)) => number,
            Ok(None) | Err(_) => next,
        };
        windows.push(next);
        next = next.saturating_add(WINDOW);
    }
    windows
}

/// Checks the packs `first` and on.
fn check_window(shared: &Shared, first: u64, read_data: bool) -> (Vec<(u64, PackState)>, Findings) {
    let mut findings = Findings::default();
    let mut states = Vec::new();
    let last = shared.state().last_pack;
    let numbers: Vec<u64> =
        (first..first.saturating_add(WINDOW)).take_while(|number| *number <= last).collect();
    let listed = match shared.database.try_get_many::<Digests>(&numbers) {
        Ok(listed) => listed,
        Err(error) => {
            findings.add_error(Place::Digests(first), error);
            return (states, findings);
        }
    };
    for (number, digests) in numbers.into_iter().zip(listed) {
        let mut state = PackState::default();
        let digests = digests.unwrap_or_else(|error| {
            findings.add_error(Place::Digests(number), error);
            // Its pages may be whole; only reading them tells.
            state.pages = PACK_PAGES as u8;
            None
        });
        state.pages = digests.as_ref().map_or(state.pages, |digests| digests.len() as u8);
        if let Some(digests) = &digests {
            check_index(shared, number, digests, &mut findings);
        }
        if read_data {
            check_pages(shared, number, digests.as_ref(), &mut state, &mut findings);
        }
        if state.pages > 0 {
            states.push((number, state));
        }
    }
    (states, findings)
}

/// Checks that the index finds the pages of a pack where they are.
fn check_index(shared: &Shared, number: u64, digests: &PackDigests, findings: &mut Findings) {
    let mut expected: Vec<(Digest, PageId)> = digests
        .iter()
        .enumerate()
        .filter_map(|(slot, digest)| Some((digest, PageId::new(number, slot)?)))
        .collect();
    expected.sort_unstable();
    let keys: Vec<Digest> = expected.iter().map(|(digest, _)| *digest).collect();
    let found = match shared.database.try_get_many::<Pages>(&keys) {
        Ok(found) => found,
        Err(error) => return findings.add_error(Place::Digests(number), error),
    };
    for ((digest, id), found) in expected.into_iter().zip(found) {
        match found {
            Ok(Some(found)) if found == id => {}
            Ok(Some(found)) => {
                findings.add(Place::Index(digest), format!("it leads to {found}, the page is {id}"))
            }
            Ok(None) => findings.add(Place::Index(digest), format!("it is missing, the page is {id}")),
            Err(error) => findings.add_error(Place::Index(digest), error),
        }
    }
}

/// Decompresses a pack and hashes its pages.
fn check_pages(
    shared: &Shared,
    number: u64,
    digests: Option<&PackDigests>,
    state: &mut PackState,
    findings: &mut Findings,
) {
    let pack = match (shared.database.get::<Packs>(&number), digests) {
        (Ok(Some(pack)), _) => pack,
        // A number that was never used.
        (Ok(None), None) => {
            state.pages = 0;
            return;
        }
        (Ok(None), Some(_)) => {
            state.unreadable = u64::MAX;
            return findings.add(Place::Pack(number), "it is missing");
        }
        (Err(error), _) => {
            state.unreadable = u64::MAX;
            return findings.add_error(Place::Pack(number), error);
        }
    };
    let pages: Vec<&Page> = pack.pages().iter().collect();
    let mut found = vec![Digest::ZERO; pages.len()];
    digest_pages(&pages, &mut found);
    let Some(digests) = digests else {
        // Readable all the same; that its digests are damaged or missing is the problem.
        state.pages = pages.len() as u8;
        return findings.add(Place::Digests(number), "the pack is there, its digests are not");
    };
    if digests.len() != found.len() {
        findings
            .add(Place::Pack(number), format!("it has {} pages and {} digests", found.len(), digests.len()));
    }
    for (slot, digest) in digests.iter().enumerate() {
        if found.get(slot) != Some(&digest) {
            state.unreadable |= 1 << slot;
            findings.add(Place::Pack(number), format!("the page in slot {slot} does not have its digest"));
        }
    }
}

/// Every page has an index entry (the checks above); if there are more entries than pages, some lead nowhere.
fn check_index_size(shared: &Shared, states: &PackStates, findings: &mut Findings) -> Result<(), StoreError> {
    let pages: u64 = states.packs.values().map(|state| u64::from(state.pages)).sum();
    let mut entries = 0;
    for key in shared.database.keys::<Pages>(&Digest::ZERO)? {
        match key {
            Ok(_) => entries += 1,
            Err(error) => {
                findings.add_error(Place::Column("pages"), error);
                return Ok(());
            }
        }
    }
    if entries > pages {
        findings.add(Place::Column("pages"), format!("it has {entries} entries for {pages} pages"));
    }
    Ok(())
}
