//! Takes from the scanner's process everything that it does not need to look at memory: what a hostile guest might make of it then
//! has nowhere to go.
//!
//! The gate starts it as a user with no rights, with an empty environment, a socket, and nothing else. From here on it can make no
//! file, socket, or process: the kernel ends it when it tries (`seccomp(2)`).

use std::io;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde_json::json;

/// Most address space: the guest's memory is mapped into it.
const ADDRESS_SPACE: u64 = 1 << 40;

/// Most memory of its own, in bytes.
const DATA: u64 = 4 << 30;

/// The calls that looking at memory takes: reading and writing what is open, memory, threads that exist, and time.
const ALLOWED: [&str; 43] = [
    "read",
    "write",
    "readv",
    "writev",
    "recvmsg",
    "sendmsg",
    "recvfrom",
    "sendto",
    "close",
    "fstat",
    "newfstatat",
    "statx",
    "lseek",
    "fcntl",
    "poll",
    "ppoll",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "futex",
    "sched_yield",
    "sched_getaffinity",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "getrandom",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigaction",
    "sigaltstack",
    "gettid",
    "getpid",
    "tgkill",
    "rseq",
    "set_robust_list",
    "membarrier",
    "restart_syscall",
    "exit",
    "exit_group",
];

/// Confines this process, with the threads it has and needs.
pub(super) fn confine() -> io::Result<()> {
    // The threads that look: none can be made later.
    rayon::ThreadPoolBuilder::new().build_global().map_err(io::Error::other)?;
    // The gate's end is ours: nobody else could use an answer.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    for (resource, most) in [(Resource::As, ADDRESS_SPACE), (Resource::Data, DATA), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    let calls: Vec<_> = ALLOWED.iter().map(|call| json!({ "syscall": call })).collect();
    let filter =
        json!({ "all": { "mismatch_action": "kill_process", "match_action": "allow", "filter": calls } });
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let programs = seccompiler::compile_from_json(filter.to_string().as_bytes(), architecture);
    let programs = programs.map_err(io::Error::other)?;
    let program = programs.get("all").ok_or_else(|| io::Error::other("there is no filter"))?;
    // Which also takes away the way to new rights (`PR_SET_NO_NEW_PRIVS`).
    seccompiler::apply_filter_all_threads(program).map_err(io::Error::other)
}
