//! Timing of whole processes, and ratios.

use std::{
    error::Error,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// Whether a benchmark could be run at all.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// The varve under test, on an archive.
pub(crate) fn varve(archive: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.arg("--quiet").arg("--archive").arg(archive).args(["--vm", "bench"]);
    command
}

/// Runs a command to its end and gives its wall time in seconds. What others wrote is on disk before the clock starts, so
/// that nobody waits for it.
pub(crate) fn time(command: &mut Command) -> Result<f64, Box<dyn Error>> {
    let program = command.get_program().to_string_lossy().into_owned();
    rustix::fs::sync();
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("{program}: {error} (`make setup` installs what benchmarks need)"))?;
    let seconds = started.elapsed().as_secs_f64();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} failed ({}): {}", output.status, stderr.trim()).into());
    }
    Ok(seconds)
}

/// The middle value; of an even number, the upper of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints one line: who, how long, and how many times as long as varve, pair by pair.
pub(crate) fn compare(who: &str, peer: &[f64], varve: &[f64], goal: &str) {
    let ratios = peer.iter().zip(varve).map(|(peer, varve)| peer / varve).collect();
    let (peer, ratio) = (median(peer.to_vec()), median(ratios));
    println!("{who:<28} {peer:>8.3} s   {ratio:>6.1}× varve's time   {goal}");
}

/// Bytes that a folder's files take, in MiB.
pub(crate) fn folder_mib(folder: &Path) -> Result<f64, Box<dyn Error>> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { (folder_mib(&entry.path())? * MIB) as u64 } else { metadata.len() };
    }
    Ok(bytes as f64 / MIB)
}

const MIB: f64 = (1 << 20) as f64;
