//! A client of the QEMU Machine Protocol over a unix socket.
//!
//! The protocol (QEMU's `docs/interop/qmp-spec.rst`): one JSON object a line; the server greets, the client answers
//! `qmp_capabilities`, then commands carry an `id` that comes back with the reply; events come whenever they
//! happen. The server is trusted to be QEMU, not to be well: lines have a length limit, every exchange a deadline,
//! and replies that come after their deadline are recognised by their `id` and dropped.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

use crate::SourceError;

/// Longest line accepted, in bytes. The registers of 288 vCPUs take 1.4 MiB.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 64 << 10;

/// What happened to the guest since somebody last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    /// Times the guest was started or resumed.
    pub(super) resumed: u64,
}

/// A connection that has been greeted.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    /// Received and not yet used.
    received: Vec<u8>,
    /// Bytes of `received` known to hold no line end.
    searched: usize,
    last_id: u64,
    events: Events,
}

impl Qmp {
    /// Connects to `socket` and goes through the greeting, within `limit`.
    pub(crate) fn connect(socket: &Path, limit: Duration) -> Result<Self, SourceError> {
        let name = || socket.display().to_string();
        let refused = |reason: String| SourceError::Connect { socket: name(), reason };
        let stream =
            dial(socket).map_err(|errno| match (errno, std::io::Error::from(errno).to_string()) {
                (Errno::NOENT | Errno::CONNREFUSED, reason) => SourceError::Absent { socket: name(), reason },
                (Errno::AGAIN, _) => {
                    refused("another client is connected, and QEMU serves one at a time".to_owned())
                }
                (_, reason) => refused(reason),
            })?;
        stream.set_nonblocking(false).map_err(|error| refused(error.to_string()))?;
        let mut qmp =
            Self { stream, received: Vec::new(), searched: 0, last_id: 0, events: Events::default() };
        let greeting =
            qmp.line("the greeting", Instant::now() + limit, limit).map_err(|error| match error {
                SourceError::Timeout { .. } => refused(format!(
                    "no greeting within {} s: is another client connected, or the socket not a QMP socket?",
                    limit.as_secs_f32()
                )),
                other => other,
            })?;
        if greeting.get("QMP").is_none() {
            return Err(refused("what answers there is not QMP".to_owned()));
        }
        qmp.execute("qmp_capabilities", json!({}), limit)?;
        Ok(qmp)
    }

    /// What happened since the last call.
    pub(super) fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }

    /// Runs a command of the human monitor and returns what it prints.
    pub(super) fn human(&mut self, line: &str, limit: Duration) -> Result<String, SourceError> {
        let arguments = json!({ "command-line": line });
        match self.ask("human-monitor-command", arguments, line, limit)? {
            Value::String(text) => Ok(text),
            _ => Err(SourceError::Protocol { doing: line.to_owned(), reason: "not a text".to_owned() }),
        }
    }

    /// Runs a command and returns what it returns.
    pub(crate) fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, SourceError> {
        self.ask(command, arguments, command, limit)
    }

    /// Runs a command that errors call `doing`.
    fn ask(
        &mut self,
        command: &str,
        arguments: Value,
        doing: &str,
        limit: Duration,
    ) -> Result<Value, SourceError> {
        let deadline = Instant::now() + limit;
        self.last_id += 1;
        let id = self.last_id;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.send(line.as_bytes(), doing, limit)?;
        loop {
            let mut message = self.line(doing, deadline, limit)?;
            if let Some(event) = message.get("event") {
                self.events.resumed += u64::from(event == "RESUME");
            } else if message.get("id").and_then(Value::as_u64) == Some(id) {
                return outcome(doing, &mut message);
            }
        }
    }

    fn send(&mut self, line: &[u8], doing: &str, limit: Duration) -> Result<(), SourceError> {
        let failed = |source| failure(doing, limit, source);
        self.stream.set_write_timeout(Some(limit)).map_err(failed)?;
        self.stream.write_all(line).map_err(failed)
    }

    /// The next message.
    fn line(&mut self, doing: &str, deadline: Instant, limit: Duration) -> Result<Value, SourceError> {
        let senseless = |reason: String| SourceError::Protocol { doing: doing.to_owned(), reason };
        loop {
            let fresh = self.received.get(self.searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.received, rest);
                self.searched = 0;
                return serde_json::from_slice(&line).map_err(|error| senseless(error.to_string()));
            }
            self.searched = self.received.len();
            if self.received.len() > MAX_LINE_BYTES {
                return Err(senseless(format!("a line longer than {MAX_LINE_BYTES} bytes")));
            }
            self.receive(doing, deadline, limit)?;
        }
    }

    fn receive(&mut self, doing: &str, deadline: Instant, limit: Duration) -> Result<(), SourceError> {
        let failed = |source| failure(doing, limit, source);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(ErrorKind::TimedOut.into()));
        }
        self.stream.set_read_timeout(Some(left)).map_err(failed)?;
        let mut chunk = [0; READ_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(gone(doing)),
            Ok(len) => {
                self.received.extend_from_slice(chunk.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Connects without ever waiting: a unix socket whose backlog is full would block for as long as another client
/// stays.
fn dial(socket: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(fd.into())
}

fn outcome(doing: &str, message: &mut Value) -> Result<Value, SourceError> {
    if let Some(value) = message.get_mut("return") {
        return Ok(value.take());
    }
    let reason = message.pointer("/error/desc").and_then(Value::as_str).unwrap_or("no reason given");
    Err(SourceError::Refused { doing: doing.to_owned(), reason: reason.to_owned() })
}

fn failure(doing: &str, limit: Duration, source: std::io::Error) -> SourceError {
    let doing = doing.to_owned();
    match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => SourceError::Timeout { doing, limit },
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => gone(&doing),
        _ => SourceError::Io { doing, source },
    }
}

/// The connection ended during `doing`: the guest ended, or QEMU did.
pub(super) fn gone(doing: &str) -> SourceError {
    SourceError::Gone { how: format!("the connection ended during {doing}") }
}
