//! `struct path`: a name in a mounted file system (`include/linux/path.h`, `fs/mount.h`, `fs/d_path.c`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::string::GuestString;
use crate::guest::Guest;

/// Components and mounts passed on the way up at most. `PATH_MAX` bounds what can be opened to 2,048 components, but a
/// directory tree can be deeper.
const MAX_STEPS: usize = 1 << 14;
/// Bytes of a path at most.
const MAX_PATH_BYTES: usize = 1 << 16;
/// Bytes of a component at most. `NAME_MAX` is 255; names that the kernel makes up can be longer.
const MAX_NAME_BYTES: u32 = 4096;

/// Members of `struct path`, `struct dentry`, `struct vfsmount` and `struct mount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLayout {
    /// `path.mnt`: the `struct vfsmount` within a `struct mount`.
    pub mount: Field,
    /// `path.dentry`.
    pub dentry: Field,
    /// Directory that a dentry is in; itself for a root.
    pub parent: Field,
    /// Characters of a dentry's name.
    pub name: Field,
    /// Their number.
    pub name_len: Field,
    /// Null once the dentry is out of the hash table: unlinked.
    pub hash_pprev: Field,
    /// `dentry.d_op`.
    pub ops: Field,
    /// `dentry_operations.d_dname`.
    pub ops_name: Field,
    /// `dentry.d_inode`.
    pub inode: Field,
    /// `inode.i_ino`.
    pub inode_number: Field,
    /// Root of a mount, in `struct vfsmount`.
    pub mount_root: Field,
    /// The `struct vfsmount` in a `struct mount`.
    pub vfsmount: Field,
    /// The mount that a mount is on; itself for the first.
    pub mount_parent: Field,
    /// The directory there.
    pub mount_point: Field,
}

impl PathLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let path = Structure::named(btf, "path")?;
        let dentry = Structure::named(btf, "dentry")?;
        let mount = Structure::named(btf, "mount")?;
        Ok(Self {
            mount: path.field("mnt")?,
            dentry: path.field("dentry")?,
            parent: dentry.field("d_parent")?,
            name: dentry.field("d_name.name")?,
            name_len: dentry.field("d_name.len")?,
            hash_pprev: dentry.field("d_hash.pprev")?,
            ops: dentry.field("d_op")?,
            ops_name: Structure::named(btf, "dentry_operations")?.field("d_dname")?,
            inode: dentry.field("d_inode")?,
            inode_number: Structure::named(btf, "inode")?.field("i_ino")?,
            mount_root: Structure::named(btf, "vfsmount")?.field("mnt_root")?,
            vfsmount: mount.field("mnt")?,
            mount_parent: mount.field("mnt_parent")?,
            mount_point: mount.field("mnt_mountpoint")?,
        })
    }
}

/// A path that is put together from its end.
#[derive(Default)]
struct Reversed {
    components: Vec<Vec<u8>>,
    len: usize,
}

impl Reversed {
    fn prepend(&mut self, component: Vec<u8>, at: Gva) -> Result<(), Fault> {
        self.len += component.len() + 1;
        if self.len > MAX_PATH_BYTES || self.components.len() > MAX_STEPS {
            return Err(Fault::Limit { what: "path", limit: MAX_PATH_BYTES as u64, at: at.0 });
        }
        self.components.push(component);
        Ok(())
    }

    fn into_bytes(self) -> Vec<u8> {
        if self.components.is_empty() {
            return b"/".to_vec();
        }
        self.components
            .iter()
            .rev()
            .flat_map(|component| std::iter::once(&b'/').chain(component))
            .copied()
            .collect()
    }
}

impl Guest<'_> {
    /// The path at the `struct path` at `at`, from the root of its mount namespace, with ` (deleted)` behind a name that
    /// no longer exists. Corresponds to `d_path` for a reader who is not in a chroot.
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn path(&self, at: Gva) -> Result<GuestString, Fault> {
        let layouts = self.layouts().path.as_ref();
        let layout = layouts.map_err(|_| Fault::Malformed { what: "BTF of struct path", at: at.0 })?;
        let memory = self.space();
        let dentry = layout.dentry.pointer(memory, at)?;
        let vfsmount = layout.mount.pointer(memory, at)?;
        let root = layout.mount_root.pointer(memory, vfsmount)?;
        let parent = layout.parent.pointer(memory, dentry)?;
        if (parent != dentry || dentry != root)
            && let Some(name) = self.made_up_name(layout, dentry)?
        {
            return Ok(name);
        }
        let mount = vfsmount.checked_sub(layout.vfsmount.offset).ok_or(Fault::Overflow { at: vfsmount.0 })?;
        let mut path = self.climb(layout, dentry, mount)?;
        if parent != dentry && layout.hash_pprev.pointer_or_null(memory, dentry)?.is_none() {
            path.extend_from_slice(b" (deleted)");
        }
        Ok(path.into())
    }

    /// Collects names up to the first mount of the namespace.
    fn climb(&self, layout: &PathLayout, dentry: Gva, mount: Gva) -> Result<Vec<u8>, Fault> {
        let memory = self.space();
        let (mut dentry, mut mount) = (dentry, mount);
        let mut path = Reversed::default();
        for _ in 0..MAX_STEPS {
            let root = layout.mount_root.pointer(memory, layout.vfsmount.of(mount)?)?;
            if dentry == root {
                let below = layout.mount_parent.pointer(memory, mount)?;
                if below == mount {
                    return Ok(path.into_bytes());
                }
                dentry = layout.mount_point.pointer(memory, mount)?;
                mount = below;
                continue;
            }
            let parent = layout.parent.pointer(memory, dentry)?;
            if parent == dentry {
                // Out of the mount: the kernel shows nothing of the way.
                return Ok(b"/".to_vec());
            }
            path.prepend(self.dentry_name(layout, dentry)?, dentry)?;
            dentry = parent;
        }
        Err(Fault::Limit { what: "path components", limit: MAX_STEPS as u64, at: dentry.0 })
    }

    fn dentry_name(&self, layout: &PathLayout, dentry: Gva) -> Result<Vec<u8>, Fault> {
        let name = layout.name.pointer(self.space(), dentry)?;
        let len = layout.name_len.read_u32(self.space(), dentry)?;
        if len > MAX_NAME_BYTES {
            return Err(Fault::Limit { what: "dentry name", limit: MAX_NAME_BYTES.into(), at: dentry.0 });
        }
        let mut bytes = vec![0; len as usize];
        self.space().read(name, &mut bytes)?;
        Ok(bytes)
    }

    /// The name of a dentry that is in no directory and that `d_op->d_dname` makes one up for.
    fn made_up_name(&self, layout: &PathLayout, dentry: Gva) -> Result<Option<GuestString>, Fault> {
        let memory = self.space();
        let Some(ops) = layout.ops.pointer_or_null(memory, dentry)? else { return Ok(None) };
        let Some(function) = layout.ops_name.pointer_or_null(memory, ops)? else { return Ok(None) };
        let name = self.dentry_name(layout, dentry)?;
        let numbered = |kind: &[u8]| -> Result<Vec<u8>, Fault> {
            let inode = layout.inode.pointer(memory, dentry)?;
            let number = layout.inode_number.read(memory, inode)?;
            Ok([kind, b":[", number.to_string().as_bytes(), b"]"].concat())
        };
        let made_up = match self.function_named(function) {
            // Deleted files of tmpfs and hugetlbfs, memfd, System V shared memory.
            Some("simple_dname") => [b"/".as_slice(), &name, b" (deleted)"].concat(),
            Some("anon_inodefs_dname") => [b"anon_inode:".as_slice(), &name].concat(),
            Some("sockfs_dname") => numbered(b"socket")?,
            Some("pipefs_dname") => numbered(b"pipe")?,
            // `dmabuffs_dname` and others that one has to know: the plain name.
            _ => name,
        };
        Ok(Some(made_up.into()))
    }
}
