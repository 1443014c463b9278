//! End-to-end tests: the `varve` command on real guests, files and archives; and the tidiness of the tree.

mod command;
mod guests;
mod kills;
mod support;
mod tidy;
