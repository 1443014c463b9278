//! The boots in a VM's history: which kernel, and the first epoch that shows it.
//!
//! They are pinned in the archive, so that a later epoch finds its kernel and its baseline without a search. Everything in
//! here can be told again from the epochs. Integers are little-endian:
//!
//! ```text
//! magic "varvboot" | version u16 = 1 | epochs looked at u64 | count u16 | count first epochs, u64 each | pins
//! ```

use varve_formats::{FormatError, PhysicalMemory, Vcpu};

use super::history::EpochError;
use crate::guest::{Guest, MAX_PINS, Pin, Profiles};

const MAGIC: &[u8; 8] = b"varvboot";
const VERSION: u16 = 1;
/// Name of the blob in errors.
const BLOB: &str = "pinned boots";
/// Bytes before the list of first epochs.
const HEAD_BYTES: usize = 20;

/// A boot of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// The first archived epoch of it.
    pub(super) first: u64,
    /// The kernel, as it was there.
    pub(super) pin: Pin,
}

/// The boots known so far, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Boots {
    /// Epochs before this one have been looked at.
    pub(super) looked_at: u64,
    pub(super) boots: Vec<Boot>,
}

impl Boots {
    /// What of it is known of a history of that many epochs. It may have looked at one more, which was then not archived.
    pub(super) fn until(mut self, epochs: u64) -> Self {
        self.looked_at = self.looked_at.min(epochs);
        self.boots.retain(|boot| boot.first < epochs);
        self
    }

    /// Whether this, said after `epoch` was looked at, only adds to what was known then: boots that began since. Whoever says
    /// otherwise tells another past.
    pub(super) fn continues(&self, known: Self, epoch: u64) -> bool {
        let known = known.until(epoch);
        let since = self.boots.strip_prefix(known.boots.as_slice());
        self.looked_at == epoch + 1
            && since
                .is_some_and(|boots| boots.iter().all(|boot| (known.looked_at..=epoch).contains(&boot.first)))
    }

    /// Whether another boot can be remembered. A guest that makes up boots cannot fill the archive.
    fn has_room(&self) -> bool {
        self.boots.len() < MAX_PINS
    }

    /// The boot with this kernel at this place.
    fn of(&self, pin: &Pin) -> Option<&Boot> {
        self.boots.iter().find(|boot| boot.pin.placement == pin.placement)
    }

    /// Opens an epoch's memory as a guest, judged by the kernels of the epochs before it.
    pub(super) fn guest<'m>(
        &self,
        epoch: u64,
        memory: &'m dyn PhysicalMemory,
        vcpus: &[Vcpu],
        profiles: &Profiles,
    ) -> Result<Guest<'m>, EpochError> {
        let guest = Guest::open(memory, vcpus, &self.pins_until(epoch), profiles)
            .map_err(|reason| EpochError::BringUp { epoch, reason: Box::new(reason) })?;
        match self.boots.iter().any(|boot| boot.first == epoch) {
            // Its own pin helped to find it and must not help to judge it.
            true => Ok(guest.judged_by(&self.pins_before(epoch))),
            false => Ok(guest),
        }
    }

    /// The same of the next epoch that was not looked at yet; remembers its boot if it is the first of one.
    pub(super) fn learn<'m>(
        &mut self,
        epoch: u64,
        memory: &'m dyn PhysicalMemory,
        vcpus: &[Vcpu],
        profiles: &Profiles,
    ) -> Result<Guest<'m>, EpochError> {
        self.looked_at = epoch + 1;
        let guest = self.guest(epoch, memory, vcpus, profiles)?;
        if guest.continuity().is_new_boot() && self.has_room() {
            self.boots.push(Boot { first: epoch, pin: guest.pin().clone() });
        }
        Ok(guest)
    }

    /// The first epoch of the boot that `guest`, of `epoch`, belongs to; `None` when it is that epoch.
    pub(super) fn baseline(&self, epoch: u64, guest: &Guest<'_>) -> Option<u64> {
        self.of(guest.pin()).map(|boot| boot.first).filter(|first| *first < epoch)
    }

    /// The pins of boots that begin at or before `epoch`.
    fn pins_until(&self, epoch: u64) -> Vec<Pin> {
        self.boots.iter().filter(|boot| boot.first <= epoch).map(|boot| boot.pin.clone()).collect()
    }

    /// The pins of boots that begin before `epoch`.
    fn pins_before(&self, epoch: u64) -> Vec<Pin> {
        self.boots.iter().filter(|boot| boot.first < epoch).map(|boot| boot.pin.clone()).collect()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.looked_at.to_le_bytes());
        out.extend_from_slice(&(self.boots.len() as u16).to_le_bytes());
        for boot in &self.boots {
            out.extend_from_slice(&boot.first.to_le_bytes());
        }
        let pins: Vec<Pin> = self.boots.iter().map(|boot| boot.pin.clone()).collect();
        out.extend_from_slice(&Pin::encode(&pins));
        out
    }

    /// # Errors
    /// The offset and what is wrong there.
    pub(super) fn decode(blob: &[u8]) -> Result<Self, FormatError> {
        let error = |offset: usize, reason: &str| FormatError::new(BLOB, offset as u64, reason);
        let (head, rest) =
            blob.split_at_checked(HEAD_BYTES).ok_or_else(|| error(blob.len(), "ends early"))?;
        let (magic, head) = head.split_first_chunk().ok_or_else(|| error(0, "ends early"))?;
        let (version, head) = head.split_first_chunk().ok_or_else(|| error(8, "ends early"))?;
        let (looked_at, head) = head.split_first_chunk().ok_or_else(|| error(10, "ends early"))?;
        let (count, _) = head.split_first_chunk().ok_or_else(|| error(18, "ends early"))?;
        if magic != MAGIC {
            return Err(error(0, "no magic \"varvboot\""));
        }
        if u16::from_le_bytes(*version) != VERSION {
            return Err(error(8, "unknown version"));
        }
        let count = usize::from(u16::from_le_bytes(*count));
        let (firsts, pins) =
            rest.split_at_checked(count * 8).ok_or_else(|| error(blob.len(), "ends early"))?;
        let firsts = firsts.as_chunks().0.iter().map(|first| u64::from_le_bytes(*first));
        let pins = Pin::decode(pins)?;
        if pins.len() != count {
            return Err(error(18, "another number of pins"));
        }
        let boots = firsts.zip(pins).map(|(first, pin)| Boot { first, pin }).collect();
        Ok(Self { looked_at: u64::from_le_bytes(*looked_at), boots })
    }
}

#[cfg(test)]
mod tests {
    use varve_formats::{Gpa, Gva};

    use super::*;
    use crate::guest::{Digests, Placement};
    use crate::paging::Levels;

    fn boot(first: u64) -> Boot {
        let placement =
            Placement { kernel_offset: first << 21, phys_base: 0, root: Gpa(0), levels: Levels::Four };
        let digests = Digests { kallsyms: [0; 32], btf: [0; 32] };
        let pin = Pin { placement, note: None, banner_at: Gva(0), banner: "Linux version".into(), digests };
        Boot { first, pin }
    }

    #[test]
    fn boots_survive_encoding_and_any_cut_is_an_error() {
        let boots = Boots { looked_at: 99, boots: vec![boot(0), boot(7)] };
        let blob = boots.encode();
        assert_eq!(Boots::decode(&blob).unwrap(), boots);
        for cut in 0..blob.len() {
            assert!(Boots::decode(&blob[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(Boots::decode(&Boots::default().encode()).unwrap(), Boots::default());
    }

    #[test]
    fn errors_say_where_and_what() {
        let mut blob = Boots::default().encode();
        blob[8] = 2;
        assert_eq!(
            Boots::decode(&blob).unwrap_err().to_string(),
            "pinned boots: offset 0x8: unknown version"
        );
        blob[0] = 0;
        assert_eq!(
            Boots::decode(&blob).unwrap_err().to_string(),
            "pinned boots: offset 0x0: no magic \"varvboot\""
        );
    }

    #[test]
    fn boots_of_epochs_that_are_not_there_are_forgotten() {
        let boots = Boots { looked_at: 9, boots: vec![boot(0), boot(8)] };
        assert_eq!(boots.clone().until(9), boots);
        assert_eq!(boots.until(8), Boots { looked_at: 8, boots: vec![boot(0)] });
    }

    #[test]
    fn a_past_can_be_added_to_and_not_be_told_anew() {
        let known = || Boots { looked_at: 9, boots: vec![boot(0), boot(7)] };
        let said = |looked_at, firsts: &[u64]| Boots {
            looked_at,
            boots: firsts.iter().map(|first| boot(*first)).collect(),
        };
        assert!(said(10, &[0, 7]).continues(known(), 9));
        assert!(said(10, &[0, 7, 9]).continues(known(), 9));
        assert!(said(12, &[0, 7, 10]).continues(known(), 11), "what was looked at in between");
        assert!(!said(10, &[0, 7, 8]).continues(known(), 9), "that epoch began no boot");
        assert!(!said(10, &[0]).continues(known(), 9));
        assert!(!said(10, &[0, 6]).continues(known(), 9));
        assert!(!said(11, &[0, 7]).continues(known(), 9), "another epoch");
        // The epoch that was judged before a crash was not archived, and is another now.
        assert!(said(8, &[0]).continues(Boots { looked_at: 8, boots: vec![boot(0), boot(7)] }, 7));
    }

    #[test]
    fn an_epoch_is_judged_by_the_boots_before_it() {
        let boots = Boots { looked_at: 9, boots: vec![boot(0), boot(7)] };
        assert_eq!(boots.pins_before(7).len(), 1);
        assert_eq!(boots.pins_until(7).len(), 2);
        assert!(boots.pins_before(0).is_empty());
        assert_eq!(boots.of(&boot(7).pin).map(|boot| boot.first), Some(7));
        assert_eq!(boots.of(&boot(8).pin), None);
    }
}
