//! Estimates the expected and the greatest cost of a run before it runs.
//!
//! The expected cost comes from the flow's newest completed runs, or else from the length of its
//! prompts and a typical length of answers. The greatest cost assumes every attempt at every target
//! of every node, with the longest answers and the longest prompts that these can make. Each byte
//! of a prompt counts as a token, as for budgets; an answer counts as many bytes as it has tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::event::{LedgerEntry, Usage, UsageSource};
use crate::flow::{
    self, Agent, Graph, Item, Node, NodeKind, OnError, PROMPT_BYTES_MAX, PromptBound, Scope,
    Target, Watch,
};
use crate::ids::FlowId;
use crate::money::Usd;
use crate::providers::{
    ANSWER_TOKENS_ASSUMED, CacheWrites, FETCHED_BYTES_MAX, Providers, prompt_tokens_max,
};
use crate::store::{LedgerFilter, Store};
use crate::time::Timestamp;

const ROWS_MAX: usize = 1_000;
/// Limits the time for rendering the templates of an estimate. After it, lengths count as unknown.
const TIME_MAX: Duration = Duration::from_secs(5);
/// The expected length of answers in tokens without history or a shorter limit.
const ANSWER_TOKENS_USUAL: u64 = 500;
/// The expected length of an `http` node's output in tokens.
const FETCHED_TOKENS_USUAL: u64 = 1_000;
/// The length of the test item that shows how often a prompt repeats each byte of an item.
const ITEM_BYTES_PROBED: usize = 1_000;
/// The expected number of items of a map if its list is not known yet.
const ITEMS_USUAL: u64 = 10;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    pub expected: Amount,
    pub worst: Amount,
    /// The nodes that make calls, in the order of their execution.
    pub nodes: Vec<NodeEstimate>,
    /// The number of runs that `expected` is computed from; 0 if it comes from the prompts.
    pub runs: usize,
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// None if a price is unknown.
    pub cost: Option<Usd>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEstimate {
    pub node_id: String,
    pub label: String,
    pub model: String,
    pub expected: Amount,
    pub worst: Amount,
}

impl Amount {
    const NOTHING: Self =
        Self { calls: 0, input_tokens: 0, output_tokens: 0, cost: Some(Usd::ZERO) };

    fn plus(self, other: Self) -> Self {
        let cost = self.cost.zip(other.cost);
        Self {
            calls: self.calls.saturating_add(other.calls),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cost: cost.map(|(one, other)| one.plus(other)),
        }
    }

    fn times(self, count: u64) -> Self {
        let times = |cost: Usd| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            Usd::from_nanousd(cost.nanousd.saturating_mul(count))
        };
        Self {
            calls: self.calls.saturating_mul(count),
            input_tokens: self.input_tokens.saturating_mul(count),
            output_tokens: self.output_tokens.saturating_mul(count),
            cost: self.cost.map(times),
        }
    }
}

enum Items {
    One,
    /// The list comes from the input alone.
    Known(Vec<Value>),
    /// The list comes from this template.
    Unknown(String),
}

impl Items {
    /// Returns the expected and the greatest number of calls.
    fn counts(&self) -> (u64, u64) {
        match self {
            Self::One => (1, 1),
            Self::Known(items) => (items.len() as u64, items.len() as u64),
            Self::Unknown(_) => (ITEMS_USUAL, flow::ITEMS_MAX as u64),
        }
    }
}

struct Estimator<'a> {
    providers: &'a Providers,
    input: &'a Value,
    at: Timestamp,
    /// The expected lengths of outputs in tokens, by node.
    outputs: HashMap<&'a str, u64>,
    prompt_bound: PromptBound<'a>,
    /// Means of the newest runs, by node.
    history: HashMap<String, Amount>,
    watch: Watch,
    runs: usize,
    notes: Vec<String>,
}

/// Estimates a run of a graph with that input, from the history of flow `flow_id` if there is any.
///
/// # Errors
/// Read errors of the database.
pub fn estimate(
    store: &Store,
    providers: &Providers,
    flow_id: Option<FlowId>,
    graph: &Graph,
    input: &Value,
) -> Result<Estimate> {
    let history = flow_id.map(|flow_id| history(store, flow_id)).transpose()?;
    let (history, runs) = history.unwrap_or_default();
    let until = Instant::now() + TIME_MAX;
    let watch =
        Watch::new(move || (Instant::now() > until).then_some("the estimate takes too long"));
    let mut estimator = Estimator {
        providers,
        input,
        at: Timestamp::now(),
        outputs: HashMap::new(),
        prompt_bound: PromptBound::new(input, Some(watch.clone())),
        history,
        watch,
        runs,
        notes: Vec::new(),
    };
    let order = graph.order().into_iter().map(|at| &graph.nodes()[at]);
    let nodes: Vec<NodeEstimate> = order.filter_map(|node| estimator.node(node)).collect();
    Ok(Estimate {
        expected: sum(nodes.iter().map(|node| node.expected)),
        worst: sum(nodes.iter().map(|node| node.worst)),
        runs,
        notes: estimator.notes,
        nodes,
    })
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::NOTHING, Amount::plus)
}

/// Returns the mean of each node over the newest runs that completed with all costs known, and the
/// number of these runs. Calls that a budget refused are left out.
fn history(store: &Store, flow_id: FlowId) -> Result<(HashMap<String, Amount>, usize)> {
    let filter = LedgerFilter { flow_id: Some(flow_id), ..LedgerFilter::default() };
    let rows = store.ledger(&filter, None, ROWS_MAX)?;
    let mut by_run: HashMap<&str, Vec<&LedgerEntry>> = HashMap::new();
    for row in &rows {
        if let Some(run_id) = row.run_id.as_deref() {
            by_run.entry(run_id).or_default().push(row);
        }
    }
    // The row limit may have cut the oldest run off.
    if rows.len() == ROWS_MAX
        && let Some(oldest) = rows.last().and_then(|row| row.run_id.as_deref())
        && by_run.len() > 1
    {
        by_run.remove(oldest);
    }
    let first = by_run.keys().min().copied().unwrap_or_default();
    let completed = store.completed_runs(flow_id, first)?;
    by_run.retain(|run_id, rows| {
        completed.contains(*run_id) && rows.iter().all(|row| row.total_cost_usd.is_some())
    });
    let mut means: HashMap<String, Amount> = HashMap::new();
    let rows = by_run.values().flatten();
    for row in rows.filter(|row| row.more.refused.is_none()) {
        let node_id = row.node_id.clone().unwrap_or_default();
        let sum = means.entry(node_id).or_insert(Amount::NOTHING);
        *sum = sum.plus(Amount {
            calls: 1,
            input_tokens: row.usage.input_tokens,
            output_tokens: row.usage.output_tokens,
            cost: row.total_cost_usd,
        });
    }
    let runs = by_run.len();
    for sum in means.values_mut() {
        let mean = |sum: u64| sum.div_ceil(runs as u64);
        let cost = sum.cost.map_or(0, |cost| cost.nanousd);
        *sum = Amount {
            calls: mean(sum.calls),
            input_tokens: mean(sum.input_tokens),
            output_tokens: mean(sum.output_tokens),
            cost: Some(Usd::from_nanousd(cost / i64::try_from(runs).unwrap_or(1))),
        };
    }
    Ok((means, runs))
}

impl<'a> Estimator<'a> {
    /// Estimates a node whose predecessors are estimated. Returns none if it makes no calls.
    fn node(&mut self, node: &'a Node) -> Option<NodeEstimate> {
        let (agent, items) = match &node.kind {
            NodeKind::Agent(agent) => (agent.as_ref(), Items::One),
            NodeKind::Map(map) => (&map.agent, self.items(&node.id, &map.items)),
            _ => {
                let tokens = self.free_node(node);
                self.outputs.insert(&node.id, tokens);
                return None;
            }
        };
        let answer_max = u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
        let answer_usual = u64::from(agent.max_tokens.unwrap_or(u32::MAX)).min(ANSWER_TOKENS_USUAL);
        if agent.max_tokens.is_none() {
            self.notes.push(format!(
                "{}: assuming up to {ANSWER_TOKENS_ASSUMED} output tokens, because `maxTokens` is not set",
                node.id
            ));
        }
        let (calls_usual, calls_max) = items.counts();
        let expected = match self.runs {
            0 => {
                let prompt = self.prompt_expected(agent);
                let target = &agent.targets[0];
                let call = self.amount(target, prompt, answer_usual, CacheWrites::None);
                call.times(calls_usual)
            }
            // A node that the newest runs skipped is expected to be skipped again.
            _ => *self.history.get(&node.id).unwrap_or(&Amount::NOTHING),
        };
        let prompts = self.prompts_max(&node.id, agent, &items);
        let worst = self.worst(agent, &prompts, answer_max);
        let tokens = answer_usual.saturating_mul(calls_usual);
        self.outputs.insert(&node.id, tokens);
        let answer_bytes = usize::try_from(answer_max).unwrap_or(usize::MAX);
        let answer_bytes = answer_bytes.max(bytes_on_error(node));
        match items {
            Items::One => self.prompt_bound.text(&node.id, answer_bytes),
            _ => {
                let bound = &mut self.prompt_bound;
                bound.list(&node.id, calls_max as usize, answer_bytes);
            }
        }
        let Target { provider, model } = &agent.targets[0];
        Some(NodeEstimate {
            node_id: node.id.clone(),
            label: node.label.clone(),
            model: format!("{provider}/{model}"),
            expected,
            worst,
        })
    }

    fn worst(&self, agent: &Agent, prompts: &[(usize, u64)], answer_tokens: u64) -> Amount {
        let targets = agent.targets.iter().map(|target| {
            let provider = &target.provider;
            let writes = self.providers.cache_writes(provider, agent.prompt_cache);
            sum(prompts.iter().map(|(bytes, calls)| {
                let tokens = prompt_tokens_max(*bytes as u64);
                let call = self.amount(target, tokens, answer_tokens, writes);
                call.times(*calls)
            }))
        });
        sum(targets).times(u64::from(agent.retry.attempts))
    }

    fn amount(
        &self,
        target: &Target,
        input_tokens: u64,
        output_tokens: u64,
        writes: CacheWrites,
    ) -> Amount {
        let usage = Usage {
            input_tokens,
            output_tokens,
            source: UsageSource::Estimated,
            ..Usage::default()
        };
        let Target { provider, model } = target;
        let providers = self.providers;
        Amount {
            calls: 1,
            input_tokens,
            output_tokens,
            cost: providers.cost_at_most(provider, model, &usage, writes, self.at),
        }
    }

    fn scope(&self) -> Scope {
        Scope::new(self.input, []).with_watch(Some(self.watch.clone()))
    }

    fn items(&mut self, id: &str, template: &str) -> Items {
        if let Ok(items) = flow::items(template, &self.scope()) {
            return Items::Known(items);
        }
        self.notes.push(format!(
            "{id}: the number of items is unknown before the run; assuming {ITEMS_USUAL}, and up to {}",
            flow::ITEMS_MAX
        ));
        Items::Unknown(template.to_owned())
    }

    /// Returns the greatest lengths of a node's prompts in bytes, each with the number of
    /// such prompts.
    fn prompts_max(&mut self, id: &str, agent: &Agent, items: &Items) -> Vec<(usize, u64)> {
        let (_, count) = items.counts();
        match items {
            Items::One => vec![(self.prompt_max(id, agent, Item::None), count)],
            Items::Known(items) => {
                let mut longest = 0;
                for (index, item) in items.iter().enumerate() {
                    let bytes = self.prompt_max(id, agent, Item::Known(item, index));
                    longest = longest.max(bytes);
                    if longest >= PROMPT_BYTES_MAX {
                        break;
                    }
                }
                vec![(longest, count)]
            }
            Items::Unknown(list) => {
                // All items together are as long as the source of the list.
                let without = self.prompt_max(id, agent, Item::Bytes(0));
                let with = self.prompt_max(id, agent, Item::Bytes(ITEM_BYTES_PROBED));
                let times = with.saturating_sub(without).div_ceil(ITEM_BYTES_PROBED);
                let more = self.prompt_bound.source_bytes(list).saturating_mul(times);
                let long = (more.div_ceil(PROMPT_BYTES_MAX) as u64).clamp(1, count);
                let bytes = without.saturating_add(more).min(PROMPT_BYTES_MAX);
                vec![(bytes, long), (without, count - long)]
            }
        }
    }

    /// Returns the greatest length of a prompt with its system text, in bytes.
    fn prompt_max(&mut self, id: &str, agent: &Agent, item: Item<'_>) -> usize {
        let lengths = texts(agent).map(|text| self.text_max(id, text, item));
        lengths.sum()
    }

    fn text_max(&mut self, id: &str, template: &str, item: Item<'_>) -> usize {
        if let Some(bytes) = self.prompt_bound.length_max(template, item) {
            return bytes;
        }
        let note = format!(
            "{id}: the prompt length is unknown before the run; assuming up to {PROMPT_BYTES_MAX} bytes"
        );
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        PROMPT_BYTES_MAX
    }

    fn prompt_expected(&self, agent: &Agent) -> u64 {
        texts(agent).map(|text| self.text_expected(text)).sum()
    }

    /// Returns the expected length of a template's text in tokens: its own text with the input, and
    /// each output once for each reference.
    fn text_expected(&self, template: &str) -> u64 {
        let bytes = flow::length_without_outputs(template, self.input, &self.watch) as u64;
        let mut length = bytes.div_ceil(4);
        for (id, tokens) in &self.outputs {
            let spellings =
                [format!("nodes.{id}."), format!("nodes[\"{id}\"]"), format!("nodes['{id}']")];
            let named = spellings.iter().map(|name| template.matches(name).count());
            length = length.saturating_add(tokens.saturating_mul(named.sum::<usize>() as u64));
        }
        length
    }

    /// Bounds the output of a node that makes no calls. Returns its expected length in tokens.
    fn free_node(&mut self, node: &'a Node) -> u64 {
        let id = &node.id;
        let (bytes, tokens) = match &node.kind {
            NodeKind::Template(template) | NodeKind::Output(template) => {
                let bytes = self.text_max(id, template, Item::None);
                (bytes, self.text_expected(template))
            }
            NodeKind::Http(_) => (FETCHED_BYTES_MAX, FETCHED_TOKENS_USUAL),
            NodeKind::Input(_) => {
                self.prompt_bound.input(id);
                return (self.prompt_bound.input_bytes() as u64).div_ceil(4);
            }
            _ => ("false".len(), 1),
        };
        self.prompt_bound.text(id, bytes.max(bytes_on_error(node)));
        tokens
    }
}

fn texts(agent: &Agent) -> impl Iterator<Item = &str> {
    [Some(agent.prompt.as_str()), agent.system.as_deref()].into_iter().flatten()
}

fn bytes_on_error(node: &Node) -> usize {
    match &node.on_error {
        OnError::Continue(output) => output.len(),
        OnError::Fail => 0,
    }
}
