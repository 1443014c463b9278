//! The gate's side of its scanner: starts it, asks it, gives it what it needs of the past, and replaces it when it dies or hangs.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use varve_analyze::engine::Live;
use varve_capture::gate::{Judge, Question, Verdict};
use varve_formats::{Gfn, PAGE_SIZE, PhysicalMemory};
use varve_store::{Archive, EpochMemory};

use super::wire::{self, Frame, Order, PAGES_MAX, Report, WireVcpu, WireVerdict};
use crate::exit::Failure;

/// The user with no rights (`nobody`), and its group.
const NOBODY: u32 = 65534;

/// How the hidden subcommand is called that a scanner runs.
pub(crate) const SUBCOMMAND: &str = "gate-scanner";

/// Where a program finds itself, whatever it is called and wherever it lies.
const MYSELF: &str = "/proc/self/exe";

/// What a scanner is started with.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) archive: Archive,
    pub(crate) vm: String,
    /// The policy, as TOML.
    pub(crate) policy: String,
    /// Names of scans.
    pub(crate) scans: Vec<String>,
}

/// The boots that the scanner knows: what the next one need not look for again.
struct Pinned {
    latest: Vec<u8>,
    /// Verdicts since they were written to the archive.
    unwritten: u64,
}

/// How long a scanner may take to read what it is told.
const TELL: Duration = Duration::from_secs(10);

/// Most that a scanner may have said and nobody has heard yet.
const NEWS_MAX: usize = 256;

/// Most that is passed on of what a scanner said before it ended, in bytes.
const WORDS_MAX: u64 = 1024;

/// How many verdicts a scanner's knowledge of boots may be behind in the archive.
const UNWRITTEN_MAX: u64 = 64;

/// A scanner, which is replaced when it ends.
pub(crate) struct Scanner {
    task: Task,
    pinned: Arc<Mutex<Pinned>>,
    running: Option<Running>,
    /// The epoch that was asked about.
    asked: Option<u64>,
    /// Told how many epochs of the past have been looked at.
    progress: Box<dyn Fn(u64) + Send + Sync>,
}

/// What a scanner says that is of use to the gate.
enum News {
    Learned(u64),
    Ready,
    Verdict {
        epoch: u64,
        verdict: Verdict,
        took: Duration,
    },
    /// It will say no more, for this reason.
    Ended(String),
}

struct Running {
    child: Child,
    /// Our end of the line.
    line: UnixStream,
    /// The same, for one who says something at a time.
    stream: Arc<Mutex<UnixStream>>,
    news: Receiver<News>,
    /// The mirror it has.
    mirror: Option<u64>,
    listening: Option<JoinHandle<()>>,
}

impl Scanner {
    pub(crate) fn new(task: Task, progress: impl Fn(u64) + Send + Sync + 'static) -> Self {
        let latest = task.archive.pin(&task.vm, Live::PIN_NAME).ok().flatten().unwrap_or_default();
        let pinned = Arc::new(Mutex::new(Pinned { latest, unwritten: 0 }));
        Self { task, pinned, running: None, asked: None, progress: Box::new(progress) }
    }

    /// Starts it and waits until it has looked at what is in the archive.
    pub(crate) fn prepare(&mut self, stop: impl Fn() -> bool) -> Result<(), Failure> {
        let failure = |reason: String| Failure::new(format_args!("the scanner: {reason}"));
        self.start().map_err(failure)?;
        while let Some(running) = &self.running {
            if stop() {
                return Err(failure("stopped as asked".to_owned()));
            }
            match running.news.recv_timeout(Duration::from_millis(100)) {
                Ok(News::Ready) => return Ok(()),
                Ok(News::Learned(epochs)) => (self.progress)(epochs),
                Ok(News::Verdict { .. }) => {}
                Ok(News::Ended(reason)) => return Err(failure(self.ended(reason))),
                Err(RecvTimeoutError::Disconnected) => return Err(failure(self.ended(String::new()))),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        Err(failure("it is not there".to_owned()))
    }

    fn start(&mut self) -> Result<(), String> {
        let running = Running::start(&self.task, &self.pinned)
            .map_err(|error| format!("cannot be started: {error}"))?;
        self.running = Some(running);
        Ok(())
    }

    /// Why it has ended; it is gone then.
    fn ended(&mut self, reason: String) -> String {
        let Some(mut running) = self.running.take() else { return reason };
        let Ok(status) = running.end() else { return reason };
        let how = match status.signal() {
            Some(signal) => format!("the scanner was ended by signal {signal}"),
            None if reason.is_empty() => format!("the scanner ended: {status}"),
            None => return reason,
        };
        let words = running.last_words();
        if words.is_empty() { how } else { format!("{how}; it said: {words}") }
    }

    fn ask(&mut self, question: &Question<'_>) -> Result<(), String> {
        if self.running.is_none() {
            self.start()?;
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        let broken = |error: io::Error| format!("the scanner cannot be asked: {error}");
        let fresh = running.mirror != Some(question.mirror.serial());
        let mut changes = Vec::new();
        if fresh {
            let file = question.mirror.reader().map_err(broken)?;
            let order = Order::Mirror { segments: wire::segments(question.mirror.segments()) };
            running.tell(&order, &[], Some(&file)).map_err(broken)?;
            running.mirror = Some(question.mirror.serial());
        } else {
            changes = wire::changes(question.mirror.changes());
        }
        let vcpus = question.vcpus.iter().map(WireVcpu::from).collect();
        let absent = question.mirror.absent().map(|gfn| gfn.0).collect();
        running
            .tell(&Order::Look { epoch: question.epoch, vcpus, absent, fresh }, &changes, None)
            .map_err(broken)
    }
}

impl Judge for Scanner {
    fn begin(&mut self, question: &Question<'_>) -> Result<(), String> {
        self.asked = None;
        // One that has died since is noticed now; the next is asked instead.
        if self.ask(question).is_err() {
            self.ended(String::new());
            self.ask(question)?;
        }
        self.asked = Some(question.epoch);
        Ok(())
    }

    fn answer(&mut self, until: Instant) -> Option<(Verdict, Duration)> {
        loop {
            let missing = |reason: String| Some((Verdict::Missing(reason), Duration::ZERO));
            let Some(running) = &self.running else { return missing("there is no scanner".to_owned()) };
            let left = until.saturating_duration_since(Instant::now());
            match running.news.recv_timeout(left) {
                Ok(News::Verdict { epoch, verdict, took }) if self.asked == Some(epoch) => {
                    self.asked = None;
                    return Some((verdict, took));
                }
                Ok(News::Ended(reason)) => {
                    let reason = self.ended(reason);
                    return missing(reason);
                }
                // One that goes on saying what nobody asked for is not listened to any longer.
                Ok(_) if left.is_zero() => return None,
                Ok(News::Learned(epochs)) => (self.progress)(epochs),
                Ok(News::Ready | News::Verdict { .. }) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = self.ended("the scanner says nothing more".to_owned());
                    return missing(reason);
                }
            }
        }
    }

    fn stop(&mut self) {
        if self.asked.take().is_some() {
            self.ended(String::new());
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.ended(String::new());
    }
}

impl Running {
    fn start(task: &Task, pinned: &Arc<Mutex<Pinned>>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(MYSELF);
        command.arg(SUBCOMMAND).env_clear().current_dir("/");
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
        // In a process group of its own: Ctrl-C is the gate's to answer.
        command.process_group(0);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let child = command.spawn()?;
        drop(command);
        ours.set_write_timeout(Some(TELL))?;
        let (line, reader) = (ours.try_clone()?, ours.try_clone()?);
        let stream = Arc::new(Mutex::new(ours));
        let (sender, news) = mpsc::sync_channel(NEWS_MAX);
        let conversation = Conversation {
            task: task.clone(),
            pinned: Arc::clone(pinned),
            reader,
            stream: Arc::clone(&stream),
            news: sender,
            past: None,
        };
        let listening =
            std::thread::Builder::new().name("scanner".to_owned()).spawn(|| conversation.hold())?;
        let running = Self { child, line, stream, news, mirror: None, listening: Some(listening) };
        let epochs = task.archive.epoch_count(&task.vm).unwrap_or(0);
        let pinned = pinned.lock().unwrap_or_else(PoisonError::into_inner).latest.clone();
        let begin = Order::Begin { policy: task.policy.clone(), scans: task.scans.clone(), epochs };
        running.tell(&begin, &pinned, None)?;
        Ok(running)
    }

    fn tell(&self, order: &Order, bytes: &[u8], file: Option<&File>) -> io::Result<()> {
        wire::send(&self.stream.lock().unwrap_or_else(PoisonError::into_inner), order, bytes, file)
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        // One that ended by itself has its own status.
        let status = match self.child.try_wait()? {
            Some(status) => status,
            None => {
                self.child.kill()?;
                self.child.wait()?
            }
        };
        if let Some(listening) = self.listening.take() {
            // It ends with the line.
            let _ = self.line.shutdown(Shutdown::Both);
            let _ = listening.join();
        }
        Ok(status)
    }

    /// The beginning of what it has said of itself, for instance why it panicked. It has ended: a line that it filled is its own
    /// affair, and no other process has it.
    fn last_words(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(WORDS_MAX).read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended by now, or it cannot be.
        let _ = self.end();
    }
}

/// Listens to a scanner, and answers what it wants to know.
struct Conversation {
    task: Task,
    pinned: Arc<Mutex<Pinned>>,
    reader: UnixStream,
    stream: Arc<Mutex<UnixStream>>,
    news: SyncSender<News>,
    past: Option<EpochMemory>,
}

impl Conversation {
    fn hold(mut self) {
        let reason = loop {
            match wire::receive::<Report>(&self.reader) {
                Ok(Some(frame)) => match self.hear(frame) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => break format!("the scanner: {error}"),
                },
                Ok(None) => break String::new(),
                Err(error) => break format!("the scanner says what makes no sense: {error}"),
            }
        };
        // The line may be full of what it has said: that nobody says more is news as well.
        let _ = self.news.try_send(News::Ended(reason));
    }

    /// Whether anybody still listens.
    fn hear(&mut self, frame: Frame<Report>) -> io::Result<bool> {
        let news = match frame.text {
            Report::Learned { epochs } => News::Learned(epochs),
            Report::Ready => News::Ready,
            Report::Cannot { reason } => News::Ended(wire::shortened([reason]).concat()),
            Report::WantEpoch { epoch } => {
                let answer = self.epoch(epoch).map(|memory| Order::Epoch {
                    regions: wire::regions(memory.regions()),
                    vcpus: memory.vcpus().iter().map(WireVcpu::from).collect(),
                });
                self.reply(answer.unwrap_or_else(|reason| Order::Refused { reason }), &[])?;
                return Ok(true);
            }
            Report::WantPages { epoch, gfn, count } => {
                match self.epoch(epoch).map(|memory| pages(memory, gfn, count.min(PAGES_MAX))) {
                    Ok((there, bytes)) => self.reply(Order::Pages { there }, &bytes)?,
                    Err(reason) => self.reply(Order::Refused { reason }, &[])?,
                }
                return Ok(true);
            }
            Report::Verdict { epoch, verdict, because, took_us } => {
                self.pin(epoch, frame.bytes)?;
                let because = wire::shortened(because);
                let verdict = match verdict {
                    WireVerdict::Passed => Verdict::Passed,
                    WireVerdict::Bad => Verdict::Bad(because),
                    WireVerdict::Incomplete => Verdict::Incomplete(because.join("; ")),
                };
                News::Verdict { epoch, verdict, took: Duration::from_micros(took_us) }
            }
        };
        match self.news.try_send(news) {
            Ok(()) | Err(TrySendError::Full(News::Learned(_))) => Ok(true),
            Err(TrySendError::Full(_)) => Err(io::Error::other("it says more than it is asked")),
            Err(TrySendError::Disconnected(_)) => Ok(false),
        }
    }

    fn epoch(&mut self, number: u64) -> Result<&EpochMemory, String> {
        if self.past.as_ref().is_none_or(|known| known.record().number != number) {
            let found = self.task.archive.epoch(&self.task.vm, number);
            self.past = Some(found.map_err(|error| error.to_string())?);
        }
        self.past.as_ref().ok_or_else(String::new)
    }

    /// Remembers the boots that the scanner knows, and now and then has the archive remember them. One that was taken over
    /// cannot make its successors believe in another past.
    fn pin(&self, epoch: u64, boots: Vec<u8>) -> io::Result<()> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if !Live::continues(&pinned.latest, &boots, epoch) {
            return Err(io::Error::other("it tells another past than before"));
        }
        pinned.latest = boots;
        pinned.unwritten += 1;
        // The first VM epoch is not there yet when it is judged.
        if pinned.unwritten % UNWRITTEN_MAX == 2 {
            // They can be found again: an archive that cannot keep them is said elsewhere.
            let _ = self.task.archive.set_pin(&self.task.vm, Live::PIN_NAME, &pinned.latest);
        }
        Ok(())
    }

    fn reply(&self, order: Order, bytes: &[u8]) -> io::Result<()> {
        wire::send(&self.stream.lock().unwrap_or_else(PoisonError::into_inner), &order, bytes, None)
    }
}

/// Which of these pages there are, and their contents.
fn pages(memory: &EpochMemory, gfn: u64, count: u64) -> (Vec<bool>, Vec<u8>) {
    let mut bytes = Vec::new();
    let there = (0..count).map(|index| {
        let mut page = [0; PAGE_SIZE];
        let at = gfn.checked_add(index).and_then(|gfn| Gfn(gfn).gpa());
        let there = at.is_some_and(|at| memory.read(at, &mut page).is_ok());
        if there {
            bytes.extend_from_slice(&page);
        }
        there
    });
    (there.collect(), bytes)
}
