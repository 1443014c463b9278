//! Any bytes as a core file of a Xen domain.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod image;

fuzz_target!(|bytes: &[u8]| image::open_as("xen-core", bytes));
