//! Symbols and types of a real guest: `VARVE_BENCH_IMAGE=FILE cargo bench -p varve-formats --bench symbols`.
//!
//! Any image of an x86-64 Linux guest will do. It is mapped, so a second run measures it from the page cache.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use divan::Bencher;
use varve_formats::image::Image;
use varve_formats::symbols::LinearMap;
use varve_formats::symbols::btf::Btf;
use varve_formats::symbols::isf::{self, Source};
use varve_formats::symbols::kallsyms::{Hints, Kallsyms};
use varve_formats::symbols::vmcoreinfo::VmCoreInfo;

/// What the benchmarks begin with.
struct Kernel {
    note: VmCoreInfo,
    memory: LinearMap<'static>,
    hints: Hints,
    kallsyms: Kallsyms,
    btf: Btf,
}

static IMAGE: LazyLock<Option<Image>> = LazyLock::new(|| {
    let path = PathBuf::from(std::env::var_os("VARVE_BENCH_IMAGE")?);
    Image::open(&path).map_err(|error| eprintln!("{error}")).ok()
});

static KERNEL: LazyLock<Option<Kernel>> = LazyLock::new(|| {
    let image = IMAGE.as_ref()?;
    VmCoreInfo::find_all(image).into_iter().find_map(|(_, note)| {
        let memory = LinearMap::new(image, note.phys_base()?);
        let hints = Hints::from_vmcoreinfo(&note);
        let kallsyms = Kallsyms::decode(&memory, &hints).ok()?;
        let (_, btf) = Btf::locate(&memory, &kallsyms).ok()?;
        Some(Kernel { note, memory, hints, kallsyms, btf })
    })
});

fn main() {
    if KERNEL.is_none() {
        eprintln!("set VARVE_BENCH_IMAGE to an image of an x86-64 Linux guest");
        return;
    }
    divan::main();
}

/// Every frame of the image is looked at.
#[divan::bench]
fn find_vmcoreinfo(bencher: Bencher<'_, '_>) {
    let Some(image) = IMAGE.as_ref() else { return };
    bencher.bench(|| VmCoreInfo::find_all(image));
}

#[divan::bench]
fn kallsyms_with_hints(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    bencher.bench(|| Kallsyms::decode(&kernel.memory, &kernel.hints));
}

#[divan::bench]
fn kallsyms_by_search(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    let hints = Hints { window: kernel.hints.window, ..Hints::default() };
    bencher.bench(|| Kallsyms::decode(&kernel.memory, &hints));
}

/// The first lookup by name builds the index.
#[divan::bench]
fn kallsyms_first_lookup(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    let decode = || Kallsyms::decode(&kernel.memory, &kernel.hints);
    bencher
        .with_inputs(decode)
        .bench_refs(|kallsyms| kallsyms.as_ref().map(|symbols| symbols.address("init_task")).ok());
}

#[divan::bench]
fn btf_parse(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    let bytes: Arc<[u8]> = kernel.btf.bytes().into();
    bencher.bench(|| Btf::parse(Arc::clone(&bytes)));
}

/// The first lookup by name builds the index.
#[divan::bench]
fn btf_parse_and_first_member(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    let bytes: Arc<[u8]> = kernel.btf.bytes().into();
    bencher.bench(|| Btf::parse(Arc::clone(&bytes)).map(|btf| btf.member("task_struct", "comm")).ok());
}

#[divan::bench]
fn btf_member(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    bencher.bench(|| kernel.btf.member("mm_struct", "pgd"));
}

#[divan::bench]
fn write_isf(bencher: Bencher<'_, '_>) {
    let Some(kernel) = KERNEL.as_ref() else { return };
    let (kallsyms, btf) = (&kernel.kallsyms, &kernel.btf);
    let Ok(banner) = kallsyms.banner(&kernel.memory) else { return };
    let kernel_offset = kernel.note.kernel_offset().unwrap_or_default();
    let source = Source { kallsyms, btf, banner: &banner, kernel_offset };
    bencher.bench(|| isf::write(&source, std::io::sink()));
}
