//! A QEMU that is none: a socket that plays the server's side of recorded conversations.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// The greeting of Debian's QEMU 7.2.22.
pub(crate) const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}, "capabilities": ["oob"]}}"#;

/// What a fake QEMU does instead of answering a command.
#[derive(Clone, Debug)]
pub(crate) enum Misdeed {
    /// Says this line, then answers.
    Says(String),
    /// Answers with this line, in which `$id` stands for the command's id.
    Answers(String),
    /// Answers nothing any more.
    Falls,
    /// Closes the connection.
    Quits,
    /// Closes the connection and accepts no other.
    Dies,
}

/// A guest in a fake QEMU.
#[derive(Default)]
pub(crate) struct Guest {
    pub(crate) running: bool,
    pub(crate) objects: Vec<String>,
    /// Commands in order, HMP commands by their line.
    pub(crate) asked: Vec<String>,
    /// What to do at the n-th command of a name, from 0.
    pub(crate) misdeeds: BTreeMap<(String, usize), Misdeed>,
    pub(crate) mtree: String,
    pub(crate) registers: String,
    pub(crate) backends: Vec<Value>,
    /// Properties of `/objects/ID` as `ID.property`.
    pub(crate) properties: BTreeMap<String, Value>,
}

impl Guest {
    /// A guest of `bytes` of RAM in `file`, running.
    pub(crate) fn with_ram(file: &Path, bytes: u64) -> Self {
        let last = bytes - 1;
        let mtree = format!(
            "FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n  \
             0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\n\
             FlatView #1\r\n AS \"memory\", root: system\r\n AS \"cpu-memory-0\", root: system\r\n Root memory region: system\r\n  \
             0000000000000000-{last:016x} (prio 0, ram): mem0\r\n  \
             00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios\r\n\r\n"
        );
        Self {
            running: true,
            mtree,
            registers: include_str!("../../src/qemu/testdata/registers-long-mode.txt").to_owned(),
            backends: vec![json!({"share": true, "size": bytes, "id": "mem0"})],
            properties: BTreeMap::from([
                ("mem0.type".to_owned(), json!("memory-backend-file")),
                ("mem0.mem-path".to_owned(), json!(file)),
            ]),
            ..Self::default()
        }
    }

    pub(crate) fn misbehave(mut self, command: &str, nth: usize, misdeed: Misdeed) -> Self {
        self.misdeeds.insert((command.to_owned(), nth), misdeed);
        self
    }
}

/// A fake QEMU at a socket, until it is dropped.
pub(crate) struct FakeQemu {
    pub(crate) socket: PathBuf,
    pub(crate) guest: Arc<Mutex<Guest>>,
}

impl FakeQemu {
    pub(crate) fn start(directory: &Path, guest: Guest) -> Self {
        let socket = directory.join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let guest = Arc::new(Mutex::new(guest));
        let shared = Arc::clone(&guest);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serve(stream.unwrap(), &shared).is_none() {
                    return;
                }
            }
        });
        Self { socket, guest }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.guest.lock().unwrap().asked.clone()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.guest.lock().unwrap().running
    }
}

/// Serves one client; `None` when no other is to be served.
fn serve(stream: UnixStream, guest: &Mutex<Guest>) -> Option<()> {
    let mut out = stream.try_clone().unwrap();
    let mut say = move |line: &str| writeln!(out, "{line}\r");
    if say(GREETING).is_err() {
        return Some(());
    }
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let command: Value = serde_json::from_str(&line).unwrap();
        let mut guest = guest.lock().unwrap();
        let name = name_of(&command);
        let nth = guest.asked.iter().filter(|asked| **asked == name).count();
        guest.asked.push(name.clone());
        match guest.misdeeds.get(&(name.clone(), nth)).cloned() {
            Some(Misdeed::Falls) => continue,
            Some(Misdeed::Quits) => return Some(()),
            Some(Misdeed::Dies) => return None,
            Some(Misdeed::Answers(line)) => {
                drop(say(&line.replace("$id", &command["id"].to_string())));
                continue;
            }
            Some(Misdeed::Says(line)) => drop(say(&line)),
            None => {}
        }
        let (events, mut answer) = answer(&mut guest, &name, &command);
        answer["id"] = command["id"].clone();
        for line in events.iter().map(|event| event_line(event)).chain([answer.to_string()]) {
            drop(say(&line));
        }
    }
    Some(())
}

fn name_of(command: &Value) -> String {
    match command["execute"].as_str().unwrap() {
        "human-monitor-command" => command["arguments"]["command-line"].as_str().unwrap().to_owned(),
        name => name.to_owned(),
    }
}

pub(crate) fn event_line(event: &str) -> String {
    json!({"timestamp": {"seconds": 1_795_451_766, "microseconds": 615_542}, "event": event}).to_string()
}

fn answer(guest: &mut Guest, name: &str, command: &Value) -> (Vec<&'static str>, Value) {
    let arguments = &command["arguments"];
    let done = json!({"return": {}});
    let refuse = |reason: String| json!({"error": {"class": "GenericError", "desc": reason}});
    let answer = match name {
        "qmp_capabilities" => done,
        "query-status" => {
            let status = if guest.running { "running" } else { "paused" };
            json!({"return": {"status": status, "singlestep": false, "running": guest.running}})
        }
        "stop" | "cont" => {
            let running = name == "cont";
            let event = if running { "RESUME" } else { "STOP" };
            let events = if guest.running == running { vec![] } else { vec![event] };
            guest.running = running;
            return (events, done);
        }
        "info mtree -f" => json!({"return": guest.mtree}),
        "info registers -a" => json!({"return": guest.registers}),
        "query-memdev" => json!({"return": guest.backends}),
        "qom-list" => {
            let objects = guest.objects.iter().map(|id| json!({"name": id, "type": "child<secret>"}));
            json!({"return": objects.collect::<Vec<_>>()})
        }
        "qom-get" => {
            let id = arguments["path"].as_str().unwrap().trim_start_matches("/objects/");
            let property = format!("{id}.{}", arguments["property"].as_str().unwrap());
            match guest.properties.get(&property) {
                Some(value) => json!({"return": value}),
                None => refuse(format!("Property '{property}' not found")),
            }
        }
        "object-add" => {
            guest.objects.push(arguments["id"].as_str().unwrap().to_owned());
            done
        }
        "object-del" => {
            guest.objects.retain(|id| *id != arguments["id"].as_str().unwrap());
            done
        }
        other => refuse(format!("The command {other} has not been found")),
    };
    (Vec::new(), answer)
}
