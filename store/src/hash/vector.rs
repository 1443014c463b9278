//! BLAKE3 of sixteen pages side by side.
//!
//! `blake3::platform` is doc-hidden: public, without a promise. Hence the version is pinned in the workspace's
//! `Cargo.toml`, and the path is used only after it agreed with `blake3::hash` once in this process.
//!
//! Constants and tree shape are from the BLAKE3 paper, sections 2.1-2.5 (table 3 for the flags): a 4 KiB input is four
//! chunks with counters 0 to 3; two parent nodes over them; and a parent node over those two with the root flag.

use std::sync::LazyLock;

use blake3::IncrementCounter;
use blake3::platform::Platform;

use super::{Digest, Page, digest_page};

/// Pages hashed side by side: the widest vector unit BLAKE3 knows (AVX-512).
pub(super) const LANES: usize = 16;

const CHUNK_LEN: usize = 1024;
const HASH_LEN: usize = 32;

/// The initial state: the first 32 bits of the fractions of the square roots of the first eight primes.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;

static PLATFORM: LazyLock<Platform> = LazyLock::new(Platform::detect);
static TRUSTED: LazyLock<bool> = LazyLock::new(agrees_with_plain_hash);

/// Whether this path gives the digests the public API gives, tried once a process.
pub(super) fn is_trusted() -> bool {
    *TRUSTED
}

/// Hashes one group.
pub(super) fn digest_group(pages: &[&Page; LANES], out: &mut [Digest; LANES]) {
    let mut chunks = [[0; HASH_LEN * LANES]; 4];
    for (index, values) in chunks.iter_mut().enumerate() {
        let inputs = pages.map(|page| chunk(page, index));
        PLATFORM.hash_many(
            &inputs,
            &IV,
            index as u64,
            IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END,
            values,
        );
    }
    let [first, second, third, fourth] = &chunks;
    let left = parents(first, second, PARENT);
    let right = parents(third, fourth, PARENT);
    let roots = parents(&left, &right, PARENT | ROOT);
    for (out, root) in out.iter_mut().zip(roots.as_chunks().0) {
        *out = Digest(*root);
    }
}

/// The chunk `index` (0 to 3) of a page.
fn chunk(page: &Page, index: usize) -> &[u8; CHUNK_LEN] {
    const EMPTY: [u8; CHUNK_LEN] = [0; CHUNK_LEN];
    page.as_chunks().0.get(index).unwrap_or(&EMPTY)
}

/// The nodes above `left` and `right`, page by page.
fn parents(
    left: &[u8; HASH_LEN * LANES],
    right: &[u8; HASH_LEN * LANES],
    flags: u8,
) -> [u8; HASH_LEN * LANES] {
    let mut blocks = [[0; 2 * HASH_LEN]; LANES];
    for ((block, left), right) in
        blocks.iter_mut().zip(left.chunks_exact(HASH_LEN)).zip(right.chunks_exact(HASH_LEN))
    {
        let (low, high) = block.split_at_mut(HASH_LEN);
        low.copy_from_slice(left);
        high.copy_from_slice(right);
    }
    let mut out = [0; HASH_LEN * LANES];
    PLATFORM.hash_many(&blocks.each_ref(), &IV, 0, IncrementCounter::No, flags, 0, 0, &mut out);
    out
}

fn agrees_with_plain_hash() -> bool {
    let pages: [Page; LANES] =
        std::array::from_fn(|lane| std::array::from_fn(|at| (at * 31 + at / 251 + lane * 7) as u8));
    let mut out = [Digest::ZERO; LANES];
    digest_group(&pages.each_ref(), &mut out);
    pages.iter().zip(&out).all(|(page, digest)| digest_page(page) == *digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{ZERO_PAGE, digest_pages, is_zero};
    use proptest::prelude::*;

    #[test]
    fn the_vector_path_is_in_use() {
        assert!(
            is_trusted(),
            "blake3's platform module changed: every page would be hashed three times slower"
        );
    }

    fn page(seed: u64) -> Page {
        let mut page = ZERO_PAGE;
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
        page
    }

    proptest! {
        #[test]
        fn digests_equal_plain_blake3(count in 0usize..70, seed: u64, spare in 0usize..20) {
            let pages: Vec<Page> = (0..count as u64).map(|n| page(seed.wrapping_add(n))).collect();
            let refs: Vec<&Page> = pages.iter().collect();
            let mut out = vec![Digest::ABSENT; count + spare];
            digest_pages(&refs, &mut out);
            for (page, digest) in pages.iter().zip(&out) {
                prop_assert_eq!(digest.0, *blake3::hash(page).as_bytes());
            }
            prop_assert!(out[count..].iter().all(|digest| *digest == Digest::ABSENT));
        }

        #[test]
        fn one_set_byte_anywhere_is_not_zero(at in 0..4096usize, value in 1u8..) {
            let mut page = ZERO_PAGE;
            prop_assert!(is_zero(&page));
            page[at] = value;
            prop_assert!(!is_zero(&page));
        }
    }

    #[test]
    fn a_short_output_is_filled_and_no_more() {
        let pages: Vec<Page> = (0..40).map(page).collect();
        let refs: Vec<&Page> = pages.iter().collect();
        let mut out = vec![Digest::ZERO; 5];
        digest_pages(&refs, &mut out);
        assert_eq!(out[4], digest_page(&pages[4]));
    }
}
