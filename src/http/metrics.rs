//! `GET /metrics`: metrics in the Prometheus text format (its documentation, "Exposition formats").

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering::Relaxed;

use tiny_http::ResponseBox;

use super::Context;
use super::reply;
use crate::hub::Eviction;
use crate::journal::{Model, ModelMetrics};
use crate::metrics::Histogram;
use crate::providers::HEALTH_STATES;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The name, the help text and the value of a counter.
type Counter = (&'static str, &'static str, fn(&ModelMetrics) -> f64);

pub fn text(context: &Context) -> ResponseBox {
    let hub = context.hub.stats();
    let mut text = Text::default();
    #[rustfmt::skip] // One line for each.
    let counts = [
        ("clients", "gauge", "Connected WebSocket clients.", hub.clients.load(Relaxed) as u64),
        ("clients_total", "counter", "WebSocket clients that have connected.", hub.registered.load(Relaxed)),
        ("deliveries_total", "counter", "Messages queued for clients, excluding replayed events.", hub.deliveries.load(Relaxed)),
        ("delivered_bytes_total", "counter", "Bytes of messages queued for clients, excluding replayed events.", hub.delivered_bytes.load(Relaxed)),
        ("merged_messages_total", "counter", "Messages queued for a client together with an earlier one.", hub.merged.load(Relaxed)),
        ("hub_queue_depth", "gauge", "Commands waiting for the hub.", context.hub.queue_depth() as u64),
    ];
    for (name, kind, help, value) in counts {
        text.head(name, kind, help);
        text.line(name, value);
    }
    let help = "Clients disconnected by the server, by reason.";
    text.head("clients_evicted_total", "counter", help);
    for eviction in Eviction::ALL {
        let name = format!("clients_evicted_total{{reason=\"{}\"}}", eviction.as_str());
        text.line(&name, hub.evicted(eviction));
    }
    let help = "Time to queue a batch of messages for all clients.";
    text.histogram("hub_fan_out_seconds", help, &hub.fan_out_ns, 1e9);
    let help = "Missed events of each reconnecting client.";
    text.histogram("replay_events", help, &hub.replay_events, 1.0);
    calls(context, &mut text);
    let help = "Requests to /v1, by protocol and response status.";
    text.head("gateway_requests_total", "counter", help);
    for (protocol, status, count) in context.gateway.read() {
        let labels = format!("{{protocol=\"{protocol}\",status=\"{status}\"}}");
        text.line(&format!("gateway_requests_total{labels}"), count);
    }
    providers(context, &mut text);
    reply::text(CONTENT_TYPE, text.0)
}

fn providers(context: &Context, text: &mut Text) {
    let all = context.providers.providers();
    let all: Vec<_> =
        all.filter_map(|(name, _)| Some((name, context.providers.health(name)?))).collect();
    let state = |text: &mut Text, metric: &str, labels: &str, present: &str| {
        for state in HEALTH_STATES {
            let value = u8::from(state == present);
            text.line(&format!("{metric}{{{labels},state=\"{state}\"}}"), value);
        }
    };
    text.head("provider_state", "gauge", "1 for the present state of a provider, otherwise 0.");
    for (name, provider) in &all {
        let labels = format!("provider=\"{}\"", escaped(name));
        state(text, "provider_state", &labels, provider.health.state);
    }
    let help = "1 for the present state of a provider's key, otherwise 0.";
    text.head("provider_key_state", "gauge", help);
    for (name, provider) in &all {
        for key in &provider.keys {
            let (name, key_name) = (escaped(name), escaped(&key.name));
            let labels = format!("provider=\"{name}\",key=\"{key_name}\"");
            state(text, "provider_key_state", &labels, key.health.state);
        }
    }
    let help = "Failed calls of a provider since its last success.";
    text.head("provider_failures", "gauge", help);
    for (name, provider) in &all {
        let name = format!("provider_failures{{provider=\"{}\"}}", escaped(name));
        text.line(&name, provider.health.failures);
    }
}

/// Writes the metrics of calls, with the names of OpenTelemetry's conventions in Prometheus form.
fn calls(context: &Context, text: &mut Text) {
    let each = |show: &mut dyn FnMut(&str, &ModelMetrics)| {
        context.journal.calls().each(|model, metrics| {
            show(&labels(model), metrics);
        });
    };
    let tokens = "gen_ai_client_token_usage";
    text.head_of(tokens, "histogram", "Tokens of calls with known usage, by type.");
    each(&mut |labels, metrics| {
        for (kind, histogram) in
            [("input", &metrics.input_tokens), ("output", &metrics.output_tokens)]
        {
            let labels = format!("{labels},gen_ai_token_type=\"{kind}\"");
            text.buckets(tokens, &labels, histogram, 1.0);
        }
    });
    let duration = "gen_ai_client_operation_duration_seconds";
    let help = "Duration of calls; failed calls have an error_type.";
    text.head_of(duration, "histogram", help);
    each(&mut |labels, metrics| {
        text.buckets(duration, labels, &metrics.succeeded_ms, 1e3);
        for (status, histogram) in &metrics.failed_ms {
            let labels = format!("{labels},error_type=\"{}\"", status.to_lowercase());
            text.buckets(duration, &labels, histogram, 1e3);
        }
    });
    let first = "gen_ai_client_operation_time_to_first_chunk_seconds";
    let help = "Time to the first token of streamed calls.";
    text.head_of(first, "histogram", help);
    each(&mut |labels, metrics| text.buckets(first, labels, &metrics.first_token_ms, 1e3));
    let help = "Calls by status; refused calls were stopped by a budget.";
    text.head("calls_total", "counter", help);
    each(&mut |labels, metrics| {
        for (status, count) in &metrics.calls {
            let labels = format!("{labels},status=\"{}\"", status.to_lowercase());
            text.line(&format!("calls_total{{{labels}}}"), count);
        }
    });
    #[rustfmt::skip] // One line for each.
    let counts: [Counter; 7] = [
        ("cost_usd_total", "Known cost of calls in US dollars.", |metrics| metrics.cost_nanousd as f64 / 1e9),
        ("unpriced_calls_total", "Calls with known tokens but an unknown price.", |metrics| metrics.unpriced as f64),
        ("unknown_cost_calls_total", "Failed calls with unknown tokens and an unknown cost.", |metrics| metrics.unknown_cost as f64),
        ("compared_provider_cost_usd_total", "Cost in US dollars that providers stated, for calls that also have a price.", |metrics| metrics.provider_cost_nanousd as f64 / 1e9),
        ("compared_price_cost_usd_total", "Cost of the same calls in US dollars by the price table.", |metrics| metrics.price_cost_nanousd as f64 / 1e9),
        ("cached_calls_total", "Calls served from the response cache.", |metrics| metrics.cached as f64),
        ("saved_usd_total", "Cost saved by the response cache in US dollars.", |metrics| metrics.saved_nanousd as f64 / 1e9),
    ];
    for (name, help, count) in counts {
        text.head(name, "counter", help);
        each(&mut |labels, metrics| text.line(&format!("{name}{{{labels}}}"), count(metrics)));
    }
}

fn labels(model: &Model) -> String {
    let Model { provider, model } = model;
    format!(
        "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"{}\",gen_ai_response_model=\"{}\"",
        escaped(provider),
        escaped(model)
    )
}

/// Escapes backslashes, quotes and line breaks in a label's value, as the format requires.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The output. Writing to it does not fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.head_of(&format!("flowledger_{name}"), kind, help);
    }

    /// Writes the header of a metric whose name has no prefix of our own.
    fn head_of(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Writes a histogram. `per_unit` converts the counted values to the unit in the name.
    fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        histogram: &Histogram<N>,
        per_unit: f64,
    ) {
        self.head(name, "histogram", help);
        self.buckets(&format!("flowledger_{name}"), "", histogram, per_unit);
    }

    /// Omits an empty histogram if it has labels.
    fn buckets<const N: usize>(
        &mut self,
        name: &str,
        labels: &str,
        histogram: &Histogram<N>,
        per_unit: f64,
    ) {
        let (buckets, count, sum) = histogram.read();
        let (before_le, labels) = match labels {
            "" => (String::new(), String::new()),
            _ if count == 0 => return,
            _ => (format!("{labels},"), format!("{{{labels}}}")),
        };
        let text = &mut self.0;
        for (bound, within) in buckets {
            let bound = bound as f64 / per_unit;
            let _ = writeln!(text, "{name}_bucket{{{before_le}le=\"{bound}\"}} {within}");
        }
        let sum = sum as f64 / per_unit;
        let _ = writeln!(text, "{name}_bucket{{{before_le}le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{labels} {sum}\n{name}_count{labels} {count}");
    }

    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "flowledger_{name} {value}");
    }
}
