//! Captures and imports into real archives: from a scripted guest that fails where told, a scripted QEMU, and image
//! files.

#![cfg(test)]

mod epochs;
mod failures;
mod fake_qemu;
mod images;
mod qmp;
mod streams;
mod support;
