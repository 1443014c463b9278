//! `struct module`: a loaded kernel module (`include/linux/module.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::list::List;
use super::string::GuestString;
use super::walk::Walk;
use crate::guest::Guest;

/// Modules at most. Distributions ship about 5,000.
const MAX_MODULES: usize = 1 << 13;
/// Users of one module at most.
const MAX_USERS: usize = 1 << 9;
/// Bytes of a module's name at most (`MODULE_NAME_LEN` is 56).
const MAX_NAME_BYTES: usize = 256;
/// Regions of a module at most (`MOD_MEM_NUM_TYPES` is 7).
const MAX_REGIONS: u64 = 64;
/// `MODULE_REF_BASE`: what an unused module's count stands at.
const REFERENCE_BASE: i64 = 1;

/// Members of `struct module` and `struct module_use`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleLayout {
    /// Link in the list `modules`.
    pub list: Field,
    /// `enum module_state`.
    pub state: Field,
    /// Name.
    pub name: Field,
    /// `TAINT_*`.
    pub taints: Field,
    /// References to it, plus one. `None` where modules cannot be unloaded.
    pub references: Option<Field>,
    /// Anchor of the modules that use it, `struct module_use` each.
    pub users: Option<UsersLayout>,
    /// Where its code and data are.
    pub memory: MemoryLayout,
    /// Its symbol table, a pointer to `struct mod_kallsyms`.
    pub kallsyms: Option<Field>,
}

/// Members that lead to the users of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsersLayout {
    /// `module.source_list`.
    pub head: Field,
    /// `module_use.source_list`.
    pub link: Field,
    /// `module_use.source`.
    pub user: Field,
}

/// How a module says where its memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLayout {
    /// `mem[MOD_MEM_NUM_TYPES]` of `struct module_memory` (6.4 on).
    Array {
        /// The array.
        array: Field,
        /// Elements.
        count: u64,
        /// Bytes of one.
        stride: u64,
        /// `base` and `size` in one.
        region: (Field, Field),
    },
    /// `core_layout` and `init_layout`, `struct module_layout` each (to 6.3).
    CoreAndInit {
        /// `base` and `size` of the core.
        core: (Field, Field),
        /// `base` and `size` of what is freed after initialisation.
        init: (Field, Field),
    },
}

/// `enum module_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleState {
    /// In use.
    Live,
    /// Initialising.
    Coming,
    /// Being removed.
    Going,
    /// Being set up: not listed by the kernel itself.
    Unformed,
    /// Not a state of a real kernel.
    Unknown(u32),
}

impl ModuleState {
    const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Live,
            1 => Self::Coming,
            2 => Self::Going,
            3 => Self::Unformed,
            other => Self::Unknown(other),
        }
    }

    /// As in `/proc/modules`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::Coming => "Loading",
            Self::Going => "Unloading",
            Self::Unformed => "Unformed",
            Self::Unknown(_) => "Unknown",
        }
    }
}

/// A run of a module's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleRegion {
    /// First address.
    pub start: Gva,
    /// Bytes.
    pub len: u64,
}

impl ModuleRegion {
    /// Whether it holds `address`.
    pub const fn contains(&self, address: Gva) -> bool {
        match address.offset_from(self.start) {
            Some(offset) => offset < self.len,
            None => false,
        }
    }
}

/// A module in the list of modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Address of its `struct module`.
    pub address: Gva,
    /// Name.
    pub name: GuestString,
    /// What it is doing.
    pub state: ModuleState,
    /// Where its code begins, as in `/proc/modules`; 0 without code.
    pub text: Gva,
    /// Its memory, regions without bytes left out.
    pub regions: Vec<ModuleRegion>,
    /// References to it: modules that use it and other users. `None` where modules cannot be unloaded.
    pub references: Option<i64>,
    /// Names of the modules that use it.
    pub used_by: Vec<GuestString>,
    /// `TAINT_*` bits.
    pub taints: u64,
    /// Address of its `struct mod_kallsyms`.
    pub kallsyms: Option<Gva>,
}

impl Module {
    /// Bytes of code and data, as in `/proc/modules`.
    pub fn size(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.wrapping_add(region.len))
    }

    /// Whether `address` lies in its code or data.
    pub fn contains(&self, address: Gva) -> bool {
        self.regions.iter().any(|region| region.contains(address))
    }
}

impl ModuleLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let module = Structure::named(btf, "module")?;
        Ok(Self {
            list: module.field("list")?,
            state: module.field("state")?,
            name: module.field("name")?,
            taints: module.field("taints")?,
            references: module.optional("refcnt.counter"),
            users: UsersLayout::resolve(btf).ok(),
            memory: MemoryLayout::resolve(btf)?,
            kallsyms: module.optional("kallsyms"),
        })
    }

    fn name_at(&self, memory: &dyn VirtualMemory, module: Gva) -> Result<GuestString, Fault> {
        let limit = usize::try_from(self.name.size).unwrap_or(MAX_NAME_BYTES).min(MAX_NAME_BYTES);
        GuestString::read(memory, self.name.of(module)?, limit)
    }
}

impl UsersLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let link = Structure::named(btf, "module_use")?;
        let head = Structure::named(btf, "module")?.field("source_list")?;
        Ok(Self { head, link: link.field("source_list")?, user: link.field("source")? })
    }
}

impl MemoryLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let module = Structure::named(btf, "module")?;
        if let Ok((array, count, stride)) = module.array("mem") {
            let memory = Structure::named(btf, "module_memory")?;
            let region = (memory.field("base")?, memory.field("size")?);
            return Ok(Self::Array { array, count: count.min(MAX_REGIONS), stride, region });
        }
        let part = |base, size| Ok((module.field(base)?, module.field(size)?));
        Ok(Self::CoreAndInit {
            core: part("core_layout.base", "core_layout.size")?,
            init: part("init_layout.base", "init_layout.size")?,
        })
    }

    /// Its regions, text first.
    fn regions(&self, memory: &dyn VirtualMemory, module: Gva) -> Result<Vec<ModuleRegion>, Fault> {
        let read = |at: Gva, (base, size): (Field, Field)| {
            Ok(ModuleRegion { start: base.pointer(memory, at)?, len: size.read_u32(memory, at)?.into() })
        };
        match self {
            Self::Array { array, count, stride, region } => (0..*count)
                .map(|index| {
                    let element =
                        Field { offset: array.offset.saturating_add(index * stride), size: *stride };
                    read(element.of(module)?, *region)
                })
                .collect(),
            Self::CoreAndInit { core, init } => Ok(vec![read(module, *core)?, read(module, *init)?]),
        }
    }
}

impl Guest<'_> {
    /// The modules in the kernel's list, the one loaded last first. Those still being set up are among them.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub fn modules(&self) -> Result<Walk<Module>, Missing> {
        let layout = self.layouts().module.as_ref().map_err(Clone::clone)?;
        let head = self.symbol("modules")?;
        let list = List { what: "module list", head, link: layout.list.offset, limit: MAX_MODULES };
        let mut walk = Walk::default();
        for address in walk.absorb(list.walk(self.space())) {
            let module = self.module_at(address, layout, &mut walk);
            walk.push(module);
        }
        Ok(walk)
    }

    /// Reads the `struct module` at `address`. A user of it that cannot be read is left out and its fault recorded in
    /// `walk`.
    ///
    /// # Errors
    /// The fault that kept it from being read.
    pub fn module_at<T>(
        &self,
        address: Gva,
        layout: &ModuleLayout,
        walk: &mut Walk<T>,
    ) -> Result<Module, Fault> {
        let memory = self.space();
        let references = layout.references.map(|field| field.read_u32(memory, address)).transpose()?;
        let mut used_by = Vec::new();
        if let Some(users) = &layout.users {
            let head = users.head.of(address)?;
            let list = List { what: "users of a module", head, link: users.link.offset, limit: MAX_USERS };
            for link in walk.absorb(list.walk(memory)) {
                let user = users.user.pointer(memory, link).and_then(|user| layout.name_at(memory, user));
                used_by.extend(walk.try_or_note(user));
            }
        }
        let mut regions = layout.memory.regions(memory, address)?;
        let text = regions.first().map(|region| region.start).unwrap_or_default();
        regions.retain(|region| region.len != 0);
        let kallsyms = layout.kallsyms.map(|field| field.pointer_or_null(memory, address)).transpose()?;
        Ok(Module {
            address,
            name: layout.name_at(memory, address)?,
            state: ModuleState::from_raw(layout.state.read_u32(memory, address)?),
            text,
            regions,
            references: references.map(|count| i64::from(count.cast_signed()) - REFERENCE_BASE),
            used_by,
            taints: layout.taints.read(memory, address)?,
            kallsyms: kallsyms.flatten(),
        })
    }
}
