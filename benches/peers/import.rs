//! Import of a later epoch, beside backups of the same file by restic and borg.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    images::Images,
    measure::{Outcome, compare, folder_mib, median, time, varve},
};

/// Imports the base and then each later image with every tool in turn.
pub(crate) fn run(images: &Images) -> Outcome {
    let scratch =
        TempDir::new_in(std::env::var_os("VARVE_BENCH_DIR").map_or(std::env::temp_dir(), PathBuf::from))?;
    let at = |name: &str| scratch.path().join(name);
    let tools: [(&str, Tool); 3] = [
        ("varve import", Tool::Varve(at("varve"))),
        ("restic backup", Tool::Restic(at("restic"))),
        ("borg create, fixed 4 KiB", Tool::Borg(at("borg"))),
    ];
    // Every tool sees the image under one path, as it would see a guest's memory file.
    let image = at("memory.raw");
    let mut seconds = vec![Vec::new(); tools.len()];
    for (_, tool) in &tools {
        tool.init()?;
    }
    for (number, source) in
        std::iter::once(images.base()).chain(images.later().iter().map(PathBuf::as_path)).enumerate()
    {
        std::fs::copy(source, &image)?;
        std::fs::read(&image)?;
        for ((_, tool), seconds) in tools.iter().zip(&mut seconds) {
            seconds.push(time(&mut tool.add(&image, number))?);
        }
    }
    let base: Vec<f64> = seconds.iter().map(|all| all[0]).collect();
    let later: Vec<&[f64]> = seconds.iter().map(|all| &all[1..]).collect();
    println!("first epoch of a 1 GiB guest");
    println!("{:<28} {:>8.3} s", tools[0].0, base[0]);
    for (index, (name, _)) in tools.iter().enumerate().skip(1) {
        compare(name, &base[index..=index], &base[..1], "");
    }
    println!(
        "each later epoch, {:.1} % of its pages changed (median of {})",
        images.changed_percent()?,
        later[0].len()
    );
    println!("{:<28} {:>8.3} s", tools[0].0, median(later[0].to_vec()));
    for (index, (name, _)) in tools.iter().enumerate().skip(1) {
        compare(name, later[index], later[0], "goal: at least 8×");
    }
    println!("archive after {} epochs (goal: no larger than borg's)", seconds[0].len());
    for (name, tool) in &tools {
        println!("{name:<28} {:>8.1} MiB", folder_mib(tool.repository())?);
    }
    Ok(())
}

/// A tool with its repository.
enum Tool {
    Varve(PathBuf),
    Restic(PathBuf),
    Borg(PathBuf),
}

impl Tool {
    fn repository(&self) -> &Path {
        match self {
            Self::Varve(at) | Self::Restic(at) | Self::Borg(at) => at,
        }
    }

    fn init(&self) -> Outcome {
        let mut command = match self {
            Self::Varve(at) => {
                let mut command = varve(at);
                command.arg("init");
                command
            }
            Self::Restic(at) => {
                let mut command = restic(at);
                command.arg("init");
                command
            }
            Self::Borg(at) => {
                let mut command = borg();
                command.args(["init", "--encryption=none"]).arg(at);
                command
            }
        };
        time(&mut command).map(drop)
    }

    fn add(&self, image: &Path, number: usize) -> Command {
        let mut command = match self {
            Self::Varve(at) => {
                let mut command = varve(at);
                command.arg("import");
                command
            }
            Self::Restic(at) => {
                let mut command = restic(at);
                command.args(["backup", "--quiet"]);
                command
            }
            Self::Borg(at) => {
                let mut command = borg();
                command.args(["create", "--chunker-params=fixed,4096", "--compression=zstd,1"]);
                command.arg(format!("{}::epoch{number}", at.display()));
                command
            }
        };
        command.arg(image);
        command
    }
}

/// restic on a repository with a fixed password: it cannot do without one.
pub(crate) fn restic(repository: &Path) -> Command {
    let mut command = Command::new("restic");
    command.env("RESTIC_PASSWORD", "bench").arg("--repo").arg(repository);
    command
}

fn borg() -> Command {
    let mut command = Command::new("borg");
    command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
    command.env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
    command
}
