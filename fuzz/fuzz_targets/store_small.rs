//! Settings, VM numbers and pins of an archive.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    varve_store::decoders::small(bytes);
});
