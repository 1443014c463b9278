//! Names of epochs: any text is a range of the epochs there are, or an error.
#![no_main]

use varve_store::EpochId;
use varve_store::spec::{EpochName, resolve_range};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let epochs: Vec<EpochName> =
        (0..9).map(|n| EpochName { taken_at_ns: n * 1_000_000_000, id: EpochId([n as u8 / 2; 32]) }).collect();
    if let Ok(range) = resolve_range(text, &epochs) {
        assert!(range.start < range.end && range.end <= 9);
    }
});
