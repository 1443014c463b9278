//! What a guest's memory means: paging, the Linux kernel in it, views, scans and findings.
//!
//! Everything read here was written by a guest that may be hostile. Walks are bounded, what cannot be read is data, and
//! incomplete never passes for clean.

pub mod engine;
mod finding;
pub mod guest;
pub mod linux;
pub mod paging;
pub mod policy;
pub mod scans;
#[cfg(test)]
mod testing;
pub mod views;

pub use finding::{Evidence, FaultReason, Finding, Report, ScanFault, Severity};
