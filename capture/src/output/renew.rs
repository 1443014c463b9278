//! Emptying an output buffer in place: nothing passes while its plugs are replaced by new ones.
//!
//! An ifb that is down drops what is redirected to it (`tcf_mirred_act` of `net/sched/act_mirred.c`), so it is stopped first and
//! started last; the plug is replaced in between, which drops what it held. A new plug holds from the first packet on, and where
//! epochs end in it is known again.

use rustix::io::Errno;

use super::install::Entry;
use super::netlink::Refusal;
use super::plug::Action;
use super::step::{Kernel, Step};
use super::{Failure, Traffic};

/// Begins anew on all vifs that are there.
pub(super) fn renew(kernel: &mut dyn Kernel, entries: &mut [Entry], limit_bytes: u32) -> Vec<Failure> {
    let mut failed = Vec::new();
    for entry in entries.iter_mut().filter(|entry| entry.vif_link.is_some()) {
        let link = entry.ifb_link;
        if entry.traffic == Traffic::Passes {
            failed.push(entry.failure(&Step::Up { link }, "nothing is redirected to it"));
            continue;
        }
        let steps = [
            Step::Down { link },
            Step::RemovePlug { link },
            Step::AddPlug { link, limit_bytes },
            Step::Up { link },
        ];
        for step in &steps {
            let answer = kernel.carry_out(std::slice::from_ref(step)).into_iter().next();
            match (step, answer.unwrap_or(Err(Refusal::Lost))) {
                // There may have been no plug, or another process has begun this before.
                (Step::RemovePlug { .. }, Err(Refusal::Refused(Errno::NOENT | Errno::INVAL)))
                | (_, Ok(())) => {}
                (step, Err(refusal)) => {
                    failed.push(entry.failure(step, refusal));
                    break;
                }
            }
            entry.traffic = match step {
                Step::Up { .. } => Traffic::Held,
                _ => Traffic::Dropped,
            };
        }
    }
    failed
}

/// Makes inbound plugs, which let everything pass, or takes them away.
pub(super) fn set_inbound(
    kernel: &mut dyn Kernel,
    entries: &mut [Entry],
    hold: bool,
    limit_bytes: u32,
) -> Vec<Failure> {
    let mut failed = Vec::new();
    for entry in entries {
        let Some(link) = entry.vif_link else { continue };
        let pass = Step::Drive { link, action: Action::ReleaseIndefinite };
        let steps = match (entry.inbound, hold) {
            (true, true) => vec![pass],
            (false, true) => vec![Step::AddPlug { link, limit_bytes }, pass],
            (true, false) => vec![Step::RemovePlug { link }],
            (false, false) => Vec::new(),
        };
        for step in &steps {
            if let Err(refusal) =
                kernel.carry_out(std::slice::from_ref(step)).into_iter().next().unwrap_or(Err(Refusal::Lost))
            {
                failed.push(entry.failure(step, refusal));
                break;
            }
            match step {
                Step::AddPlug { .. } => entry.inbound = true,
                Step::RemovePlug { .. } => entry.inbound = false,
                _ => {}
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::super::double::{Double, Fail};
    use super::super::{OutputBuffer, OutputError, OutputOptions, Vif};
    use super::*;

    fn vif(devid: u32) -> Vif {
        Vif { domid: 7, devid, name: format!("vif7.{devid}") }
    }

    fn traffic(buffer: &OutputBuffer) -> Vec<Traffic> {
        buffer.traffic().into_iter().map(|vif| vif.traffic).collect()
    }

    /// A buffer on one vif that holds packets of two epochs.
    fn full() -> (Double, OutputBuffer) {
        let kernel = Double::new(&["vif7.0", "island", "vif7.1"]);
        let mut buffer =
            OutputBuffer::install_by(kernel.boxed(), &[vif(0)], &OutputOptions::default()).unwrap();
        kernel.send_all("vif7.0", &[1, 2]);
        buffer.close_epoch().unwrap();
        kernel.send_all("vif7.0", &[3]);
        (kernel, buffer)
    }

    #[test]
    fn what_is_held_is_dropped_and_epochs_begin_anew() {
        let (kernel, mut buffer) = full();
        assert_eq!(buffer.begin_anew(1000).unwrap(), 3);
        assert_eq!(traffic(&buffer), [Traffic::Held]);
        kernel.send_all("vif7.0", &[4, 5]);
        buffer.close_epoch().unwrap();
        kernel.send("vif7.0", 6);
        buffer.release_closed().unwrap();
        assert_eq!(kernel.network("vif7.0"), [4, 5]);
    }

    /// Whatever fails, nothing passes, and trying again helps.
    #[test]
    fn nothing_passes_when_any_step_fails() {
        let failures = [Fail::Refuse(Errno::NOMEM), Fail::LoseAnswer, Fail::LoseRequest];
        for (step, fail) in (0..4).flat_map(|step| failures.map(|fail| (step, fail))) {
            let (kernel, mut buffer) = full();
            let done = kernel.state().done.len();
            kernel.state().fail = vec![(done + step, fail)];
            let error = buffer.begin_anew(1000).unwrap_err();
            assert!(matches!(error, OutputError::Incomplete { .. }), "{step} {fail:?}: {error}");
            assert!(buffer.close_epoch().is_err(), "{step} {fail:?}: where an epoch ends is not known");
            kernel.send("vif7.0", 4);
            assert_eq!(kernel.network("vif7.0"), [0_u64; 0], "{step} {fail:?}");
            buffer.begin_anew(1000).unwrap();
            kernel.send("vif7.0", 5);
            buffer.close_epoch().unwrap();
            buffer.release_closed().unwrap();
            assert_eq!(kernel.network("vif7.0"), [5], "{step} {fail:?}");
        }
    }

    #[test]
    fn a_vif_that_was_never_redirected_is_not_called_held() {
        let kernel = Double::new(&["vif7.0"]);
        // The last step of installing, the redirection, was never made.
        kernel.state().fail = vec![(5, Fail::Refuse(Errno::NOMEM))];
        OutputBuffer::install_by(kernel.boxed(), &[vif(0)], &OutputOptions::default()).unwrap_err();
        let orphans = super::super::orphan::find(&mut *kernel.boxed()).unwrap();
        let mut buffer = OutputBuffer::adopt_by(kernel.boxed(), orphans);
        let error = buffer.begin_anew(1000).unwrap_err().to_string();
        assert!(error.contains("nothing is redirected to it") && error.contains("passes"), "{error}");
    }

    #[test]
    fn what_a_new_vif_sends_is_of_the_epoch_that_is_open() {
        let (kernel, mut buffer) = full();
        buffer.extend(&[vif(1)], &OutputOptions::default()).unwrap();
        assert_eq!(traffic(&buffer), [Traffic::Undecided, Traffic::Held]);
        kernel.send("vif7.1", 10);
        buffer.release_closed().unwrap();
        assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![1, 2], vec![]));
        buffer.close_epoch().unwrap();
        kernel.send("vif7.1", 11);
        buffer.release_closed().unwrap();
        assert_eq!((kernel.network("vif7.0"), kernel.network("vif7.1")), (vec![1, 2, 3], vec![10]));
        buffer.release_all().unwrap();
        let error = buffer.extend(&[vif(2)], &OutputOptions::default()).unwrap_err();
        assert!(matches!(error, OutputError::Order { .. }), "{error}");
    }

    #[test]
    fn a_vif_that_is_gone_is_forgotten_with_its_ifb() {
        let (kernel, mut buffer) = full();
        buffer.release_closed().unwrap();
        buffer.extend(&[vif(1)], &OutputOptions::default()).unwrap();
        kernel.unplug("vif7.0");
        // The toolstack may still know it.
        assert_eq!(buffer.survey(&[vif(0), vif(1)]).unwrap(), []);
        assert_eq!(traffic(&buffer), [Traffic::Held]);
        assert_eq!(kernel.picture(), ["island", "vif7.1 to 5", "vv7.1 plug(0)"]);
        buffer.close_epoch().unwrap();
    }

    #[test]
    fn a_vif_that_comes_back_under_its_name_is_another() {
        let (kernel, mut buffer) = full();
        assert_eq!(buffer.survey(&[vif(0), vif(1)]).unwrap(), [vif(1)], "all is as it was built");
        kernel.unplug("vif7.0");
        kernel.plug_in("vif7.0");
        let new = buffer.survey(&[vif(0)]).unwrap();
        assert_eq!(new, [vif(0)]);
        buffer.extend(&new, &OutputOptions::default()).unwrap();
        kernel.send("vif7.0", 4);
        assert_eq!(kernel.network("vif7.0"), [0_u64; 0]);
        assert_eq!(traffic(&buffer), [Traffic::Held]);
    }

    #[test]
    fn a_vif_whose_packets_were_led_away_is_told() {
        let (kernel, mut buffer) = full();
        kernel.occupy("vif7.0");
        for _ in 0..2 {
            let error = buffer.survey(&[vif(0)]).unwrap_err().to_string();
            assert!(error.contains("somebody has undone that"), "{error}");
            assert_eq!(traffic(&buffer), [Traffic::Passes]);
        }
    }

    #[test]
    fn inbound_packets_pass_and_can_be_held_or_not_whatever_was_before() {
        let held = OutputOptions { hold_inbound: true, ..OutputOptions::default() };
        for (before, after) in [(true, false), (false, true), (true, true), (false, false)] {
            let kernel = Double::new(&["vif7.0"]);
            let options = OutputOptions { hold_inbound: before, ..held.clone() };
            let mut first = OutputBuffer::install_by(kernel.boxed(), &[vif(0)], &options).unwrap();
            first.hold_inbound().unwrap();
            let mut buffer = kernel.adopt(kernel.orphans().unwrap());
            buffer.set_inbound(after, 1000).unwrap();
            let picture = kernel.picture().remove(0);
            let expected = if after { "vif7.0 plug(0, passes) to 2" } else { "vif7.0 to 2" };
            assert_eq!(picture, expected, "{before} {after}");
            buffer.hold_inbound().unwrap();
            buffer.pass_inbound().unwrap();
        }
    }

    #[test]
    fn what_is_held_of_a_guest_that_is_gone_does_not_keep_its_cards() {
        let (kernel, mut buffer) = full();
        kernel.unplug_when_empty("vif7.0");
        buffer.dissolve().unwrap();
        assert_eq!(kernel.picture(), ["island", "vif7.1"]);
        let (kernel, mut buffer) = full();
        let error = buffer.dissolve().unwrap_err().to_string();
        assert!(error.contains("the card is still there"), "{error}");
        kernel.send("vif7.0", 4);
        assert_eq!(kernel.network("vif7.0"), [0_u64; 0]);
    }

    #[test]
    fn a_domain_that_ends_is_not_kept_by_its_packets() {
        let (kernel, _) = full();
        assert!(OutputBuffer::silence_by(kernel.boxed(), 8).unwrap().is_none(), "another domain's");
        let buffer = OutputBuffer::silence_by(kernel.boxed(), 7).unwrap().unwrap();
        assert_eq!(traffic(&buffer), [Traffic::Dropped]);
        kernel.send("vif7.0", 9);
        assert_eq!(kernel.picture(), ["vif7.0 to 4", "island", "vif7.1", "vv7.0 down plug(0)"]);
        kernel.unplug("vif7.0");
        buffer.remove().unwrap();
        assert_eq!(kernel.picture(), ["island", "vif7.1"]);
    }

    #[test]
    fn what_is_released_after_a_move_goes_to_the_other_bridge() {
        let (kernel, mut buffer) = full();
        let missing = buffer.move_to("mainland").unwrap_err();
        assert!(matches!(missing, OutputError::NoVif { .. }), "{missing}");
        buffer.move_to("island").unwrap();
        let links = kernel.boxed().links().unwrap();
        let number = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        assert_eq!(number("vif7.0").master, Some(number("island").index));
        let done = kernel.state().done.len();
        kernel.state().fail = vec![(done, Fail::Refuse(Errno::BUSY))];
        assert!(matches!(buffer.move_to("island"), Err(OutputError::Incomplete { .. })));
    }
}
