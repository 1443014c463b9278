//! What a gate counts, for Prometheus: a file for node_exporter's textfile collector, written anew about once a second.
//!
//! A file and not a port: nothing should have to listen in dom0.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use varve_capture::PauseSplit;
use varve_capture::output::VifStatistics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByVerdict {
    verdict: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByPart {
    part: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByVif {
    vif: String,
}

/// The metrics of a gate.
pub(super) struct Metrics {
    registry: Registry,
    epochs: Family<ByVerdict, Counter>,
    scan: Histogram,
    waited: Histogram,
    pause: Family<ByPart, Histogram>,
    held_packets: Family<ByVif, Gauge>,
    held_bytes: Family<ByVif, Gauge>,
    dropped_packets: Family<ByVif, Gauge>,
    pub(super) braked: Gauge,
    pub(super) brakes: Counter,
    pub(super) failed_open: Counter,
}

/// From 100 µs to some 100 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 21))
}

impl Metrics {
    /// Of the gate of `vm`.
    pub(super) fn new(vm: &str) -> Self {
        let labels = [("vm".into(), vm.to_owned().into())];
        let mut metrics = Self {
            registry: Registry::with_prefix_and_labels("varve_gate", labels.into_iter()),
            epochs: Family::default(),
            scan: seconds(),
            waited: seconds(),
            pause: Family::new_with_constructor(seconds as fn() -> Histogram),
            held_packets: Family::default(),
            held_bytes: Family::default(),
            dropped_packets: Family::default(),
            braked: Gauge::default(),
            brakes: Counter::default(),
            failed_open: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("epochs", "Epochs by verdict", metrics.epochs.clone());
        let unit = || Unit::Seconds;
        registry.register_with_unit("scan", "Time to a verdict", unit(), metrics.scan.clone());
        registry.register_with_unit(
            "wait",
            "Time from the end of an interval until its packets went",
            unit(),
            metrics.waited.clone(),
        );
        let pause = metrics.pause.clone();
        registry.register_with_unit(
            "pause",
            "How long the guest stood still for an epoch, by part",
            unit(),
            pause,
        );
        registry.register("held_packets", "Packets held", metrics.held_packets.clone());
        registry.register("held_bytes", "Bytes held", metrics.held_bytes.clone());
        let dropped = metrics.dropped_packets.clone();
        registry.register("dropped_packets", "Packets dropped because they did not fit", dropped);
        registry.register("paused", "Whether the gate has paused the guest", metrics.braked.clone());
        registry.register("pauses", "Times the gate paused the guest", metrics.brakes.clone());
        let opened = metrics.failed_open.clone();
        registry.register("failed_open", "Times packets went without a verdict", opened);
        metrics
    }

    /// Counts an epoch.
    pub(super) fn judged(
        &self,
        verdict: &str,
        scan: Duration,
        waited: Option<Duration>,
        pause: Option<&PauseSplit>,
        held: &[VifStatistics],
    ) {
        self.epochs.get_or_create(&ByVerdict { verdict: verdict.to_owned() }).inc();
        self.scan.observe(scan.as_secs_f64());
        if let Some(waited) = waited {
            self.waited.observe(waited.as_secs_f64());
        }
        for (part, time) in pause.iter().flat_map(|pause| pause.parts()) {
            self.pause.get_or_create(&ByPart { part: part.to_owned() }).observe(time.as_secs_f64());
        }
        for (vif, plug) in held.iter().filter_map(|vif| Some((&vif.vif.name, vif.outbound?))) {
            let label = ByVif { vif: vif.clone() };
            self.held_packets.get_or_create(&label).set(plug.waiting_packets.into());
            self.held_bytes.get_or_create(&label).set(plug.waiting_bytes.into());
            self.dropped_packets.get_or_create(&label).set(plug.dropped_packets.into());
        }
    }

    /// The metrics as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Writes them to a file, in place of the one before.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, self.text().as_bytes())
    }
}

/// Replaces a file as a whole: whoever reads it sees the old one or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    // The collector reads what ends in `.prom`.
    beside.push(".new");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use varve_capture::output::{QueueStatistics, Traffic, Vif};

    use super::*;

    #[test]
    fn what_is_counted_reads_as_prometheus_has_it() {
        let metrics = Metrics::new("web\"1");
        let vif = Vif { domid: 7, devid: 0, name: "vif7.0".to_owned() };
        let plug = QueueStatistics { waiting_packets: 3, waiting_bytes: 300, ..QueueStatistics::default() };
        let held = VifStatistics { vif, traffic: Traffic::Held, outbound: Some(plug), inbound: None };
        let pause = PauseSplit { copy: Duration::from_millis(3), ..PauseSplit::default() };
        metrics.judged(
            "passed",
            Duration::from_millis(40),
            Some(Duration::from_millis(90)),
            Some(&pause),
            &[held],
        );
        metrics.failed_open.inc();
        let text = metrics.text();
        for line in [
            "varve_gate_epochs_total{vm=\"web\\\"1\",verdict=\"passed\"} 1",
            "varve_gate_held_bytes{vm=\"web\\\"1\",vif=\"vif7.0\"} 300",
            "varve_gate_scan_seconds_sum{vm=\"web\\\"1\"} 0.04",
            "varve_gate_pause_seconds_count{vm=\"web\\\"1\",part=\"copy\"} 1",
            "varve_gate_failed_open_total{vm=\"web\\\"1\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }
}
