//! Bring-up, `pslist` and the system call table, beside Volatility 3 on the exported image with the exported symbols.

use std::{error::Error, path::PathBuf, process::Command};

use tempfile::TempDir;
use varve_fixtures::Lab;

use crate::{
    images::Images,
    measure::{Outcome, compare, median, time, varve},
};

const ROUNDS: usize = 3;

/// Runs both tools in turns and holds their rows against each other.
pub(crate) fn run(images: &Images) -> Outcome {
    let vol = volatility()?;
    let scratch = TempDir::new()?;
    let (archive, image, symbols) =
        (scratch.path().join("varve"), scratch.path().join("epoch.raw"), scratch.path().join("symbols"));
    std::fs::create_dir(&symbols)?;
    time(varve(&archive).arg("init"))?;
    time(varve(&archive).arg("import").arg(images.base()))?;
    time(varve(&archive).args(["export", "0", "--format", "raw", "-o"]).arg(&image))?;
    time(varve(&archive).args(["export", "0", "--format", "isf", "-o"]).arg(symbols.join("guest.json")))?;
    let plugin = |name: &str| {
        let mut command = Command::new(&vol);
        command.args(["--quiet", "--offline", "--renderer", "json", "--symbol-dirs"]).arg(&symbols);
        command.arg("--file").arg(&image).arg(name);
        command
    };
    // Volatility builds its cache of symbol files at its first start; that is not counted.
    time(&mut plugin("linux.pslist.PsList"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut seconds = time(varve(&archive).args(["--json", "show", "pslist", "--epoch", "0"]))?;
        // A finding would be another exit status than success.
        seconds += time(varve(&archive).args(["--json", "scan", "--epoch", "0", "--scan", "syscall_table"]))?;
        ours.push(seconds);
        let mut seconds = time(&mut plugin("linux.pslist.PsList"))?;
        seconds += time(&mut plugin("linux.malware.check_syscall.Check_syscall"))?;
        theirs.push(seconds);
    }
    let agreed = same_rows(&mut varve(&archive), &mut plugin("linux.pslist.PsList"))?;
    let (entries, odd) = odd_entries(&mut plugin("linux.malware.check_syscall.Check_syscall"))?;
    if !odd.is_empty() {
        // varve ended with status 0 above: it found nothing.
        return Err(format!("varve finds no changed system call, and volatility {odd:?}").into());
    }
    println!("bring-up, pslist and system call table of a 1 GiB guest (median of {ROUNDS})");
    println!("{:<28} {:>8.3} s", "varve show, scan", median(ours.clone()));
    compare("volatility3, two plugins", &theirs, &ours, "goal: at least 50×");
    println!("pslist: the same {agreed} rows; {entries} system calls: nothing changed for either");
    Ok(())
}

/// Compares process id, parent and name of every row; gives their number.
fn same_rows(varve: &mut Command, volatility: &mut Command) -> Result<usize, Box<dyn Error>> {
    let ours = varve.args(["--json", "show", "pslist", "--epoch", "0"]).output()?.stdout;
    let mut ours: Vec<(u64, u64, String)> = String::from_utf8(ours)?
        .lines()
        .map(|line| row(&serde_json::from_str(line)?, ["pid", "ppid", "comm"]))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let theirs: serde_json::Value = serde_json::from_slice(&volatility.output()?.stdout)?;
    let theirs = theirs.as_array().ok_or("volatility did not print a list")?;
    let mut theirs: Vec<_> =
        theirs.iter().map(|value| row(value, ["PID", "PPID", "COMM"])).collect::<Result<_, _>>()?;
    ours.sort();
    theirs.sort();
    if ours != theirs {
        return Err(format!("pslist differs:\nvarve      {ours:?}\nvolatility {theirs:?}").into());
    }
    Ok(ours.len())
}

/// The number of entries in the system call table, and the handlers among them that are no system call.
fn odd_entries(volatility: &mut Command) -> Result<(usize, Vec<String>), Box<dyn Error>> {
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&volatility.output()?.stdout)?;
    let handlers = rows.iter().map(|row| row["Handler Symbol"].as_str().unwrap_or("without a name"));
    let is_call =
        |name: &str| ["__x64_sys_", "__ia32_sys_", "__do_sys_"].iter().any(|kind| name.starts_with(kind));
    Ok((rows.len(), handlers.filter(|name| !is_call(name)).map(str::to_owned).collect()))
}

fn row(value: &serde_json::Value, names: [&str; 3]) -> Result<(u64, u64, String), Box<dyn Error>> {
    let [pid, ppid, comm] = names.map(|name| value.get(name));
    let number =
        |value: Option<&serde_json::Value>| value.and_then(serde_json::Value::as_u64).ok_or("no number");
    Ok((number(pid)?, number(ppid)?, comm.and_then(|name| name.as_str()).ok_or("no name")?.to_owned()))
}

/// Volatility 3 from PyPI in a virtual environment of its own, made once.
fn volatility() -> Result<PathBuf, Box<dyn Error>> {
    let folder = Lab::open()?.folder().join("volatility3");
    let program = folder.join("bin/vol");
    if !program.exists() {
        eprintln!("peers: installing Volatility 3 (once)");
        time(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        time(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "volatility3"]))?;
    }
    Ok(program)
}
