//! `struct cred`: whose rights a task has (`include/linux/cred.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};

/// Members of `struct cred`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredLayout {
    /// Real user.
    pub uid: Field,
    /// Real group.
    pub gid: Field,
    /// Effective user.
    pub euid: Field,
    /// Effective group.
    pub egid: Field,
}

/// The users and groups of a task, as the initial user namespace numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cred {
    /// Real user: the first of `Uid:` in `/proc/PID/status`.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
}

impl CredLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let cred = Structure::named(btf, "cred")?;
        Ok(Self {
            uid: cred.field("uid")?,
            gid: cred.field("gid")?,
            euid: cred.field("euid")?,
            egid: cred.field("egid")?,
        })
    }

    /// Reads the `struct cred` at `at`.
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn read(&self, memory: &dyn VirtualMemory, at: Gva) -> Result<Cred, Fault> {
        let id = |field: Field| field.read_u32(memory, at);
        Ok(Cred { uid: id(self.uid)?, gid: id(self.gid)?, euid: id(self.euid)?, egid: id(self.egid)? })
    }
}
