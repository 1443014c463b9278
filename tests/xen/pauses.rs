//! How long a domain stands still for an epoch, beside Remus and `xl save -c`, on one load in one boot of the host.
//!
//! None of the three is asked: Xen's trace says when the domain's processor was taken off for somebody in control, and when it
//! might run again. What a guest's kernel does on top for the two that have it suspend itself, such as freezing its
//! processes, is not counted.

use std::time::Duration;

use serde_json::Value;

use super::host::{Host, host_alone};
use super::trace;

/// Epochs of varve and checkpoints of Remus are this far apart.
const INTERVAL_MS: u32 = 200;

/// Epochs and checkpoints in a turn.
const EPOCHS: usize = 10;

/// Rounds in which the three take turns.
const ROUNDS: usize = 2;

/// In the scripts INTERVAL and EPOCHS stand for those numbers.
const VARVE: &str = "varve --json capture xen:pauses --interval INTERVALms --epochs EPOCHS >/tmp/epochs";

/// The receiver swallows the stream. When it ends, Remus gives up and lets the domain run.
const REMUS: &str = r#"cat >/tmp/receiver <<'END'
#!/bin/bash
echo $$ >/tmp/receiving
echo 'xl migration receiver ready, send binary domain data.'
exec cat >/dev/null
END
chmod +x /tmp/receiver
xl remus -F -n -d -i INTERVAL -s '' pauses /tmp/receiver >/tmp/remus 2>&1 </dev/null &
for try in $(seq 300); do
    [ "$(grep -c 'Checkpointed save.*100%' /tmp/remus)" -lt EPOCHS ] || break
    sleep 1
done
kill $(cat /tmp/receiving)
wait $! || true"#;

const SAVE: &str = "xl save -c pauses /tmp/save >/dev/null 2>&1\nrm /tmp/save";

#[test]
fn a_pause_is_at_most_half_of_remus_and_a_tenth_of_xl_save() {
    let mut host = host_alone();
    let mut guest = host.guest("pauses");
    guest.start_workload(4, 16).unwrap();
    // A processor that is never idle: Xen's trace does not show the pause of one that waits anyway.
    guest.spawn("busy", 1000, "/usr/bin/bash", &["-c", "while :; do :; done"]).unwrap();
    let (mut varve, mut remus, mut save, mut said) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Xen itself pauses the domain for moments, as when it is told to begin recording. Of varve's pauses only the longest
        // count, one an epoch; of Remus' all.
        let mut pauses = pauses_during(&mut host, VARVE);
        pauses.sort_unstable();
        varve.extend(pauses.into_iter().rev().take(EPOCHS));
        said.extend(host.script("pauses", "cat /tmp/epochs").lines().map(epoch_of));
        remus.extend(pauses_during(&mut host, REMUS));
        save.push(pauses_during(&mut host, SAVE).iter().sum());
        assert!(guest.truth().is_ok(), "the guest runs on");
    }
    assert!(varve.len() == ROUNDS * EPOCHS && remus.len() >= ROUNDS * EPOCHS, "{varve:?} {remus:?}");
    println!("stood still, in microseconds: varve {varve:?}, Remus {remus:?}, xl save {save:?}");
    let (varve, remus, save) = (median(varve), median(remus), median(save));
    println!("medians: varve {varve} us, Remus {remus} us, xl save -c {save} us");
    for part in ["total", "quiesce", "dirty", "copy", "registers", "resume"] {
        let times = said.iter().filter_map(|epoch| epoch["pause_us"][part].as_u64()).collect();
        println!("varve's own report: {part} {} us", median(times));
    }
    assert!(varve * 2 <= remus, "varve {varve} us, Remus {remus} us");
    assert!(varve * 10 <= save, "varve {varve} us, xl save {save} us");
}

/// What the command printed of an epoch; nothing has pauses in the line of all.
fn epoch_of(line: &str) -> Value {
    let line: Value = serde_json::from_str(line).unwrap();
    if line["type"] == "epoch" { line } else { Value::Null }
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How long the domain stood still each time while a script ran, in microseconds.
fn pauses_during(host: &mut Host, script: &str) -> Vec<u64> {
    let script = script.replace("INTERVAL", &INTERVAL_MS.to_string()).replace("EPOCHS", &EPOCHS.to_string());
    let number = host.script("pauses", "xl domid pauses").trim().parse().unwrap();
    host.patiently(
        "pauses",
        &format!(
            "xentrace -D -S 64 -e 0x21000 /tmp/trace >/tmp/tracing 2>&1 </dev/null &\ntracing=$!\n\
             sleep 1\n{script}\nsleep 0.5\nkill -INT $tracing\nwait $tracing || true"
        ),
        Duration::from_secs(400),
    );
    let mhz = host.script("pauses", "grep -m 1 MHz /proc/cpuinfo");
    let mhz: f64 = mhz.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let stood = trace::stood_still(&host.read("/tmp/trace"), number);
    stood.into_iter().map(|cycles| (cycles as f64 / mhz) as u64).collect()
}
