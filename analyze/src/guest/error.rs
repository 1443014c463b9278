//! Why no Linux kernel could be found in a memory image.

use std::fmt;

use varve_formats::symbols::btf::BtfError;
use varve_formats::symbols::kallsyms::KallsymsError;
use varve_formats::{Fault, Gpa};

use crate::linux::{GuestString, Missing};

/// A step of the bring-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Find out where the kernel is: VMCOREINFO or, without it, page tables that map a kernel image.
    Location,
    /// Translate the kernel's addresses through its own page table.
    PageTables,
    /// Decode the kernel's symbols.
    Kallsyms,
    /// Read the kernel's name for itself.
    Banner,
    /// Parse the kernel's types.
    Btf,
    /// Find the members of the structures that everything depends on.
    Layouts,
    /// Recognise the first task.
    InitTask,
    /// Follow the list of processes back to its beginning.
    TaskList,
}

impl Step {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Location => "location",
            Self::PageTables => "page tables",
            Self::Kallsyms => "kallsyms",
            Self::Banner => "banner",
            Self::Btf => "BTF",
            Self::Layouts => "layouts",
            Self::InitTask => "init_task",
            Self::TaskList => "task list",
        }
    }

    /// What a user can do when it fails.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Location => {
                "check that the image is of an x86-64 Linux guest that had finished booting, that it is complete, and \
                 that its format was recognised: a raw file must not leave out the hole below 4 GiB"
            }
            Self::PageTables => {
                "check that the image is complete and was taken while the guest was paused; a raw file must not leave \
                 out the hole below 4 GiB"
            }
            Self::Kallsyms => "the guest's kernel needs CONFIG_KALLSYMS; check that the image is complete",
            Self::Btf => "the guest's kernel needs CONFIG_DEBUG_INFO_BTF",
            Self::Banner | Self::InitTask | Self::TaskList => {
                "the image may hold only a copy of a kernel, or the guest has altered it: compare with an earlier epoch"
            }
            Self::Layouts => "this kernel's structures are not known: please report its version",
        }
    }
}

/// What went wrong in a step.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Reason {
    /// Memory could not be read.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The symbols could not be decoded.
    #[error(transparent)]
    Kallsyms(#[from] KallsymsError),
    /// The types could not be parsed.
    #[error(transparent)]
    Btf(#[from] std::sync::Arc<BtfError>),
    /// A structure or member is not in BTF.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// VMCOREINFO lacks a value.
    #[error("VMCOREINFO has no {0}")]
    NoValue(&'static str),
    /// The kernel's symbols lack one.
    #[error("the kernel has no symbol {0}")]
    NoSymbol(&'static str),
    /// The page table maps the kernel elsewhere than VMCOREINFO says.
    #[error("the page table maps {symbol} to {mapped}, and VMCOREINFO says {expected}")]
    Elsewhere {
        /// The symbol.
        symbol: &'static str,
        /// By the page table.
        mapped: Gpa,
        /// By VMCOREINFO.
        expected: Gpa,
    },
    /// The banner is not one, or not that of the release in VMCOREINFO.
    #[error("the banner is {banner:?}, which is not that of Linux {release}")]
    Banner {
        /// The banner.
        banner: GuestString,
        /// The release VMCOREINFO names; empty when it is not known.
        release: String,
    },
    /// The first task is called otherwise.
    #[error("init_task is called {0:?} and not swapper/0")]
    InitTask(GuestString),
    /// No place to begin with was found.
    #[error("no VMCOREINFO, and no page table that maps a kernel image")]
    Nothing,
}

/// A step that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub step: Step,
    /// Why.
    pub reason: Reason,
}

/// What an attempt to find the kernel began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The place where an earlier epoch had its kernel.
    Pin,
    /// VMCOREINFO at this address.
    Note(Gpa),
    /// The page table that this vCPU uses.
    Vcpu(u32),
    /// A page table found at this address.
    Table(Gpa),
    /// A search of all memory.
    Search,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin => f.write_str("where it was in an earlier epoch"),
            Self::Note(at) => write!(f, "by VMCOREINFO at guest physical {at}"),
            Self::Vcpu(index) => write!(f, "by the page table of vCPU {index}"),
            Self::Table(at) => write!(f, "by the page table at guest physical {at}"),
            Self::Search => f.write_str("by searching memory"),
        }
    }
}

/// Attempts kept for the message.
pub(super) const MAX_ATTEMPTS: usize = 16;

/// No Linux kernel was found.
#[derive(Clone, Debug, Default)]
pub struct BringUpError {
    /// What was tried, and which step of it failed. The first few of it.
    pub attempts: Vec<(Origin, Failure)>,
}

impl BringUpError {
    pub(super) fn add(&mut self, origin: Origin, failure: Failure) {
        if self.attempts.len() < MAX_ATTEMPTS {
            self.attempts.push((origin, failure));
        }
    }

    /// The attempt that came furthest: it says most about what is wrong.
    pub fn furthest(&self) -> Option<&(Origin, Failure)> {
        self.attempts.iter().rev().max_by_key(|(_, failure)| failure.step as u8)
    }
}

impl fmt::Display for BringUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no Linux kernel found in guest memory")?;
        for (origin, Failure { step, reason }) in &self.attempts {
            write!(f, "\n  {origin}: step {}: {reason}", step.name())?;
        }
        match self.furthest() {
            Some((_, failure)) => write!(f, "\n  what to try: {}", failure.step.advice()),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BringUpError {}
