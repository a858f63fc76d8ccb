//! `GET /metrics`: counts in the text format of Prometheus (its documentation, "Exposition formats").

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering::Relaxed;

use super::Context;
use super::reply::Reply;
use crate::hub::{Eviction, Histogram};

/// The version of the format that this is.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All counts.
pub fn text(context: &Context) -> Reply {
    let hub = context.hub.stats();
    let mut text = Text::default();
    text.gauge(
        "clients",
        "WebSocket clients that are connected.",
        hub.clients.load(Relaxed),
    );
    text.counter(
        "clients_total",
        "WebSocket clients that ever connected.",
        hub.registered.load(Relaxed),
    );
    text.counter(
        "deliveries_total",
        "Messages handed to clients, without those that they catch up with.",
        hub.deliveries.load(Relaxed),
    );
    text.counter(
        "delivered_bytes_total",
        "Bytes of the messages handed to clients.",
        hub.delivered_bytes.load(Relaxed),
    );
    text.counter(
        "merged_messages_total",
        "Messages handed to a client together with one before them.",
        hub.merged.load(Relaxed),
    );
    text.head(
        "clients_evicted_total",
        "counter",
        "Clients whose connection the server ended.",
    );
    for eviction in Eviction::ALL {
        let labels = format!("{{reason=\"{}\"}}", eviction.name());
        text.line(
            &format!("clients_evicted_total{labels}"),
            hub.evicted(eviction),
        );
    }
    text.gauge(
        "hub_queue_depth",
        "Commands that wait for the hub.",
        context.hub.queue_depth(),
    );
    text.histogram(
        "hub_fan_out_seconds",
        "How long rounds of the hub over its clients took.",
        &hub.fan_out_ns,
        1e9,
    );
    text.histogram(
        "replay_events",
        "Events that clients had missed when they came back.",
        &hub.replay_events,
        1.0,
    );
    Reply::text(CONTENT_TYPE, text.0)
}

/// The text as it grows. Writing to it does not fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP flowledger_{name} {help}\n# TYPE flowledger_{name} {kind}\n"
        );
    }

    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "flowledger_{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, value);
    }

    /// `per_unit` is how many of what was counted make one of the unit that the name ends in.
    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        histogram: &Histogram<N>,
        per_unit: f64,
    ) {
        self.head(name, "histogram", help);
        let (buckets, count, sum) = histogram.read();
        for (bound, within) in buckets {
            let bound = bound as f64 / per_unit;
            self.line(&format!("{name}_bucket{{le=\"{bound}\"}}"), within);
        }
        self.line(&format!("{name}_bucket{{le=\"+Inf\"}}"), count);
        self.line(&format!("{name}_sum"), sum as f64 / per_unit);
        self.line(&format!("{name}_count"), count);
    }
}
