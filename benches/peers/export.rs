//! Export of an epoch as a raw image, beside a plain copy of the file and `restic restore`.

use std::process::Command;

use tempfile::TempDir;

use crate::{
    images::Images,
    import::restic,
    measure::{Outcome, compare, median, time, varve},
};

const ROUNDS: usize = 5;

/// Exports the base image from both archives and copies it, in turns.
pub(crate) fn run(images: &Images) -> Outcome {
    let scratch = TempDir::new()?;
    let at = |name: &str| scratch.path().join(name);
    let (archive, repository) = (at("varve"), at("restic"));
    time(varve(&archive).arg("init"))?;
    time(varve(&archive).arg("import").arg(images.base()))?;
    time(restic(&repository).arg("init"))?;
    time(restic(&repository).args(["backup", "--quiet"]).arg(images.base()))?;
    let (mut ours, mut copies, mut restores) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let target = at("varve.raw");
        ours.push(time(varve(&archive).args(["export", "0", "--format", "raw", "-o"]).arg(&target))?);
        assert!(std::fs::read(&target)? == std::fs::read(images.base())?, "the export is the image");
        std::fs::remove_file(&target)?;
        let target = at("copy.raw");
        copies.push(time(Command::new("cp").arg("--sparse=never").arg(images.base()).arg(&target))?);
        std::fs::remove_file(&target)?;
        let target = at("restored");
        restores.push(time(restic(&repository).args(["restore", "latest", "--target"]).arg(&target))?);
        std::fs::remove_dir_all(&target)?;
    }
    println!("one epoch of a 1 GiB guest as a raw file (median of {ROUNDS})");
    println!("{:<28} {:>8.3} s", "varve export", median(ours.clone()));
    compare("cp --sparse=never", &copies, &ours, "");
    compare("restic restore", &restores, &ours, "goal: at least 4×");
    Ok(())
}
