//! Output buffers that another process made: found by the names of their ifbs, whatever became of that process.

use super::buffer::{netlink, plug_of};
use super::install::{Entry, leads};
use super::name;
use super::netlink::{Filter, Link, Queue};
use super::step::Kernel;
use super::{OutputError, QueueStatistics, Traffic, Vif};

/// A vif's part of an output buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The vif it is for.
    pub vif: Vif,
    /// The ifb.
    pub ifb: String,
    /// What its maker wrote of the VM, if it came to that.
    pub vm: Option<String>,
    /// What becomes of the vif's packets: [`Traffic::Unknown`] when a plug holds or releases them.
    pub traffic: Traffic,
    /// The plug for what the guest sends.
    pub outbound: Option<QueueStatistics>,
    /// The plug for what is sent to the guest.
    pub inbound: Option<QueueStatistics>,
    /// Numbers of the ifb and of the vif.
    links: (u32, Option<u32>),
    /// Whether the vif's ingress hook is the buffer's.
    hooked: bool,
}

/// What an output buffer's maker left to be continued with.
pub(super) fn entry(orphan: Orphan) -> Entry {
    let (ifb_link, vif_link) = orphan.links;
    Entry {
        vif: orphan.vif,
        vif_link,
        ifb_link,
        traffic: orphan.traffic,
        hooked: orphan.hooked,
        inbound: orphan.inbound.is_some(),
        released: false,
    }
}

/// Looks for ifbs with names of ours.
pub(super) fn find(kernel: &mut dyn Kernel) -> Result<Vec<Orphan>, OutputError> {
    let links = kernel.links().map_err(netlink("listing devices"))?;
    let queues = kernel.queues().map_err(netlink("listing queueing disciplines"))?;
    let mut orphans = Vec::new();
    for ifb in links.iter().filter(|link| link.kind.as_deref() == Some("ifb")) {
        if let Some(vif) = name::of_ifb(&ifb.name) {
            orphans.push(look(kernel, ifb, vif, &links, &queues)?);
        }
    }
    Ok(orphans)
}

fn look(
    kernel: &mut dyn Kernel,
    ifb: &Link,
    mut vif: Vif,
    links: &[Link],
    queues: &[Queue],
) -> Result<Orphan, OutputError> {
    let label = ifb.alias.as_deref().and_then(name::read_label);
    if let Some((name, _)) = label {
        name.clone_into(&mut vif.name);
    }
    let vif_link = links.iter().find(|link| link.name == vif.name).map(|link| link.index);
    let hook = queues.iter().any(|queue| Some(queue.link) == vif_link && queue.is_hook());
    let filters = match vif_link.filter(|_| hook) {
        Some(link) => kernel.filters(link).map_err(netlink("listing filters"))?,
        None => Vec::new(),
    };
    let outbound = plug_of(queues, ifb.index);
    let redirected = leads(&filters, ifb.index);
    let traffic = match (vif_link, redirected, ifb.up, outbound) {
        (None, ..) => Traffic::Absent,
        (Some(_), false, ..) => Traffic::Passes,
        (Some(_), true, false, _) => Traffic::Dropped,
        (Some(_), true, true, Some(_)) => Traffic::Unknown,
        // Through an ifb without a plug.
        (Some(_), true, true, None) => Traffic::Released,
    };
    // An empty hook is what is there between two steps of installing.
    let hooked = hook && (redirected || filters.iter().all(|filter| *filter == Filter::Heading));
    Ok(Orphan {
        vif,
        ifb: ifb.name.clone(),
        vm: label.map(|(_, vm)| vm.to_owned()),
        traffic,
        outbound,
        inbound: vif_link.and_then(|link| plug_of(queues, link)),
        links: (ifb.index, vif_link),
        hooked,
    })
}
