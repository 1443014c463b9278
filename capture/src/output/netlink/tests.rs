use proptest::prelude::*;
use rustix::io::Errno;
use varve_fixtures::synth::netlink::Listing;

use super::bytes::Bytes;
use super::message::{Content, Message, Writer, next};
use super::request::{self, List};
use super::{Filter, Link, NetlinkError, Queue, Socket, answer, read_anything};
use crate::output::QueueStatistics;
use crate::output::plug::Action;
use crate::output::step::{Kernel, Step};

fn bytes(step: &Step) -> Vec<u8> {
    let mut writer = Writer::default();
    request::write(step, 0x6b04_cd30, &mut writer);
    writer.bytes().to_vec()
}

/// Bytes in hexadecimal, blanks between.
fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// The header of a message: length, type, flags.
fn header(start: &str) -> Vec<u8> {
    [hex(start), hex("30 cd 04 6b 00 00 00 00")].concat()
}

/// Recorded with strace from `ip` and `tc` of iproute2 6.1, which wrote the same requests; the number of the request apart.
#[test]
fn requests_are_those_of_iproute2() {
    // ip link add vv7.0 mtu 68 type ifb
    let recorded = hex(
        "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 08 00 04 00 44 00 00 00 0a 00 03 00 76 76 37 2e \
         30 00 00 00 0c 00 12 00 07 00 01 00 69 66 62 00",
    );
    let step = Step::CreateIfb { name: "vv7.0".to_owned() };
    assert_eq!(bytes(&step), [header("40 00 00 00 10 00 05 06"), recorded].concat());
    // ip link set dev vv7.0 alias 'varve/1 vif7.0'
    let recorded = hex(
        "00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 12 00 14 00 76 61 72 76 65 2f 31 20 76 69 66 37 \
         2e 30 00 00",
    );
    let step = Step::Label { link: 2, alias: "varve/1 vif7.0".to_owned() };
    assert_eq!(bytes(&step), [header("34 00 00 00 10 00 05 00"), recorded].concat());
    // ip link set dev vv7.0 up, down; ip link del vv7.0
    let recorded = hex("00 00 00 00 02 00 00 00 01 00 00 00 01 00 00 00");
    assert_eq!(bytes(&Step::Up { link: 2 }), [header("20 00 00 00 10 00 05 00"), recorded].concat());
    let recorded = hex("00 00 00 00 02 00 00 00 00 00 00 00 01 00 00 00");
    assert_eq!(bytes(&Step::Down { link: 2 }), [header("20 00 00 00 10 00 05 00"), recorded].concat());
    let recorded = hex("00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00");
    assert_eq!(bytes(&Step::RemoveLink { link: 2 }), [header("20 00 00 00 11 00 05 00"), recorded].concat());
    // tc qdisc add dev vif7.0 ingress; tc qdisc del dev vif7.0 ingress
    let recorded = hex(
        "00 00 00 00 04 00 00 00 00 00 ff ff f1 ff ff ff 00 00 00 00 0c 00 01 00 69 6e 67 72 65 73 73 00",
    );
    let [add, remove] = [Step::AddIngress { link: 4 }, Step::RemoveIngress { link: 4 }];
    assert_eq!(bytes(&add), [header("30 00 00 00 24 00 05 06"), recorded.clone()].concat());
    assert_eq!(bytes(&remove), [header("30 00 00 00 25 00 05 00"), recorded].concat());
    // tc filter add dev vif7.0 ingress protocol all prio 1 matchall action mirred egress redirect dev vv7.0
    let recorded = hex(
        "00 00 00 00 04 00 00 00 00 00 00 00 f2 ff ff ff 00 03 01 00 0d 00 01 00 6d 61 74 63 68 61 6c 6c \
         00 00 00 00 3c 00 02 00 38 00 02 00 34 00 01 00 0b 00 01 00 6d 69 72 72 65 64 00 00 24 00 02 80 \
         20 00 02 00 00 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00",
    );
    let step = Step::Redirect { from: 4, to: 2 };
    assert_eq!(bytes(&step), [header("70 00 00 00 2c 00 05 06"), recorded].concat());
    // ip link set dev vif7.0 master xenbr0
    let recorded = hex("00 00 00 00 04 00 00 00 00 00 00 00 00 00 00 00 08 00 0a 00 03 00 00 00");
    let step = Step::Connect { link: 4, bridge: 3 };
    assert_eq!(bytes(&step), [header("28 00 00 00 10 00 05 00"), recorded].concat());
}

/// No program at hand writes these: laid out by hand after `linux/rtnetlink.h` and `linux/pkt_sched.h`.
#[test]
fn requests_to_a_plug_are_laid_out_as_the_headers_say() {
    let kind = "09 00 01 00 70 6c 75 67 00 00 00 00";
    let at = format!("00 00 00 00 02 00 00 00 00 00 76 76 ff ff ff ff 00 00 00 00 {kind}");
    let limit = hex(&format!("{at} 0c 00 02 00 00 00 00 00 40 42 0f 00"));
    let step = Step::AddPlug { link: 2, limit_bytes: 1_000_000 };
    assert_eq!(bytes(&step), [header("3c 00 00 00 24 00 05 06"), limit].concat());
    let release = hex(&format!("{at} 0c 00 02 00 01 00 00 00 00 00 00 00"));
    let step = Step::Drive { link: 2, action: Action::ReleaseOne };
    assert_eq!(bytes(&step), [header("3c 00 00 00 24 00 05 00"), release].concat());
    assert_eq!(bytes(&Step::RemovePlug { link: 2 }), [header("30 00 00 00 25 00 05 00"), hex(&at)].concat());
}

#[test]
fn a_list_of_filters_is_asked_for_as_iproute2_does() {
    let mut writer = Writer::default();
    List::Filters { link: 4 }.write(0x6b04_cd30, &mut writer);
    let recorded = hex("00 00 00 00 04 00 00 00 00 00 00 00 f2 ff ff ff 00 00 00 00");
    assert_eq!(writer.bytes(), [header("24 00 00 00 2e 00 01 03"), recorded].concat());
}

#[test]
fn several_requests_lie_one_behind_the_other() {
    let mut writer = Writer::default();
    let steps = [Step::CreateIfb { name: "vv7.12".to_owned() }, Step::Up { link: 5 }];
    steps.iter().for_each(|step| request::write(step, 0x6b04_cd30, &mut writer));
    assert_eq!(writer.bytes(), steps.each_ref().map(bytes).concat());
    writer.clear();
    assert_eq!(writer.bytes(), b"");
}

/// How a listing ended.
type Ending = Result<(), Errno>;

/// The entries of a listing, read by `read`, and its end.
fn entries<T>(
    received: &[u8],
    read: impl Fn(Bytes<'_>) -> Result<T, NetlinkError>,
) -> Result<(Vec<T>, Vec<Ending>), NetlinkError> {
    let (mut rest, mut found, mut ends) = (Bytes::new(received), Vec::new(), Vec::new());
    while let Some(Message { sequence, content, .. }) = next(&mut rest)? {
        assert_eq!(sequence, 9);
        match content {
            Content::End(end) => ends.push(end),
            Content::Entry(_, body) => found.push(read(body)?),
        }
    }
    Ok((found, ends))
}

#[test]
fn devices_are_read() {
    let listing = Listing::default().link(9, 1, "lo", None, None).port(9, 4, "vif7.0", 3);
    let listing = listing.link(9, 7, "vv7.0", Some("ifb"), Some("varve vif=vif7.0 vm=web1")).end(9, 0);
    let (links, ends) = entries(&listing.bytes(), answer::link).unwrap();
    let link = |index, name: &str, kind: Option<&str>, alias: Option<&str>| Link {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        alias: alias.map(str::to_owned),
        up: true,
        master: None,
    };
    let expected = [
        link(1, "lo", None, None),
        Link { master: Some(3), ..link(4, "vif7.0", None, None) },
        link(7, "vv7.0", Some("ifb"), Some("varve vif=vif7.0 vm=web1")),
    ];
    assert_eq!((links.as_slice(), ends.as_slice()), (expected.as_slice(), [Ok(())].as_slice()));
}

#[test]
fn counts_of_a_plug_are_read() {
    let at = (7, 0x7676_0000, u32::MAX);
    let listing = Listing::default().queue(9, at, "plug", (1 << 40, 3), (5, 600, 7)).end(9, 0);
    let (queues, _) = entries(&listing.bytes(), answer::queue).unwrap();
    let statistics = QueueStatistics {
        waiting_packets: 5,
        waiting_bytes: 600,
        dropped_packets: 7,
        passed_packets: 3,
        passed_bytes: 1 << 40,
    };
    let plug = Queue { link: 7, handle: at.1, parent: at.2, kind: "plug".to_owned(), statistics };
    assert!(plug.is_plug() && !plug.is_hook());
    for other in [
        Queue { handle: 0x8001_0000, ..plug.clone() },
        Queue { kind: "pfifo".to_owned(), ..plug.clone() },
        Queue { parent: 0x10001, ..plug.clone() },
    ] {
        assert!(!other.is_plug());
    }
    assert_eq!(queues, [plug]);
}

#[test]
fn a_redirection_is_told_from_everything_else() {
    let listing = Listing::default().filter(9, 4, "matchall").matchall(9, 4, &[(1, 7)]);
    let listing = listing.matchall(9, 4, &[(2, 7)]).matchall(9, 4, &[(1, 7), (1, 8)]).matchall(9, 4, &[]);
    let listing = listing.filter(9, 4, "u32");
    let (filters, _) = entries(&listing.bytes(), answer::filter).unwrap();
    let expected = [
        Filter::Heading,
        Filter::Redirect { to: 7 },
        Filter::Other, // mirrored, not redirected
        Filter::Other, // to two devices
        Filter::Other, // to none
        Filter::Other,
    ];
    assert_eq!(filters, expected);
}

#[test]
fn errors_come_with_their_number_and_place() {
    let (_, ends) = entries(&Listing::default().end(9, 95).bytes(), answer::link).unwrap();
    assert_eq!(ends, [Err(Errno::OPNOTSUPP)]);
    for number in [-1, i32::MIN, i32::MAX, 4096] {
        let end = Listing::default().end(9, number).bytes();
        assert!(entries(&end, answer::link).unwrap_err().to_string().ends_with("no error number"));
    }
    let listing = Listing::default().link(9, 1, "lo", None, None).bytes();
    let mut short = listing.clone();
    short[0] += 4;
    let error = entries(&short, answer::link).unwrap_err().to_string();
    assert_eq!(error, "the kernel's answer makes no sense at byte 0: it ends early");
    let mut zero = listing.clone();
    zero[0] = 0;
    let error = entries(&zero, answer::link).unwrap_err().to_string();
    assert_eq!(error, "the kernel's answer makes no sense at byte 0: a message is shorter than its header");
    let mut attribute = listing;
    attribute[32] = 3;
    let error = entries(&attribute, answer::link).unwrap_err().to_string();
    assert_eq!(
        error,
        "the kernel's answer makes no sense at byte 32: an attribute is shorter than its header"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at(received in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_anything(&received);
    }

    #[test]
    fn damaged_listings_are_looked_at(at in 0..400_usize, byte: u8) {
        let listing = Listing::default().link(9, 7, "vv7.0", Some("ifb"), Some("varve vif=vif7.0 vm=web1"));
        let listing = listing.queue(9, (7, 0x7676_0000, u32::MAX), "plug", (1, 2), (3, 4, 5));
        let mut bytes = listing.matchall(9, 4, &[(1, 7)]).end(9, 0).bytes();
        prop_assert_eq!(read_anything(&bytes), 4);
        let len = bytes.len();
        bytes[at % len] = byte;
        let _ = read_anything(&bytes);
    }

    #[test]
    fn what_is_written_can_be_taken_apart(name in "[a-z0-9.]{1,15}", link: u32) {
        let mut writer = Writer::default();
        request::write(&Step::CreateIfb { name: name.clone() }, 1, &mut writer);
        request::write(&Step::Redirect { from: 1, to: link }, 2, &mut writer);
        let mut rest = Bytes::new(writer.bytes());
        let first = next(&mut rest).unwrap().unwrap();
        let Content::Entry(_, body) = first.content else { panic!("an entry") };
        prop_assert_eq!(answer::link(body).unwrap().name, name);
        let second = next(&mut rest).unwrap().unwrap();
        let Content::Entry(_, body) = second.content else { panic!("an entry") };
        prop_assert_eq!(answer::filter(body).unwrap(), Filter::Redirect { to: link });
        prop_assert!(next(&mut rest).unwrap().is_none());
    }
}

#[test]
fn the_kernel_lists_its_devices_to_everyone() {
    use crate::output::step::Kernel;
    let links = super::Socket::open().unwrap().links().unwrap();
    let names = std::fs::read_dir("/sys/class/net").unwrap().count();
    assert!(links.iter().any(|link| link.index == 1 && link.name == "lo"), "{links:?}");
    assert!(links.len().abs_diff(names) < 5, "{} listed, {names} in /sys/class/net", links.len());
}

#[test]
fn every_request_of_many_is_answered() {
    use crate::output::step::Kernel;
    // No device has that number: the kernel says so, or that we may not.
    let steps = vec![Step::Up { link: i32::MAX.cast_unsigned() }; 1000];
    let answers = super::Socket::open().unwrap().carry_out(&steps);
    assert_eq!(answers.len(), steps.len());
    assert!(answers.iter().all(|answer| matches!(answer, Err(super::Refusal::Refused(_)))), "{answers:?}");
}

#[test]
fn devices_of_this_host_have_the_numbers_that_the_list_says() {
    let mut socket = Socket::open().unwrap();
    let links = socket.links().unwrap();
    assert!(links.iter().any(|link| link.name == "lo"));
    for link in links {
        assert_eq!(socket.number_of(&link.name), Some(link.index), "{}", link.name);
    }
    assert_eq!(socket.number_of("no-such-device"), None);
}
