//! The stage that runs while a guest is held (zero test, hash, compare, copy what differs), beside a plain copy of
//! the same memory by as many threads. Run with `cargo bench -p varve-capture`.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use rayon::prelude::*;
use varve_capture::source::GuestMemory;
use varve_capture::testing::{digests, scan};
use varve_formats::{Fault, Gpa, PAGE_SIZE, PhysicalMemory, Region};

/// Bytes of memory looked at: more than any cache holds.
const BYTES: usize = 512 << 20;

/// One frame in this many is not zero, as in a 1 GiB Debian guest.
const ONE_IN_FILLED: u64 = 3;

/// One frame in this many has changed: 4 %.
const ONE_IN_CHANGED: u64 = 25;

fn main() {
    divan::main();
}

struct Ram {
    bytes: Vec<u8>,
    regions: [Region; 1],
}

impl Ram {
    fn new() -> Self {
        let mut bytes = vec![0; BYTES];
        for (number, page) in (0u64..).zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
            if number % ONE_IN_FILLED == 0 {
                fill(page, number);
            }
        }
        Self { bytes, regions: [Region { start: Gpa(0), len: BYTES as u64 }] }
    }

    fn change(&mut self) {
        for (number, page) in (0u64..).zip(self.bytes.chunks_exact_mut(PAGE_SIZE)) {
            if number % ONE_IN_CHANGED == 0 {
                fill(page, number ^ 1 << 40);
            }
        }
    }
}

/// Noise that no processor predicts (splitmix64).
fn fill(page: &mut [u8], seed: u64) {
    for (index, word) in (0u64..).zip(page.chunks_exact_mut(8)) {
        let mut mixed = (seed << 20 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word.copy_from_slice(&(mixed ^ mixed >> 27).to_le_bytes());
    }
}

impl PhysicalMemory for Ram {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        buf.copy_from_slice(self.slice(at, buf.len()).ok_or(Fault::NotCaptured { at })?);
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl GuestMemory for Ram {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        self.bytes.get(at.0 as usize..)?.get(..len)
    }
}

#[divan::bench]
fn memcpy(bencher: Bencher<'_, '_>) {
    let ram = Ram::new();
    let mut copy = vec![1; BYTES];
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        copy.par_chunks_mut(2 << 20)
            .zip(ram.bytes.par_chunks(2 << 20))
            .for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&copy);
    });
}

#[divan::bench]
fn nothing_changed(bencher: Bencher<'_, '_>) {
    let ram = Ram::new();
    let previous = digests(&ram);
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| assert_eq!(scan(&ram, black_box(&previous)), 0));
}

#[divan::bench]
fn one_in_25_changed(bencher: Bencher<'_, '_>) {
    let mut ram = Ram::new();
    let previous = digests(&ram);
    ram.change();
    let changed = (BYTES / PAGE_SIZE).div_ceil(ONE_IN_CHANGED as usize);
    bencher
        .counter(BytesCount::new(BYTES))
        .bench_local(|| assert_eq!(scan(&ram, black_box(&previous)), changed));
}

#[divan::bench]
fn everything_new(bencher: Bencher<'_, '_>) {
    let ram = Ram::new();
    let previous = vec![[0xff; 32]; BYTES / PAGE_SIZE];
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| scan(black_box(&ram), &previous));
}
