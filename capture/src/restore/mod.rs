//! A domain is started again from an epoch.
//!
//! Everything that can fail without harm is tried first: the plan is held against the domains there are, and the stream is
//! written once to nowhere, which reads every page of the epoch. Only then is a domain ended that is to be replaced, the
//! disks are put back by the user's command, and `xl restore` is fed.

mod configuration;
mod error;
#[cfg(test)]
mod tests;
mod xl;

use std::io::{self, BufWriter, Write};

use varve_formats::PhysicalMemory;
use varve_formats::write::{Progress, WriteError, Written};
use varve_formats::xen::stream::{self, Damaged, SaveState};

use self::configuration::Configuration;
pub use self::error::RestoreError;
use crate::Interrupt;
use crate::hook::Hook;
use crate::output::OutputBuffer;

/// What the user wants of the domain.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Its name, if not the one it had; it then is a domain of its own beside the other.
    pub name: Option<String>,
    /// Where to connect all its network interfaces to, if not where they were.
    pub bridge: Option<String>,
    /// Whether a domain of that name is ended for it.
    pub replace: bool,
    /// Whether nothing of it may lead anywhere but to that bridge.
    pub isolated: bool,
    /// What happens to its disks.
    pub disks: Disks,
}

/// What happens to the disks of the domain.
#[derive(Clone, Debug, Default)]
pub enum Disks {
    /// A domain with disks is refused.
    #[default]
    Refuse,
    /// They are taken as they are.
    AsTheyAre,
    /// The user's command puts back what was snapshot with the epoch. It prints `VDEV=PATH` for a disk that is another file or
    /// device now.
    PutBack {
        /// The command.
        command: Hook,
        /// What the command at the epoch called the snapshot.
        snapshot: Option<String>,
    },
}

/// A domain that can be started.
#[derive(Debug)]
pub struct Plan {
    state: SaveState,
    configuration: Configuration,
    replaces: Option<Replaced>,
    disks: Disks,
}

/// A domain that is ended for the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// A domain that was started, and stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Bytes of the stream it was made from.
    pub stream_bytes: u64,
}

impl Restored {
    /// Lets it run.
    ///
    /// # Errors
    /// [`RestoreError::LeftPaused`].
    pub fn unpause(&self) -> Result<(), RestoreError> {
        xl::unpause(self.id)
            .map_err(|error| RestoreError::LeftPaused { id: self.id, source: Box::new(error) })
    }
}

impl Plan {
    /// What it takes to start a domain of this state. Changes nothing.
    ///
    /// # Errors
    /// [`RestoreError`]: the wishes contradict each other or what there is.
    pub fn new(mut state: SaveState, wishes: Wishes) -> Result<Self, RestoreError> {
        let mut configuration = Configuration::parse(state.config.as_ref())?;
        if let Some(name) = wishes.name.as_deref().filter(|name| *name != configuration.name()) {
            if !is_name(name) {
                return Err(RestoreError::BadName { name: name.to_owned() });
            }
            configuration.rename(name)?;
        }
        if let Some(bridge) = &wishes.bridge {
            configuration.connect_to(bridge);
        }
        if let Some(what) = configuration.leads_out().filter(|_| wishes.isolated) {
            return Err(RestoreError::LeadsOut { what });
        }
        let refused = match &wishes.disks {
            Disks::Refuse => Some("nothing says that they are of the same moment"),
            Disks::PutBack { snapshot: None, .. } => Some("no snapshot of them was taken with this epoch"),
            Disks::AsTheyAre | Disks::PutBack { .. } => None,
        };
        let disks = configuration.disks();
        if let Some(reason) = refused.filter(|_| !disks.is_empty()) {
            return Err(RestoreError::Disks { disks: disks.join(", "), reason });
        }
        let domains = xl::domains()?;
        let same = domains.iter().find(|domain| domain.configuration.name() == configuration.name());
        if let Some(domain) = same.filter(|_| !wishes.replace) {
            return Err(RestoreError::Exists { name: domain.configuration.name().to_owned() });
        }
        let replaces =
            same.map(|domain| Replaced { id: domain.id, name: domain.configuration.name().to_owned() });
        let others = domains.iter().filter(|domain| Some(domain.id) != replaces.as_ref().map(|it| it.id));
        let disks_stay = matches!(wishes.disks, Disks::AsTheyAre);
        no_conflict(&configuration, others, disks_stay)?;
        if let Some(bridge) = configuration.missing_bridge() {
            return Err(RestoreError::NoBridge { bridge: bridge.to_owned() });
        }
        if let Some(disk) = configuration.missing_disk().filter(|_| disks_stay) {
            return Err(RestoreError::NoDisk { disk: disk.to_owned() });
        }
        state.config = Some(configuration.encode());
        Ok(Self { state, configuration, replaces, disks: wishes.disks })
    }

    /// The name it will have.
    pub fn name(&self) -> &str {
        self.configuration.name()
    }

    /// The disks it will have, as they are called in the guest, with what stands behind them.
    pub fn disks(&self) -> Vec<String> {
        self.configuration.disks()
    }

    /// The domain that will be ended.
    pub const fn replaces(&self) -> Option<&Replaced> {
        self.replaces.as_ref()
    }

    /// Reads all of the epoch as [`Plan::carry_out`] will. Changes nothing.
    ///
    /// # Errors
    /// [`RestoreError::Damaged`], [`RestoreError::Write`].
    pub fn rehearse(
        &self,
        memory: &dyn PhysicalMemory,
        progress: Progress<'_>,
    ) -> Result<Written, RestoreError> {
        let written = stream::write(&self.state, memory, Damaged::Zeros, &mut io::sink(), progress)?;
        match written.first_missing {
            None => Ok(written),
            Some(first) => Err(RestoreError::Damaged { missing: written.frames_missing, first }),
        }
    }

    /// Does it: the domain is there, and paused. Asks `interrupt` once more before anything is changed, and from then on goes through with it.
    ///
    /// # Errors
    /// [`RestoreError`]; after all but [`RestoreError::Ended`] everything is as it was.
    pub fn carry_out(
        mut self,
        memory: &dyn PhysicalMemory,
        interrupt: &dyn Interrupt,
        progress: Progress<'_>,
    ) -> Result<Restored, RestoreError> {
        if interrupt.finish() {
            return Err(RestoreError::Stopped);
        }
        let replaced = self.replaces.take();
        if let Some(replaced) = &replaced {
            let held = u16::try_from(replaced.id).ok().map(OutputBuffer::silence).transpose()?.flatten();
            xl::destroy(replaced.id)?;
            xl::wait_until_gone(replaced.id);
            // It held what is gone now; what may be left of it is in nobody's way.
            let _ = held.map(OutputBuffer::remove);
        }
        self.start(memory, progress).map_err(|error| match (error, replaced) {
            (error, None) => error,
            (error, Some(replaced)) => RestoreError::Ended { name: replaced.name, source: Box::new(error) },
        })
    }

    fn start(
        mut self,
        memory: &dyn PhysicalMemory,
        progress: Progress<'_>,
    ) -> Result<Restored, RestoreError> {
        self.put_disks_back()?;
        let written = xl::restore(|out| {
            let mut out = BufWriter::with_capacity(1 << 20, out);
            // Of a stream without its end `xl` makes no domain.
            let written = stream::write(&self.state, memory, Damaged::Refused, &mut out, progress)?;
            let (doing, offset) = ("the end of the stream", written.file_bytes);
            out.flush().map_err(|source| WriteError::Io { doing, offset, source })?;
            Ok(written)
        })?;
        let uuid = self.configuration.uuid();
        let domains = xl::domains()?;
        let domain = domains.iter().filter(|domain| domain.configuration.uuid() == uuid);
        let Some(domain) = domain.max_by_key(|domain| domain.id) else {
            let reason = format!("the domain {:?} it made is not there", self.name());
            return Err(RestoreError::Xl { command: "restore".to_owned(), reason });
        };
        Ok(Restored {
            id: domain.id,
            name: domain.configuration.name().to_owned(),
            uuid: uuid.to_owned(),
            stream_bytes: written.file_bytes,
        })
    }

    fn put_disks_back(&mut self) -> Result<(), RestoreError> {
        let Disks::PutBack { command, snapshot: Some(snapshot) } = &self.disks else { return Ok(()) };
        if self.configuration.disks().is_empty() {
            return Ok(());
        }
        let printed =
            command.run(&[("VARVE_DOMAIN", self.configuration.name()), ("VARVE_SNAPSHOT", snapshot)])?;
        for line in printed.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.configuration.move_disk(line)?;
        }
        no_conflict(&self.configuration, &xl::domains()?, true)?;
        self.state.config = Some(self.configuration.encode());
        Ok(())
    }
}

/// No two domains share a network address on a bridge or, if `disks` are looked at, a disk.
fn no_conflict<'a>(
    new: &Configuration,
    others: impl IntoIterator<Item = &'a xl::Domain>,
    disks: bool,
) -> Result<(), RestoreError> {
    let (nics, paths) = (new.nics(), if disks { new.disk_paths() } else { Vec::new() });
    for other in others {
        let (other, name) = (&other.configuration, other.configuration.name().to_owned());
        let same = other.nics().into_iter().find(|nic| nics.contains(nic));
        if let Some(nic) = same {
            return Err(RestoreError::SameAddress { other: name, mac: nic.mac, bridge: nic.bridge });
        }
        let same = other.disk_paths().into_iter().find(|path| paths.contains(path));
        if let Some(path) = same {
            return Err(RestoreError::SameDisk { other: name, disk: path.to_owned() });
        }
    }
    Ok(())
}

/// Whether a domain can have this name: xl takes a number for a domain's, and makes files of the name.
fn is_name(name: &str) -> bool {
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    !number
        && !name.starts_with(['-', '.'])
        && name.len() < 200
        && !name.contains(|c: char| c == '/' || c.is_control())
}
