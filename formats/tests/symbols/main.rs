//! VMCOREINFO, kallsyms, BTF and ISF against blobs written by code that the parsers do not share.

#![cfg(test)]

mod btf;
mod btf_hostile;
mod btf_writer;
mod guest;
mod isf;
mod kallsyms;
mod kallsyms_hostile;
mod kernel;
mod vmcoreinfo;
