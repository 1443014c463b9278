use proptest::prelude::*;
use rustix::io::Errno;

use super::double::{Double, Fail, PACKET_BYTES};
use super::plug::Action;
use super::step::Step;
use super::*;

fn vif(devid: u32) -> Vif {
    Vif { domid: 7, devid, name: format!("vif7.{devid}") }
}

fn options() -> OutputOptions {
    OutputOptions { vm: "web1".to_owned(), ..OutputOptions::default() }
}

/// Two vifs, and steps and listings of their installation that go wrong.
fn installed(fail: &[(usize, Fail)], hold_inbound: bool) -> (Double, Result<OutputBuffer, OutputError>) {
    let double = Double::new(&["vif7.0", "vif7.1"]);
    double.state().fail = fail.to_vec();
    let options = OutputOptions { hold_inbound, ..options() };
    let buffer = OutputBuffer::install_by(double.boxed(), &[vif(0), vif(1)], &options);
    (double, buffer)
}

fn traffic(buffer: &OutputBuffer) -> Vec<Traffic> {
    buffer.traffic().into_iter().map(|vif| vif.traffic).collect()
}

#[test]
fn an_epoch_leaves_when_it_is_released_and_not_before() {
    let (kernel, buffer) = installed(&[], false);
    let mut buffer = buffer.unwrap();
    kernel.send_all("vif7.0", &[1, 2, 3]);
    kernel.send("vif7.1", 10);
    buffer.close_epoch().unwrap();
    kernel.send_all("vif7.0", &[4, 5]);
    assert_eq!(kernel.network("vif7.0"), [0_u64; 0]);
    buffer.release_closed().unwrap();
    assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![1, 2, 3], vec![10]));
    buffer.close_epoch().unwrap();
    kernel.send("vif7.0", 6);
    buffer.release_closed().unwrap();
    assert_eq!(kernel.network("vif7.0"), [1, 2, 3, 4, 5]);
    buffer.release_all().unwrap();
    kernel.send("vif7.0", 7);
    assert_eq!(kernel.network("vif7.0"), [1, 2, 3, 4, 5, 6, 7]);
    buffer.remove().unwrap();
    assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"]);
}

#[test]
fn plugs_are_in_place_before_anything_is_redirected() {
    let (kernel, buffer) = installed(&[], true);
    let done = kernel.state().done.clone();
    let first_redirect = done.iter().position(|step| matches!(step, Step::Redirect { .. })).unwrap();
    let last_other = done.iter().rposition(|step| !matches!(step, Step::Redirect { .. })).unwrap();
    assert!(last_other < first_redirect, "{done:?}");
    assert_eq!(done.iter().filter(|step| matches!(step, Step::AddPlug { .. })).count(), 4);
    assert_eq!(traffic(&buffer.unwrap()), [Traffic::Held; 2]);
}

#[test]
fn a_second_epoch_is_not_closed_while_one_is_undecided() {
    let (kernel, buffer) = installed(&[], false);
    let mut buffer = buffer.unwrap();
    assert!(matches!(buffer.release_closed(), Err(OutputError::Order { .. })));
    buffer.close_epoch().unwrap();
    let done = kernel.state().done.len();
    let error = buffer.close_epoch().unwrap_err();
    assert_eq!(
        error.to_string(),
        "closing an epoch is not possible now: vif7.0: held, with a closed epoch undecided, \
         vif7.1: held, with a closed epoch undecided"
    );
    assert_eq!(kernel.state().done.len(), done, "nothing is asked of the kernel");
}

#[test]
fn an_epoch_closed_on_one_vif_only_is_released_there_only() {
    let (kernel, buffer) = installed(&[], false);
    let mut buffer = buffer.unwrap();
    kernel.send_all("vif7.0", &[1, 2]);
    kernel.send("vif7.1", 10);
    let next = kernel.state().done.len();
    kernel.state().fail.push((next + 1, Fail::Refuse(Errno::NOMEM)));
    let error = buffer.close_epoch().unwrap_err();
    assert_eq!(
        error.to_string(),
        "closing an epoch failed: vif7.1: closing the epoch: Cannot allocate memory (os error 12); \
         now vif7.0: held, with a closed epoch undecided, vif7.1: held"
    );
    assert!(matches!(buffer.close_epoch(), Err(OutputError::Order { .. })));
    kernel.send("vif7.0", 3);
    kernel.send("vif7.1", 11);
    buffer.release_closed().unwrap();
    assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![1, 2], vec![]));
    buffer.close_epoch().unwrap();
    buffer.release_closed().unwrap();
    assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![1, 2, 3], vec![10, 11]));
}

#[test]
fn a_release_that_failed_on_one_vif_is_repeated_there_only() {
    let (kernel, buffer) = installed(&[], false);
    let mut buffer = buffer.unwrap();
    kernel.send("vif7.0", 1);
    kernel.send("vif7.1", 10);
    buffer.close_epoch().unwrap();
    let next = kernel.state().done.len();
    kernel.state().fail.push((next, Fail::Refuse(Errno::NOMEM)));
    assert!(matches!(buffer.release_closed(), Err(OutputError::Incomplete { .. })));
    assert_eq!(traffic(&buffer), [Traffic::Undecided, Traffic::Held]);
    assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![], vec![10]));
    buffer.release_closed().unwrap();
    assert_eq!(kernel.network("vif7.0"), [1]);
    let done = kernel.state().done.clone();
    assert_eq!(done.last(), done.get(next), "the last step is the one that failed");
    assert_eq!(done.len(), next + 3);
}

#[test]
fn after_a_lost_answer_only_everything_or_nothing_is_released() {
    for fail in [Fail::LoseAnswer, Fail::LoseRequest] {
        let (kernel, buffer) = installed(&[], false);
        let mut buffer = buffer.unwrap();
        kernel.send("vif7.0", 1);
        let next = kernel.state().done.len();
        kernel.state().fail.push((next, fail));
        assert!(matches!(buffer.close_epoch(), Err(OutputError::Incomplete { .. })));
        assert_eq!(traffic(&buffer), [Traffic::Unknown, Traffic::Undecided]);
        buffer.release_closed().unwrap();
        assert!(matches!(buffer.close_epoch(), Err(OutputError::Order { .. })));
        assert_eq!(kernel.network("vif7.0"), [0_u64; 0]);
        buffer.release_all().unwrap();
        assert_eq!(kernel.network("vif7.0"), [1]);
    }
}

/// Steps of an installation of two vifs before the redirections, inbound included.
const PREPARING: usize = 2 + 2 * 6;

#[test]
fn an_installation_that_fails_before_redirecting_leaves_nothing_behind() {
    for number in 0..PREPARING {
        let (kernel, buffer) = installed(&[(number, Fail::Refuse(Errno::NOMEM))], true);
        let error = buffer.unwrap_err();
        assert!(
            matches!(&error, OutputError::NotInstalled { left, .. } if left.is_empty()),
            "{number}: {error}"
        );
        assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"], "step {number}");
        kernel.send("vif7.0", 1);
        assert_eq!(kernel.network("vif7.0"), [1]);
    }
}

#[test]
fn what_a_lost_answer_may_have_left_is_removed_or_named() {
    for number in 0..PREPARING {
        for fail in [Fail::LoseAnswer, Fail::LoseRequest] {
            let (kernel, buffer) = installed(&[(number, fail)], false);
            if number >= 2 + 2 * 4 {
                assert_eq!(
                    kernel.state().done.len() > number,
                    matches!(buffer, Err(OutputError::Incomplete { .. }))
                );
                continue;
            }
            assert!(matches!(buffer, Err(OutputError::NotInstalled { .. })), "{number}");
            let picture = kernel.picture();
            assert!(picture.iter().all(|device| !device.starts_with("vv")), "{number}: {picture:?}");
            assert!(picture.iter().all(|device| !device.contains(" to ")), "{number}: {picture:?}");
        }
    }
}

#[test]
fn what_cannot_be_undone_is_named() {
    let fail = [(3, Fail::Refuse(Errno::NOENT)), (PREPARING - 4 + 1, Fail::Refuse(Errno::BUSY))];
    let (kernel, buffer) = installed(&fail, false);
    assert_eq!(
        buffer.unwrap_err().to_string(),
        "the output buffer was not installed: vif7.0: adding a plug: No such file or directory (os error 2): the \
         kernel has no module sch_plug (left behind: vv7.0); packets pass as before"
    );
    assert_eq!(kernel.picture(), ["vif7.0", "vif7.1", "vv7.0"]);
}

#[test]
fn a_redirection_that_fails_leaves_the_others_held() {
    let (kernel, buffer) = installed(&[(PREPARING - 4 + 1, Fail::Refuse(Errno::NOENT))], false);
    assert_eq!(
        buffer.unwrap_err().to_string(),
        "installing the output buffer failed: vif7.1: redirecting to the ifb device: No such file or directory \
         (os error 2): the kernel has no module cls_matchall or act_mirred; now vif7.0: held, vif7.1: passes"
    );
    kernel.send("vif7.0", 1);
    kernel.send("vif7.1", 10);
    assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![], vec![10]));

    let orphans = orphan::find(&mut *kernel.boxed()).unwrap();
    let states: Vec<_> = orphans.iter().map(|orphan| orphan.traffic).collect();
    assert_eq!(states, [Traffic::Unknown, Traffic::Passes]);
    OutputBuffer::adopt_by(kernel.boxed(), orphans).remove().unwrap();
    assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"]);
    assert_eq!(kernel.network("vif7.0"), [0_u64; 0], "what was held is dropped");
}

#[test]
fn an_installation_that_is_not_there_when_looked_at_is_an_error() {
    let double = Double::new(&["vif7.0"]);
    double.state().fail_lists = vec![2];
    let error = OutputBuffer::install_by(double.boxed(), &[vif(0)], &options()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "installing the output buffer failed: vif7.0: checking what was installed: No buffer space available \
         (os error 105); now vif7.0: held"
    );
    double.send("vif7.0", 1);
    assert_eq!(double.network("vif7.0"), [0_u64; 0]);
}

#[test]
fn nothing_of_somebody_elses_is_touched() {
    let double = Double::new(&["vif7.0", "vif7.1"]);
    double.occupy("vif7.1");
    let before = double.picture();
    let error = OutputBuffer::install_by(double.boxed(), &[vif(0), vif(1)], &options()).unwrap_err();
    assert!(error.to_string().contains("vif7.1: adding an ingress hook: somebody else's"), "{error}");
    assert_eq!(double.picture(), before);

    let double = Double::new(&["vif7.0", "vv7.0"]);
    let error = OutputBuffer::install_by(double.boxed(), &[vif(0)], &options()).unwrap_err();
    assert!(error.to_string().starts_with("vv7.0 exists"), "{error}");
    assert!(double.state().done.is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_before_the_kernel_is_asked() {
    let kernel = Double::new(&["vif7.0"]);
    let install = |vifs: &[Vif], options: &OutputOptions| {
        OutputBuffer::install_by(kernel.boxed(), vifs, options).unwrap_err().to_string()
    };
    let many: Vec<Vif> = (0..=VIFS_MAX as u32).map(vif).collect();
    assert_eq!(install(&[], &options()), "0 vifs: an output buffer is for 1 to 128");
    assert_eq!(install(&many, &options()), "129 vifs: an output buffer is for 1 to 128");
    assert_eq!(install(&[vif(0), vif(0)], &options()), "vif7.0 is named twice");
    assert_eq!(install(&[vif(1)], &options()), "there is no vif vif7.1");
    let odd = Vif { name: "vif 7".to_owned(), ..vif(0) };
    assert_eq!(install(&[odd], &options()), "\"vif 7\" of domain 7 is no vif");
    let none = OutputOptions { limit_bytes: 0, ..options() };
    assert_eq!(install(&[vif(0)], &none), "an output buffer of 0 bytes would drop everything");
    let spaced = OutputOptions { vm: "web 1".to_owned(), ..options() };
    assert_eq!(install(&[vif(0)], &spaced), "\"web 1\" cannot be written on a device");
    assert!(kernel.state().done.is_empty());
}

#[test]
fn a_removal_that_fails_leaves_vifs_dropping_and_can_be_repeated() {
    // Per vif, in stages over both: down, hook, ifb.
    for number in 0..6 {
        let (kernel, buffer) = installed(&[], false);
        let buffer = buffer.unwrap();
        kernel.send("vif7.0", 1);
        kernel.send("vif7.1", 10);
        let next = kernel.state().done.len();
        kernel.state().fail.push((next + number, Fail::Refuse(Errno::BUSY)));
        let (buffer, error) = buffer.remove().unwrap_err();
        assert_eq!(buffer.traffic().len(), 1, "step {number}: {error}");
        let failed = if number % 2 == 0 { "vif7.0" } else { "vif7.1" };
        kernel.send(failed, 99);
        let passed = if number < 4 { vec![] } else { vec![99] };
        assert_eq!(kernel.network(failed), passed, "step {number}: {error}");
        buffer.remove().unwrap();
        assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"]);
        assert!(!kernel.network(failed).contains(&1) && !kernel.network(failed).contains(&10));
    }
}

#[test]
fn a_guest_that_is_gone_leaves_an_ifb_that_can_be_removed() {
    let (kernel, buffer) = installed(&[], true);
    drop(buffer.unwrap());
    kernel.unplug("vif7.0");
    let orphans = orphan::find(&mut *kernel.boxed()).unwrap();
    assert_eq!(
        orphans.iter().map(|orphan| orphan.traffic).collect::<Vec<_>>(),
        [Traffic::Absent, Traffic::Unknown]
    );
    let mut buffer = OutputBuffer::adopt_by(kernel.boxed(), orphans);
    assert!(matches!(buffer.close_epoch(), Err(OutputError::Order { .. })));
    buffer.remove().unwrap();
    assert_eq!(kernel.picture(), ["vif7.1"]);
}

#[test]
fn orphans_tell_whose_they_are_and_what_they_hold() {
    let (kernel, buffer) = installed(&[], true);
    kernel.send_all("vif7.1", &[1, 2]);
    drop(buffer.unwrap());
    let orphans = orphan::find(&mut *kernel.boxed()).unwrap();
    let second = orphans.get(1).unwrap();
    assert_eq!(
        (second.vif.clone(), second.ifb.as_str(), second.vm.as_deref()),
        (vif(1), "vv7.1", Some("web1"))
    );
    assert_eq!(second.outbound.unwrap().waiting_bytes, 2 * PACKET_BYTES);
    assert_eq!(second.inbound.unwrap().waiting_packets, 0);

    let mut buffer = OutputBuffer::adopt_by(kernel.boxed(), orphans);
    assert!(matches!(buffer.release_closed(), Err(OutputError::Order { .. })));
    buffer.release_all().unwrap();
    assert_eq!(kernel.network("vif7.1"), [1, 2]);
    buffer.remove().unwrap();
    assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"]);
}

#[test]
fn an_installation_that_was_killed_is_found_at_every_step() {
    for number in 0..PREPARING + 2 {
        let (kernel, buffer) = installed(&[], true);
        drop(buffer);
        let done: Vec<Step> = kernel.state().done.iter().take(number).cloned().collect();
        let killed = Double::new(&["vif7.0", "vif7.1"]);
        killed.boxed().carry_out(&done);
        killed.send("vif7.0", 1);
        killed.send("vif7.1", 10);
        let orphans = orphan::find(&mut *killed.boxed()).unwrap();
        assert_eq!(orphans.len(), number.min(2));
        OutputBuffer::adopt_by(killed.boxed(), orphans).remove().unwrap();
        assert_eq!(killed.picture(), ["vif7.0", "vif7.1"], "after {number} steps");
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let kernel = Double::new(&["vif7.0"]);
    let options = OutputOptions { limit_bytes: 2 * PACKET_BYTES, ..options() };
    let mut buffer = OutputBuffer::install_by(kernel.boxed(), &[vif(0)], &options).unwrap();
    kernel.send_all("vif7.0", &[1, 2, 3]);
    let outbound = buffer.statistics().unwrap().first().unwrap().outbound.unwrap();
    assert_eq!((outbound.waiting_packets, outbound.dropped_packets), (2, 1));
    buffer.set_limit(10 * PACKET_BYTES).unwrap();
    kernel.send("vif7.0", 4);
    buffer.close_epoch().unwrap();
    buffer.release_closed().unwrap();
    assert_eq!(kernel.network("vif7.0"), [1, 2, 4]);
    kernel.remove_plug("vv7.0");
    assert_eq!(buffer.statistics().unwrap().first().unwrap().outbound, None);
    assert!(matches!(buffer.close_epoch(), Err(OutputError::Incomplete { .. })));
    assert_eq!(traffic(&buffer), [Traffic::Unknown]);
}

#[test]
fn inbound_packets_are_held_only_when_told() {
    let (kernel, buffer) = installed(&[], true);
    let mut buffer = buffer.unwrap();
    let before = kernel.picture();
    assert_eq!(before.first().map(String::as_str), Some("vif7.0 plug(0, passes) to 3"));
    buffer.hold_inbound().unwrap();
    assert_eq!(kernel.picture().first().map(String::as_str), Some("vif7.0 plug(0) to 3"));
    buffer.pass_inbound().unwrap();
    assert_eq!(kernel.picture(), before);
    buffer.remove().unwrap();
    assert_eq!(kernel.picture(), ["vif7.0", "vif7.1"]);

    let (kernel, buffer) = installed(&[], false);
    let done = kernel.state().done.len();
    buffer.unwrap().hold_inbound().unwrap();
    assert_eq!(kernel.state().done.len(), done);
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Send(u32),
    Close,
    Release,
    Fail(usize, Fail),
}

fn any_move() -> impl Strategy<Value = Move> {
    let fail = prop_oneof![Just(Fail::Refuse(Errno::NOMEM)), Just(Fail::LoseAnswer), Just(Fail::LoseRequest)];
    prop_oneof![
        6 => (0..2_u32).prop_map(Move::Send),
        3 => Just(Move::Close),
        3 => Just(Move::Release),
        1 => (0..4_usize, fail).prop_map(|(after, fail)| Move::Fail(after, fail)),
    ]
}

proptest! {
    /// Whatever fails, no packet leaves that was sent after the last epoch which was closed and then released.
    #[test]
    fn no_packet_leaves_before_its_epoch_has_passed(moves in prop::collection::vec(any_move(), 1..80)) {
        let (kernel, buffer) = installed(&[], false);
        let mut buffer = buffer.unwrap();
        let (mut next, mut closed, mut passed) = (0_u64, 0, 0);
        for step in moves {
            match step {
                Move::Send(to) => {
                    kernel.send(&vif(to).name, next);
                    next += 1;
                }
                Move::Close => {
                    let was = kernel.state().done.len();
                    let _ = buffer.close_epoch();
                    if kernel.state().done.len() > was {
                        closed = next;
                    }
                }
                Move::Release => {
                    passed = closed;
                    let _ = buffer.release_closed();
                }
                Move::Fail(after, fail) => {
                    let at = kernel.state().done.len() + after;
                    kernel.state().fail.push((at, fail));
                }
            }
            for name in [vif(0).name, vif(1).name] {
                let left = kernel.network(&name);
                prop_assert!(left.iter().all(|packet| *packet < passed), "{left:?} of {passed}");
                prop_assert!(left.is_sorted());
            }
        }
        let undisturbed = !kernel.state().done.is_empty() && kernel.state().fail.is_empty();
        if undisturbed && buffer.close_epoch().is_ok() {
            buffer.release_closed().unwrap();
            let left = kernel.network(&vif(0).name).len() + kernel.network(&vif(1).name).len();
            prop_assert_eq!(left as u64, next, "and all leave in the end");
        }
    }
}

#[test]
fn an_action_is_told_in_the_steps_of_a_buffer() {
    let step = Step::Drive { link: 3, action: Action::ReleaseOne };
    assert_eq!(step.to_string(), "releasing the closed epoch");
}
