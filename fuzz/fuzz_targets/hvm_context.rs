//! Any bytes as the HVM context of a domain.

#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_formats::xen::hvm_context::{entries, vcpus};

fuzz_target!(|bytes: &[u8]| {
    assert!(entries(bytes).count() <= bytes.len() / 8 + 1);
    if let Ok(vcpus) = vcpus(bytes) {
        assert!(vcpus.is_sorted_by_key(|vcpu| vcpu.index));
    }
});
