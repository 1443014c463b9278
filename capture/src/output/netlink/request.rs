//! The requests: each step of building, driving or removing an output buffer is one message.
//!
//! Numbers are those of `linux/rtnetlink.h`, `linux/if_link.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h` and
//! `linux/tc_act/tc_mirred.h`.

use super::message::{ACK, CREATE, DUMP, EXCLUSIVE, Writer};
use crate::output::plug;
use crate::output::step::Step;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_IFALIAS: u16 = 20;
const IFLA_EXT_MASK: u16 = 29;
/// The MTU of an ifb, in bytes: too small for IPv6 (`linux/ipv6.h`, `IPV6_MIN_MTU`), so that the kernel sends nothing of its own out of
/// it, router solicitations above all, which the plug would hold with the guest's packets. Redirected packets may be longer.
const IFB_MTU: u32 = 68;
/// No statistics in listings of devices, which nobody reads here.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
pub(super) const IFF_UP: u32 = 1;

pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
pub(super) const TCA_MATCHALL_ACT: u16 = 2;
pub(super) const TCA_ACT_KIND: u16 = 1;
pub(super) const TCA_ACT_OPTIONS: u16 = 2;
pub(super) const TCA_MIRRED_PARMS: u16 = 2;
/// Says that an attribute is made of attributes (`NLA_F_NESTED`). The kernel asks for it here only.
const NESTED: u16 = 0x8000;

/// Where the first discipline that packets meet hangs (`TC_H_ROOT`).
pub(super) const ROOT: u32 = 0xffff_ffff;
/// Where the hook for incoming packets hangs (`TC_H_INGRESS`), its handle, and where its filters hang
/// (`TC_H_CLSACT` with `TC_H_MIN_INGRESS`).
pub(super) const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_FILTERS: u32 = 0xffff_fff2;
/// Names of the hook, the filter and its action.
pub(super) const HOOK: &str = "ingress";
pub(super) const FILTER: &str = "matchall";
pub(super) const ACTION: &str = "mirred";

/// Packets of every protocol (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 3;
/// Our filter is the first of its hook.
const PRIORITY: u32 = 1;
/// The packet belongs to the action from now on (`linux/pkt_cls.h`).
const TC_ACT_STOLEN: u32 = 4;
/// Send it out of another device instead.
pub(super) const TCA_EGRESS_REDIR: u32 = 1;

/// A list to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// All devices.
    Links,
    /// The addresses of all devices.
    Addresses,
    /// The disciplines of all devices.
    Queues,
    /// The filters that packets meet which come in through a device.
    Filters {
        /// The device's number.
        link: u32,
    },
}

impl List {
    /// Writes the request.
    pub(super) fn write(self, sequence: u32, out: &mut Writer) {
        match self {
            Self::Links => {
                let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
                out.begin(RTM_GETLINK, DUMP, sequence, &link_header(0, 0, 0));
                out.attribute(IFLA_EXT_MASK, &mask).end();
            }
            Self::Addresses => out.begin(RTM_GETADDR, DUMP, sequence, &[0; 8]).end(),
            Self::Queues => out.begin(RTM_GETQDISC, DUMP, sequence, &traffic_header(0, 0, 0, 0)).end(),
            Self::Filters { link } => {
                let header = traffic_header(link, 0, INGRESS_FILTERS, 0);
                out.begin(RTM_GETTFILTER, DUMP, sequence, &header).end();
            }
        }
    }

    /// The type of its entries.
    pub(super) fn entries(self) -> u16 {
        match self {
            Self::Links => RTM_NEWLINK,
            Self::Addresses => RTM_NEWADDR,
            Self::Queues => RTM_NEWQDISC,
            Self::Filters { .. } => RTM_NEWTFILTER,
        }
    }
}

/// Writes the request of `step`.
pub(super) fn write(step: &Step, sequence: u32, out: &mut Writer) {
    match step {
        Step::CreateIfb { name } => {
            out.begin(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, sequence, &link_header(0, 0, 0));
            out.attribute(IFLA_MTU, &IFB_MTU.to_ne_bytes()).text(IFLA_IFNAME, name);
            out.nest(IFLA_LINKINFO).attribute(IFLA_INFO_KIND, b"ifb").end_nest().end();
        }
        Step::Label { link, alias } => {
            out.begin(RTM_NEWLINK, ACK, sequence, &link_header(*link, 0, 0));
            out.attribute(IFLA_IFALIAS, alias.as_bytes()).end();
        }
        Step::Up { link } => {
            out.begin(RTM_NEWLINK, ACK, sequence, &link_header(*link, IFF_UP, IFF_UP)).end();
        }
        Step::Down { link } => out.begin(RTM_NEWLINK, ACK, sequence, &link_header(*link, 0, IFF_UP)).end(),
        Step::RemoveLink { link } => {
            out.begin(RTM_DELLINK, ACK, sequence, &link_header(*link, 0, 0)).end();
        }
        Step::AddPlug { link, limit_bytes } => {
            let header = traffic_header(*link, plug::HANDLE, ROOT, 0);
            out.begin(RTM_NEWQDISC, ACK | CREATE | EXCLUSIVE, sequence, &header);
            out.text(TCA_KIND, plug::KIND).attribute(TCA_OPTIONS, &plug::creation(*limit_bytes)).end();
        }
        Step::Drive { link, action } => {
            out.begin(RTM_NEWQDISC, ACK, sequence, &traffic_header(*link, plug::HANDLE, ROOT, 0));
            out.text(TCA_KIND, plug::KIND).attribute(TCA_OPTIONS, &action.option()).end();
        }
        Step::RemovePlug { link } => {
            out.begin(RTM_DELQDISC, ACK, sequence, &traffic_header(*link, plug::HANDLE, ROOT, 0));
            out.text(TCA_KIND, plug::KIND).end();
        }
        Step::AddIngress { link } => {
            let header = traffic_header(*link, INGRESS_HANDLE, INGRESS, 0);
            out.begin(RTM_NEWQDISC, ACK | CREATE | EXCLUSIVE, sequence, &header);
            out.text(TCA_KIND, HOOK).end();
        }
        Step::RemoveIngress { link } => {
            let header = traffic_header(*link, INGRESS_HANDLE, INGRESS, 0);
            out.begin(RTM_DELQDISC, ACK, sequence, &header).text(TCA_KIND, HOOK).end();
        }
        Step::Redirect { from, to } => redirect(*from, *to, sequence, out),
        Step::Connect { link, bridge } => {
            out.begin(RTM_NEWLINK, ACK, sequence, &link_header(*link, 0, 0));
            out.attribute(IFLA_MASTER, &bridge.to_ne_bytes()).end();
        }
    }
}

/// A filter that sends every packet out of `to` which comes in through `from`.
fn redirect(from: u32, to: u32, sequence: u32, out: &mut Writer) {
    let info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    let header = traffic_header(from, 0, INGRESS_FILTERS, info);
    out.begin(RTM_NEWTFILTER, ACK | CREATE | EXCLUSIVE, sequence, &header).text(TCA_KIND, FILTER);
    // The action is the first in a table of one.
    out.nest(TCA_OPTIONS).nest(TCA_MATCHALL_ACT).nest(1).text(TCA_ACT_KIND, ACTION);
    // `struct tc_mirred`: index, capabilities, what becomes of the packet, two counts of users; what to do, and where.
    let mut parameters = [0; 28];
    let fields = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
    for (field, value) in parameters.as_chunks_mut().0.iter_mut().zip(fields) {
        *field = value.to_ne_bytes();
    }
    out.nest(TCA_ACT_OPTIONS | NESTED).attribute(TCA_MIRRED_PARMS, &parameters).end_nest();
    out.end_nest().end_nest().end_nest().end();
}

/// `struct ifinfomsg`: family, type, number, flags, and which of the flags are meant.
fn link_header(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    words([0, index, flags, mask])
}

/// `struct tcmsg`: family, number of the device, handle, parent, and what filters need.
fn traffic_header(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    words([0, link, handle, parent, info])
}

fn words<const WORDS: usize, const BYTES: usize>(words: [u32; WORDS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (field, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *field = word.to_ne_bytes();
    }
    bytes
}
