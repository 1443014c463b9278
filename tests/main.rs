//! End-to-end tests: the `varve` command on real guests, files and archives; and the tidiness of the tree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod command;
mod guests;
mod kills;
mod live;
mod support;
mod tidy;
mod xen;
