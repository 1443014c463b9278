//! Real Debian guests, captured live: what varve lists is what the guest says of itself, and what was planted from
//! outside is found in exactly the epochs where it is.

mod findings;
mod lists;
mod live;

use varve_fixtures::history::{EPOCHS, Epoch, SCHEDULE, history};
use varve_fixtures::{Guest, GuestConfig, Kernel, LabError};

use crate::support::{Archive, text};

/// The policy that goes with the plant `denied_process`.
const POLICY: &str = "[process]\ndeny = [\"xmrig\"]\n";

/// A captured history, and what the guest said at each epoch.
pub(crate) struct Recorded {
    archive: Archive,
    policy: String,
    epochs: Vec<Epoch>,
    kallsyms: String,
}

impl Recorded {
    pub(crate) fn new(archive: Archive, epochs: Vec<Epoch>, kallsyms: String) -> Self {
        let policy = archive.beside("policy.toml");
        std::fs::write(&policy, POLICY).unwrap();
        let policy = text(&policy).to_owned();
        Self { archive, policy, epochs, kallsyms }
    }

    /// Holds everything that can be against each other.
    pub(crate) fn agrees(&self) {
        lists::agree(self);
        findings::agree(self);
        live::agree(self);
    }
}

/// How often a history is begun whose guest's emulator ends in the middle of it.
const ATTEMPTS: usize = 3;

/// Boots a guest, lives through the history of all plants with it, and captures each epoch live.
fn record(config: &GuestConfig) -> Recorded {
    for _ in 1..ATTEMPTS {
        match record_once(config) {
            Err(error) if error.has_ended() => eprintln!("beginning the history again: {error}"),
            recorded => return recorded.unwrap(),
        }
    }
    record_once(config).unwrap()
}

fn record_once(config: &GuestConfig) -> Result<Recorded, LabError> {
    let mut guest = Guest::boot(config)?;
    let archive = Archive::create();
    let source = format!("qemu:{}", text(&guest.qmp_socket()));
    let kallsyms = String::from_utf8(guest.read_file("/proc/kallsyms")?).unwrap();
    let epochs = history(&mut guest, &SCHEDULE, EPOCHS, |_, number| {
        let lines = archive.json(&["capture", &source, "--epochs", "1"], 0);
        assert_eq!((&lines[0]["epoch"], &lines[0]["type"]), (&number.into(), &"epoch".into()), "{lines:?}");
    })?;
    Ok(Recorded::new(archive, epochs, kallsyms))
}

fn every_list_and_every_finding(config: &GuestConfig) {
    record(config).agrees();
}

#[test]
fn linux_6_1_with_kaslr_and_four_levels() {
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Bookworm, ..GuestConfig::default() });
}

#[test]
fn linux_6_1_without_kaslr_and_with_five_levels() {
    let config = GuestConfig { kaslr: false, five_level: true, ..GuestConfig::default() };
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Bookworm, ..config });
}

#[test]
fn linux_6_12_with_kaslr_and_five_levels() {
    let config = GuestConfig { five_level: true, ..GuestConfig::default() };
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Trixie, ..config });
}

#[test]
fn linux_6_12_without_kaslr_and_with_four_levels() {
    let config = GuestConfig { kaslr: false, ..GuestConfig::default() };
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Trixie, ..config });
}

#[test]
fn linux_7_with_kaslr_and_four_levels() {
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Backports, ..GuestConfig::default() });
}

#[test]
fn linux_7_without_kaslr_and_with_five_levels() {
    let config = GuestConfig { kaslr: false, five_level: true, ..GuestConfig::default() };
    every_list_and_every_finding(&GuestConfig { kernel: Kernel::Backports, ..config });
}
