//! The configuration of a domain as libxl keeps it: JSON of `libxl_domain_config` (`tools/libs/light/libxl_types.idl`).
//!
//! Only what a restore has to change or to know is looked at; everything else stays as it is.

use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};
use varve_formats::xen::stream::Config;

use super::RestoreError;

/// Lists of devices that lead out of a domain.
const DEVICES_OUT: [(&str, &str); 6] = [
    ("pcidevs", "PCI devices of this host"),
    ("dtdevs", "devices of this host"),
    ("usbdevs", "USB devices of this host"),
    ("p9s", "directories of this host"),
    ("pvcallsifs", "sockets of this host"),
    ("virtios", "devices of another program of this host"),
];

/// Scripts of Xen's that connect a network interface to something else than a bridge of Linux.
const NOT_TO_A_BRIDGE: [&str; 3] = ["vif-route", "vif-nat", "vif-openvswitch"];

/// Where Linux shows its network devices.
const NETWORK_DEVICES: &str = "/sys/class/net";

/// A domain's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Configuration(Value);

/// A network interface of the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) mac: String,
    pub(super) bridge: String,
}

impl Configuration {
    pub(super) fn parse(config: Option<&Config>) -> Result<Self, RestoreError> {
        let unusable = |reason: String| RestoreError::Configuration { reason };
        let config = config.ok_or_else(|| {
            unusable("there is none with the epoch: the domain was not made by `xl`".to_owned())
        })?;
        if !config.is_json {
            return Err(unusable("it is xl's own text; xl has kept JSON since Xen 4.5".to_owned()));
        }
        let text = config.bytes.strip_suffix(&[0]).unwrap_or(&config.bytes);
        let value = serde_json::from_slice(text).map_err(|error| unusable(error.to_string()))?;
        let configuration = Self(value);
        if configuration.name().is_empty() {
            return Err(unusable("it does not name the domain".to_owned()));
        }
        Ok(configuration)
    }

    pub(super) fn of(value: Value) -> Self {
        Self(value)
    }

    pub(super) fn encode(&self) -> Config {
        let mut bytes = self.0.to_string().into_bytes();
        bytes.push(0);
        Config { is_json: true, bytes }
    }

    pub(super) fn name(&self) -> &str {
        text(&self.0, "/c_info/name")
    }

    pub(super) fn uuid(&self) -> &str {
        text(&self.0, "/c_info/uuid")
    }

    /// The disks, as the guest and the host name them.
    pub(super) fn disks(&self) -> Vec<String> {
        let disk = |disk: &Value| format!("{} ({})", text(disk, "/vdev"), text(disk, "/pdev_path"));
        self.list("disks").iter().map(disk).collect()
    }

    /// The files and devices behind the disks.
    pub(super) fn disk_paths(&self) -> Vec<&str> {
        self.list("disks")
            .iter()
            .map(|disk| text(disk, "/pdev_path"))
            .filter(|path| !path.is_empty())
            .collect()
    }

    /// A file or device that this host is to give the domain and does not have.
    pub(super) fn missing_disk(&self) -> Option<&str> {
        let here = |disk: &&Value| {
            let file = text(disk, "/script").is_empty() && text(disk, "/format") != "empty";
            file && !leads_through_another(disk)
        };
        let paths = self.list("disks").iter().filter(here).map(|disk| text(disk, "/pdev_path"));
        paths.filter(|path| path.starts_with('/')).find(|path| !Path::new(path).exists())
    }

    /// Has a disk be another file or device, as `VDEV=PATH` says.
    pub(super) fn move_disk(&mut self, line: &str) -> Result<(), RestoreError> {
        let (vdev, path) = line.split_once('=').unwrap_or((line, ""));
        let disks = self.0.pointer_mut("/disks").and_then(Value::as_array_mut).into_iter().flatten();
        let disk = disks.filter(|disk| text(disk, "/vdev") == vdev).find_map(Value::as_object_mut);
        match disk.filter(|_| path.starts_with('/')) {
            Some(disk) => {
                disk.insert("pdev_path".to_owned(), json!(path));
                Ok(())
            }
            None => Err(RestoreError::Configuration {
                reason: format!(
                    "it has no disk that {line:?}, which the command for disks printed, could be about"
                ),
            }),
        }
    }

    pub(super) fn nics(&self) -> Vec<Nic> {
        let nic = |nic: &Value| Nic {
            mac: text(nic, "/mac").to_ascii_lowercase(),
            bridge: text(nic, "/bridge").to_owned(),
        };
        self.list("nics").iter().map(nic).collect()
    }

    /// A bridge that it is to be connected to, and that this host does not have. Where there is no `xenbr0`, Xen takes `eth0` if that is a
    /// bridge (`vif-bridge` of `tools/hotplug/Linux`).
    pub(super) fn missing_bridge(&self) -> Option<&str> {
        let here = |nic: &&Value| {
            let script = text(nic, "/script");
            (script.is_empty() || script.ends_with("vif-bridge")) && !leads_through_another(nic)
        };
        let bridges = self.list("nics").iter().filter(here).map(|nic| text(nic, "/bridge"));
        bridges.filter(|bridge| !bridge.is_empty()).find(|bridge| {
            let old =
                bridge.strip_prefix("xenbr").filter(|_| !Path::new(NETWORK_DEVICES).join(bridge).exists());
            !is_bridge(bridge) && !old.is_some_and(|number| is_bridge(&format!("eth{number}")))
        })
    }

    /// Makes it another domain: of another name, with an identity of its own.
    pub(super) fn rename(&mut self, name: &str) -> Result<(), RestoreError> {
        let info = self.0.pointer_mut("/c_info").and_then(Value::as_object_mut);
        if let Some(info) = info {
            info.insert("name".to_owned(), json!(name));
            info.insert("uuid".to_owned(), json!(random_uuid()?));
        }
        // A name that was given to the host's end of a network interface can be had once only.
        for nic in self.0.pointer_mut("/nics").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(nic) = nic.as_object_mut() {
                nic.remove("ifname");
            }
        }
        Ok(())
    }

    /// Puts every network interface on this bridge.
    pub(super) fn connect_to(&mut self, bridge: &str) {
        for nic in self.0.pointer_mut("/nics").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(nic) = nic.as_object_mut() {
                nic.insert("bridge".to_owned(), json!(bridge));
            }
        }
    }

    /// Something that leads out of the domain, whatever bridge its network interfaces are connected to.
    pub(super) fn leads_out(&self) -> Option<String> {
        let device = DEVICES_OUT.iter().find(|(list, _)| !self.list(list).is_empty());
        if let Some((_, what)) = device {
            return Some((*what).to_owned());
        }
        self.list("nics").iter().find_map(|nic| {
            let script = text(nic, "/script");
            if leads_through_another(nic) {
                Some("a network interface that leads through another domain".to_owned())
            } else if NOT_TO_A_BRIDGE.iter().any(|name| script.ends_with(name))
                || !text(nic, "/gatewaydev").is_empty()
            {
                Some(format!(
                    "a network interface that is not connected to a bridge (its script is {script:?})"
                ))
            } else {
                None
            }
        })
    }

    fn list(&self, name: &str) -> &[Value] {
        self.0.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Whether a device's other end is in another domain than this host's own.
fn leads_through_another(device: &Value) -> bool {
    let number = device.get("backend_domid").and_then(Value::as_u64);
    number.is_some_and(|domain| domain != 0) || !text(device, "/backend_domname").is_empty()
}

/// Whether this host has a bridge of this name.
fn is_bridge(name: &str) -> bool {
    Path::new(NETWORK_DEVICES).join(name).join("bridge").exists()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A version 4 UUID (RFC 9562, section 5.4).
fn random_uuid() -> Result<String, RestoreError> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| RestoreError::Io { doing: "asking for random numbers", source: error.into() })?;
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    Ok(groups.map(|range| hex.get(range).unwrap_or_default().to_owned()).join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libxl 4.17 wrote it for a guest of ours, shortened.
    const WEB: &str = r#"{"c_info": {"type": "pvh", "name": "web1", "uuid": "68bc6d47-4a5c-4d7e-8d8a-2ba5b4a9c0de"},
        "b_info": {"max_memkb": 262144, "kernel": "/run/guest/kernel"},
        "disks": [{"pdev_path": "/dev/vg/web1", "vdev": "xvda", "format": "raw", "readwrite": 1}],
        "nics": [{"devid": 0, "mac": "00:16:3E:01:02:03", "bridge": "xenbr0", "ifname": "web1"}]}"#;

    fn parse(text: &str) -> Result<Configuration, RestoreError> {
        Configuration::parse(Some(&Config { is_json: true, bytes: format!("{text}\0").into_bytes() }))
    }

    #[test]
    fn what_matters_is_found() {
        let web = parse(WEB).unwrap();
        assert_eq!((web.name(), web.uuid()), ("web1", "68bc6d47-4a5c-4d7e-8d8a-2ba5b4a9c0de"));
        assert_eq!(web.disks(), ["xvda (/dev/vg/web1)"]);
        assert_eq!(web.nics(), [Nic { mac: "00:16:3e:01:02:03".into(), bridge: "xenbr0".into() }]);
        assert_eq!(Configuration::parse(Some(&web.encode())).unwrap(), web);
    }

    #[test]
    fn a_renamed_domain_is_another_and_nothing_else_changes() {
        let (old, mut new) = (parse(WEB).unwrap(), parse(WEB).unwrap());
        new.rename("web1-quarantine").unwrap();
        new.connect_to("island");
        assert_eq!(new.name(), "web1-quarantine");
        assert_eq!((new.uuid().len(), new.uuid().as_bytes()[14]), (36, b'4'));
        assert_ne!(new.uuid(), old.uuid());
        assert_eq!(new.nics(), [Nic { mac: "00:16:3e:01:02:03".into(), bridge: "island".into() }]);
        assert_eq!(new.0.pointer("/nics/0/ifname"), None);
        assert_eq!((new.0.get("b_info"), new.disks()), (old.0.get("b_info"), old.disks()));
    }

    #[test]
    fn what_leads_out_of_a_domain_is_found() {
        assert_eq!(parse(WEB).unwrap().leads_out(), None);
        for (with, what) in [
            (r#""nics": [{"script": "/etc/xen/scripts/vif-route"}]"#, "vif-route"),
            (r#""nics": [{"gatewaydev": "eth0"}]"#, "not connected to a bridge"),
            (r#""nics": [{}, {"backend_domid": 3}]"#, "through another domain"),
            (r#""nics": [{"backend_domname": "sys-net"}]"#, "through another domain"),
            (r#""pvcallsifs": [{}]"#, "sockets of this host"),
            (r#""pcidevs": [{"func": 0}]"#, "PCI devices"),
        ] {
            let found = parse(&format!(r#"{{"c_info": {{"name": "web1"}}, {with}}}"#)).unwrap().leads_out();
            assert!(found.as_ref().is_some_and(|found| found.contains(what)), "{with}: {found:?}");
        }
    }

    #[test]
    fn what_this_host_does_not_have_is_found() {
        let there = std::env::current_exe().unwrap();
        let with = |disks: serde_json::Value, nics: serde_json::Value| {
            let web = json!({"c_info": {"name": "web1"}, "disks": disks, "nics": nics});
            let web = Configuration::of(web);
            (web.missing_disk().map(str::to_owned), web.missing_bridge().map(str::to_owned))
        };
        let gone = json!({"vdev": "xvdb", "pdev_path": "/nowhere/web1"});
        let nowhere = Some("/nowhere/web1".to_owned());
        assert_eq!(with(json!([{"pdev_path": there}, gone]), json!([])), (nowhere, None));
        let elsewhere = json!([
            {"pdev_path": "drbd:web1"}, {"pdev_path": ""}, {"pdev_path": "/nowhere", "script": "block-iscsi"},
            {"pdev_path": "/nowhere", "backend_domname": "storage"}, {"pdev_path": "/nowhere", "format": "empty"}
        ]);
        let not_here = json!([
            {"bridge": "nobridge", "script": "vif-openvswitch"}, {"bridge": "nobridge", "backend_domid": 4}, {}
        ]);
        assert_eq!(with(elsewhere, not_here), (None, None));
        for (bridge, script) in [("nobridge", "/etc/xen/scripts/vif-bridge"), ("lo", ""), ("xenbr4711", "")] {
            let nics = json!([{"bridge": bridge, "script": script}]);
            assert_eq!(with(json!([]), nics), (None, Some(bridge.to_owned())));
        }
    }

    #[test]
    fn what_is_no_configuration_is_said() {
        for (text, reason) in
            [("{", "EOF"), ("{}", "does not name"), (r#"{"c_info": {"name": 7}}"#, "does not name")]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(Configuration::parse(None).is_err());
        let text = Config { is_json: false, bytes: b"name='web1'\0".to_vec() };
        assert!(Configuration::parse(Some(&text)).is_err());
    }
}
