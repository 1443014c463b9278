//! Xen's formats against files that an independent writer made from the specifications.

#![cfg(test)]

mod build;
mod core;
mod image;
mod stream;
mod write;
