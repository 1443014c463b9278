//! Any bytes as the kernel's answers to an output buffer, each read as an entry of every listing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_capture::testing::read_netlink;

fuzz_target!(|bytes: &[u8]| {
    // A message has sixteen bytes at least.
    assert!(read_netlink(bytes) <= bytes.len() / 16);
});
