//! `syscall_table`, `idt`, `kernel_text`, `symbols_changed`.

use varve_formats::{TableRegister, Vcpu};

use super::kernel::{Healthy, branch, dispatching_call, gate};
use super::{found, objects, scan};

/// A processor in long mode with paging.
fn vcpu(healthy: &Healthy, idt: u64, lstar: u64) -> Vcpu {
    Vcpu {
        cr0: 1 << 31,
        idtr: Some(TableRegister { base: idt, limit: 4095 }),
        lstar: Some(lstar),
        ..healthy.kernel.vcpu(healthy.kernel.root)
    }
}

#[test]
fn a_changed_entry_of_the_table_is_found_with_and_without_a_baseline() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let table = healthy.kernel.symbol("sys_call_table");
    let kill = healthy.kernel.symbol("__x64_sys_kill");
    let hook = healthy.kernel.symbol("with_a_static_branch");
    healthy.kernel.write(table + 8, &hook.to_le_bytes());
    let hooked = healthy.kernel.memory.clone();
    assert_eq!(found("syscall_table", &hooked, None), ["syscall:1"]);
    let report = scan("syscall_table", &hooked, Some(&clean), "", &[]);
    assert_eq!(objects(&report), ["syscall:1"]);
    assert_eq!(
        report.findings[0].title,
        "System call 1 led to __x64_sys_write and leads to with_a_static_branch"
    );
    let evidence = &report.findings[0].evidence[0];
    assert_eq!(evidence.gva.unwrap().0, table + 8);
    assert_eq!(evidence.gpa.unwrap().0, healthy.kernel.gpa(table + 8));
    assert_eq!(evidence.after, Some(hook.to_le_bytes().to_vec()));
    healthy.kernel.write(table + 8, &kill.to_le_bytes());
    assert_eq!(found("syscall_table", &healthy.kernel.memory, Some(&clean)), ["syscall:1"]);
}

#[test]
fn a_changed_call_of_the_dispatcher_is_found_with_and_without_a_baseline() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let at = dispatching_call(&healthy.kernel, 3);
    let hook = healthy.kernel.symbol("with_a_static_branch");
    healthy.kernel.write(at, &branch(0xe9, at, hook));
    let hooked = &healthy.kernel.memory;
    assert_eq!(found("syscall_table", hooked, None), ["syscall:3"], "the one that nothing else leads to");
    let report = scan("syscall_table", hooked, Some(&clean), "", &[]);
    assert_eq!(objects(&report), ["syscall:3"]);
    assert_eq!(
        report.findings[0].title,
        "System call 3 led to __x64_sys_kill and leads to with_a_static_branch (x64_sys_call)"
    );
    assert_eq!(found("kernel_text", hooked, Some(&clean)), ["x64_sys_call+0x10"]);
}

#[test]
fn code_put_into_the_dispatcher_is_found() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let padding = healthy.kernel.symbol("x64_sys_call") + 0x20;
    healthy.kernel.write(padding, &[0x90, 0x90]);
    assert_eq!(found("syscall_table", &healthy.kernel.memory, Some(&clean)), ["syscall:x64_sys_call+0x20"]);
}

#[test]
fn another_entry_point_of_system_calls_is_found() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let entry = healthy.kernel.symbol("entry_SYSCALL_64");
    let idt = healthy.kernel.symbol("idt_table");
    let of = |lstar| {
        let vcpu = vcpu(&healthy, idt, lstar);
        objects(&scan("syscall_table", &healthy.kernel.memory, None, "", &[vcpu]))
    };
    assert_eq!(of(entry), [""; 0]);
    assert_eq!(of(0), [""; 0], "a processor that was not started");
    assert_eq!(of(entry + 1), ["syscall:lstar:vcpu0"]);
}

#[test]
fn a_changed_gate_is_found_with_and_without_a_baseline() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let table = healthy.kernel.symbol("idt_table");
    let int3 = healthy.kernel.symbol("asm_exc_int3");
    let hook = healthy.kernel.symbol("with_a_static_branch");
    for (vector, raw, alone) in [
        (14, gate(int3, 0x8e), true),
        (14, gate(hook, 0x8e), true),
        (3, gate(int3, 0x8e), false),
        (80, gate(hook, 0x8e), true),
        (80, [0; 16], false),
    ] {
        healthy.kernel.write(table + vector * 16, &raw);
        let (expected, memory) = (vec![format!("idt:{vector}")], &healthy.kernel.memory);
        assert_eq!(found("idt", memory, Some(&clean)), expected);
        assert_eq!(found("idt", memory, None), if alone { expected } else { vec![] });
        healthy.kernel.memory = clean.clone();
    }
    let user = gate(healthy.kernel.symbol("asm_exc_page_fault"), 0xee);
    healthy.kernel.write(table + 14 * 16, &user);
    assert_eq!(found("idt", &healthy.kernel.memory, None), ["idt:14"], "for user mode");
}

#[test]
fn another_interrupt_table_is_found() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let table = healthy.kernel.symbol("idt_table");
    let entry = healthy.kernel.symbol("entry_SYSCALL_64");
    let of = |base| {
        let vcpu = vcpu(&healthy, base, entry);
        scan("idt", &healthy.kernel.memory, None, "", &[vcpu])
    };
    assert_eq!(objects(&of(table)), [""; 0]);
    let alias = super::synthetic::DIRECT_MAP + healthy.kernel.gpa(table);
    assert_eq!(objects(&of(alias)), [""; 0], "the same table under another address");
    assert_eq!(objects(&of(table + 4096)), ["idt:vcpu0"]);
    assert!(!of(0x1000).complete, "nothing is mapped there");
}

#[test]
fn one_changed_byte_of_code_is_found() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let kill = healthy.kernel.symbol("__x64_sys_kill");
    healthy.kernel.write(kill + 5, &[0xc3]);
    let report = scan("kernel_text", &healthy.kernel.memory, Some(&clean), "", &[]);
    assert_eq!(objects(&report), ["__x64_sys_kill+0x5"]);
    let evidence = &report.findings[0].evidence[0];
    assert_eq!((evidence.before.as_deref(), evidence.after.as_deref()), (Some(&[0][..]), Some(&[0xc3][..])));
    assert_eq!(evidence.gpa.unwrap().0, healthy.kernel.gpa(kill + 5));
}

#[test]
fn a_static_branch_may_be_taken_and_nothing_else() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let at = healthy.kernel.symbol("with_a_static_branch") + 8;
    healthy.kernel.write(at, &[0xeb, 0x26]);
    assert_eq!(found("kernel_text", &healthy.kernel.memory, Some(&clean)), [""; 0]);
    healthy.kernel.write(at, &[0xeb, 0x27]);
    for baseline in [None, Some(&clean)] {
        assert_eq!(found("kernel_text", &healthy.kernel.memory, baseline), ["with_a_static_branch+0x8"]);
    }
}

#[test]
fn a_table_that_grew_explains_nothing() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let kill = healthy.kernel.symbol("__x64_sys_kill");
    let entry = healthy.kernel.symbol("__start___jump_table") + 16;
    let distance = |from: u64, to: u64| (to.wrapping_sub(from) as u32).to_le_bytes();
    healthy.kernel.write(entry, &distance(entry, kill));
    healthy.kernel.write(entry + 4, &distance(entry + 4, kill + 0x30));
    healthy.kernel.write(kill, &[0xeb, 0x2e]);
    assert_eq!(found("kernel_text", &healthy.kernel.memory, None), [""; 0]);
    assert_eq!(found("kernel_text", &healthy.kernel.memory, Some(&clean)), ["__x64_sys_kill"]);
}

#[test]
fn module_code_is_compared_while_it_is_the_same_module() {
    let mut healthy = Healthy::new();
    let area = healthy.kernel.symbol("module_area");
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    healthy.kernel.write(area + 0x700, &[0x90]);
    assert_eq!(found("kernel_text", &healthy.kernel.memory, Some(&clean)), ["made_up+0x700"]);
    healthy.kernel.set(healthy.module, "module", "state", 2);
    assert_eq!(found("kernel_text", &healthy.kernel.memory, Some(&clean)), [""; 0], "it is being unloaded");
    healthy.kernel.memory = clean.clone();
    healthy.kernel.write(area + 0x800, &branch(0xe9, area + 0x800, area + 0x880));
    assert_eq!(found("kernel_text", &healthy.kernel.memory, Some(&clean)), [""; 0]);
    healthy.kernel.write(area + 0x800, &branch(0xe9, area + 0x800, area + 0x881));
    assert_eq!(found("kernel_text", &healthy.kernel.memory, None), ["made_up+0x800"]);
    let canary =
        healthy.kernel.symbol("init_task") + healthy.kernel.types.member("task_struct", "stack_canary").0;
    healthy.kernel.memory = clean.clone();
    healthy.kernel.write(area + 0x700, &[0x90]);
    healthy.kernel.write(canary, &[1]);
    let found = found("kernel_text", &healthy.kernel.memory, Some(&clean));
    assert!(!found.contains(&"made_up+0x700".to_owned()), "another boot may have another module there");
}

#[test]
fn more_changes_than_can_be_told_are_not_clean() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let clean = healthy.kernel.memory.clone();
    let (from, etext) = (healthy.kernel.symbol("x64_sys_call"), healthy.kernel.symbol("_etext"));
    for at in (from..etext + 4096).step_by(24) {
        healthy.kernel.write(at, &[0x90]);
    }
    let report = scan("kernel_text", &healthy.kernel.memory, Some(&clean), "", &[]);
    assert_eq!((report.findings.len(), report.complete), (256, false));
}
