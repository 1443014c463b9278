//! What the owner of a VM allows in it: the TOML file behind `--policy`.
//!
//! ```toml
//! [process]
//! deny  = ["xmrig", "nc*"]   # globs over `comm`; any thread that matches is a finding
//! allow = ["sshd", "nginx"]  # when present, every user process must match one
//!
//! [gate]                       # see `docs/gate.md`
//! hold_budget_ms = 2000
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;

/// Largest policy file read, in bytes.
pub const MAX_POLICY_BYTES: u64 = 1 << 20;

/// A policy. The default allows everything.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Which processes may run.
    pub process: ProcessPolicy,
    /// How a gate is to behave: for whoever gates the VM to understand.
    pub gate: toml::Table,
}

/// Deny and allow lists over process names.
#[derive(Clone, Debug, Default)]
pub struct ProcessPolicy {
    deny: Vec<String>,
    deny_set: GlobSet,
    allow_set: Option<GlobSet>,
}

/// A policy file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or a key that is not known.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A pattern that is not a glob.
    #[error("[process] {list}: {error}")]
    Glob {
        /// `deny` or `allow`.
        list: &'static str,
        /// What the glob parser says.
        error: globset::Error,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    process: ProcessTable,
    #[serde(default)]
    gate: toml::Table,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ProcessTable {
    #[serde(default)]
    deny: Vec<String>,
    allow: Option<Vec<String>>,
}

impl Policy {
    /// Reads a policy from TOML text.
    ///
    /// # Errors
    /// [`PolicyError`] for anything that is not a policy: an unknown key is an error, because a misspelt rule that is
    /// silently ignored lets an intruder pass.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text)?;
        let process = ProcessPolicy {
            deny_set: glob_set("deny", &file.process.deny)?,
            allow_set: file.process.allow.as_deref().map(|list| glob_set("allow", list)).transpose()?,
            deny: file.process.deny,
        };
        Ok(Self { process, gate: file.gate })
    }
}

impl ProcessPolicy {
    /// Whether the lists say anything at all.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow_set.is_none()
    }

    /// The deny pattern that `comm` matches, if any.
    pub fn denied_by(&self, comm: &[u8]) -> Option<&str> {
        let index = self.deny_set.matches(OsStr::from_bytes(comm)).first().copied()?;
        self.deny.get(index).map(String::as_str)
    }

    /// Whether an allow list exists and `comm` is not on it.
    pub fn is_unlisted(&self, comm: &[u8]) -> bool {
        self.allow_set.as_ref().is_some_and(|set| !set.is_match(OsStr::from_bytes(comm)))
    }
}

fn glob_set(list: &'static str, patterns: &[String]) -> Result<GlobSet, PolicyError> {
    let error = |error| PolicyError::Glob { list, error };
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(Glob::new(as_comm(pattern)).map_err(error)?);
    }
    builder.build().map_err(error)
}

/// The pattern as it can match. The kernel cuts names off after 15 bytes: without wildcards a longer pattern means the
/// name that begins like it.
fn as_comm(pattern: &str) -> &str {
    /// `TASK_COMM_LEN`, less the NUL.
    const MAX_COMM_BYTES: usize = 15;
    let is_glob = pattern.contains(['*', '?', '[', ']', '{', '}', '!', '\\']);
    if is_glob { pattern } else { pattern.get(..MAX_COMM_BYTES).unwrap_or(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_and_allow_are_globs_over_comm() {
        let policy =
            Policy::parse("[process]\ndeny = [\"xmrig\", \"nc*\"]\nallow = [\"sshd\", \"kworker/*\"]")
                .unwrap();
        assert_eq!(policy.process.denied_by(b"ncat"), Some("nc*"));
        assert_eq!(policy.process.denied_by(b"xmrig"), Some("xmrig"));
        assert_eq!(policy.process.denied_by(b"sshd"), None);
        assert!(policy.process.is_unlisted(b"bash"));
        assert!(!policy.process.is_unlisted(b"sshd"));
    }

    #[test]
    fn no_allow_list_allows_everything_and_an_empty_one_nothing() {
        assert!(!Policy::parse("").unwrap().process.is_unlisted(b"bash"));
        assert!(Policy::parse("[process]\nallow = []").unwrap().process.is_unlisted(b"bash"));
    }

    #[test]
    fn a_name_longer_than_the_kernel_keeps_matches_what_it_keeps() {
        let policy =
            Policy::parse("[process]\ndeny = [\"a-very-long-name-of-a-miner\", \"another-very-long-*x\"]")
                .unwrap();
        assert_eq!(policy.process.denied_by(b"a-very-long-nam"), Some("a-very-long-name-of-a-miner"));
        assert_eq!(policy.process.denied_by(b"another-very-lo"), None, "a glob is taken as it is");
    }

    #[test]
    fn names_need_not_be_text() {
        let policy = Policy::parse("[process]\ndeny = [\"a*\"]\nallow = [\"b*\"]").unwrap();
        assert_eq!(policy.process.denied_by(b"a\xff/"), Some("a*"));
        assert!(!policy.process.is_unlisted(b"b/\xfe"));
    }

    #[test]
    fn a_misspelt_rule_is_an_error() {
        assert!(matches!(Policy::parse("[process]\ndenny = [\"x\"]"), Err(PolicyError::Syntax(_))));
        assert!(matches!(Policy::parse("[proces]\ndeny = []"), Err(PolicyError::Syntax(_))));
        assert!(matches!(
            Policy::parse("[process]\ndeny = [\"a[\"]"),
            Err(PolicyError::Glob { list: "deny", .. })
        ));
    }
}
