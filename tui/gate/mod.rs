//! `varve gate`: the parts that the command is made of.
//!
//! ```text
//! gate (root)                                  scanner (no rights, no files, no network)
//!   capture::gate: pause, plug, copy, journal
//!   agent.rs ──── wire.rs over a socket ─────▶ scanner.rs: analyze::engine::Live
//!   mirror, a file in memory ────────────────▶ read only
//! ```

mod agent;
mod confine;
mod metrics;
mod past;
mod scanner;
mod selftest;
mod settings;
mod status;
mod tell;
mod wire;

pub(crate) use agent::{SUBCOMMAND, Scanner, Task};
pub(crate) use scanner::serve;
pub(crate) use selftest::selftest;
pub(crate) use settings::settings;
pub(crate) use status::print;
pub(crate) use tell::Teller;
