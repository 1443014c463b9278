//! How a gate is to behave, from the `[gate]` part of a policy file.

use std::time::Duration;

use serde::Deserialize;
use varve_capture::gate::{Quarantine, Remedy, Settings};

/// The keys of `[gate]`; what is not given is as in [`Settings::default`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    interval_ms: Option<u64>,
    restore_point_every: Option<u64>,
    recheck_epochs: Option<u64>,
    hold_budget_ms: Option<u64>,
    incomplete_budget_ms: Option<u64>,
    scan_limit_ms: Option<u64>,
    limit_mib: Option<u32>,
    hold_inbound: bool,
    on_finding: OnFinding,
    on_undecided: OnUndecided,
    quarantine_after_ms: Option<u64>,
    quarantine_bridge: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnFinding {
    #[default]
    Freeze,
    Quarantine,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnUndecided {
    #[default]
    Pause,
    Quarantine,
}

/// How long a guest stays paused before it goes into quarantine, if nothing else is said.
const QUARANTINE_AFTER: Duration = Duration::from_secs(30);

/// Largest limit of a plug: it counts bytes in 32 bits (`linux/pkt_sched.h`, `struct tc_plug_qopt`).
const LIMIT_MIB_MAX: u32 = 4095;

/// The settings that `[gate]` says.
///
/// # Errors
/// What of it makes no sense, for a person.
pub(crate) fn settings(table: &toml::Table) -> Result<Settings, String> {
    let keys: Keys = table.clone().try_into().map_err(|error: toml::de::Error| error.to_string())?;
    let defaults = Settings::default();
    let time = |key: &str, given: Option<u64>, otherwise: Duration| match given {
        Some(0) => Err(format!("{key} = 0 leaves no time")),
        given => Ok(given.map_or(otherwise, Duration::from_millis)),
    };
    let quarantine = || match keys.quarantine_bridge.clone() {
        Some(bridge) if !bridge.is_empty() => Ok(Quarantine { bridge }),
        _ => Err("quarantine needs quarantine_bridge = \"NAME\": a bridge that leads nowhere".to_owned()),
    };
    let limit_mib = keys.limit_mib.unwrap_or(defaults.limit_bytes >> 20);
    if !(1..=LIMIT_MIB_MAX).contains(&limit_mib) {
        return Err(format!("limit_mib = {limit_mib}: 1 to {LIMIT_MIB_MAX} are possible"));
    }
    let after = time("quarantine_after_ms", keys.quarantine_after_ms, QUARANTINE_AFTER)?;
    Ok(Settings {
        interval: time("interval_ms", keys.interval_ms, defaults.interval)?,
        suspend_every: keys.restore_point_every.unwrap_or(defaults.suspend_every),
        recheck_epochs: keys.recheck_epochs.unwrap_or(defaults.recheck_epochs),
        hold_budget: time("hold_budget_ms", keys.hold_budget_ms, defaults.hold_budget)?,
        incomplete_budget: time(
            "incomplete_budget_ms",
            keys.incomplete_budget_ms,
            defaults.incomplete_budget,
        )?,
        scan_limit: time("scan_limit_ms", keys.scan_limit_ms, defaults.scan_limit)?,
        limit_bytes: limit_mib << 20,
        hold_inbound: keys.hold_inbound,
        on_finding: match keys.on_finding {
            OnFinding::Freeze => Remedy::Freeze,
            OnFinding::Quarantine => Remedy::Quarantine(quarantine()?),
        },
        on_undecided: match keys.on_undecided {
            OnUndecided::Pause => None,
            OnUndecided::Quarantine => Some((after, quarantine()?)),
        },
        fail_open: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        settings(&text.parse().unwrap())
    }

    #[test]
    fn nothing_said_is_the_default_and_everything_can_be_said() {
        assert_eq!(parse(""), Ok(Settings::default()));
        let said = parse(
            "interval_ms = 500\nrestore_point_every = 10\nrecheck_epochs = 9\nhold_budget_ms = 1\nincomplete_budget_ms = 2\nscan_limit_ms = 3\n\
             limit_mib = 4\nhold_inbound = true\non_finding = \"quarantine\"\non_undecided = \"quarantine\"\n\
             quarantine_after_ms = 5\nquarantine_bridge = \"island\"",
        );
        let quarantine = Quarantine { bridge: "island".to_owned() };
        let expected = Settings {
            interval: Duration::from_millis(500),
            suspend_every: 10,
            recheck_epochs: 9,
            hold_budget: Duration::from_millis(1),
            incomplete_budget: Duration::from_millis(2),
            scan_limit: Duration::from_millis(3),
            limit_bytes: 4 << 20,
            hold_inbound: true,
            on_finding: Remedy::Quarantine(quarantine.clone()),
            on_undecided: Some((Duration::from_millis(5), quarantine)),
            fail_open: false,
        };
        assert_eq!(said, Ok(expected));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (text, reason) in [
            ("hold_budget = 5", "unknown field"),
            ("fail_open = true", "unknown field"),
            ("on_finding = \"explode\"", "unknown variant"),
            ("on_finding = \"quarantine\"", "quarantine_bridge"),
            ("on_undecided = \"quarantine\"\nquarantine_bridge = \"\"", "quarantine_bridge"),
            ("interval_ms = 0", "leaves no time"),
            ("limit_mib = 4096", "1 to 4095"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
