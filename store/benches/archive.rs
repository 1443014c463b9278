//! The archive's stages, each beside the limit it cannot beat on this machine.
//!
//! `VARVE_BENCH_IMAGE=FILE` takes the pages of a raw memory image instead of synthetic ones. Throughput is in bytes of
//! guest memory that is neither zero nor a copy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "benchmarks")]

use std::sync::LazyLock;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use rayon::prelude::*;
use varve_formats::{Gpa, PAGE_SIZE, PhysicalMemory, Region};
use varve_store::hash::{Page, digest_pages, is_zero};
use varve_store::{Archive, Content, Digest, EpochMemory, EpochMeta, FrameChange};

fn main() {
    divan::main();
}

/// Pages of a synthetic guest: 128 MiB.
const SYNTHETIC_PAGES: u64 = 32 << 10;

/// Pages that are not zero, each once, in guest order.
static PAGES: LazyLock<Vec<Page>> = LazyLock::new(|| match std::env::var("VARVE_BENCH_IMAGE") {
    Ok(path) => {
        let bytes = std::fs::read(path).expect("the image is readable");
        let mut seen = std::collections::HashSet::new();
        let new = |page: &&Page| !is_zero(*page) && seen.insert(blake3::hash(*page));
        bytes.as_chunks().0.iter().filter(new).copied().collect()
    }
    Err(_) => (0..SYNTHETIC_PAGES).map(synthetic).collect(),
});

/// A page with the redundancy of guest memory: pointers that share their upper halves, small integers, text, some noise.
fn synthetic(seed: u64) -> Page {
    let mut noise = [0; PAGE_SIZE / 2];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    let mut words = noise.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut page = [0; PAGE_SIZE];
    for line in page.as_chunks_mut::<32>().0 {
        let [pointer, small, noise] = [(); 3].map(|()| words.next().unwrap_or_default());
        line[..8]
            .copy_from_slice(&(0xffff_8880_0000_0000 | u64::from(pointer & 0x3f_ffff) << 6).to_le_bytes());
        line[8..16].copy_from_slice(&u64::from(small & 0xff).to_le_bytes());
        line[16..20].copy_from_slice(&noise.to_le_bytes());
        line[24..32].copy_from_slice(if small & 0x100 == 0 { b"/usr/lib" } else { b"\0\0\0\0\0\0\0\x01" });
    }
    page
}

fn bytes(pages: usize) -> BytesCount {
    BytesCount::new(pages * PAGE_SIZE)
}

fn digests(pages: &[Page]) -> Vec<Digest> {
    let refs: Vec<&Page> = pages.iter().collect();
    let mut digests = vec![Digest::ZERO; pages.len()];
    refs.par_chunks(256).zip(digests.par_chunks_mut(256)).for_each(|(pages, out)| digest_pages(pages, out));
    digests
}

/// One thread.
mod hashing {
    use super::*;

    #[divan::bench]
    fn limit_memcpy(bencher: Bencher<'_, '_>) {
        let mut copy = PAGES.clone();
        bencher.counter(bytes(PAGES.len())).bench_local(|| copy.copy_from_slice(black_box(&PAGES)));
    }

    #[divan::bench]
    fn one_by_one(bencher: Bencher<'_, '_>) {
        let hash = || PAGES.iter().map(|page| blake3::hash(page).as_bytes()[0]).fold(0, u8::wrapping_add);
        bencher.counter(bytes(PAGES.len())).bench_local(hash);
    }

    #[divan::bench]
    fn one_long_buffer(bencher: Bencher<'_, '_>) {
        bencher.counter(bytes(PAGES.len())).bench_local(|| blake3::hash(PAGES.as_flattened()));
    }

    #[divan::bench]
    fn sixteen_at_a_time(bencher: Bencher<'_, '_>) {
        let refs: Vec<&Page> = PAGES.iter().collect();
        let mut out = vec![Digest::ZERO; refs.len()];
        bencher.counter(bytes(refs.len())).bench_local(|| digest_pages(black_box(&refs), &mut out));
    }

    #[divan::bench]
    fn zero_test(bencher: Bencher<'_, '_>) {
        let zeros = vec![[0; PAGE_SIZE]; PAGES.len()];
        let count = || zeros.iter().filter(|page| is_zero(*page)).count();
        bencher.counter(bytes(zeros.len())).bench_local(count);
    }
}

fn regions() -> [Region; 1] {
    [Region { start: Gpa(0), len: (PAGES.len() * PAGE_SIZE) as u64 }]
}

fn changes<'a>(pages: &'a [Page], digests: &[Digest], every: usize) -> Vec<FrameChange<'a>> {
    let contents = pages.iter().zip(digests).map(|(bytes, digest)| Content::Page { digest: *digest, bytes });
    (0..).zip(contents).step_by(every).map(|(frame, content)| FrameChange { frame, content }).collect()
}

fn commit(archive: &Archive, changes: &[FrameChange<'_>]) {
    let mut writer = archive.begin("vm", &regions()).unwrap();
    changes.chunks(4096).for_each(|batch| writer.store(batch).unwrap());
    writer.commit(EpochMeta::default()).unwrap();
}

/// All threads; pages hashed beforehand.
mod ingest {
    use super::*;

    #[divan::bench(sample_count = 10)]
    fn limit_compression(bencher: Bencher<'_, '_>) {
        let compress = || {
            let len = |pages: &[Page]| zstd::bulk::compress(pages.as_flattened(), 1).unwrap().len();
            PAGES.par_chunks(64).map(len).sum::<usize>()
        };
        bencher.counter(bytes(PAGES.len())).bench_local(compress);
    }

    #[divan::bench(sample_count = 10, sample_size = 1)]
    fn first_epoch(bencher: Bencher<'_, '_>) {
        let digests = digests(&PAGES);
        let changes = changes(&PAGES, &digests, 1);
        let prepare = || {
            let dir = tempfile::tempdir().unwrap();
            (Archive::create(dir.path()).unwrap(), dir)
        };
        bencher
            .counter(bytes(PAGES.len()))
            .with_inputs(prepare)
            .bench_local_refs(|(archive, _)| commit(archive, &changes));
    }

    /// One page in 25 is new.
    #[divan::bench(sample_count = 20, sample_size = 1)]
    fn later_epoch(bencher: Bencher<'_, '_>) {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::create(dir.path()).unwrap();
        let first = digests(&PAGES);
        commit(&archive, &changes(&PAGES, &first, 1));
        let mut epoch = 0u64;
        let prepare = || {
            epoch += 1;
            let mut pages = PAGES.clone();
            pages.iter_mut().step_by(25).for_each(|page| page[8..16].copy_from_slice(&epoch.to_le_bytes()));
            let digests = digests(&pages);
            (pages, digests)
        };
        bencher
            .with_inputs(prepare)
            .bench_local_refs(|(pages, digests)| commit(&archive, &changes(pages, digests, 25)));
    }
}

/// Reading an epoch.
mod reading {
    use super::*;

    fn epoch() -> (tempfile::TempDir, Archive, EpochMemory) {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::create(dir.path()).unwrap();
        commit(&archive, &changes(&PAGES, &digests(&PAGES), 1));
        let memory = archive.epoch("vm", 0).unwrap();
        (dir, archive, memory)
    }

    #[divan::bench(sample_count = 10)]
    fn limit_decompression(bencher: Bencher<'_, '_>) {
        let packs: Vec<Vec<u8>> = PAGES
            .par_chunks(64)
            .map(|pages| zstd::bulk::compress(pages.as_flattened(), 1).unwrap())
            .collect();
        let decompress = || {
            packs
                .par_iter()
                .map(|pack| zstd::bulk::decompress(pack, 64 * PAGE_SIZE).unwrap().len())
                .sum::<usize>()
        };
        bencher.counter(bytes(PAGES.len())).bench_local(decompress);
    }

    /// As an export does: 1 MiB at a time, by all threads.
    #[divan::bench(sample_count = 10)]
    fn in_order(bencher: Bencher<'_, '_>) {
        let (_dir, archive, memory) = epoch();
        archive.set_cache_limit(32 << 20);
        let blocks = (PAGES.len() * PAGE_SIZE) >> 20;
        let read = || {
            let read = |block: usize| memory.read(Gpa((block as u64) << 20), &mut vec![0; 1 << 20]).unwrap();
            (0..blocks).into_par_iter().for_each(read);
        };
        bencher.counter(BytesCount::new(blocks << 20)).bench_local(read);
    }

    fn random(bencher: Bencher<'_, '_>, cache_limit: usize) {
        let (_dir, archive, memory) = epoch();
        archive.set_cache_limit(cache_limit);
        let mut at = 1u64;
        bencher.bench_local(|| {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            memory.read(Gpa((at >> 33) % (PAGES.len() * PAGE_SIZE - 8) as u64), &mut [0; 8]).unwrap();
        });
    }

    #[divan::bench]
    fn random_8_bytes_cached(bencher: Bencher<'_, '_>) {
        random(bencher, 1 << 30);
    }

    #[divan::bench]
    fn random_8_bytes_uncached(bencher: Bencher<'_, '_>) {
        random(bencher, 0);
    }
}
