//! A domain, by the number it has as long as it lives.

use std::fmt::Write;
use std::io;
use std::sync::Arc;

use super::info::DomainInfo;
use super::sys::{Control, Store};
use crate::SourceError;

/// A domain and the ways to reach it.
pub(super) struct Domain {
    pub(super) id: u32,
    pub(super) uuid: [u8; 16],
    pub(super) name: String,
    pub(super) control: Arc<Control>,
    pub(super) store: Store,
}

impl Domain {
    /// Finds a domain by its name or its number.
    pub(super) fn find(wanted: &str) -> Result<Self, SourceError> {
        let control = Control::open().map_err(|error| no_host("Xen's control interface", &error))?;
        let control = Arc::new(control);
        let store = Store::open().map_err(|error| no_host("xenstore", &error))?;
        let id = match wanted.parse() {
            Ok(id) => Some(id),
            Err(_) => number_of(&store, wanted)?,
        };
        let info = match id {
            Some(0) => {
                return Err(SourceError::Unsuitable { reason: "domain 0 is the host's own".to_owned() });
            }
            Some(id) => control.domain(id).map_err(|error| failed("asking for the domain", error))?,
            None => None,
        };
        let Some(info) = info.filter(|info| !info.dying) else {
            let reason = format!("there is no domain {wanted:?}: `xl list` shows those there are");
            return Err(SourceError::Unsuitable { reason });
        };
        let name = name_of(&store, info.id)?.unwrap_or_else(|| wanted.to_owned());
        Ok(Self { id: info.id, uuid: info.uuid, name, control, store })
    }

    /// What Xen knows of the domain now, if it still is the one it was.
    pub(super) fn info(&self) -> Result<DomainInfo, SourceError> {
        let info = self.control.domain(self.id).map_err(|error| failed("asking for the domain", error))?;
        match info {
            Some(info) if info.uuid == self.uuid && !info.dying => Ok(info),
            _ => Err(SourceError::Gone { how: self.fate() }),
        }
    }

    /// What has become of a domain that is gone.
    fn fate(&self) -> String {
        let successor = number_of(&self.store, &self.name).ok().flatten().filter(|id| *id != self.id);
        match successor {
            Some(id) => format!(
                "domain {} was rebooted or replaced: {:?} is domain {id} now, which can be captured anew",
                self.id, self.name
            ),
            None => format!("domain {} ({:?}) was destroyed", self.id, self.name),
        }
    }

    /// The name the domain has now.
    pub(super) fn current_name(&self) -> Result<Option<String>, SourceError> {
        name_of(&self.store, self.id)
    }

    /// The path of something of this domain in xenstore.
    pub(super) fn path(&self, name: &str) -> String {
        format!("/local/domain/{}/{name}", self.id)
    }

    /// The UUID as text.
    pub(super) fn uuid_text(&self) -> String {
        let mut text = String::new();
        for (index, byte) in self.uuid.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            let _ = write!(text, "{dash}{byte:02x}");
        }
        text
    }

    /// An operation on the domain that failed: perhaps because it is gone.
    pub(super) fn failed(&self, doing: &str, error: io::Error) -> SourceError {
        match self.info() {
            Err(gone @ SourceError::Gone { .. }) => gone,
            _ => failed(doing, error),
        }
    }
}

fn number_of(store: &Store, name: &str) -> Result<Option<u32>, SourceError> {
    let numbers = store.names("/local/domain").map_err(|error| failed("listing domains", error))?;
    for id in numbers.iter().filter_map(|number| number.parse().ok()) {
        if name_of(store, id)?.as_deref() == Some(name) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn name_of(store: &Store, id: u32) -> Result<Option<String>, SourceError> {
    store.read(&format!("/local/domain/{id}/name")).map_err(|error| failed("reading a domain's name", error))
}

pub(super) fn failed(doing: &str, source: io::Error) -> SourceError {
    SourceError::Io { doing: doing.to_owned(), source }
}

fn no_host(what: &str, error: &io::Error) -> SourceError {
    let reason = format!("{what} cannot be opened ({error}): run varve as root in the dom0 of a Xen host");
    SourceError::Unsuitable { reason }
}
