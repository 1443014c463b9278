//! Xen hosts that tests use in turn, with the `varve` command in their dom0. Each test has a guest of its own.
//!
//! They are the lab's, or the one that the tests run on, when `VARVE_XEN_FILES` names the folder that `scripts/xen-tests` made.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use varve_fixtures::{Ran, Xen, XenConfig, XenGuest, XenGuestConfig, XenHost};

use crate::support::Archive;

/// Takes a test's guests and their archives away, and who watches them.
///
/// A card whose packets a gate has left held cannot go before these do.
const CLEAN: &str = r#"pkill -f '^agent watch' || true
for held in /sys/class/net/vv*; do [ ! -e "$held" ] || ip link del "${held##*/}"; done
xl list | while read -r name id rest; do
    case $id in ID|0) ;; *) xl destroy "$id" ;; esac
done
umount /tmp/*-archive 2>/dev/null || true
rm -rf /tmp/* /var/log/varve/gate-*"#;

/// Memory of a guest in MiB.
pub(crate) const GUEST_MIB: u32 = 144;

/// The host, and where the archives are: each guest's in one of its own.
pub(crate) struct Host(XenHost);

/// How many tests have a host at the same time, at most. Each wants a processor and 2 GiB of memory.
const PLACES: usize = 2;

/// The places that no test has, each with the host that its last test left.
static FREE: LazyLock<Mutex<Vec<Option<Host>>>> =
    LazyLock::new(|| Mutex::new(std::iter::repeat_with(|| None).take(PLACES).collect()));

/// Tells that there are more of them.
static FREED: Condvar = Condvar::new();

/// A host, while one test has it.
pub(crate) struct Lease {
    /// There until the test ends, once it has been booted.
    host: Option<Host>,
    /// Whether it ends with this test.
    own: bool,
    /// Where its console was when the test began.
    console: u64,
    /// This test's places, and who waits there. That of a host that is shared was taken out.
    places: Vec<Option<Host>>,
}

impl Lease {
    /// Waits for so many places.
    fn of(count: usize, own: bool) -> Self {
        // One after the other: who waits for all places would see others go before them for ever.
        static NEXT: Mutex<()> = Mutex::new(());
        let _next = lock(&NEXT);
        let mut free = lock(&FREE);
        while free.len() < count {
            free = FREED.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        // The last was used last: its host is there, unless a test has failed.
        let left = free.len() - count;
        let mut lease = Self { host: None, own, console: 0, places: free.split_off(left) };
        if !own {
            lease.host = lease.places.pop().flatten();
        }
        lease
    }

    /// The host is booted unless there is one.
    fn or_boot(mut self, boot: impl FnOnce() -> Host) -> Self {
        let host = self.host.take().unwrap_or_else(boot);
        (_, self.console) = host.0.console_since(0);
        self.host = Some(host);
        self
    }
}

impl Drop for Lease {
    /// Hands the host on. That of a test that fails ends: what is left there is no other test's concern. It first shows what
    /// ended a domain meanwhile: `scripts/test` tells by it whether that was the emulator.
    fn drop(&mut self) {
        let mut host = self.host.take();
        if let Some(failed) = host.take_if(|_| std::thread::panicking()) {
            let (console, _) = failed.0.console_since(self.console);
            if let Some(at) = console.find("Triple fault") {
                let shown: Vec<&str> = console[at..].lines().take(12).collect();
                eprintln!("on Xen's console: {}", shown.join("\n"));
            }
        }
        if !self.own {
            self.places.push(host.and_then(Host::cleaned));
        }
        lock(&FREE).append(&mut self.places);
        FREED.notify_all();
    }
}

/// A host, which is booted when none is idle.
pub(crate) fn host() -> Lease {
    Lease::of(1, false).or_boot(first)
}

/// The same, and no other host is at work meanwhile.
pub(crate) fn host_alone() -> Lease {
    Lease::of(PLACES, false).or_boot(first)
}

/// A host of the lab's for one test.
pub(crate) fn host_of(xen: Xen) -> Lease {
    Lease::of(1, true).or_boot(|| Host::boot(xen))
}

/// One that tests share.
fn first() -> Host {
    match std::env::var_os("VARVE_XEN_FILES") {
        Some(folder) => Host::here(folder.as_ref()),
        None => Host::boot(Xen::Bookworm),
    }
}

/// Poisoned or not: what a lock guards here is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Lease {
    type Target = Host;

    fn deref(&self) -> &Host {
        self.host.as_ref().unwrap()
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Host {
        self.host.as_mut().unwrap()
    }
}

/// Locked by who builds the command for a Xen: one folder serves all releases, for they share most of what is built.
pub(crate) fn building() -> MutexGuard<'static, ()> {
    static BUILDING: Mutex<()> = Mutex::new(());
    lock(&BUILDING)
}

/// Builds the command for a release of Xen and returns its bytes, without debug information.
fn build(xen: Xen) -> Vec<u8> {
    let _building = building();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xen");
    let mut cargo = Command::new("scripts/with-xen");
    cargo.arg(xen.suite()).args(["cargo", "build", "--release", "--features", "xen", "--bin", "varve"]);
    let built =
        cargo.arg("--target-dir").arg(&target).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(built.success(), "building varve for Xen in {xen} failed: {cargo:?}");
    let stripped = target.join("varve-stripped");
    let strip =
        Command::new("strip").arg("-o").arg(&stripped).arg(target.join("release/varve")).status().unwrap();
    assert!(strip.success());
    std::fs::read(stripped).unwrap()
}

impl Host {
    /// Boots a host of a release.
    fn boot(xen: Xen) -> Self {
        let varve = build(xen);
        Self::with(XenHost::boot(XenConfig { xen, ..XenConfig::default() }).unwrap(), &varve)
    }

    /// The one that the tests run on.
    fn here(folder: &Path) -> Self {
        let varve = std::fs::read(folder.join("varve")).unwrap();
        Self::with(XenHost::here(folder).unwrap(), &varve)
    }

    fn with(mut host: XenHost, varve: &[u8]) -> Self {
        host.put("/run/lab/bin/varve", 0o755, varve).unwrap();
        Self(host)
    }

    /// Itself, without what a test has left there; unless that cannot be had.
    fn cleaned(mut self) -> Option<Self> {
        self.0
            .script(CLEAN)
            .inspect_err(|error| eprintln!("a host that cannot be handed on: {error}"))
            .ok()?;
        Some(self)
    }

    /// A network card of dom0's that leads nowhere.
    pub(crate) fn spare_card(&self) -> Option<&'static str> {
        self.0.spare_card()
    }

    /// Makes sure that dom0 has an emulator.
    pub(crate) fn emulator(&mut self) {
        self.0.emulator().unwrap();
    }

    /// Creates a guest and an archive for it.
    pub(crate) fn guest(&mut self, name: &str) -> XenGuest {
        self.guest_with(name, XenGuestConfig { memory_mib: GUEST_MIB, ..XenGuestConfig::default() })
    }

    /// The same with a network card.
    pub(crate) fn guest_at(&mut self, name: &str, address: &'static str) -> XenGuest {
        let config =
            XenGuestConfig { memory_mib: GUEST_MIB, address: Some(address), ..XenGuestConfig::default() };
        self.guest_with(name, config)
    }

    /// The same, otherwise configured.
    pub(crate) fn guest_with(&mut self, name: &str, config: XenGuestConfig) -> XenGuest {
        let config = XenGuestConfig { name: name.to_owned(), ..config };
        let guest = self.0.create(&config).unwrap();
        self.varve(name, &["init"]);
        guest
    }

    /// Reaches the guest again after its domain was replaced by one of the same name.
    pub(crate) fn reach_again(&mut self, guest: &mut XenGuest) {
        self.0.reach_again(guest).unwrap();
    }

    /// Reaches a domain that was started from this guest's memory under another name.
    pub(crate) fn reach_twin(&mut self, guest: &XenGuest, name: &str) -> XenGuest {
        self.0.reach_twin(guest, name).unwrap()
    }

    /// Writes a file, or a program, to dom0.
    pub(crate) fn put(&mut self, path: &str, bytes: impl AsRef<[u8]>) {
        self.0.put(path, 0o755, bytes.as_ref()).unwrap();
    }

    /// Runs the command in dom0 on the archive and the VM of this name.
    pub(crate) fn varve(&mut self, name: &str, arguments: &[&str]) -> Ran {
        let archive = format!("/tmp/{name}-archive");
        let global = ["-r", &archive, "--vm", name];
        self.0.run("varve", &[&global[..], arguments].concat()).unwrap()
    }

    /// The same with `--json`; it must exit with `status`. The lines it printed; what is no JSON is a remark.
    pub(crate) fn json(&mut self, name: &str, arguments: &[&str], status: i32) -> Vec<Value> {
        let ran = self.varve(name, &[&["--json"], arguments].concat());
        assert_eq!(ran.status, Some(status), "{arguments:?}: {}", ran.output);
        ran.output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Brings the archive of this name out of dom0, where a command takes ten times as long.
    pub(crate) fn bring(&mut self, name: &str) -> Archive {
        let archive = Archive::missing();
        let packed = archive.beside("packed");
        self.script(name, "busybox tar -C $VARVE_ARCHIVE -cf /tmp/packed .");
        std::fs::write(&packed, self.0.get("/tmp/packed").unwrap()).unwrap();
        self.script(name, "rm /tmp/packed");
        std::fs::create_dir(archive.path()).unwrap();
        let mut tar = Command::new("tar");
        assert!(tar.arg("-xf").arg(&packed).arg("-C").arg(archive.path()).status().unwrap().success());
        std::fs::remove_file(packed).unwrap();
        archive
    }

    /// A file of dom0.
    pub(crate) fn read(&mut self, path: &str) -> Vec<u8> {
        self.0.get(path).unwrap()
    }

    /// Begins to capture the domain of this name in the background, and waits for so many epochs.
    pub(crate) fn begin_capture(&mut self, name: &str, arguments: &str, epochs: u64) {
        let capture =
            format!("varve --json capture xen:{name} {arguments} >/tmp/epochs 2>/tmp/said </dev/null &");
        self.script(name, &format!("{capture}\necho $! >/tmp/capture"));
        self.more_epochs(name, epochs);
    }

    /// Waits for so many more epochs of a capture whose lines go to these files; the number of the last.
    pub(crate) fn more_epochs(&mut self, name: &str, count: u64) -> u64 {
        let wait = format!("agent await 200 +{count} '\"type\":\"epoch\"' /tmp/epochs");
        let seen = self.script(name, &format!("{wait} || {{ cat /tmp/said /tmp/epochs; exit 1; }}"));
        seen.trim().parse::<u64>().unwrap() - 1
    }

    /// Ends it.
    pub(crate) fn end_capture(&mut self, name: &str) {
        self.script(
            name,
            "kill -TERM $(cat /tmp/capture)
agent await 100 1 summary /tmp/epochs || { cat /tmp/said; exit 1; }",
        );
    }

    /// Leaves the journal of a capture that was killed: two letters (`capture/src/xen/journal.rs`).
    pub(crate) fn leave_journal(&mut self, name: &str, letters: &str) {
        self.script(
            name,
            &format!(
                "domain=$(xl domid {name})
printf -- {letters} >/run/varve/xen-$domain-$(basename $(xenstore-read /local/domain/$domain/vm))"
            ),
        );
    }

    /// How many lines of a file in dom0 hold a text.
    pub(crate) fn lines_now(&mut self, path: &str, text: &str) -> usize {
        self.0.run("agent", &["await", "0", "+0", text, path]).unwrap().output.trim().parse().unwrap()
    }

    /// Waits until so many lines of a file in dom0 hold a text; whether they do. Short requests, so that the line to dom0 is never silent
    /// for long.
    pub(crate) fn lines(&mut self, path: &str, text: &str, count: usize, limit: Duration) -> bool {
        let (begun, count) = (Instant::now(), count.to_string());
        loop {
            let ran = self.0.run("agent", &["await", "20", &count, text, path]).unwrap();
            if ran.status == Some(0) || begun.elapsed() > limit {
                return ran.status == Some(0);
            }
        }
    }

    /// Runs a shell script in dom0 that may take longer than a silent line to dom0 is believed in.
    pub(crate) fn patiently(&mut self, name: &str, script: &str, limit: Duration) {
        self.put("/tmp/script", script);
        let run = "{ status=0; bash -e /tmp/script || status=$?; echo $status >/tmp/ended; }";
        self.script(name, &format!("rm -f /tmp/ended; {run} >/tmp/printed 2>&1 </dev/null &"));
        let ended = match self.lines("/tmp/ended", "", 1, limit) {
            true => self.script(name, "cat /tmp/ended"),
            false => format!("no end within {limit:?}"),
        };
        if ended != "0\n" {
            panic!("{ended}: {}", self.script(name, "tail -n 20 /tmp/printed /tmp/remus || true"));
        }
    }

    /// Runs a shell script in dom0 and returns what it printed. The archive and the VM are those of this name.
    pub(crate) fn script(&mut self, name: &str, script: &str) -> String {
        let environment = format!("export VARVE_ARCHIVE=/tmp/{name}-archive VARVE_VM={name}");
        self.0.script(&format!("{environment}\n{script}")).unwrap()
    }
}
