//! The decoders of the disk format by themselves, for fuzzing: whether bytes decode, having walked all of the result.
//!
//! The bytes of a column are public in `docs/archive-format.md`; these functions are not part of the interface.

use crate::columns::Column;
use crate::columns::digests::Digests;
use crate::columns::epochs::{self, Epochs};
use crate::columns::manifests::{Manifest, Manifests};
use crate::columns::meta::Meta;
use crate::columns::packs::Packs;
use crate::columns::pins::Pins;
use crate::columns::states::States;
use crate::columns::vms::Vms;
use crate::frames::PageMap;

/// A pack and its digests.
pub fn pack(bytes: &[u8]) -> bool {
    let digests = Digests::decode(&1, bytes).map(|digests| digests.iter().count());
    let pages =
        Packs::decode(&1, bytes).map(|pack| pack.pages().iter().flatten().fold(0, |sum, byte| sum ^ byte));
    digests.is_ok() || pages.is_ok()
}

/// A page map: applied, and written and read again.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifests::decode(&(1, 0), bytes) else { return false };
    let mut map = PageMap::absent(manifest.frames());
    let applied = manifest.apply(&mut map, 1 << 20);
    let again = manifest.encode().ok().and_then(|bytes| Manifest::decode(&bytes).ok());
    assert_eq!(again.as_ref(), Some(&manifest), "what was read is written and read the same");
    applied.is_ok()
}

/// A record: it has one way to be written.
pub fn record(bytes: &[u8]) -> bool {
    let number = bytes.get(6..).and_then(<[u8]>::first_chunk).map_or(0, |number| u64::from_le_bytes(*number));
    let Ok(record) = Epochs::decode(&(1, number), bytes) else { return false };
    assert!(epochs::encode(&record).is_ok_and(|again| again == bytes), "a record has one encoding");
    true
}

/// Settings, VM numbers, pins, domain states.
pub fn small(bytes: &[u8]) -> bool {
    Meta::decode(&String::new(), bytes).is_ok()
        || Vms::decode(&String::new(), bytes).is_ok()
        || Pins::decode(&(1, String::new()), bytes).is_ok()
        || States::decode(&(1, 0), bytes).is_ok()
}
