//! The emulator of an HVM domain's devices, a QEMU in dom0: it writes to the domain's memory, and Xen does not see that. While
//! QEMU is told to, it tells Xen of what it writes (`xen_hvm_modified_memory` of its `hw/i386/xen/xen-hvm.c`), as libxl has it do
//! when a domain is saved (`libxl__domain_suspend_common_switch_qemu_logdirty` of `tools/libs/light/libxl_dom_save.c`).
//!
//! It tells after it has written. An epoch that is taken in between has the page as it was, and the next has what was written: the
//! guest was not told before that either.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::domain::{Domain, failed};
use crate::SourceError;
use crate::qemu::Qmp;

/// How long QEMU may take for each answer.
const LIMIT: Duration = Duration::from_secs(30);

/// The emulator of a domain.
pub(super) struct Emulator {
    socket: PathBuf,
}

impl Emulator {
    /// That of the domain, if it has one. PVH domains may have a QEMU for disks, which takes them through grants as backends
    /// in the kernel do.
    pub(super) fn of(domain: &Domain) -> Result<Option<Self>, SourceError> {
        let read = |path: String| {
            domain
                .store
                .read(&path)
                .map_err(|error| failed("asking whether the domain has an emulator", error))
        };
        let emulated = match read(format!("/libxl/{}/type", domain.id))? {
            Some(kind) => kind == "hvm",
            // Of another toolstack.
            None => read(format!("/local/domain/0/device-model/{}/state", domain.id))?.is_some(),
        };
        let socket = PathBuf::from(format!("/var/run/xen/qmp-libxl-{}", domain.id));
        Ok(emulated.then_some(Self { socket }))
    }

    /// Has it tell Xen of what it writes, or no longer; whether or not it does already.
    ///
    /// QEMU aborts, and the domain is without devices, when it is to end what it does not do (`memory_global_dirty_log_do_stop` of its
    /// `system/memory.c`, since 6.2): it begins first. Nobody comes in between, for it serves one client at a time.
    pub(super) fn tell(&self, on: bool) -> Result<(), SourceError> {
        self.told(on).map_err(|error| SourceError::Unsuitable {
            reason: format!(
                "the domain's devices are emulated, and their emulator cannot be told to let Xen know what it writes, which an \
                 epoch would not have: {error}"
            ),
        })
    }

    fn told(&self, on: bool) -> Result<(), SourceError> {
        // Connected no longer than that takes: libxl is another client.
        let mut qmp = Qmp::connect(&self.socket, LIMIT)?;
        let version = qmp.execute("query-version", json!({}), LIMIT)?;
        if aborts_when_told_twice(&version) {
            let reason = "QEMU 6.2 ends, and its domain with it, when it is told so twice: have the domain use another".to_owned();
            return Err(SourceError::Unsuitable { reason });
        }
        let mut set =
            |enable: bool| qmp.execute("xen-set-global-dirty-log", json!({ "enable": enable }), LIMIT);
        set(true)?;
        if !on {
            set(false)?;
        }
        Ok(())
    }
}

/// Whether a QEMU of this version aborts when it is to begin what it does already: `memory_global_dirty_log_start` of 6.2 alone.
fn aborts_when_told_twice(version: &Value) -> bool {
    let number = |of: &str| version.pointer(of).and_then(Value::as_u64);
    (number("/qemu/major"), number("/qemu/minor")) == (Some(6), Some(2))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::aborts_when_told_twice;

    #[test]
    fn one_version_aborts_when_told_twice() {
        let aborts = |major: u8, minor: u8| {
            aborts_when_told_twice(
                &json!({ "qemu": { "major": major, "minor": minor, "micro": 0 }, "package": "" }),
            )
        };
        assert!(aborts(6, 2));
        assert!(!aborts(4, 2) && !aborts(6, 1) && !aborts(7, 2) && !aborts(10, 0));
    }
}
