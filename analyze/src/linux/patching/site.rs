//! One place in kernel text that the kernel itself rewrites, and what it may hold.

use varve_formats::Gva;

use super::insn::{BRANCH32_LEN, CALL, INT3, JMP32, NOP2, NOP5, branch8, branch32, conditional32};

/// Bytes of a site that have to be known to judge it: the longest instruction the kernel patches (a conditional jump).
pub(crate) const MAX_SITE_LEN: usize = 6;

/// `cs cs cs xor eax, eax`: a call of `__static_call_return0`, in place (`arch/x86/kernel/static_call.c`, `xor5rax`).
const XOR5RAX: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];
/// `ud1 (%edx), %rdi`: a call of `__WARN_trap`, in place (same file, `warninsn`; since 6.19).
const WARN: [u8; 5] = [0x67, 0x48, 0x0f, 0xb9, 0x3a];
/// `ds ds movb $0, (%rdi)`: a native queued spin unlock, in place (same file, `unlockinsn`; since 7.0).
const UNLOCK: [u8; 5] = [0x3e, 0x3e, 0xc6, 0x07, 0x00];
/// `ret; int3…` (same file, `retinsn`), and as the linker leaves an empty trampoline (`asm/static_call.h`).
const RETURNS: [[u8; 5]; 2] = [[0xc3, 0xcc, 0xcc, 0xcc, 0xcc], [0xc3, 0xcc, 0x90, 0x90, 0x90]];

/// `lock`, and the harmless segment prefix that replaces it while one processor runs (`alternatives_smp_unlock`).
const LOCK_PREFIXES: [u8; 2] = [0xf0, 0x3e];

/// First bytes that [`Kind`]s other than [`Kind::Kprobe`] and [`Kind::LockPrefix`] can have, for what an [`INT3`] hides.
const FIRST_BYTES: [u8; 8] = [CALL, JMP32, super::insn::JMP8, 0x0f, 0x66, 0x2e, 0xc3, 0x67];

/// Bytes before a function in which call depth tracking places its accounting (`CONFIG_FUNCTION_PADDING_BYTES`).
pub(super) const MAX_THUNK_LEN: u64 = 32;

/// What patches a site, with what decides on the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `static_branch_*`: a no-operation or a jump to `target`.
    JumpLabel {
        /// The only place the branch can lead to.
        target: Gva,
    },
    /// A call or tail call of a `static_call`.
    StaticCall {
        /// `static_call_key.func`, `None` when null.
        function: Option<Gva>,
        /// Whether the site is a jump.
        tail: bool,
    },
    /// The out-of-line jump of a `static_call` (`__SCT__…`).
    Trampoline {
        /// `static_call_key.func`, `None` when null.
        function: Option<Gva>,
    },
    /// The same in a module, where it has no symbol and is known by the instruction behind it.
    ModuleTrampoline,
    /// The call that the compiler puts at the start of a function for ftrace.
    Fentry,
    /// The call inside `ftrace_caller` and `ftrace_regs_caller`.
    FtraceCall,
    /// A `lock` prefix that is dropped while one processor runs.
    LockPrefix,
    /// A registered kprobe.
    Kprobe(Kprobe),
}

/// A registered kprobe at its site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kprobe {
    /// The byte that the breakpoint replaced (`kprobe.opcode`).
    pub(crate) opcode: u8,
    /// The detour of an optimised probe and the four bytes behind the first that its jump replaced.
    pub(crate) detour: Option<(Gva, [u8; 4])>,
}

/// What sites may refer to, as far as it is not a property of the single site.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    /// What a function's entry may call: `ftrace_caller`, and trampolines of registered `ftrace_ops`. Sorted.
    pub(crate) entry_calls: Vec<Gva>,
    /// What ftrace's own trampolines may call. Sorted.
    pub(crate) callbacks: Vec<Gva>,
    /// `direct_functions`: for a function's entry the one trampoline it may call, or jump to. Sorted by entry.
    pub(crate) direct: Vec<(Gva, Gva)>,
    /// Every function that some `static_call_key` holds. Sorted.
    pub(crate) static_functions: Vec<Gva>,
    /// Where a function may return through. Sorted.
    pub(crate) return_thunks: Vec<Gva>,
    /// `__static_call_return0`, `__WARN_trap` and the native spin unlock, which become single instructions.
    pub(crate) inlined: Inlined,
    /// Whether calls may go to the accounting in front of a function (`callthunks.c`, `thunks_initialized`).
    pub(crate) call_depth: bool,
    /// Whether `text_mutex` is held: text is being rewritten at this moment.
    pub(crate) patching: bool,
}

/// Functions whose static call is replaced by one instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inlined {
    pub(crate) return0: Option<Gva>,
    pub(crate) warn: Option<Gva>,
    pub(crate) unlock: Option<Gva>,
}

impl Kind {
    /// How many bytes of `code`, which is what stands at `at`, the kernel may have put there; `None` when it has not.
    pub(crate) fn explains(&self, at: Gva, code: &[u8], targets: &Targets) -> Option<usize> {
        if let Some(len) = self.settled(at, code, targets) {
            return Some(len);
        }
        // `text_poke_bp_batch` writes a breakpoint, then the tail of the new instruction, then its first byte.
        let poked = targets.patching && code.first() == Some(&INT3);
        poked.then(|| self.behind_breakpoint(at, code, targets)).flatten()
    }

    fn settled(&self, at: Gva, code: &[u8], targets: &Targets) -> Option<usize> {
        match self {
            Self::JumpLabel { target } => jump_label(at, code, *target),
            Self::StaticCall { function, tail: false } => static_call(at, code, *function, targets),
            Self::StaticCall { function, tail: true } | Self::Trampoline { function } => {
                tail_call(at, code, *function, targets)
            }
            Self::ModuleTrampoline => match branch32(JMP32, at, code) {
                Some(target) if contains(&targets.static_functions, target) => Some(BRANCH32_LEN),
                _ => tail_call(at, code, None, targets),
            },
            Self::Fentry => entry(at, code, targets),
            Self::FtraceCall => {
                let target = branch32(CALL, at, code)?;
                contains(&targets.callbacks, target).then_some(BRANCH32_LEN)
            }
            Self::LockPrefix => code.first().filter(|byte| LOCK_PREFIXES.contains(byte)).map(|_| 1),
            Self::Kprobe(kprobe) => kprobe.explains(at, code),
        }
    }

    fn behind_breakpoint(&self, at: Gva, code: &[u8], targets: &Targets) -> Option<usize> {
        let mut restored = [0; MAX_SITE_LEN];
        let restored = restored.get_mut(..code.len().min(MAX_SITE_LEN))?;
        restored.copy_from_slice(code.get(..restored.len())?);
        FIRST_BYTES.into_iter().find_map(|byte| {
            *restored.first_mut()? = byte;
            self.settled(at, restored, targets)
        })
    }

    /// Whether everything that can stand at the site has the same length. The jump of a probe is longer than its
    /// breakpoint.
    pub(crate) const fn keeps_length(&self) -> bool {
        !matches!(self, Self::Kprobe(_))
    }

    /// What a person calls the mechanism.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::JumpLabel { .. } => "static branch",
            Self::StaticCall { .. } | Self::Trampoline { .. } | Self::ModuleTrampoline => "static call",
            Self::Fentry | Self::FtraceCall => "ftrace",
            Self::LockPrefix => "SMP lock prefix",
            Self::Kprobe(_) => "kprobe",
        }
    }
}

impl Kprobe {
    fn explains(&self, at: Gva, code: &[u8]) -> Option<usize> {
        let first = *code.first()?;
        let Some((detour, copied)) = self.detour else {
            return (first == INT3 || first == self.opcode).then_some(1);
        };
        let tail = code.get(1..BRANCH32_LEN)?;
        let jump = detour.0.wrapping_sub(at.0.wrapping_add(BRANCH32_LEN as u64)) as u32;
        let (jumps, original) = (tail == jump.to_le_bytes(), tail == copied);
        let explained = match first {
            JMP32 if jumps => true,
            // `arch_unoptimize_kprobe`: the breakpoint first, then the bytes behind it.
            INT3 => jumps || original,
            _ => first == self.opcode && original,
        };
        explained.then_some(BRANCH32_LEN)
    }

    /// What stood at the probe's address before it was armed, given what stands there now.
    pub(crate) fn restore(&self, code: &mut [u8]) {
        if let Some(first) = code.first_mut() {
            *first = self.opcode;
        }
        if let (Some((_, copied)), Some(tail)) = (self.detour, code.get_mut(1..BRANCH32_LEN)) {
            tail.copy_from_slice(&copied);
        }
    }
}

/// `arch/x86/kernel/jump_label.c`, `__jump_label_patch`.
fn jump_label(at: Gva, code: &[u8], target: Gva) -> Option<usize> {
    if code.starts_with(&NOP5) || branch32(JMP32, at, code) == Some(target) {
        Some(NOP5.len())
    } else if code.starts_with(&NOP2) || branch8(at, code) == Some(target) {
        Some(NOP2.len())
    } else {
        None
    }
}

/// `arch/x86/kernel/static_call.c`, `__static_call_transform`, types `CALL` and `NOP`.
fn static_call(at: Gva, code: &[u8], function: Option<Gva>, targets: &Targets) -> Option<usize> {
    let Some(function) = function else {
        return code.starts_with(&NOP5).then_some(NOP5.len());
    };
    let inlined = targets.inlined;
    let instead = [(inlined.return0, XOR5RAX), (inlined.warn, WARN), (inlined.unlock, UNLOCK)];
    if instead.iter().any(|(of, bytes)| *of == Some(function) && code.starts_with(bytes)) {
        return Some(BRANCH32_LEN);
    }
    let target = branch32(CALL, at, code)?;
    let thunk = function.offset_from(target).is_some_and(|before| before <= MAX_THUNK_LEN);
    (target == function || targets.call_depth && thunk).then_some(BRANCH32_LEN)
}

/// The same, types `JMP`, `RET` and `JCC`.
fn tail_call(at: Gva, code: &[u8], function: Option<Gva>, targets: &Targets) -> Option<usize> {
    let leads = |target: Gva| match function {
        Some(function) => target == function,
        None => contains(&targets.return_thunks, target),
    };
    if branch32(JMP32, at, code).is_some_and(leads) {
        return Some(BRANCH32_LEN);
    }
    if function.is_none() && RETURNS.iter().any(|bytes| code.starts_with(bytes)) {
        return Some(BRANCH32_LEN);
    }
    conditional32(at, code).is_some_and(leads).then_some(6)
}

/// `kernel/trace/ftrace.c`, `ftrace_get_addr_new`; `arch/x86/kernel/ftrace.c`, `ftrace_call_replace`.
fn entry(at: Gva, code: &[u8], targets: &Targets) -> Option<usize> {
    if code.starts_with(&NOP5) {
        return Some(NOP5.len());
    }
    let direct = || {
        let index = targets.direct.binary_search_by_key(&at, |(site, _)| *site).ok()?;
        targets.direct.get(index).map(|(_, target)| *target)
    };
    let explained = match (branch32(CALL, at, code), branch32(JMP32, at, code)) {
        (Some(target), _) => contains(&targets.entry_calls, target) || direct() == Some(target),
        // Since 7.0 bit 0 of a direct target says that it is jumped to (`ftrace_is_jmp`).
        (None, Some(target)) => direct() == Some(Gva(target.0 | 1)) && target.0 & 1 == 0,
        (None, None) => false,
    };
    explained.then_some(BRANCH32_LEN)
}

fn contains(sorted: &[Gva], address: Gva) -> bool {
    sorted.binary_search(&address).is_ok()
}

#[cfg(test)]
#[path = "site_tests.rs"]
mod tests;
