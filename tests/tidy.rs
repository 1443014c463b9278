//! Holds the tree to `ARCHITECTURE.md` and to house rules that no compiler checks.
//!
//! A rule about one file is a function from its path and text to complaints; [`RULES`] lists them, and
//! `every_rule_can_fail` shows each one at work.

mod commands;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// What a rule says about a file: the line, from 1 (0: the file as a whole), and what is wrong there.
type Complaint = (usize, String);

/// A rule about one file.
type Rule = fn(path: &str, text: &str) -> Vec<Complaint>;

/// The rules that look at one file at a time.
const RULES: &[Rule] = &[
    source_size,
    module_doc,
    left_overs,
    left_over_file,
    print_in_library,
    conflict_marker,
    white_space,
    scattered_unsafe,
    path_of_a_machine,
    shell_strictness,
    workspace_lints,
    dependency_direction,
    broken_link,
];

/// Lines of Rust a file may have before it must be asked which two things it is.
const SOURCE_LINES_MAX: usize = 500;

/// Files that a rule leaves alone, and why. One that the rule has nothing against any more is itself a complaint.
const EXCEPTIONS: &[(Rule, &str, &str)] = &[
    (
        scattered_unsafe,
        "fixtures/guest/agent.rs",
        "PID 1 of the lab's guests calls the kernel with nothing but std",
    ),
    (scattered_unsafe, "fixtures/guest/foreign.rs", "the same, in dom0"),
    (scattered_unsafe, "fixtures/guest/traffic.rs", "the same, beneath the network's protocols"),
];

/// The crates of the workspace: folder, and the folders of those it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("formats", &[]),
    ("store", &["formats"]),
    ("capture", &["formats", "store"]),
    ("analyze", &["formats", "store"]),
    ("", &["formats", "store", "capture", "analyze"]),
    ("fixtures", &[]),
    ("fuzz", &["formats", "store", "capture", "analyze"]),
];

/// The folders at the top of the tree.
const FOLDERS: &[&str] = &[
    "analyze", "benches", "capture", "docs", "fixtures", "formats", "fuzz", "scripts", "store", "tests",
    "tui",
];

/// The crate that every other may use in its tests.
const FIXTURES: &str = "fixtures";

#[test]
fn the_tree_is_tidy() {
    let tree = tree();
    let mut complaints: Vec<String> = tree.iter().flat_map(|(path, text)| complaints(path, text)).collect();
    complaints.extend(stale_exceptions(&tree));
    complaints.extend(crowded_unsafe(&tree));
    assert!(complaints.is_empty(), "{} untidy places:\n{}", complaints.len(), complaints.join("\n"));
}

/// What all rules say about a file, exceptions aside.
fn complaints(path: &str, text: &str) -> Vec<String> {
    let excepted = |rule: Rule| EXCEPTIONS.iter().any(|(other, file, _)| *file == path && same(*other, rule));
    let rules = RULES.iter().filter(|rule| !excepted(**rule));
    rules.flat_map(|rule| rule(path, text)).map(|(line, what)| format!("{path}:{line}: {what}")).collect()
}

fn same(one: Rule, other: Rule) -> bool {
    std::ptr::fn_addr_eq(one, other)
}

/// Exceptions for files that are gone or that the rule has nothing against any more.
fn stale_exceptions(tree: &BTreeMap<String, String>) -> Vec<String> {
    let stale = EXCEPTIONS
        .iter()
        .filter(|(rule, path, _)| tree.get(*path).is_none_or(|text| rule(path, text).is_empty()));
    stale.map(|(_, path, why)| format!("{path}: needs no exception any more ({why})")).collect()
}

/// The text files git tracks, by path from the top of the tree.
fn tree() -> BTreeMap<String, String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Continuous integration may run as another user than the one who cloned.
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .current_dir(top)
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    let tree: BTreeMap<_, _> = paths
        .split_terminator('\0')
        .filter_map(|path| Some((path.to_owned(), std::fs::read_to_string(top.join(path)).ok()?)))
        .collect();
    assert!(tree.contains_key("Cargo.toml") && tree.contains_key("tests/tidy.rs"), "git lists another tree");
    tree
}

/// Lines with their number from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

/// A complaint for every line on which `untidy`.
fn complain(text: &str, what: &str, untidy: impl Fn(&str) -> bool) -> Vec<Complaint> {
    lines(text).filter(|(_, line)| untidy(line)).map(|(number, _)| (number, what.to_owned())).collect()
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn source_size(path: &str, text: &str) -> Vec<Complaint> {
    let count = text.lines().count();
    if !is_rust(path) || count <= SOURCE_LINES_MAX {
        return Vec::new();
    }
    vec![(0, format!("{count} lines, over {SOURCE_LINES_MAX}: which two things is it?"))]
}

fn module_doc(path: &str, text: &str) -> Vec<Complaint> {
    // Fuzz targets must begin with `#![no_main]`.
    let begins = text.lines().find(|line| *line != "#![no_main]").unwrap_or_default();
    // The module that is tested says what its tests hold.
    let tests = path.ends_with("tests.rs");
    if !is_rust(path) || tests || begins.starts_with("//!") {
        return Vec::new();
    }
    vec![(1, "does not say in a `//!` line what it holds".to_owned())]
}

fn left_overs(path: &str, text: &str) -> Vec<Complaint> {
    // Written in two parts, so that this file is free of them.
    const WORDS: &[&str] = &[
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("#[ign", "ore"),
        concat!("// X", "XX"),
        concat!("# X", "XX"),
    ];
    if path.starts_with("LICENSE") {
        return Vec::new();
    }
    complain(text, "left-over", |line| WORDS.iter().any(|word| line.contains(word)))
}

fn left_over_file(path: &str, _: &str) -> Vec<Complaint> {
    const ENDINGS: &[&str] = &[".pending-snap", ".snap.new", ".orig", ".rej", ".bak", ".swp", "~"];
    if !ENDINGS.iter().any(|ending| path.ends_with(ending)) {
        return Vec::new();
    }
    vec![(0, "left behind by a tool".to_owned())]
}

fn print_in_library(path: &str, text: &str) -> Vec<Complaint> {
    let library = ["formats/src/", "store/src/", "capture/src/", "analyze/src/"];
    if !is_rust(path) || !library.iter().any(|folder| path.starts_with(folder)) {
        return Vec::new();
    }
    complain(text, "a library does not print", |line| {
        let code = line.trim_start();
        !code.starts_with("//") && ["println!", "print!"].iter().any(|print| code.contains(print))
    })
}

fn conflict_marker(_: &str, text: &str) -> Vec<Complaint> {
    let markers = ["<".repeat(7), ">".repeat(7), "|".repeat(7)];
    complain(text, "merge conflict", |line| markers.iter().any(|marker| line.starts_with(marker)))
}

fn white_space(path: &str, text: &str) -> Vec<Complaint> {
    if path.ends_with(".snap") || path.contains("/testdata/") {
        return Vec::new(); // what a program printed, byte for byte
    }
    let mut found =
        complain(text, "white space at the end of the line", |line| line.ends_with([' ', '\t', '\r']));
    if is_rust(path) {
        found.extend(complain(text, "tab", |line| line.contains('\t')));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        found.push((text.lines().count(), "no line feed at the end".to_owned()));
    }
    found
}

/// Whether the module opts out of the `unsafe_code` lint, as a whole and with a reason.
fn opts_out_of_safety(text: &str) -> bool {
    let compact: String = text.split_whitespace().collect();
    compact.contains("#![allow(unsafe_code,reason=") || compact.contains("#![expect(unsafe_code,reason=")
}

fn scattered_unsafe(path: &str, text: &str) -> Vec<Complaint> {
    const KEYWORD: &str = concat!("un", "safe");
    if !is_rust(path) || opts_out_of_safety(text) {
        return Vec::new();
    }
    complain(
        text,
        "code without guarantees in a module that does not opt out as a whole, with a reason",
        |line| {
            let code = line.split("//").next().unwrap_or_default();
            let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            words.any(|word| word == KEYWORD) || code.contains(concat!("(un", "safe_code"))
        },
    )
}

fn path_of_a_machine(_: &str, text: &str) -> Vec<Complaint> {
    const FOLDERS: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tm", "p/target"),
        concat!("/tm", "p/samples"),
        concat!("/tm", "p/rocksdb"),
    ];
    complain(text, "path of somebody's machine", |line| FOLDERS.iter().any(|folder| line.contains(folder)))
}

fn shell_strictness(path: &str, text: &str) -> Vec<Complaint> {
    let shell = text.lines().next().is_some_and(|line| {
        line.starts_with("#!") && line.split(['/', ' ']).any(|word| matches!(word, "sh" | "bash" | "dash"))
    });
    if !shell && !path.ends_with(".sh") {
        return Vec::new();
    }
    match lines(text).find(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        Some((_, first)) if first.starts_with("set -eu") => Vec::new(),
        Some((number, _)) => vec![(number, "the first command of a script is `set -eu`".to_owned())],
        None => vec![(0, "empty script".to_owned())],
    }
}

/// The manifest of a package, or `None` when the file is something else.
fn package(path: &str, text: &str) -> Option<toml::Table> {
    let name = path.rsplit('/').next()?;
    let manifest: toml::Table = (name == "Cargo.toml").then(|| text.parse().expect("a manifest is TOML"))?;
    manifest.contains_key("package").then_some(manifest)
}

fn workspace_lints(path: &str, text: &str) -> Vec<Complaint> {
    let Some(manifest) = package(path, text) else { return Vec::new() };
    let own = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
    // The fuzz targets are a workspace of their own: cargo-fuzz builds them with flags that the others must not see.
    if own == Some(true) || path.starts_with("fuzz/") {
        return Vec::new();
    }
    vec![(
        0,
        "`[lints] workspace = true` is missing, which asks for documentation and forbids panics".to_owned(),
    )]
}

fn dependency_direction(path: &str, text: &str) -> Vec<Complaint> {
    let Some(manifest) = package(path, text) else { return Vec::new() };
    let folder = path.strip_suffix("Cargo.toml").unwrap_or_default().trim_end_matches('/');
    let Some((_, below)) = LAYERS.iter().find(|(layer, _)| *layer == folder) else {
        return vec![(0, "a crate that ARCHITECTURE.md does not know".to_owned())];
    };
    let mut found = Vec::new();
    for (section, dependency) in dependencies(&manifest) {
        let Some(ours) = dependency.strip_prefix("varve-") else { continue };
        let in_tests = section == "dev-dependencies" && ours == FIXTURES && folder != FIXTURES;
        if !(in_tests || below.contains(&ours)) {
            found.push((0, format!("[{section}] {dependency}: a dependency against the layers")));
        }
    }
    found
}

/// Section and package of every dependency, those for one target included.
fn dependencies(manifest: &toml::Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, how) in manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten() {
            let renamed = how.get("package").and_then(toml::Value::as_str);
            found.push((section.to_owned(), renamed.unwrap_or(name).to_owned()));
        }
    }
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flatten();
    found.extend(targets.filter_map(|(_, target)| target.as_table()).flat_map(dependencies));
    found
}

fn broken_link(path: &str, text: &str) -> Vec<Complaint> {
    let Some(folder) = path.strip_suffix(".md").map(|_| Path::new(path).parent().unwrap_or(Path::new("")))
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, line) in lines(text) {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let elsewhere = link.is_empty() || link.contains("://");
            if !elsewhere && !Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(link).exists() {
                found.push((number, format!("link to {link}, which does not exist")));
            }
        }
        // What is quoted and begins like a path from the top of the tree.
        for quoted in line.split('`').skip(1).step_by(2) {
            let is_ours = quoted.split_once('/').is_some_and(|(folder, _)| FOLDERS.contains(&folder));
            let is_path = quoted.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte));
            if is_ours && is_path && !Path::new(env!("CARGO_MANIFEST_DIR")).join(quoted).exists() {
                found.push((number, format!("{quoted} does not exist")));
            }
        }
    }
    found
}

/// Crates with more than one module that opts out of the `unsafe_code` lint.
fn crowded_unsafe(tree: &BTreeMap<String, String>) -> Vec<String> {
    let mut modules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, _) in tree.iter().filter(|(path, text)| is_rust(path) && opts_out_of_safety(text)) {
        let folder = path.split('/').next().unwrap_or_default();
        modules.entry(folder).or_default().insert(path);
    }
    modules.retain(|_, paths| paths.len() > 1);
    modules
        .iter()
        .map(|(folder, paths)| format!("{folder}: one module may opt out of safety, not {paths:?}"))
        .collect()
}

#[test]
fn every_rule_can_fail() {
    let long = "//! Doc.\n".repeat(SOURCE_LINES_MAX + 1);
    let unfinished = concat!("//! Doc.\nfn f() { to", "do!() }\n");
    let conflict = format!("{} ours\n", "<".repeat(7));
    let bare = concat!("//! Doc.\nfn f() { un", "safe { g() } }\n");
    let item = concat!("//! Doc.\n#[allow(un", "safe_code)]\nfn f() {}\n");
    let private = concat!("see /wo", "rk/notes\n");
    let samples: &[(Rule, &str, &str, usize)] = &[
        (source_size, "store/src/a.rs", &long, 0),
        (module_doc, "store/src/a.rs", "fn f() {}\n", 1),
        (left_overs, "store/src/a.rs", unfinished, 2),
        (left_overs, "scripts/a", concat!("# X", "XX\n"), 1),
        (left_over_file, "store/src/.a.rs.pending-snap", "", 0),
        (print_in_library, "store/src/a.rs", "//! Doc.\nfn f() { eprintln!() }\n", 2),
        (conflict_marker, "README.md", &conflict, 1),
        (white_space, "README.md", "word \n", 1),
        (white_space, "README.md", "word", 1),
        (white_space, "store/src/a.rs", "//! Doc.\n\tfn f() {}\n", 2),
        (scattered_unsafe, "store/src/a.rs", bare, 2),
        (scattered_unsafe, "store/src/a.rs", item, 2),
        (path_of_a_machine, "README.md", private, 1),
        (shell_strictness, "scripts/a", "#!/bin/sh\n# Doc.\necho\n", 3),
        (workspace_lints, "store/Cargo.toml", "[package]\nname = \"varve-store\"\n", 0),
        (
            dependency_direction,
            "store/Cargo.toml",
            "[package]\n[dependencies]\nvarve-analyze.workspace = true\n",
            0,
        ),
        (
            dependency_direction,
            "store/Cargo.toml",
            "[package]\n[dependencies]\nvarve-fixtures.workspace = true\n",
            0,
        ),
        (
            dependency_direction,
            "capture/Cargo.toml",
            "[package]\n[target.'cfg(unix)'.build-dependencies]\nother = { package = \"varve-analyze\" }\n",
            0,
        ),
        (
            dependency_direction,
            "fixtures/Cargo.toml",
            "[package]\n[dev-dependencies]\nvarve-store = \"*\"\n",
            0,
        ),
        (dependency_direction, "extra/Cargo.toml", "[package]\n", 0),
        (broken_link, "docs/a.md", "[gone](gone.md)\n", 1),
        (broken_link, "docs/a.md", "a file in `formats/src/gone.rs`\n", 1),
    ];
    for (number, (rule, path, text, line)) in samples.iter().enumerate() {
        let found: Vec<usize> = rule(path, text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(found, [*line], "sample {number}, {path}");
    }
    for rule in RULES {
        assert!(samples.iter().any(|(shown, ..)| same(*shown, *rule)), "a rule without a sample");
    }
}

#[test]
fn rules_leave_ordinary_files_alone() {
    let files = [
        ("store/src/a.rs", "//! Says `println!` and safe_code.\n\n/// Uses no println!.\nfn f() {}\n"),
        ("tui/a.rs", "//! Doc.\nfn f() { println!() }\n"),
        ("scripts/a", "#!/usr/bin/env bash\n# Doc.\nset -euo pipefail\nmktemp a.XXXXXX\n"),
        ("docs/a.md", "[there](../README.md#top) [site](https://example.org) [here](#here)\n"),
        (
            "store/Cargo.toml",
            "[package]\n[dependencies]\nvarve-formats.workspace = true\n[dev-dependencies]\n\
             varve-fixtures.workspace = true\n[lints]\nworkspace = true\n",
        ),
    ];
    for (path, text) in files {
        for rule in RULES {
            assert_eq!(rule(path, text), [], "{path}");
        }
    }
}

#[test]
fn two_modules_without_guarantees_in_a_crate_are_one_too_many() {
    let module = concat!("//! Doc.\n#![allow(un", "safe_code, reason = \"mapping\")]\n").to_owned();
    let mut tree = BTreeMap::from([("store/src/a.rs".to_owned(), module.clone())]);
    assert_eq!(crowded_unsafe(&tree), [""; 0]);
    tree.insert("store/src/b.rs".to_owned(), module);
    assert_eq!(crowded_unsafe(&tree).len(), 1);
}
