//! What the views list, against what the guest said in its own `/proc`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use varve_fixtures::history::Epoch;
use varve_fixtures::{Process, TICKS_PER_SECOND};

use super::Recorded;

/// Nanoseconds in a tick of `/proc`.
const TICK_NS: u64 = 1_000_000_000 / TICKS_PER_SECOND;

/// Holds every list of every epoch against the guest's own account of it.
///
/// While a task or module is hidden from one of the kernel's lists, the guest's `/proc` lies about it by design: such
/// epochs are left to the scans. Kernel threads that began, ended or took another name while the epoch was taken are left out.
pub(crate) fn agree(recorded: &Recorded) {
    let hides = |epoch: &&Epoch| {
        epoch
            .expected
            .iter()
            .any(|expected| expected.scan == "hidden_task" || expected.scan == "hidden_module")
    };
    let honest: Vec<&Epoch> = recorded.epochs.iter().filter(|epoch| !hides(epoch)).collect();
    assert!(honest.len() >= 10, "most epochs can be compared");
    for epoch in honest {
        assert!(epoch.truth.volatile.len() < 4, "the lab promised a guest at rest");
        processes(recorded, epoch);
        modules(recorded, epoch);
        maps(recorded, epoch);
    }
    kallsyms(recorded);
}

fn show(recorded: &Recorded, view: &str, epoch: u64) -> Vec<Value> {
    recorded.archive.json(&["show", view, "--epoch", &epoch.to_string()], 0)
}

/// The rows of a view that are about tasks, but for those of which nothing is expected.
fn tasks(recorded: &Recorded, view: &str, epoch: &Epoch) -> Vec<Value> {
    let mut rows = show(recorded, view, epoch.number);
    rows.retain(|row| !epoch.truth.volatile.contains(&pid(row)));
    rows
}

/// What the guest said of its processes, but for those that did not last.
fn lasting(epoch: &Epoch) -> impl Iterator<Item = &Process> {
    epoch.truth.processes.iter().filter(|process| !epoch.truth.volatile.contains(&process.pid))
}

fn processes(recorded: &Recorded, epoch: &Epoch) {
    let mut expected: BTreeMap<u32, Value> =
        lasting(epoch).map(|process| (process.pid, row(process))).collect();
    let listed: BTreeMap<u32, Value> = tasks(recorded, "pslist", epoch).iter().map(keyed).collect();
    assert!(listed.keys().eq(expected.keys()), "pslist of epoch {}: {:?}", epoch.number, listed.keys());
    for (pid, expected) in &mut expected {
        let row = &listed[pid];
        // A timer may wake a kernel thread, or send it back to sleep, between the guest's account of itself and the pause.
        if expected["kernel_thread"] == true && (row["state"] == "R" || expected["state"] == "R") {
            expected["state"] = row["state"].clone();
        }
        assert_eq!(row, expected, "pslist of epoch {}", epoch.number);
    }

    psaux(recorded, epoch);

    let mut expected: Vec<u32> = lasting(epoch).flat_map(|p| p.threads.iter().map(|t| t.tid)).collect();
    expected.sort_unstable();
    let mut listed: Vec<u32> = tasks(recorded, "pidhashtable", epoch).iter().map(pid).collect();
    listed.sort_unstable();
    assert_eq!(listed, expected, "pidhashtable of epoch {}", epoch.number);
}

/// User processes have their arguments; of kernel threads, which have none, `/proc` tells the name cut to 15 bytes.
fn psaux(recorded: &Recorded, epoch: &Epoch) {
    let listed: BTreeMap<u32, String> = tasks(recorded, "psaux", epoch)
        .iter()
        .map(|row| (pid(row), row["args"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(listed.len(), lasting(epoch).count(), "psaux of epoch {}", epoch.number);
    for process in lasting(epoch) {
        let listed = &listed[&process.pid];
        match process.kernel {
            true => assert!(listed.starts_with(&format!("[{}", process.comm)), "{listed} is {process:?}"),
            false => assert_eq!(*listed, process.arguments.join(" "), "psaux of epoch {}", epoch.number),
        }
    }
}

/// A row of `pslist`, as far as `/proc` can tell it.
fn row(process: &Process) -> Value {
    // PID 1 runs while it answers, and waits for the next question when it is looked at.
    let state = if process.pid == 1 { 'S' } else { process.state };
    json!({
        "pid": process.pid, "ppid": process.ppid, "tgid": process.pid, "comm": process.comm, "uid": process.uid[0],
        "gid": process.gid[0], "euid": process.uid[1], "egid": process.gid[1], "state": state.to_string(),
        "start_ticks": process.start_ticks, "threads": process.threads.len(), "kernel_thread": process.kernel,
    })
}

/// A printed row in the same form: the start in ticks, and without the address, which `/proc` does not tell.
fn keyed(row: &Value) -> (u32, Value) {
    let mut row = row.clone();
    let fields = row.as_object_mut().unwrap();
    let start = fields.remove("start_time_ns").unwrap().as_u64().unwrap();
    fields.insert("start_ticks".to_owned(), (start / TICK_NS).into());
    fields.remove("task").unwrap();
    (pid(&row), row)
}

fn pid(row: &Value) -> u32 {
    row["pid"].as_u64().unwrap().try_into().unwrap()
}

fn modules(recorded: &Recorded, epoch: &Epoch) {
    let expected: Vec<_> = epoch
        .truth
        .modules
        .iter()
        .map(|module| {
            (module.name.clone(), module.size, u64::from(module.references), format!("{:#x}", module.address))
        })
        .collect();
    let string = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let listed: Vec<_> = show(recorded, "lsmod", epoch.number)
        .iter()
        .map(|row| {
            (
                string(row, "name"),
                row["size"].as_u64().unwrap(),
                row["refs"].as_u64().unwrap(),
                string(row, "address"),
            )
        })
        .collect();
    assert_eq!(listed, expected, "lsmod of epoch {}", epoch.number);
}

fn maps(recorded: &Recorded, epoch: &Epoch) {
    let expected: Vec<Value> = epoch
        .truth
        .processes
        .iter()
        .flat_map(|process| process.maps.iter().map(move |map| (process.pid, map)))
        .map(|(pid, map)| {
            let (start, end) = (format!("{:#x}", map.start), format!("{:#x}", map.end));
            json!({"pid": pid, "start": start, "end": end, "flags": map.flags, "offset": map.offset, "inode": map.inode, "path": map.path})
        })
        .collect();
    let mut listed = show(recorded, "maps", epoch.number);
    for row in &mut listed {
        row.as_object_mut().unwrap().remove("dev");
    }
    listed.sort_by_key(|row| {
        (pid(row), u64::from_str_radix(&row["start"].as_str().unwrap()[2..], 16).unwrap())
    });
    // The page of old system calls belongs to no process and is mapped nowhere; /proc adds it to every map.
    let expected: Vec<Value> = expected.into_iter().filter(|row| row["path"] != "[vsyscall]").collect();
    listed.retain(|row| row["path"] != "[vsyscall]");
    assert_eq!(listed, expected, "maps of epoch {}", epoch.number);
}

/// Every symbol of the running kernel and its modules, from `/proc/kallsyms`.
fn kallsyms(recorded: &Recorded) {
    let mut expected: Vec<String> = recorded.kallsyms.lines().map(str::to_owned).collect();
    let line = |row: &Value| {
        let address = &row["address"].as_str().unwrap()[2..];
        let module = row["module"].as_str().map_or(String::new(), |module| format!("\t[{module}]"));
        format!("{address:0>16} {} {}{module}", row["type"].as_str().unwrap(), row["name"].as_str().unwrap())
    };
    let mut listed: Vec<String> = show(recorded, "kallsyms", 0).iter().map(line).collect();
    // Programs of the kernel's own interpreter are listed by /proc/kallsyms behind the modules and are in no symbol table.
    expected.retain(|line| !line.ends_with("\t[bpf]") && !line.contains("[__builtin__"));
    expected.sort();
    listed.sort();
    let missing: Vec<_> =
        expected.iter().filter(|line| listed.binary_search(line).is_err()).take(5).collect();
    let surplus: Vec<_> =
        listed.iter().filter(|line| expected.binary_search(line).is_err()).take(5).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "kallsyms: missing {missing:#?}, surplus {surplus:#?}");
    assert_eq!(listed.len(), expected.len(), "kallsyms");
}
