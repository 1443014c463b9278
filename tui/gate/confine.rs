//! Takes from the scanner's process everything that it does not need to look at memory: what a hostile guest might make of it then
//! has nowhere to go.
//!
//! The gate starts it as a user with no rights, with an empty environment, a socket, and nothing else. From here on it can make no
//! file, socket, or process: the kernel ends it when it tries (`seccomp(2)`).

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde_json::json;

/// Most address space: the guest's memory is mapped into it.
const ADDRESS_SPACE: u64 = 1 << 40;

/// Most memory of its own, in bytes.
const DATA: u64 = 4 << 30;

/// The calls that looking at memory takes: reading and writing what is open, memory, threads that exist, and time.
const ALLOWED: [&str; 42] = [
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
    "rseq",
    "set_robust_list",
    "membarrier",
    "restart_syscall",
    "exit",
    "exit_group",
];

/// Calls that are refused, and no reason to end: the C library's allocator asks for a setting of the system when it first gives
/// memory back (`check_may_shrink_heap` of glibc's `malloc-sysdep.h`), and does without.
const REFUSED: [&str; 2] = ["open", "openat"];

/// Confines this process, with the threads it has and needs.
pub(super) fn confine() -> io::Result<()> {
    // The threads that look: none can be made later.
    rayon::ThreadPoolBuilder::new().build_global().map_err(io::Error::other)?;
    // The gate's end is ours: nobody else could use an answer.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    for (resource, most) in [(Resource::As, ADDRESS_SPACE), (Resource::Data, DATA), (Resource::Core, 0)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    let calls = |names: &[&str]| names.iter().map(|call| json!({ "syscall": call })).collect::<Vec<_>>();
    let refused = json!({ "errno": Errno::ACCESS.raw_os_error() });
    let filters = json!({
        "refused": { "mismatch_action": "allow", "match_action": refused, "filter": calls(&REFUSED) },
        "allowed": {
            "mismatch_action": "kill_process", "match_action": "allow", "filter": calls(&[&ALLOWED[..], &REFUSED].concat()),
        },
    });
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let programs = seccompiler::compile_from_json(filters.to_string().as_bytes(), architecture);
    let programs = programs.map_err(io::Error::other)?;
    // Of two filters the stricter decides; behind the last no further one can be added.
    for name in ["refused", "allowed"] {
        let program = programs.get(name).ok_or_else(|| io::Error::other("there is no filter"))?;
        // Which also takes away the way to new rights (`PR_SET_NO_NEW_PRIVS`).
        seccompiler::apply_filter_all_threads(program).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rayon::prelude::*;

    use super::*;

    const CONFINED: &str = "VARVE_TEST_CONFINED";

    /// Runs itself again in a process of its own, which is then the confined one.
    #[test]
    fn memory_and_threads_go_on_files_are_refused_and_the_rest_is_the_end() {
        if std::env::var_os(CONFINED).is_some() {
            return inside();
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        let name = "gate::confine::tests::memory_and_threads_go_on_files_are_refused_and_the_rest_is_the_end";
        let ended = again.args(["--exact", name, "--nocapture"]).env(CONFINED, "1").output().unwrap();
        let printed = String::from_utf8_lossy(&ended.stdout);
        assert!(
            printed.contains("looked") && printed.contains("refused") && !printed.contains("bound"),
            "{printed}"
        );
        assert_eq!(ended.status.signal(), Some(Signal::SYS.as_raw()), "{ended:?}");
    }

    fn inside() {
        confine().unwrap();
        // The allocator gives memory back to the system, for which it wants to know a setting.
        let bytes: usize =
            (0..64_usize).into_par_iter().map(|nth| vec![vec![nth as u8; 4096]; 1024].len()).sum();
        println!("looked {bytes}");
        assert_eq!(File::open("/proc/self/status").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        println!("refused");
        let bound = UdpSocket::bind("127.0.0.1:0");
        println!("bound {bound:?}");
    }
}
