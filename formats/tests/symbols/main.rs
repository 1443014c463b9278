//! VMCOREINFO, kallsyms, BTF and ISF against blobs that are written here, by code the parsers do not share.

mod btf;
mod btf_hostile;
mod btf_writer;
mod guest;
mod isf;
mod kallsyms;
mod kallsyms_hostile;
mod kallsyms_writer;
mod vmcoreinfo;
