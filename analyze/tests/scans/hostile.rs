//! Memory that lies: a scan ends, and either sees everything or says that it did not.

use proptest::prelude::*;
use varve_analyze::guest::{Guest, Profiles};
use varve_analyze::policy::Policy;
use varve_analyze::scans::{SCANS, ScanInput};

use super::kernel::Healthy;
use super::synthetic::DIRECT_MAP;

/// What an intruder would write: pointers to anywhere, counts, poison.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(0xdead_0000_0000_0100),
        Just(1),
        (0xa0_0000u64..0xb0_0000).prop_map(|at| DIRECT_MAP + (at & !7)),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_damage_to_objects_ends_in_a_report(
        writes in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..24),
    ) {
        let mut healthy = Healthy::new();
        healthy.kernel.finish();
        let clean = healthy.kernel.memory.clone();
        let profiles = Profiles::new();
        let baseline = Guest::open(&clean, &[], &[], &profiles).unwrap();
        let pins = [baseline.pin().clone()];
        let used: Vec<usize> = (0..clean.bytes.len() / 8)
            .filter(|word| clean.bytes[word * 8..][..8] != [0; 8])
            .filter(|word| !(0x60_0000..0xa0_0000).contains(&(word * 8)))
            .collect();
        let mut damaged = clean.clone();
        for (place, value) in writes {
            let at = used[place.index(used.len())] * 8;
            damaged.bytes[at..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let Ok(guest) = Guest::open(&damaged, &[], &pins, &profiles) else { return Ok(()) };
        let policy = Policy::parse("[process]\ndeny = [\"sh\"]\nallow = [\"init\"]").unwrap();
        for scan in SCANS {
            for baseline in [None, Some(&baseline)] {
                let report = (scan.run)(&ScanInput { guest: &guest, baseline, policy: &policy });
                prop_assert!(report.complete || !report.faults.is_empty(), "{}", scan.name);
            }
        }
    }
}
