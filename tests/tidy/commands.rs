//! Commands that the documentation shows: the lines after `$ ` in its `console` blocks.
//!
//! A `make` target must exist, a script must be there, and the built `varve` must understand every option, argument and
//! variable. What the commands do is the business of the other end-to-end tests.

use std::path::Path;
use std::process::Command;

use super::{lines, tree};

#[test]
fn every_command_shown_exists() {
    let mut complaints = Vec::new();
    let mut count = 0;
    for (path, text) in tree().iter().filter(|(path, _)| path.ends_with(".md")) {
        let commands = shown(text);
        count += commands.len();
        for (line, command) in commands {
            complaints.extend(complaint(&command).map(|what| format!("{path}:{line}: `{command}`: {what}")));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(count > 0, "the documentation shows no command: has its form changed?");
}

/// The commands in a Markdown file with the line each begins on.
fn shown(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut in_block, mut continued) = (false, false);
    for (number, line) in lines(text) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block && line.trim() == "```console";
            continued = false;
            continue;
        }
        let part = match line.trim_start().strip_prefix("$ ") {
            Some(command) if in_block => command,
            _ if continued => line.trim_start(),
            _ => continue,
        };
        let (part, more) = part.strip_suffix('\\').map_or((part, false), |part| (part.trim_end(), true));
        match found.last_mut().filter(|_| continued) {
            Some((_, command)) => *command = format!("{command} {part}"),
            None => found.push((number, part.to_owned())),
        }
        continued = more;
    }
    found
}

/// What is wrong with a command, if anything is.
fn complaint(command: &str) -> Option<String> {
    for part in command.split([';', '|', '&']).filter(|part| !part.trim().is_empty()) {
        let mut words = part.split_whitespace().filter(|word| *word != "sudo");
        let problem = match words.next()? {
            "make" => {
                let targets = targets();
                words
                    .find(|word| !targets.iter().any(|target| target == word))
                    .map(|word| format!("no target {word}"))
            }
            "varve" => not_understood(words),
            "export" => {
                words.find(|word| !is_setting(word)).map(|word| format!("{word} is no setting of varve"))
            }
            script if script.starts_with("scripts/") => {
                let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(script).exists();
                (!there).then(|| "no such script".to_owned())
            }
            other => Some(format!("nothing here checks the command {other}")),
        };
        if problem.is_some() {
            return problem;
        }
    }
    None
}

/// The targets of the Makefile that have a line of help.
fn targets() -> Vec<String> {
    let makefile = tree().remove("Makefile").expect("there is a Makefile");
    let with_help = makefile.lines().filter(|line| line.contains("## "));
    with_help.filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
}

/// Whether `VARIABLE=value` sets a variable that the command's help names.
fn is_setting(assignment: &str) -> bool {
    let help = Command::new(env!("CARGO_BIN_EXE_varve")).arg("--help").output().expect("varve runs");
    let variable = assignment.split('=').next().unwrap_or_default();
    String::from_utf8_lossy(&help.stdout).contains(&format!("[env: {variable}="))
}

/// Lets the command itself read the arguments. Asked for help at the end it does nothing, but only after it has understood
/// everything before.
fn not_understood<'a>(arguments: impl Iterator<Item = &'a str>) -> Option<String> {
    let arguments = arguments.take_while(|word| !word.starts_with(['>', '<', '#']));
    let plain = arguments.map(|word| word.trim_matches(['"', '\'']));
    let output =
        Command::new(env!("CARGO_BIN_EXE_varve")).args(plain).arg("--help").output().expect("varve runs");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[test]
fn commands_are_found_in_console_blocks_only() {
    let text =
        "$ no\n\n```console\n$ make test\noutput\n$ varve vms \\\n    --json\n```\n\n```sh\n$ no\n```\n";
    assert_eq!(shown(text), [(4, "make test".to_owned()), (6, "varve vms --json".to_owned())]);
}

#[test]
fn commands_that_do_not_exist_are_noticed() {
    for command in [
        "make coffee",
        "scripts/coffee",
        "coffee",
        "varve coffee",
        "varve vms --coffee",
        "varve vms | varve vms --coffee",
        "export COFFEE=1",
    ] {
        assert!(complaint(command).is_some(), "{command}");
    }
    for command in [
        "make help",
        "make test lint",
        "scripts/setup build",
        "varve --json vms > vms.json",
        "export VARVE_VM=web1",
    ] {
        assert_eq!(complaint(command), None, "{command}");
    }
}
