//! Names: of vifs, of the ifb that belongs to each, and what is written on it, so that it is found again when whoever made it
//! is gone.

use super::Vif;

/// How the names of our ifbs begin.
const PREFIX: &str = "vv";

/// How the name of the ifb of an emulated card ends.
const EMULATED: char = 'e';

/// How Xen ends the name of an emulated card's device (`xl-network-configuration`, `vifname`).
const EMULATED_VIF: &str = "-emu";

/// Longest name of a device, in bytes (`linux/if.h`, `IFNAMSIZ` less the NUL).
const NAME_MAX: usize = 15;

/// Longest name of a VM in a label, in bytes. A label may have 255 (`linux/if.h`, `IFALIASZ`).
const VM_MAX: usize = 128;

/// The name of the ifb of `vif`; `None` when a device cannot have it.
pub(super) fn ifb(vif: &Vif) -> Option<String> {
    let emulated = if vif.name.ends_with(EMULATED_VIF) { EMULATED.to_string() } else { String::new() };
    let name = format!("{PREFIX}{}.{}{emulated}", vif.domid, vif.devid);
    (name.len() <= NAME_MAX).then_some(name)
}

/// The vif whose ifb has that name, as Xen names it unless told otherwise.
pub(super) fn of_ifb(name: &str) -> Option<Vif> {
    let numbers = name.strip_prefix(PREFIX)?;
    let (numbers, end) = match numbers.strip_suffix(EMULATED) {
        Some(numbers) => (numbers, EMULATED_VIF),
        None => (numbers, ""),
    };
    let (domid, devid) = of_numbers(numbers)?;
    Some(Vif { domid, devid, name: format!("vif{domid}.{devid}{end}") })
}

/// The vif that Xen names so; `None` when it is no such name.
pub(super) fn of_vif(name: &str) -> Option<Vif> {
    let numbers = name.strip_prefix("vif")?;
    let (domid, devid) = of_numbers(numbers.strip_suffix(EMULATED_VIF).unwrap_or(numbers))?;
    Some(Vif { domid, devid, name: name.to_owned() })
}

fn of_numbers(numbers: &str) -> Option<(u16, u32)> {
    let (domid, devid) = numbers.split_once('.')?;
    let plain = |number: &str| number.bytes().all(|byte| byte.is_ascii_digit());
    if plain(domid) && plain(devid) { Some((domid.parse().ok()?, devid.parse().ok()?)) } else { None }
}

/// Whether a device can have that name (`net/core/dev.c`, `dev_valid_name`) and a label can hold it.
pub(super) fn is_device(name: &str) -> bool {
    let odd = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':');
    !name.is_empty() && name.len() <= NAME_MAX && !matches!(name, "." | "..") && !name.bytes().any(odd)
}

/// Whether a label can hold that name of a VM: a UUID, for instance.
pub(super) fn is_vm(name: &str) -> bool {
    name.len() <= VM_MAX && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What is written on the ifb of `vif`.
pub(super) fn label(vif: &Vif, vm: &str) -> String {
    format!("varve vif={} vm={vm}", vif.name)
}

/// The vif's name and the VM's on a label; `None` when it is none of ours. Anyone who may change devices can write one.
pub(super) fn read_label(label: &str) -> Option<(&str, &str)> {
    let (vif, vm) = label.strip_prefix("varve vif=")?.split_once(" vm=")?;
    (is_device(vif) && is_vm(vm)).then_some((vif, vm))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vif(domid: u16, devid: u32, name: &str) -> Vif {
        Vif { domid, devid, name: name.to_owned() }
    }

    #[test]
    fn an_ifb_is_named_after_domain_and_device() {
        assert_eq!(ifb(&vif(7, 0, "vif7.0")).as_deref(), Some("vv7.0"));
        assert_eq!(ifb(&vif(7, 1, "vif7.1-emu")).as_deref(), Some("vv7.1e"));
        assert_eq!(ifb(&vif(65535, 9_999_999, "web")).as_deref(), Some("vv65535.9999999"));
        assert_eq!(ifb(&vif(65535, 10_000_000, "web")), None);
        assert_eq!(of_ifb("vv7.1e"), Some(vif(7, 1, "vif7.1-emu")));
        for other in ["vv", "vv7", "vv7.", "vv.7", "vv+7.0", "vv7.0ee", "vv70000.0", "ifb0", "vv7.0 "] {
            assert_eq!(of_ifb(other), None, "{other}");
        }
        assert_eq!(of_vif("vif7.2"), Some(vif(7, 2, "vif7.2")));
        assert_eq!(of_vif("vif7.2-emu"), Some(vif(7, 2, "vif7.2-emu")));
        assert_eq!(of_vif("vif7.2e"), None);
    }

    #[test]
    fn names_that_no_device_has_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\n", "sixteen-letters-", "ü"] {
            assert!(!is_device(name), "{name:?}");
        }
        assert!(is_device("vif7.0-emu"));
    }

    proptest! {
        #[test]
        fn names_of_ifbs_lead_back(domid: u16, devid in 0..10_000_000_u32, emulated: bool) {
            let end = if emulated { "-emu" } else { "" };
            let vif = vif(domid, devid, &format!("vif{domid}.{devid}{end}"));
            if let Some(name) = ifb(&vif) {
                prop_assert_eq!(of_ifb(&name), Some(vif));
            }
        }

        #[test]
        fn labels_can_be_read_again(name in "[!-.0-9;-~]{1,15}", vm in "[!-~]{0,128}") {
            prop_assume!(is_device(&name));
            let label = label(&vif(1, 0, &name), &vm);
            prop_assert!(label.len() <= 255);
            prop_assert_eq!(read_label(&label), Some((name.as_str(), vm.as_str())));
        }

        #[test]
        fn any_text_is_looked_at(text in any::<String>()) {
            let _ = (of_ifb(&text), of_vif(&text), is_vm(&text));
            prop_assert!(read_label(&text).is_none_or(|(vif, _)| is_device(vif)));
        }
    }
}
