//! A guest in QEMU, played by a fake one: its good days and its bad ones.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use varve_capture::qemu::{Limits, Qemu};
use varve_capture::source::{Hold, Source};
use varve_capture::{SourceError, source};
use varve_formats::{Gpa, PAGE_SIZE};

use super::fake_qemu::{FakeQemu, Guest, Misdeed, event_line};
use super::support::*;

const MARK: &str = "varve-holds-the-guest";

/// Long enough for a busy machine, short enough for the tests of silence.
const LIMITS: Limits = Limits {
    greeting: Duration::from_millis(400),
    answer: Duration::from_millis(400),
    switch: Duration::from_millis(400),
};

/// A RAM file of four frames, filled with 1 to 4.
fn ram(scratch: &Scratch) -> PathBuf {
    let path = scratch.path().join("ram");
    let bytes: Vec<u8> = (1..=4).flat_map(|byte| [byte; PAGE_SIZE]).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn start(scratch: &Scratch, change: impl FnOnce(Guest) -> Guest) -> FakeQemu {
    FakeQemu::start(scratch.path(), change(Guest::with_ram(&ram(scratch), 0x4000)))
}

fn connect(fake: &FakeQemu) -> Result<Qemu, SourceError> {
    Qemu::connect(&fake.socket, LIMITS)
}

#[test]
fn a_guest_is_stopped_read_and_resumed() {
    let scratch = scratch();
    let fake = start(&scratch, |guest| guest);
    let qemu = connect(&fake).unwrap();
    let ended = take(&qemu, &scratch.archive, 2, &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    assert_eq!(scratch.frames(1), [1, 2, 3, 4].map(Some));
    let record = scratch.archive.record(VM, 0).unwrap();
    assert_eq!((record.vcpus.len(), record.vcpus[0].cr3), (2, 0x0f51_a000));
    assert_eq!(record.source, format!("qemu:{}", fake.socket.display()));
    assert!(fake.is_running());
    assert!(fake.guest.lock().unwrap().objects.is_empty(), "the mark is gone");
    insta::assert_snapshot!(fake.asked().join("\n"));
}

#[test]
fn events_and_late_answers_do_not_confuse_it() {
    let scratch = scratch();
    let fake = start(&scratch, |guest| {
        guest
            .misbehave("query-memdev", 0, Misdeed::Says(event_line("RTC_CHANGE")))
            .misbehave("query-status", 0, Misdeed::Falls)
            .misbehave(
                "query-status",
                1,
                Misdeed::Says(r#"{"return": {"running": false, "status": "late"}, "id": 1}"#.into()),
            )
    });
    let qemu = connect(&fake).unwrap();
    let pause = Source::pause(&qemu).unwrap();
    assert!(matches!(pause.pause(), Err(SourceError::Timeout { .. })));
    assert_eq!(pause.pause().unwrap(), Hold::Ours);
    pause.resume(&Hold::Ours).unwrap();
    assert!(fake.is_running());
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let answers = [
        "not json",
        "{\"return\": 7, \"id\": $id}",
        "{\"error\": {}, \"id\": $id}",
        "{\"id\": $id}",
        "[[[[[[",
        "\u{0}\u{1}",
    ];
    let mut said = Vec::new();
    for answer in answers {
        let scratch = scratch();
        let fake =
            start(&scratch, |guest| guest.misbehave("info mtree -f", 0, Misdeed::Answers(answer.into())));
        said.push(connect(&fake).unwrap_err().to_string());
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_line_without_end_is_cut_off() {
    let scratch = scratch();
    let endless = "x".repeat(17 << 20);
    let fake = start(&scratch, |guest| guest.misbehave("query-memdev", 0, Misdeed::Answers(endless)));
    let limits = Limits { answer: Duration::from_secs(20), ..LIMITS };
    let error = Qemu::connect(&fake.socket, limits).unwrap_err();
    insta::assert_snapshot!(error, @"query-memdev: the answer makes no sense: a line longer than 16777216 bytes");
}

#[test]
fn sockets_nobody_useful_is_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut said = Vec::new();
    let mut refusal = |name: &str| {
        let error = Qemu::connect(&path(name), LIMITS).unwrap_err().to_string();
        said.push(error.replace(directory.path().to_str().unwrap(), "DIR"));
    };
    refusal("absent");
    std::fs::write(path("file"), b"").unwrap();
    refusal("file");
    refusal(&"x".repeat(200));
    let silent = UnixListener::bind(path("silent")).unwrap();
    refusal("silent");
    let other = UnixListener::bind(path("other")).unwrap();
    let server = std::thread::spawn(move || writeln!(other.accept().unwrap().0, "{{\"hello\": 1}}").unwrap());
    refusal("other");
    server.join().unwrap();
    insta::assert_snapshot!(said.join("\n").replace(&"x".repeat(200), "XXX"));
    drop(silent);
}

#[test]
fn a_qemu_that_serves_somebody_else_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("busy");
    // A backlog of one connection, as QEMU's.
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&socket).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _other = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let error = Qemu::connect(&socket, LIMITS).unwrap_err().to_string();
    assert!(error.ends_with("another client is connected, and QEMU serves one at a time"), "{error}");
}

#[test]
fn guests_that_cannot_be_captured_are_told_how_they_could() {
    type Change = fn(&mut Guest);
    let changes: [(&str, Change); 7] = [
        ("private", |guest| guest.backends = vec![json!({"share": false, "size": 1 << 28, "id": "mem0"})]),
        ("none", |guest| guest.backends.clear()),
        ("memfd", |guest| drop(guest.properties.insert("mem0.type".into(), json!("memory-backend-memfd")))),
        ("relative", |guest| drop(guest.properties.insert("mem0.mem-path".into(), json!("ram")))),
        ("directory", |guest| drop(guest.properties.insert("mem0.mem-path".into(), json!("/dev/shm")))),
        ("gone", |guest| drop(guest.properties.insert("mem0.mem-path".into(), json!("/nowhere/ram")))),
        ("short", |guest| guest.mtree = guest.mtree.replace("-0000000000003fff", "-0000000000004fff")),
    ];
    let mut said = Vec::new();
    for (name, change) in changes {
        let scratch = scratch();
        let fake = start(&scratch, |mut guest| {
            change(&mut guest);
            guest
        });
        let error = connect(&fake).unwrap_err().to_string();
        said.push(format!("{name}: {}", error.replace(scratch.path().to_str().unwrap(), "DIR")));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_backend_that_begins_inside_its_file() {
    let scratch = scratch();
    let fake = start(&scratch, |mut guest| {
        guest.properties.insert("mem0.offset".into(), json!(0x1000));
        guest.mtree = guest.mtree.replace("-0000000000003fff", "-0000000000001fff");
        guest
    });
    let memory = connect(&fake).unwrap().memory().unwrap();
    assert_eq!(memory.slice(Gpa(0x1000), 1), Some(&[3][..]));
}

#[test]
fn whatever_breaks_while_the_guest_is_held_it_runs_again() {
    let misdeeds = [Misdeed::Falls, Misdeed::Quits, Misdeed::Answers("garbage".into())];
    let held = ["stop", "info registers -a", "query-status", "cont"];
    for (nth, command) in held.into_iter().flat_map(|command| [(0, command), (1, command)]) {
        // Silence costs its timeout each time: once a command will do.
        for misdeed in &misdeeds[nth..] {
            let scratch = scratch();
            let fake = start(&scratch, |guest| guest.misbehave(command, nth, misdeed.clone()));
            let qemu = connect(&fake).unwrap();
            let ended = take(&qemu, &scratch.archive, 2, &());
            assert!(fake.is_running(), "{command} {nth} {misdeed:?}: {:?}", ended.error);
            assert_eq!(scratch.epoch_count(), ended.summary.epochs);
            drop(qemu);
            // Nothing is left behind that would keep the next one from working.
            let again = connect(&fake).unwrap();
            assert!(take(&again, &scratch.archive, 1, &()).error.is_none(), "{command} {nth} {misdeed:?}");
            assert!(fake.guest.lock().unwrap().objects.is_empty());
        }
    }
}

#[test]
fn a_guest_that_ends_is_said_to_be_gone() {
    let mut said = Vec::new();
    for command in ["info mtree -f", "stop", "info registers -a", "cont"] {
        let scratch = scratch();
        let nth = if command == "info mtree -f" { 2 } else { 1 };
        let fake = start(&scratch, |guest| guest.misbehave(command, nth, Misdeed::Dies));
        let qemu = connect(&fake).unwrap();
        let ended = take(&qemu, &scratch.archive, 3, &());
        assert_eq!((scratch.epoch_count(), ended.summary.epochs), (1, 1), "{command}");
        let error = ended.error.unwrap().to_string();
        said.push(error.replace(scratch.path().to_str().unwrap(), "DIR"));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_guest_left_held_by_a_varve_that_was_killed_is_let_go() {
    let scratch = scratch();
    let fake = start(&scratch, |mut guest| {
        guest.running = false;
        guest.objects = vec!["mem0".into(), MARK.into()];
        guest
    });
    let qemu = connect(&fake).unwrap();
    assert!(fake.is_running());
    assert_eq!(fake.guest.lock().unwrap().objects, ["mem0"]);
    assert_eq!(qemu.take_remarks(), ["the guest stood still since an earlier varve was killed: resumed"]);
}

#[test]
fn a_guest_paused_by_hand_stays_paused() {
    let scratch = scratch();
    let fake = start(&scratch, |mut guest| {
        guest.running = false;
        guest
    });
    let qemu = connect(&fake).unwrap();
    let seen = Memory::default();
    assert!(take(&qemu, &scratch.archive, 1, &seen).error.is_none());
    assert!(!fake.is_running());
    assert!(!fake.asked().iter().any(|asked| asked == "cont" || asked == "stop"));
    assert_eq!(*seen.remarks.lock().unwrap(), ["the guest stood still already (paused), and stays so"]);
}

#[test]
fn somebody_who_resumes_the_guest_tears_the_epoch() {
    let scratch = scratch();
    let resumed = Misdeed::Says(event_line("RESUME"));
    let fake = start(&scratch, |guest| guest.misbehave("info registers -a", 0, resumed));
    let qemu = connect(&fake).unwrap();
    let ended = take(&qemu, &scratch.archive, 1, &());
    assert_eq!((ended.summary.epochs, ended.summary.epochs_dropped), (1, 1));
    assert!(fake.is_running());
}

#[test]
fn a_memory_file_that_shrinks_or_changes_is_an_error_before_the_guest_is_held() {
    let scratch = scratch();
    let fake = start(&scratch, |guest| guest);
    let qemu = connect(&fake).unwrap();
    assert!(take(&qemu, &scratch.archive, 1, &()).error.is_none());
    std::fs::File::options().write(true).open(scratch.path().join("ram")).unwrap().set_len(0x1000).unwrap();
    let error = take(&qemu, &scratch.archive, 1, &()).error.unwrap().to_string();
    assert!(error.ends_with("the guest's memory file was truncated or replaced"), "{error}");
    assert_eq!(fake.asked().iter().filter(|asked| *asked == "stop").count(), 1);
    assert_eq!(scratch.epoch_count(), 1);
}

#[test]
fn memory_that_is_plugged_in_is_in_the_next_epoch() {
    let scratch = scratch();
    let fake = start(&scratch, |mut guest| {
        guest.mtree = guest.mtree.replace("-0000000000003fff", "-0000000000001fff");
        guest
    });
    let qemu = connect(&fake).unwrap();
    take(&qemu, &scratch.archive, 1, &());
    {
        let mut guest = fake.guest.lock().unwrap();
        guest.mtree = guest.mtree.replace("-0000000000001fff", "-0000000000003fff");
    }
    take(&qemu, &scratch.archive, 1, &());
    assert_eq!(scratch.frames(0), [1, 2].map(Some));
    assert_eq!(scratch.frames(1), [1, 2, 3, 4].map(Some));
}

#[test]
fn looking_at_a_guest_does_not_make_its_host_allocate_memory() {
    let scratch = scratch();
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    file.as_file().write_all_at(&[7; PAGE_SIZE], 5 << 20).unwrap();
    let fake = FakeQemu::start(scratch.path(), Guest::with_ram(file.path(), 64 << 20));
    let ended = take(&connect(&fake).unwrap(), &scratch.archive, 2, &());
    assert!(ended.error.is_none(), "{:?}", ended.error);
    let record = scratch.archive.record(VM, 1).unwrap();
    assert_eq!((record.pages, record.pages_zero), (16_384, 16_383));
    let allocated = file.as_file().metadata().unwrap().blocks() * 512;
    assert!(allocated < 4 << 20, "{allocated} bytes of 64 MiB");
}

#[test]
fn specs_name_a_kind_and_a_place() {
    let refusal = |spec: &str| match source::open(spec) {
        Ok(_) => panic!("{spec}"),
        Err(error) => error.to_string(),
    };
    insta::assert_snapshot!(refusal("kvm:web1"), @r#""kvm:web1" is no source; there is qemu:SOCKET, xen:DOMAIN, xen-stream:FILE"#);
    insta::assert_snapshot!(refusal("qemu:"), @r#""qemu:" is no source; there is qemu:SOCKET, xen:DOMAIN, xen-stream:FILE"#);
    insta::assert_snapshot!(refusal("/run/web1.qmp"), @r#""/run/web1.qmp" is no source; there is qemu:SOCKET, xen:DOMAIN, xen-stream:FILE"#);
    assert!(refusal("qemu:/nowhere").starts_with("nobody listens at /nowhere: "));
    #[cfg(not(feature = "xen"))]
    assert!(refusal("xen:web1").contains("--features xen"));
}
