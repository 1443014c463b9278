//! `struct file`, `struct inode` and `struct super_block` (`include/linux/fs.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva};

use super::layout::{Field, Missing, Structure};
use super::string::GuestString;
use crate::guest::Guest;

/// `FMODE_BACKING` (6.5 on): the file stands in for the one that the user opened, in a stacked file system.
const BACKING: u64 = 1 << 24;

/// Members of `struct file` and of what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLayout {
    /// `struct path`: where the file was opened.
    pub path: Field,
    /// `FMODE_*`.
    pub mode: Field,
    /// Its inode.
    pub inode: Field,
    /// `backing_file.user_path`, behind a `struct file` with `FMODE_BACKING` set.
    pub user_path: Option<Field>,
    /// `dentry.d_inode`.
    pub dentry_inode: Field,
    /// `path.dentry`.
    pub path_dentry: Field,
    /// Number of an inode in its file system.
    pub inode_number: Field,
    /// File system of an inode.
    pub super_block: Field,
    /// Device of a file system.
    pub device: Field,
}

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// Number of the inode.
    pub inode: u64,
}

impl FileLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let file = Structure::named(btf, "file")?;
        let inode = Structure::named(btf, "inode")?;
        let user_path =
            Structure::named(btf, "backing_file").ok().and_then(|file| file.optional("user_path"));
        Ok(Self {
            path: file.field("f_path")?,
            mode: file.field("f_mode")?,
            inode: file.field("f_inode")?,
            user_path,
            dentry_inode: Structure::named(btf, "dentry")?.field("d_inode")?,
            path_dentry: Structure::named(btf, "path")?.field("dentry")?,
            inode_number: inode.field("i_ino")?,
            super_block: inode.field("i_sb")?,
            device: Structure::named(btf, "super_block")?.field("s_dev")?,
        })
    }
}

impl Guest<'_> {
    /// Path of the `struct file` at `file`, as `/proc` shows it.
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn file_path(&self, file: Gva) -> Result<GuestString, Fault> {
        let layout = self.file_layout(file)?;
        let path = self.backing_path(layout, file)?.map_or_else(|| layout.path.of(file), Ok)?;
        self.path(path)
    }

    /// Device and inode of the `struct file` at `file`, as `/proc/PID/maps` shows them.
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn file_identity(&self, file: Gva) -> Result<FileIdentity, Fault> {
        let (layout, memory) = (self.file_layout(file)?, self.space());
        let inode = match self.backing_path(layout, file)? {
            Some(path) => layout.dentry_inode.pointer(memory, layout.path_dentry.pointer(memory, path)?)?,
            None => layout.inode.pointer(memory, file)?,
        };
        let super_block = layout.super_block.pointer(memory, inode)?;
        let device = layout.device.read_u32(memory, super_block)?;
        // `MAJOR` and `MINOR` of the kernel's own `dev_t` (`include/linux/kdev_t.h`).
        Ok(FileIdentity {
            device: (device >> 20, device & 0xf_ffff),
            inode: layout.inode_number.read(memory, inode)?,
        })
    }

    fn file_layout(&self, file: Gva) -> Result<&FileLayout, Fault> {
        self.layouts().file.as_ref().map_err(|_| Fault::Malformed { what: "BTF of struct file", at: file.0 })
    }

    /// Address of the `struct path` that the user opened, when `file` stands in for it.
    fn backing_path(&self, layout: &FileLayout, file: Gva) -> Result<Option<Gva>, Fault> {
        let Some(user_path) = layout.user_path else { return Ok(None) };
        let backing = layout.mode.read(self.space(), file)? & BACKING != 0;
        if backing { user_path.of(file).map(Some) } else { Ok(None) }
    }
}
