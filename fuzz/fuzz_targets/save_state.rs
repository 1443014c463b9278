//! States of Xen domains: any bytes are a state, which has one encoding, or malformed.
#![no_main]

use varve_formats::xen::stream::SaveState;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = SaveState::decode(bytes) {
        assert_eq!(state.encode(), bytes);
        let _ = state.vcpus();
    }
});
