//! Another release of Xen than the one that all other tests have.

use varve_fixtures::Xen;

use super::host::host_of;
use super::{lists_agree, undisturbed_epoch};

const EVIDENCE: &str = "/run/evidence";

#[test]
fn a_domain_of_xen_4_20_is_captured_and_rolled_back() {
    let mut host = host_of(Xen::Trixie);
    let version = host.script("newer", "xl info xen_version");
    assert!(version.starts_with("4.20."), "{version}");
    let mut guest = host.guest("newer");
    guest.write_file(EVIDENCE, "before").unwrap();
    for arguments in [&[][..], &["--quiesce", "suspend"]] {
        let (epoch, truth) = undisturbed_epoch(&mut host, &mut guest, arguments);
        lists_agree(&mut host, "newer", epoch, &truth);
    }
    guest.write_file(EVIDENCE, "after").unwrap();
    host.json("newer", &["rollback", "latest", "--replace"], 0);
    host.reach_again(&mut guest);
    assert_eq!(guest.read_file(EVIDENCE).unwrap(), b"before\n");
    let (epoch, truth) = undisturbed_epoch(&mut host, &mut guest, &["--quiesce", "suspend"]);
    lists_agree(&mut host, "newer", epoch, &truth);
}
