//! The entries of listings: devices, their addresses, disciplines, and filters that redirect.

use super::bytes::Bytes;
use super::request::{
    ACTION, FILTER, IFF_UP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER,
    TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_EGRESS_REDIR, TCA_KIND, TCA_MATCHALL_ACT, TCA_MIRRED_PARMS,
    TCA_OPTIONS,
};
use super::{Filter, Link, NetlinkError, Queue};
use crate::output::QueueStatistics;

/// Length of `struct ifinfomsg` and of `struct tcmsg`, in bytes.
const LINK_HEADER: usize = 16;
const TRAFFIC_HEADER: usize = 20;

/// Statistics of a discipline (`linux/rtnetlink.h`, `linux/gen_stats.h`).
const TCA_STATS2: u16 = 7;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;

/// Reads what is behind the header of `RTM_NEWLINK`.
pub(super) fn link(body: Bytes<'_>) -> Result<Link, NetlinkError> {
    let (header, attributes) = body.split(LINK_HEADER)?;
    let name = attributes.attribute(IFLA_IFNAME)?.ok_or_else(|| body.malformed("a device without a name"))?;
    let kind = match attributes.attribute(IFLA_LINKINFO)? {
        Some(info) => info.attribute(IFLA_INFO_KIND)?,
        None => None,
    };
    let alias = attributes.attribute(IFLA_IFALIAS)?;
    let master = attributes.attribute(IFLA_MASTER)?.map(|number| number.u32(0)).transpose()?;
    Ok(Link {
        index: header.u32(4)?,
        name: name.text(),
        kind: kind.map(Bytes::text),
        alias: alias.map(Bytes::text),
        up: header.u32(8)? & IFF_UP != 0,
        master,
    })
}

/// Reads what is behind the header of `RTM_NEWADDR`: the number of the device that has the address (`struct ifaddrmsg`).
pub(super) fn address(body: Bytes<'_>) -> Result<u32, NetlinkError> {
    body.u32(4)
}

/// Reads what is behind the header of `RTM_NEWQDISC`.
pub(super) fn queue(body: Bytes<'_>) -> Result<Queue, NetlinkError> {
    let (header, attributes) = body.split(TRAFFIC_HEADER)?;
    let kind =
        attributes.attribute(TCA_KIND)?.ok_or_else(|| body.malformed("a discipline without a name"))?;
    let statistics = match attributes.attribute(TCA_STATS2)? {
        Some(counted) => statistics(counted)?,
        None => QueueStatistics::default(),
    };
    Ok(Queue {
        link: header.u32(4)?,
        handle: header.u32(8)?,
        parent: header.u32(12)?,
        kind: kind.text(),
        statistics,
    })
}

/// `struct gnet_stats_basic` counts bytes and packets that left, `struct gnet_stats_queue` packets and bytes that wait,
/// and what was dropped.
fn statistics(counted: Bytes<'_>) -> Result<QueueStatistics, NetlinkError> {
    let mut statistics = QueueStatistics::default();
    if let Some(basic) = counted.attribute(TCA_STATS_BASIC)? {
        statistics.passed_bytes = basic.u64(0)?;
        statistics.passed_packets = basic.u32(8)?;
    }
    if let Some(queue) = counted.attribute(TCA_STATS_QUEUE)? {
        statistics.waiting_packets = queue.u32(0)?;
        statistics.waiting_bytes = queue.u32(4)?;
        statistics.dropped_packets = queue.u32(8)?;
    }
    Ok(statistics)
}

/// Reads what is behind the header of `RTM_NEWTFILTER`.
pub(super) fn filter(body: Bytes<'_>) -> Result<Filter, NetlinkError> {
    let attributes = body.skip(TRAFFIC_HEADER)?;
    let options = attributes.attribute(TCA_OPTIONS)?;
    match (attributes.attribute(TCA_KIND)?.map(Bytes::text).as_deref(), options) {
        (Some(FILTER), None) => Ok(Filter::Heading),
        (Some(FILTER), Some(options)) => {
            let redirect = options.attribute(TCA_MATCHALL_ACT)?.map(redirect).transpose()?.flatten();
            Ok(redirect.map_or(Filter::Other, |to| Filter::Redirect { to }))
        }
        _ => Ok(Filter::Other),
    }
}

/// Where a table of actions sends packets, if that is the one thing it does.
fn redirect(actions: Bytes<'_>) -> Result<Option<u32>, NetlinkError> {
    let mut actions = actions.attributes();
    let (Some(action), None) = (actions.next().transpose()?, actions.next().transpose()?) else {
        return Ok(None);
    };
    let (_, action) = action;
    let mirred = action.attribute(TCA_ACT_KIND)?.is_some_and(|kind| kind.text() == ACTION);
    let options = action.attribute(TCA_ACT_OPTIONS)?.filter(|_| mirred);
    let Some(options) = options else { return Ok(None) };
    let Some(parameters) = options.attribute(TCA_MIRRED_PARMS)? else { return Ok(None) };
    Ok(if parameters.u32(20)? == TCA_EGRESS_REDIR { Some(parameters.u32(24)?) } else { None })
}
