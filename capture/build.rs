//! With the feature `xen`: finds Xen's libraries and generates the bindings to the version that is installed.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a build that cannot go on has failed")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "xen")]
    xen::bind();
}

#[cfg(feature = "xen")]
mod xen {
    use std::path::Path;

    /// The libraries, by their names for pkg-config. `libxenctrl` and `libxenguest` change with every release of Xen, so
    /// that a build serves one release; the others are stable.
    const LIBRARIES: [&str; 4] = ["xencontrol", "xenguest", "xenforeignmemory", "xenstore"];

    const HEADERS: &str = "\
#define __XEN_TOOLS__ 1
#include <xenctrl.h>
#include <xenguest.h>
#include <xenforeignmemory.h>
#include <xenstore.h>
#include <stdlib.h>
";

    /// The functions that are used; bindgen adds the types they need.
    const FUNCTIONS: [&str; 10] = [
        "xc_interface_(open|close)",
        "xc_domain_(pause|unpause|getinfolist|maximum_gpfn|resume)",
        "xc_domain_(hvm_getcontext|get_tsc_info)",
        "xc_(shadow|logdirty)_control",
        "xc__hypercall_buffer_(alloc|free)_pages",
        "xc_hvm_param_get|xc_version|xc_gnttab_query_size",
        "xc_cpu_policy_(init|destroy|get_size|get_domain|serialise)",
        "xenforeignmemory_(open|close|map2|unmap|map_resource|unmap_resource)",
        "xs_(open|close|read|write|directory)",
        "xs_(transaction_start|transaction_end|resume_domain)|free",
    ];

    pub(super) fn bind() {
        let mut builder = bindgen::builder().header_contents("xen.h", HEADERS);
        for name in LIBRARIES {
            let library = pkg_config::probe_library(name).unwrap_or_else(|error| {
                panic!("the feature `xen` needs Xen's libraries and headers: install libxen-dev\n{error}")
            });
            let paths = library.include_paths.iter();
            builder = builder.clang_args(paths.map(|path| format!("-I{}", path.display())));
        }
        for function in FUNCTIONS {
            builder = builder.allowlist_function(function);
        }
        let bindings = builder
            .allowlist_var(
                "XEN_DOMINF_.*|XEN_DOMCTL_SHADOW_OP_.*|SHUTDOWN_suspend|HVM_PARAM_.*|XENMEM_resource_.*",
            )
            .layout_tests(false)
            .generate_comments(false)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .generate()
            .unwrap_or_else(|error| panic!("Xen's headers cannot be read: {error}"));
        let target = Path::new(&std::env::var_os("OUT_DIR").unwrap()).join("xen.rs");
        bindings.write_to_file(&target).unwrap();
    }
}
