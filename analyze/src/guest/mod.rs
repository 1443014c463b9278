//! The Linux guest in a memory image: found and described with no profile given.
//!
//! ```text
//! where it is    pins of earlier epochs → VMCOREINFO → page tables of vCPUs → page tables anywhere in memory
//! what it is     kallsyms → banner → BTF → layouts     (parsed once per kernel build: `Profiles`)
//! is it true     page tables, banner and release, init_task, task list
//! ```

mod bringup;
mod cache;
mod candidate;
mod continuity;
mod cr3;
mod error;
mod pin;
mod place;
mod profile;
mod search;
mod sections;

use std::sync::Arc;

use varve_formats::symbols::btf::Btf;
use varve_formats::symbols::kallsyms::Symbol;
use varve_formats::{Gva, PhysicalMemory, Vcpu};

pub use cache::Profiles;
pub use continuity::Continuity;
pub use cr3::{Divergence, KernelHalf};
pub use error::{BringUpError, Failure, Origin, Reason, Step};
pub use pin::{MAX_PINS, Pin};
pub use place::Placement;
pub use profile::{Digests, Profile};

use crate::linux::{Layouts, Missing};
use crate::paging::AddressSpace;

/// A Linux guest at one moment.
///
/// Everything is read through the kernel's own page table. Reading takes `&self`, from any number of threads.
pub struct Guest<'m> {
    memory: &'m dyn PhysicalMemory,
    vcpus: Vec<Vcpu>,
    profile: Arc<Profile>,
    pin: Pin,
    continuity: Continuity,
    space: AddressSpace<'m>,
}

impl<'m> Guest<'m> {
    /// Finds the kernel in `memory`.
    ///
    /// `pins`: the kernels found in earlier epochs of the same VM, oldest first. Where one of them still is, memory is
    /// not searched. `profiles`: what is parsed is kept here, and not parsed again.
    ///
    /// # Errors
    /// What was tried, the step that failed of each attempt, and what to do about it.
    pub fn open(
        memory: &'m dyn PhysicalMemory,
        vcpus: &[Vcpu],
        pins: &[Pin],
        profiles: &Profiles,
    ) -> Result<Self, BringUpError> {
        bringup::open(memory, vcpus, pins, profiles)
    }

    fn new(
        memory: &'m dyn PhysicalMemory,
        vcpus: Vec<Vcpu>,
        profile: Arc<Profile>,
        pin: Pin,
        continuity: Continuity,
    ) -> Self {
        let space = pin.placement.space(memory);
        Self { memory, vcpus, profile, pin, continuity, space }
    }

    /// The same guest seen through another `memory` of the same contents, for instance one that records what is read.
    /// Nothing is remembered of what was read before, page tables included.
    pub fn over<'n>(&self, memory: &'n dyn PhysicalMemory) -> Guest<'n> {
        Guest::new(memory, self.vcpus.clone(), Arc::clone(&self.profile), self.pin.clone(), self.continuity)
    }

    /// The same guest with other registers.
    pub fn with_vcpus(mut self, vcpus: Vec<Vcpu>) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// The same guest, related to other `pins` than those that helped to find it.
    pub fn judged_by(mut self, pins: &[Pin]) -> Self {
        self.continuity =
            Continuity::judge(&self.pin, pins, profile::Comparison { kallsyms: true, btf: true });
        self
    }

    /// Guest physical memory.
    pub fn memory(&self) -> &'m dyn PhysicalMemory {
        self.memory
    }

    /// The kernel's address space.
    pub fn space(&self) -> &AddressSpace<'m> {
        &self.space
    }

    /// The vCPUs' registers; empty when the source could not tell.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// The kernel build's symbols, types and layouts.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Where the kernel is.
    pub fn placement(&self) -> Placement {
        self.pin.placement
    }

    /// What to remember of this kernel for later epochs. Worth keeping when [`Continuity::is_new_boot`].
    pub fn pin(&self) -> &Pin {
        &self.pin
    }

    /// How this kernel relates to the pinned ones.
    pub fn continuity(&self) -> Continuity {
        self.continuity
    }

    /// The kernel's types.
    pub fn btf(&self) -> &Btf {
        self.profile.btf()
    }

    /// Where the members are of the structures that this crate reads.
    pub fn layouts(&self) -> &Layouts {
        self.profile.layouts()
    }

    /// The address of the first symbol of this name in the kernel image.
    ///
    /// # Errors
    /// [`Missing::Symbol`].
    pub fn symbol(&self, name: &str) -> Result<Gva, Missing> {
        let address = self.profile.address(name, self.placement().kernel_offset);
        address.ok_or_else(|| Missing::Symbol(name.to_owned()))
    }

    /// The symbols of the kernel image, by ascending address.
    pub fn symbols(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        let (from, to) = (self.profile.kernel_offset(), self.placement().kernel_offset);
        let symbols = self.profile.kallsyms().iter();
        symbols.map(move |symbol| Symbol { address: place::relocate(symbol.address, from, to), ..symbol })
    }

    /// The symbol of the kernel image that `address` lies in, and the offset from it in bytes.
    pub fn symbol_at(&self, address: Gva) -> Option<(Symbol<'_>, u64)> {
        self.profile.containing(address, self.placement().kernel_offset)
    }

    /// The name of the function that begins at `address`.
    pub fn function_named(&self, address: Gva) -> Option<&str> {
        let (symbol, offset) = self.symbol_at(address)?;
        (offset == 0).then_some(symbol.name)
    }
}
