//! Packs of an archive: any bytes are pages or malformed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    varve_store::decoders::pack(bytes);
});
