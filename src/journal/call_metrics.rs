//! Metrics of calls since the server started, by provider and model, for `GET /metrics`. Names and
//! bucket bounds follow OpenTelemetry's semantic conventions for generative AI
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::{CallStatus, LedgerEntry, UsageSource};
use crate::metrics::Histogram;
use crate::money::Usd;
use crate::store::Receipt;

/// Limits how many pairs of provider and model have separate metrics; later models count as `other`
/// of their provider. Clients choose the names of models, but only the configuration
/// adds providers.
const MODELS_MAX: usize = 200;
const OTHER: &str = "other";
/// The status label of calls that were never sent.
const REFUSED: &str = "REFUSED";

const TOKENS: [u64; 14] = [
    1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216,
    67_108_864,
];
/// Bucket bounds of durations, in milliseconds.
const DURATIONS_MS: [u64; 14] =
    [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_240, 20_480, 40_960, 81_920];
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    pub provider: String,
    /// The model that answered, or else the requested model.
    pub model: String,
}

pub struct ModelMetrics {
    /// Prompt tokens, for calls with known tokens.
    pub input_tokens: Histogram<14>,
    pub output_tokens: Histogram<14>,
    /// Calls by status, or `REFUSED` if they were never sent.
    pub calls: BTreeMap<&'static str, u64>,
    /// Durations of successful calls, in milliseconds.
    pub succeeded_ms: Histogram<14>,
    /// Durations of failed calls by status, in milliseconds, if known.
    pub failed_ms: BTreeMap<&'static str, Histogram<14>>,
    /// Time to the first token of streamed answers, in milliseconds.
    pub first_token_ms: Histogram<14>,
    pub cost_nanousd: u64,
    /// Calls with known tokens but an unknown price.
    pub unpriced: u64,
    /// Calls with neither known tokens nor a known cost.
    pub unknown_cost: u64,
    /// The costs that providers stated, and those of the same calls by our own prices.
    pub provider_cost_nanousd: u64,
    pub price_cost_nanousd: u64,
    /// Calls that the response cache answered.
    pub cached: u64,
    pub saved_nanousd: u64,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        Self {
            input_tokens: Histogram::new(TOKENS),
            output_tokens: Histogram::new(TOKENS),
            calls: BTreeMap::new(),
            succeeded_ms: Histogram::new(DURATIONS_MS),
            failed_ms: BTreeMap::new(),
            first_token_ms: Histogram::new(DURATIONS_MS),
            cost_nanousd: 0,
            unpriced: 0,
            unknown_cost: 0,
            provider_cost_nanousd: 0,
            price_cost_nanousd: 0,
            cached: 0,
            saved_nanousd: 0,
        }
    }
}

/// The metrics of all models. Clones share the same counts.
#[derive(Clone, Default)]
pub struct CallMetrics(Arc<Mutex<BTreeMap<Model, ModelMetrics>>>);

impl CallMetrics {
    pub(super) fn record_all(&self, receipts: &[Receipt]) {
        for receipt in receipts {
            if let Receipt::Call(row) = receipt {
                self.record(row);
            }
        }
    }

    /// Counts a settled row; pending rows are ignored.
    fn record(&self, row: &LedgerEntry) {
        if row.status == CallStatus::Pending {
            return;
        }
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut model = Model { provider: row.provider.clone(), model: row.model_used.clone() };
        if models.len() >= MODELS_MAX && !models.contains_key(&model) {
            OTHER.clone_into(&mut model.model);
        }
        models.entry(model).or_default().record(row);
    }

    /// Passes the metrics of each model to `show`, sorted by name.
    pub fn each(&self, mut show: impl FnMut(&Model, &ModelMetrics)) {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.iter().for_each(|(model, metrics)| show(model, metrics));
    }
}

impl ModelMetrics {
    fn record(&mut self, row: &LedgerEntry) {
        if row.more.cached {
            let saved = row.more.saved_usd.map_or(0, |saved| saved.nanousd);
            self.cached += 1;
            let saved = u64::try_from(saved).unwrap_or(0);
            self.saved_nanousd = self.saved_nanousd.saturating_add(saved);
            return;
        }
        if row.usage.source != UsageSource::None {
            self.input_tokens.record(row.usage.input_tokens);
            self.output_tokens.record(row.usage.output_tokens);
        }
        let status = match row.more.refused {
            Some(_) => REFUSED,
            None => row.status.as_str(),
        };
        *self.calls.entry(status).or_default() += 1;
        match row.latency_ms.filter(|_| status != REFUSED) {
            Some(ms) if row.status == CallStatus::Success => self.succeeded_ms.record(ms),
            Some(ms) => self
                .failed_ms
                .entry(status)
                .or_insert_with(|| Histogram::new(DURATIONS_MS))
                .record(ms),
            None => {}
        }
        if let Some(first_token_ms) = row.more.first_token_ms {
            self.first_token_ms.record(first_token_ms);
        }
        match row.total_cost_usd {
            // The cost of a subscription's call is notional.
            _ if row.more.billing.is_some() => {}
            Some(cost) => {
                let cost = u64::try_from(cost.nanousd).unwrap_or(0);
                self.cost_nanousd = self.cost_nanousd.saturating_add(cost);
            }
            None if row.usage.source == UsageSource::None => self.unknown_cost += 1,
            None => self.unpriced += 1,
        }
        let compared = row.more.provider_cost_usd.zip(row.more.price_cost_usd);
        if let Some((provider_cost, price_cost)) = compared {
            let add = |sum: &mut u64, cost: Usd| {
                *sum = sum.saturating_add(u64::try_from(cost.nanousd).unwrap_or(0));
            };
            add(&mut self.provider_cost_nanousd, provider_cost);
            add(&mut self.price_cost_nanousd, price_cost);
        }
    }
}
