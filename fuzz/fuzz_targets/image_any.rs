//! Any bytes as an image file of whatever format they look like.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod image;

fuzz_target!(|bytes: &[u8]| image::open(bytes));
