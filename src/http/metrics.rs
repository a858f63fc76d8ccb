//! `GET /metrics`: counts in the text format of Prometheus (its documentation, "Exposition formats").

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::Context;
use super::reply::Reply;

/// The version of the format that this is.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All counts.
pub fn text(context: &Context) -> Reply {
    let hub = context.hub.stats();
    let gauge = |name, help, value: u64| (name, "gauge", help, value.to_string());
    let counter = |name, help, value: u64| (name, "counter", help, value.to_string());
    let fan_out_s = hub.fan_out_ns.load(Relaxed) as f64 / 1e9;
    let metrics = [
        gauge(
            "clients",
            "WebSocket clients that are connected.",
            hub.clients.load(Relaxed) as u64,
        ),
        counter(
            "clients_total",
            "WebSocket clients that ever connected.",
            hub.registered.load(Relaxed),
        ),
        counter(
            "deliveries_total",
            "Messages handed to clients.",
            hub.deliveries.load(Relaxed),
        ),
        counter(
            "delivered_bytes_total",
            "Bytes of the messages handed to clients.",
            hub.delivered_bytes.load(Relaxed),
        ),
        counter(
            "merged_messages_total",
            "Messages that went out in one write with others.",
            hub.merged.load(Relaxed),
        ),
        counter(
            "clients_evicted_total",
            "Clients cut because they were too slow.",
            hub.evicted.load(Relaxed),
        ),
        gauge(
            "hub_queue_depth",
            "Commands that wait for the hub.",
            context.hub.queue_depth() as u64,
        ),
        counter(
            "hub_fan_outs_total",
            "Rounds of the hub over its clients.",
            hub.fan_outs.load(Relaxed),
        ),
        (
            "hub_fan_out_seconds_total",
            "counter",
            "How long these rounds took.",
            format!("{fan_out_s:.9}"),
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in metrics {
        // Writing to a text does not fail.
        let _ = write!(
            text,
            "# HELP flowledger_{name} {help}\n# TYPE flowledger_{name} {kind}\nflowledger_{name} {value}\n"
        );
    }
    Reply::text(CONTENT_TYPE, text)
}
