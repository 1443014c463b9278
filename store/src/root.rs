//! The Merkle root of an epoch.
//!
//! BLAKE3 is itself a Merkle tree over chunks of 1 KiB. The hashed message is
//!
//! ```text
//! "varve epoch root 1\0"; number of regions u32; start u64 and length u64 of each; zeros up to a multiple of 1 KiB
//! the digest of every frame in order, 32 bytes each: zeros for a zero page, ones (0xff) for an absent one
//! ```
//!
//! with little-endian integers, so that a chunk holds the digests of exactly 32 frames, and a proof that one frame
//! belongs to an epoch takes 32 digests and one hash a level.

use varve_formats::Region;

use crate::Digest;

const DOMAIN: &[u8] = b"varve epoch root 1\0";
const CHUNK_LEN: usize = 1024;

/// Computes a root as digests come in.
pub struct RootHasher(blake3::Hasher);

impl RootHasher {
    /// Begins the root of an epoch with these regions.
    pub fn new(regions: &[Region]) -> Self {
        let mut head = DOMAIN.to_vec();
        head.extend_from_slice(&(regions.len() as u32).to_le_bytes());
        for region in regions {
            head.extend_from_slice(&region.start.0.to_le_bytes());
            head.extend_from_slice(&region.len.to_le_bytes());
        }
        head.resize(head.len().next_multiple_of(CHUNK_LEN), 0);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head);
        Self(hasher)
    }

    /// Adds the digests of the next frames.
    pub fn update(&mut self, digests: &[[u8; 32]]) {
        self.0.update(digests.as_flattened());
    }

    /// The root over everything added.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// The root of an epoch with these regions and the digests of all its frames.
pub fn root(regions: &[Region], digests: &[[u8; 32]]) -> Digest {
    let mut hasher = RootHasher::new(regions);
    hasher.update(digests);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_formats::Gpa;

    #[test]
    fn the_message_is_as_documented() {
        let regions = [Region { start: Gpa(0x1000), len: 0x2000 }];
        let digests = [Digest::ZERO.0, [5; 32]];
        let mut message = vec![0; 1024];
        message[..19].copy_from_slice(b"varve epoch root 1\0");
        message[19] = 1;
        message[24] = 0x10;
        message[32] = 0x20;
        message.extend_from_slice(&[0; 32]);
        message.extend_from_slice(&[5; 32]);
        assert_eq!(root(&regions, &digests).0, *blake3::hash(&message).as_bytes());
    }

    #[test]
    fn the_root_depends_on_place_and_regions() {
        let at = |start| [Region { start: Gpa(start), len: 0x2000 }];
        let (a, b) = ([[1; 32], [2; 32]], [[2; 32], [1; 32]]);
        assert_ne!(root(&at(0), &a), root(&at(0), &b));
        assert_ne!(root(&at(0), &a), root(&at(0x1000), &a));
    }
}
