//! Bridges that lead nowhere: what is connected to one are guests, and this host takes no part in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::buffer::netlink;
use super::netlink::{Link, Socket};
use super::step::Kernel;
use super::{OutputError, name};

/// Makes sure that a bridge leads nowhere.
///
/// Its ports must be the network backends of guests. Nothing may stand on it, such as a VLAN, and it may have no address and get none
/// by itself: whoever is connected to it would reach this host, and what this host forwards to.
///
/// # Errors
/// [`OutputError::Unsuitable`] with what is wrong with it and how to mend that, [`OutputError::Netlink`].
pub fn isolated(bridge: &str) -> Result<(), OutputError> {
    let mut socket = Socket::open().map_err(netlink("opening a netlink socket"))?;
    let links = socket.links().map_err(netlink("listing devices"))?;
    let found = links.iter().find(|link| link.name == bridge && link.kind.as_deref() == Some("bridge"));
    let found = found.ok_or_else(|| {
        unsuitable(format!(
            "{bridge:?} is no bridge of this host: `ip link add {bridge} type bridge && ip link set {bridge} addrgenmode none && ip link set {bridge} up` makes one"
        ))
    })?;
    let ports = links.iter().filter(|link| link.master == Some(found.index));
    let leads_on = ports.filter(|port| !is_backend(port)).map(|port| port.name.clone());
    if let Some(what) = leads_on.chain(standing_on(bridge)).next() {
        return Err(unsuitable(format!(
            "bridge {bridge:?} is not isolated: {what:?} on it leads to a network"
        )));
    }
    let addresses = socket.addresses().map_err(netlink("listing addresses"))?;
    if addresses.contains(&found.index) || gives_itself_addresses(bridge) {
        return Err(unsuitable(format!(
            "bridge {bridge:?} is not isolated: this host has an address on it, or gets one when it is used: \
             `ip address flush dev {bridge} && ip link set {bridge} addrgenmode none`"
        )));
    }
    Ok(())
}

fn unsuitable(reason: String) -> OutputError {
    OutputError::Unsuitable { reason }
}

fn place(device: &str) -> PathBuf {
    Path::new("/sys/class/net").join(device)
}

/// Whether a device is the other end of a guest's card: Xen's backend, or a tap that an emulated card has.
fn is_backend(port: &Link) -> bool {
    let subsystem = fs::read_link(place(&port.name).join("device/subsystem"));
    let xen = subsystem.is_ok_and(|subsystem| subsystem.ends_with("xen-backend"));
    xen || port.kind.as_deref() == Some("tun") && name::of_vif(&port.name).is_some()
}

/// The devices that stand on a device.
fn standing_on(device: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(place(device)).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("upper_")?.to_owned()))
}

/// Whether the kernel gives a device an address of IPv6 as soon as it works (`net/ipv6/addrconf.c`): not if that is switched off, or
/// `IN6_ADDR_GEN_MODE_NONE` is set.
fn gives_itself_addresses(device: &str) -> bool {
    let settings = Path::new("/proc/sys/net/ipv6/conf").join(device);
    let is_one = |name: &str| fs::read_to_string(settings.join(name)).is_ok_and(|text| text.trim() == "1");
    settings.exists() && !is_one("disable_ipv6") && !is_one("addr_gen_mode")
}
