//! The memory images all peers get: one guest of 1 GiB under load, some seconds apart.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use varve_fixtures::{Guest, GuestConfig, Lab};

/// Images in the set: a base and later epochs.
pub(crate) const COUNT: usize = 6;

/// Guest memory in MiB.
pub(crate) const MEMORY_MIB: u32 = 1024;

/// Raw images on disk, oldest first. They are made once and kept in the lab's cache.
pub(crate) struct Images(Vec<PathBuf>);

impl Images {
    /// The images, made by running a guest when they are not there yet.
    pub(crate) fn get() -> Result<Self, Box<dyn Error>> {
        let folder = Lab::open()?.folder().join("bench-images");
        let files: Vec<PathBuf> =
            (0..COUNT).map(|number| folder.join(format!("epoch{number}.raw"))).collect();
        if !files.iter().all(|file| file.exists()) {
            eprintln!("peers: running a guest of {MEMORY_MIB} MiB for its memory images (once)");
            fs::create_dir_all(&folder)?;
            make(&files)?;
        }
        Ok(Self(files))
    }

    /// The first image.
    pub(crate) fn base(&self) -> &Path {
        &self.0[0]
    }

    /// The images after the first.
    pub(crate) fn later(&self) -> &[PathBuf] {
        &self.0[1..]
    }

    /// Share of pages that differ between neighbours, in percent: median over the set.
    pub(crate) fn changed_percent(&self) -> Result<f64, Box<dyn Error>> {
        let mut shares = Vec::new();
        for pair in self.0.windows(2) {
            let (before, after) = (fs::read(&pair[0])?, fs::read(&pair[1])?);
            let pages = before.chunks(4096).zip(after.chunks(4096));
            let changed = pages.filter(|(before, after)| before != after).count();
            shares.push(100.0 * changed as f64 / (before.len() / 4096) as f64);
        }
        Ok(crate::measure::median(shares))
    }
}

/// Runs a guest with a heap of a few hundred MiB, of which a part changes all the time.
fn make(files: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::boot(&GuestConfig { memory_mib: MEMORY_MIB, ..GuestConfig::default() })?;
    guest.start_workload(4, 300)?;
    thread::sleep(Duration::from_secs(60));
    for file in files {
        thread::sleep(Duration::from_secs(10));
        let memory = guest.memory_file();
        guest.paused(|_| copy(&memory, file))??;
    }
    Ok(())
}

/// Copies to a temporary name first: an image that exists is whole.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let unfinished = to.with_extension("unfinished");
    fs::copy(from, &unfinished)?;
    fs::rename(unfinished, to)
}
