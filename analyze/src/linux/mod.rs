//! The Linux kernel's structures: one file each, with where its members are and how it is walked.
//!
//! Members are located by BTF, and variants told by which members exist. Every walk is bounded and says whether it is
//! complete ([`Walk`]).

pub(crate) mod branches;
pub(crate) mod cgroup;
pub mod cmdline;
pub mod cred;
pub mod file;
pub(crate) mod hlist;
pub mod kthread;
pub mod layout;
pub mod layouts;
pub mod list;
pub mod maple;
pub mod mm;
pub mod module;
pub mod module_symbols;
pub(crate) mod module_views;
pub(crate) mod mutex;
pub(crate) mod patching;
pub mod path;
pub mod pid;
pub(crate) mod run_queue;
pub(crate) mod rwlock;
pub mod string;
pub mod task;
pub mod vma;
pub mod walk;
pub mod xarray;

pub use layout::{Field, Missing};
pub use layouts::Layouts;
pub use string::GuestString;
pub use task::Task;
pub use walk::Walk;
