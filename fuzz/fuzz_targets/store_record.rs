//! Epoch records of an archive: any bytes are a record, which has one encoding, or malformed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    varve_store::decoders::record(bytes);
});
