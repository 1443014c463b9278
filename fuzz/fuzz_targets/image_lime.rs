//! Any bytes as a LiME file.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod image;

fuzz_target!(|bytes: &[u8]| image::open_as("lime", bytes));
