//! Save streams become epochs: of a file one, of a stream with checkpoints one for each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use varve_capture::{Ended, Interrupt, Observer, Options, Plan, source};
use varve_fixtures::synth::xl_save::{BROKEN, Cpu, HVM, L1, NORMAL, Stream, XTAB, hvm_context};
use varve_formats::xen::stream::{Config, SaveState, libxc};
use varve_formats::{PAGE_SIZE, PhysicalMemory};

use super::support::*;

const HVM_CONTEXT: u32 = libxc::HVM_CONTEXT;
const CHECKPOINT: u32 = libxc::CHECKPOINT;
const CHECKPOINT_END: u32 = 4;
const EMULATOR_CONTEXT: u32 = 3;

/// The bytes of frames by number.
type Guest = BTreeMap<u64, u8>;

/// The headers of a stream.
fn stream() -> Stream {
    let mut stream = Stream::default();
    stream.xl("{}").libxl().record(1, &[]).libxc(HVM).record(libxc::STATIC_DATA_END, &[]);
    stream
}

/// Frames with the byte they are filled with, or none where there is no memory.
fn pages(stream: &mut Stream, frames: &[(u64, Option<u8>)]) {
    let contents: Vec<_> = frames.iter().map(|(_, byte)| byte.map(|byte| [byte; PAGE_SIZE])).collect();
    let frames = frames.iter().zip(&contents).map(|((gfn, _), page)| {
        let kind = [XTAB, BROKEN][*gfn as usize % 2];
        (if page.is_some() { NORMAL } else { kind }, *gfn, page.as_ref().map(|page| &page[..]))
    });
    stream.pages(&frames.collect::<Vec<_>>());
}

fn context(rip: u64) -> Vec<u8> {
    hvm_context(&[Cpu { rip, ..Cpu::default() }])
}

/// Ends a checkpoint at which the processor is at `rip`.
fn checkpoint(stream: &mut Stream, rip: u64) {
    stream.record(HVM_CONTEXT, &context(rip)).record(CHECKPOINT, &[]);
    stream.record(EMULATOR_CONTEXT, &[0; 16]).record(CHECKPOINT_END, &[]);
}

fn file(scratch: &Scratch, bytes: &[u8]) -> PathBuf {
    let path = scratch.path().join("stream");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn follow(
    scratch: &Scratch,
    path: &Path,
    pages: usize,
    interrupt: &dyn Interrupt,
    observer: &dyn Observer,
) -> Ended {
    let source = source::open(&format!("xen-stream:{}", path.display())).unwrap();
    let options = Options { staging_bytes: pages * PAGE_SIZE, ..Options::default() };
    // The interval is whoever's that feeds: this one would be noticed.
    let plan = Plan::every(Duration::from_secs(3600), None);
    varve_capture::capture(&*source, &scratch.archive, VM, &plan, &options, interrupt, observer)
}

fn guest(scratch: &Scratch, epoch: u64) -> Guest {
    let memory = scratch.archive.epoch(VM, epoch).unwrap();
    let frames = memory.regions().iter().flat_map(|region| {
        let first = region.start.gfn().0;
        first..first + region.len / PAGE_SIZE as u64
    });
    let frames: Vec<u64> = frames.collect();
    frames.into_iter().zip(scratch.frames(epoch)).map(|(gfn, byte)| (gfn, byte.unwrap())).collect()
}

#[test]
fn a_saved_domain_is_one_epoch_with_all_that_starts_it_again() {
    let scratch = scratch();
    let mut saved = stream();
    pages(&mut saved, &[(1, Some(1)), (2, Some(2)), (7, None)]);
    pages(&mut saved, &[(9, Some(9)), (2, Some(0)), (1, Some(3)), (2, Some(4))]);
    saved.record(HVM_CONTEXT, &context(7)).record(libxc::END, &[]).record(0, &[]);
    let path = file(&scratch, saved.bytes());
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    let seen = Memory::default();
    let ended = follow(&scratch, &path, 1000, &(), &seen);
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(guest(&scratch, 0), Guest::from([(1, 3), (2, 4), (9, 9)]));
    let record = &seen.reports.lock().unwrap()[0].record;
    assert_eq!(record.source, format!("xen-stream:{}", path.display()));
    assert_eq!(record.taken_at_ns, 1_000_000_000_000_000_000);
    assert!(record.restorable);
    assert_eq!(record.vcpus[0].rip, 7);
    let state = scratch.archive.epoch(VM, 0).unwrap().state().unwrap().unwrap();
    let state = SaveState::decode(&state).unwrap();
    assert_eq!(state.config, Some(Config { is_json: true, bytes: b"{}\0".to_vec() }));
    assert_eq!(state.libxc(HVM_CONTEXT).unwrap().body, context(7));
    assert_eq!(scratch.epoch_count(), 1);
}

/// A piece of a stream: frames with what they are filled with, or the end of a checkpoint.
type Step = Option<Vec<(u64, Option<u8>)>>;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gfn = prop_oneof![0u64..12, 100u64..112, 4000u64..4003];
    let frame = (gfn, prop_oneof![4 => (0u8..5).prop_map(Some), 1 => Just(None)]);
    let pages = prop::collection::vec(frame, 1..10).prop_map(Some);
    prop::collection::vec(prop_oneof![2 => pages, 1 => Just(None)], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever comes in whatever order, once or several times, in one piece or many.
    #[test]
    fn every_checkpoint_is_an_epoch_and_is_what_had_come_by_then(
        steps in steps(),
        before in prop::option::of(prop::collection::btree_map(90u64..105, 1u8..4, 1..9)),
        pieces_of in prop_oneof![Just(1usize), Just(4096)],
    ) {
        let scratch = scratch();
        let mut first = 0;
        if let Some(before) = before {
            let mut saved = stream();
            pages(&mut saved, &before.into_iter().map(|(gfn, byte)| (gfn, Some(byte))).collect::<Vec<_>>());
            saved.record(libxc::END, &[]).record(0, &[]);
            prop_assert!(follow(&scratch, &file(&scratch, saved.bytes()), 1, &(), &()).error.is_none());
            first = 1;
        }
        let mut bytes = stream();
        // Some frame is always there: a guest without memory is none.
        let mut now = Guest::from([(50, 1)]);
        let mut epochs = Vec::new();
        pages(&mut bytes, &[(50, Some(1))]);
        for step in &steps {
            let Some(frames) = step else {
                checkpoint(&mut bytes, epochs.len() as u64);
                epochs.push(now.clone());
                continue;
            };
            pages(&mut bytes, frames);
            for (gfn, byte) in frames {
                match byte {
                    Some(byte) => now.insert(*gfn, *byte),
                    None => now.remove(gfn),
                };
            }
        }
        let ended = follow(&scratch, &file(&scratch, bytes.bytes()), pieces_of, &(), &());
        let cut_off = !matches!(steps.last(), Some(None));
        prop_assert_eq!(ended.error.is_some(), cut_off, "{:?}", ended.error);
        prop_assert_eq!(ended.summary.epochs, epochs.len() as u64);
        for (number, expected) in epochs.iter().enumerate() {
            prop_assert_eq!(&guest(&scratch, first + number as u64), expected);
            let record = scratch.archive.record(VM, first + number as u64).unwrap();
            prop_assert_eq!(record.vcpus[0].rip, number as u64);
            prop_assert!(record.restorable);
        }
        let report = scratch.archive.check(true, &|_, _, _| {}).unwrap();
        prop_assert!(report.is_clean());
    }
}

/// Two checkpoints, and where in the stream each ends.
fn two_checkpoints() -> (Vec<u8>, [usize; 2]) {
    let mut bytes = stream();
    pages(&mut bytes, &[(1, Some(1)), (2, Some(2))]);
    checkpoint(&mut bytes, 1);
    let first = bytes.bytes().len();
    pages(&mut bytes, &[(2, Some(3))]);
    checkpoint(&mut bytes, 2);
    let second = bytes.bytes().len();
    (bytes.bytes().to_vec(), [first, second])
}

#[test]
fn a_stream_that_is_cut_off_leaves_every_checkpoint_that_was_complete() {
    let (bytes, [first, second]) = two_checkpoints();
    for cut in (0..=second).step_by(401).chain([first - 1, first, first + 1, second - 1, second]) {
        let scratch = scratch();
        let ended = follow(&scratch, &file(&scratch, &bytes[..cut]), 1000, &(), &());
        let whole = [first, second].iter().filter(|end| cut >= **end).count() as u64;
        assert_eq!((scratch.epoch_count(), ended.summary.epochs), (whole, whole), "cut at {cut}");
        let Some(error) = ended.error else {
            assert!([first, second].contains(&cut), "cut at {cut}");
            continue;
        };
        let error = error.to_string();
        let said = "the stream ends in";
        assert!(
            error.contains(said) && error.contains("what came since its last checkpoint is dropped"),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_stream_is_refused() {
    let scratch = scratch();
    let ended = follow(&scratch, &file(&scratch, &[7; 100]), 1000, &(), &());
    assert!(ended.error.unwrap().to_string().contains("no save stream of Xen 4.6 or later"));
    let missing = source::open("xen-stream:/nowhere").err().unwrap().to_string();
    assert_eq!(missing, "opening /nowhere: No such file or directory (os error 2)");
    let mut without = stream();
    checkpoint(&mut without, 0);
    let ended = follow(&scratch, &file(&scratch, without.bytes()), 1000, &(), &());
    assert_eq!(ended.error.unwrap().to_string(), "regions: there are none");
    let mut too_large = stream();
    pages(&mut too_large, &(0..5000).map(|gfn| (gfn * 2, Some(1))).collect::<Vec<_>>());
    checkpoint(&mut too_large, 0);
    let ended = follow(&scratch, &file(&scratch, too_large.bytes()), 1 << 14, &(), &());
    assert_eq!(ended.error.unwrap().to_string(), "regions: there are more than 4096");
    assert_eq!(scratch.epoch_count(), 0);
}

#[test]
fn a_stream_can_be_left_between_checkpoints_and_given_up_within_one() {
    let (bytes, [first, _]) = two_checkpoints();
    let scratch = scratch();
    let path = file(&scratch, &bytes);
    let ended = follow(&scratch, &path, 1000, &after(Finish(1)), &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(scratch.epoch_count(), 1);
    let ended = follow(&scratch, &path, 1000, &after(Abandon(0)), &());
    assert_eq!(ended.error.unwrap().to_string(), "the epoch in hand was dropped as asked");
    assert_eq!((ended.summary.epochs_dropped, scratch.epoch_count()), (1, 1));
    assert_eq!(guest(&scratch, 0), Guest::from([(1, 1), (2, 2)]));

    // Nothing comes, and nothing ends: what is told to finish does not wait for it.
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, &bytes[..first]).unwrap();
    let pipe = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let ended = follow(&scratch, Path::new(&pipe), 1000, &after(Finish(5)), &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(scratch.epoch_count(), 2);
}

/// Page tables of PV domains are memory; which frames they are is part of the state, and stays so until it is said otherwise.
#[test]
fn the_types_of_frames_are_kept_from_checkpoint_to_checkpoint() {
    let scratch = scratch();
    let mut bytes = stream();
    let page = [5; PAGE_SIZE];
    bytes.pages(&[(L1, 4, Some(&page)), (L1, 6, Some(&page)), (NORMAL, 7, Some(&page))]);
    checkpoint(&mut bytes, 0);
    bytes.pages(&[(NORMAL, 6, Some(&page))]);
    checkpoint(&mut bytes, 1);
    assert!(follow(&scratch, &file(&scratch, bytes.bytes()), 1000, &(), &()).error.is_none());
    let tables = |epoch| {
        let state = scratch.archive.epoch(VM, epoch).unwrap().state().unwrap().unwrap();
        let runs: Vec<_> =
            SaveState::decode(&state).unwrap().types().iter().map(|run| (run.0.0, run.1)).collect();
        runs
    };
    assert_eq!((tables(0), tables(1)), (vec![(4, 1), (6, 1)], vec![(4, 1)]));
    assert_eq!(scratch.archive.record(VM, 1).unwrap().pages_changed, 0);
}
