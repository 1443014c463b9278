//! varve beside its peers: the same memory images, the same machine, the same run.
//!
//! Each figure is a whole process, wall time, and is printed as a ratio, because machines differ and are noisy. Runs of
//! varve and of its peers alternate. Nothing here fails because something is slow.
//!
//! `cargo bench --bench peers` runs everything; `cargo bench --bench peers -- import` only what is named.

#![allow(clippy::indexing_slicing, reason = "a benchmark that cannot go on has failed")]

mod export;
mod images;
mod import;
mod measure;
mod volatility;

use std::process::ExitCode;

use images::Images;

/// A benchmark: its name, and what runs it.
type Bench = (&'static str, fn(&Images) -> measure::Outcome);

/// What can be measured.
const BENCHES: [Bench; 3] =
    [("import", import::run), ("export", export::run), ("volatility", volatility::run)];

fn main() -> ExitCode {
    // cargo passes --bench; anything else names what to run.
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let images = match Images::get() {
        Ok(images) => images,
        Err(error) => {
            eprintln!("peers: cannot make the memory images: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut status = ExitCode::SUCCESS;
    for (name, run) in BENCHES {
        if !named.is_empty() && !named.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("\n## {name}");
        if let Err(error) = run(&images) {
            println!("SKIPPED: {error}");
            status = ExitCode::FAILURE;
        }
    }
    status
}
