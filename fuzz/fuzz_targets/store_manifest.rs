//! Page maps of an archive: any bytes are a map, which reads back the same, or malformed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    varve_store::decoders::manifest(bytes);
});
