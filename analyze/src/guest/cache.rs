//! Profiles that were parsed before.

use std::sync::{Arc, Mutex, PoisonError};

use varve_formats::{Gva, VirtualMemory};

use super::profile::{Digests, Profile};

/// Profiles kept. An archive seldom sees more kernel builds; each takes some 30 MB.
const MAX_PROFILES: usize = 8;

/// The profiles of the kernel builds met so far, for all epochs, VMs and threads. One for each archive: what an archive
/// calls the contents of pages is compared between its epochs, and two archives may call different contents the same.
#[derive(Debug, Default)]
pub struct Profiles {
    /// The one used last at the end.
    known: Mutex<Vec<Arc<Profile>>>,
}

impl Profiles {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The profile of these digests.
    pub fn get(&self, digests: Digests) -> Option<Arc<Profile>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let position = known.iter().position(|profile| profile.digests() == digests)?;
        let profile = known.remove(position);
        known.push(Arc::clone(&profile));
        Some(profile)
    }

    /// The profiles whose banner the kernel in `memory` has, when `_stext` is where the caller knows it to be.
    pub(super) fn with_banner(
        &self,
        memory: &dyn VirtualMemory,
        kernel_offset: u64,
        stext: Option<Gva>,
    ) -> Vec<Arc<Profile>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let placed =
            |profile: &Profile| stext.is_none_or(|at| profile.address("_stext", kernel_offset) == Some(at));
        known
            .into_iter()
            .rev()
            .filter(|profile| placed(profile) && profile.has_banner(memory, kernel_offset))
            .collect()
    }

    /// Adds a profile, or returns the equal one that another thread has added meanwhile.
    pub(super) fn add(&self, profile: Profile) -> Arc<Profile> {
        if let Some(equal) = self.get(profile.digests()) {
            return equal;
        }
        let profile = Arc::new(profile);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == MAX_PROFILES {
            known.remove(0);
        }
        known.push(Arc::clone(&profile));
        profile
    }
}
