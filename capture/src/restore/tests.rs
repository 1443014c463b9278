//! Plans against a toolstack that only says what it is asked, and what becomes of them.

use varve_formats::xen::stream::{Config, DomainType, Header, SaveState};

use super::configuration::Configuration;
use super::*;

fn configuration(name: &str, bridge: &str, disk: &str) -> Configuration {
    Configuration::of(serde_json::json!({
        "c_info": {"name": name, "uuid": "u"},
        "nics": [{"mac": "00:16:3e:00:00:01", "bridge": bridge}],
        "disks": if disk.is_empty() { vec![] } else { vec![serde_json::json!({"vdev": "xvda", "pdev_path": disk})] },
    }))
}

fn others(configuration: Configuration) -> Vec<xl::Domain> {
    vec![xl::Domain { id: 3, configuration }]
}

#[test]
fn a_domain_does_not_share_an_address_or_a_disk_with_another() {
    let new = configuration("new", "xenbr0", "/dev/vg/web");
    let conflict = |bridge, disk, disks| {
        let others = others(configuration("old", bridge, disk));
        no_conflict(&new, &others, disks).err().map(|error| error.to_string())
    };
    assert!(conflict("xenbr0", "", true).unwrap().contains("has the network address 00:16:3e:00:00:01"));
    assert!(conflict("island", "/dev/vg/web", true).unwrap().contains("has the disk /dev/vg/web"));
    assert_eq!(conflict("island", "/dev/vg/web", false), None, "the disk will be another");
    assert_eq!(conflict("island", "/dev/vg/other", true), None);
}

#[test]
fn a_disk_is_moved_by_its_name_in_the_guest() {
    let mut new = configuration("new", "xenbr0", "/dev/vg/web");
    new.move_disk("xvda=/dev/vg/web-again").unwrap();
    assert_eq!(new.disk_paths(), ["/dev/vg/web-again"]);
    for line in ["xvdb=/dev/vg/x", "xvda=relative", "xvda", ""] {
        assert!(new.move_disk(line).is_err(), "{line:?}");
    }
}

#[test]
fn names_that_mean_something_else_are_refused() {
    for name in ["web1", "web-1 of tuesday", "7of9"] {
        assert!(is_name(name), "{name:?}");
    }
    for name in ["", "17", "a/b", "-p", ".", "a\nb"] {
        assert!(!is_name(name), "{name:?}");
    }
}

#[test]
fn disks_of_another_moment_are_refused_before_anything_is_asked_of_xl() {
    let config = configuration("web", "xenbr0", "/dev/vg/web").encode();
    let state = |config: Option<Config>| {
        SaveState::new(Header { domain: DomainType::Hvm, xen: (4, 17), config, libxc_version: 3 })
    };
    let refused = |wishes| Plan::new(state(Some(config.clone())), wishes).unwrap_err().to_string();
    assert!(
        refused(Wishes::default()).contains("it has disks (xvda (/dev/vg/web))".trim_start_matches("it "))
    );
    let command = Hook { purpose: "disks", command: "true".into(), limit: std::time::Duration::from_secs(1) };
    let disks = Disks::PutBack { command, snapshot: None };
    assert!(refused(Wishes { disks, ..Wishes::default() }).contains("no snapshot of them was taken"));
    assert!(matches!(Plan::new(state(None), Wishes::default()), Err(RestoreError::Configuration { .. })));
}
