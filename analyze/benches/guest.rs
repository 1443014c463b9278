//! Bring-up and views on a real guest: `VARVE_BENCH_IMAGE=FILE cargo bench -p varve-analyze --bench guest`.
//!
//! Any image of an x86-64 Linux guest will do. It is mapped, so a second run measures it from the page cache.

use std::path::PathBuf;
use std::sync::LazyLock;

use divan::Bencher;
use varve_analyze::guest::{Guest, Pin, Profiles};
use varve_analyze::views::{self, Filter};
use varve_formats::image::Image;

static IMAGE: LazyLock<Option<Image>> = LazyLock::new(|| {
    let path = PathBuf::from(std::env::var_os("VARVE_BENCH_IMAGE")?);
    match Image::open(&path) {
        Ok(image) => Some(image),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    }
});
static PROFILES: LazyLock<Profiles> = LazyLock::new(Profiles::new);
static GUEST: LazyLock<Option<Guest<'static>>> = LazyLock::new(|| {
    let image = IMAGE.as_ref()?;
    Guest::open(image, &[], &[], &PROFILES).map_err(|error| eprintln!("{error}")).ok()
});

fn main() {
    if GUEST.is_none() {
        eprintln!("set VARVE_BENCH_IMAGE to an image of an x86-64 Linux guest");
        return;
    }
    divan::main();
}

/// Nothing known: memory is searched, symbols and types are parsed.
#[divan::bench]
fn bring_up(bencher: Bencher<'_, '_>) {
    let Some(image) = IMAGE.as_ref() else { return };
    bencher.bench(|| Guest::open(image, &[], &[], &Profiles::new()).is_ok());
}

/// As for each further epoch of a history: the kernel is where it was, and its symbols are compared.
#[divan::bench]
fn bring_up_pinned(bencher: Bencher<'_, '_>) {
    let (Some(image), Some(guest)) = (IMAGE.as_ref(), GUEST.as_ref()) else { return };
    let pins: [Pin; 1] = [guest.pin().clone()];
    bencher.bench(|| Guest::open(image, &[], &pins, &PROFILES).is_ok());
}

#[divan::bench(args = ["pslist", "psaux", "pidhashtable", "maps", "lsmod", "kallsyms"])]
fn view(bencher: Bencher<'_, '_>, name: &str) {
    let (Some(guest), Some(view)) = (GUEST.as_ref(), views::named(name)) else { return };
    bencher.bench(|| (view.run)(guest, &Filter::default()).map(|table| table.rows.len()));
}

/// One address of the kernel's data, its tables already walked.
#[divan::bench]
fn translate(bencher: Bencher<'_, '_>) {
    let Some(guest) = GUEST.as_ref() else { return };
    let Ok(at) = guest.symbol("init_task") else { return };
    bencher.bench(|| guest.space().translate(divan::black_box(at)));
}
