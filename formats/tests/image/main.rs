//! Image readers and writers against files that are built here byte by byte, and against each other.

#![cfg(test)]

mod build;
mod errors;
mod formats;
mod hostile;
mod write;
