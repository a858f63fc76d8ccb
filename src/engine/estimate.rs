//! What a run will cost, before it is run: what to expect, and what it may come to at most.
//!
//! What to expect comes from the flow's own newest runs that ended well, where there are any; else from the
//! length of its prompts and a usual length of answers. The most is every node, with every attempt at
//! every target, with answers as long as they may be, and prompts as long as these make them: the
//! templates are rendered with such answers. Of a prompt each byte counts as a token, as it does for
//! budgets; of an answer, that stands in for the tokens that it was given in.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::event::{FlowId, LedgerEntry, Timestamp, Usage, UsageSource, Usd};
use crate::flow::{
    self, Agent, Graph, Item, NodeKind, OnError, PROMPT_BYTES_MAX, PromptBound, Retry, Scope,
    Target,
};
use crate::providers::{
    ANSWER_TOKENS_ASSUMED, CacheWrites, FETCHED_BYTES_MAX, Providers, prompt_tokens_max,
};
use crate::store::{LedgerFilter, Store};

/// How many of the flow's newest rows are looked at.
const ROWS_MAX: usize = 1_000;
/// How long an answer is expected to be, in tokens, where there is no history and no shorter limit.
const ANSWER_TOKENS_USUAL: u64 = 500;
/// How long what an `http` node gives is expected to be, in tokens.
const FETCHED_TOKENS_USUAL: u64 = 1_000;
/// How long an item is taken to be where it is measured what each of its bytes adds to a prompt.
const ITEM_BYTES_PROBED: usize = 1_000;
/// How many items a map is expected to have where its list is not known before.
const ITEMS_USUAL: u64 = 10;

/// An estimate of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// What to expect.
    pub expected: Amount,
    /// What it may come to at most.
    pub worst: Amount,
    /// The same of each node that makes calls, in the order in which they run.
    pub nodes: Vec<NodeEstimate>,
    /// How many runs what to expect is taken from; 0 where there are none, and it is reckoned from
    /// the prompts.
    pub runs: usize,
    /// What makes it uncertain, in sentences.
    pub notes: Vec<String>,
}

/// Tokens and money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Calls.
    pub calls: u64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Money; none where a price is not known.
    pub cost: Option<Usd>,
}

/// An estimate of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEstimate {
    /// Its id.
    pub node_id: String,
    /// What people call it.
    pub label: String,
    /// The model that is asked first.
    pub model: String,
    /// What to expect.
    pub expected: Amount,
    /// What it may come to at most.
    pub worst: Amount,
}

impl Amount {
    const NOTHING: Self = Self {
        calls: 0,
        input_tokens: 0,
        output_tokens: 0,
        cost: Some(Usd::ZERO),
    };

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

/// Items of a map, before it is run.
struct Items {
    /// The list, where it comes from the input alone.
    known: Option<Vec<Value>>,
    expected: u64,
    worst: u64,
}

/// What one look at a graph needs.
struct Look<'a> {
    providers: &'a Providers,
    graph: &'a Graph,
    input: &'a Value,
    at: Timestamp,
    /// How long outputs of the nodes before are expected to be, in tokens, by id.
    expected: HashMap<&'a str, u64>,
    /// How long they are at most.
    prompt_bound: PromptBound<'a>,
    /// Means of the newest runs, by node.
    history: HashMap<String, Amount>,
    runs: usize,
    notes: Vec<String>,
}

/// Estimates a run of a graph with that input. `flow_id` is whose history counts.
///
/// # Errors
/// When the database cannot be read.
pub fn estimate(
    store: &Store,
    providers: &Providers,
    flow_id: Option<FlowId>,
    graph: &Graph,
    input: &Value,
) -> Result<Estimate> {
    let (history, runs) = match flow_id {
        Some(flow_id) => history(store, flow_id)?,
        None => (HashMap::new(), 0),
    };
    let mut look = Look {
        providers,
        graph,
        input,
        at: Timestamp::now(),
        expected: HashMap::new(),
        prompt_bound: PromptBound::new(input),
        history,
        runs,
        notes: Vec::new(),
    };
    let mut nodes = Vec::new();
    for node in graph.order() {
        nodes.extend(look.node(node));
    }
    let total =
        |of: fn(&NodeEstimate) -> Amount| nodes.iter().map(of).fold(Amount::NOTHING, Amount::plus);
    Ok(Estimate {
        expected: total(|node| node.expected),
        worst: total(|node| node.worst),
        runs,
        notes: look.notes,
        nodes,
    })
}

/// What each node took in the mean of the newest runs that ended well and in which nothing is unknown, and
/// how many these are. What a budget refused took nothing.
fn history(store: &Store, flow_id: FlowId) -> Result<(HashMap<String, Amount>, usize)> {
    let filter = LedgerFilter {
        flow_id: Some(flow_id),
        ..LedgerFilter::default()
    };
    let rows = store.ledger(&filter, None, ROWS_MAX)?;
    let mut by_run: HashMap<&str, Vec<&LedgerEntry>> = HashMap::new();
    for row in &rows {
        if let Some(run_id) = row.run_id.as_deref() {
            by_run.entry(run_id).or_default().push(row);
        }
    }
    // Of the oldest of them only a part may be here.
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
    let mut sums: HashMap<String, Amount> = HashMap::new();
    let rows = by_run.values().flatten();
    for row in rows.filter(|row| row.more.refused.is_none()) {
        let amount = Amount {
            calls: 1,
            input_tokens: row.usage.input_tokens,
            output_tokens: row.usage.output_tokens,
            cost: row.total_cost_usd,
        };
        let sum = sums
            .entry(row.node_id.clone().unwrap_or_default())
            .or_insert(Amount::NOTHING);
        *sum = sum.plus(amount);
    }
    let runs = by_run.len();
    for sum in sums.values_mut() {
        let mean = |sum: u64| sum.div_ceil(runs as u64);
        let cost = sum.cost.map_or(0, |cost| cost.nanousd);
        *sum = Amount {
            calls: mean(sum.calls),
            input_tokens: mean(sum.input_tokens),
            output_tokens: mean(sum.output_tokens),
            cost: Some(Usd::from_nanousd(cost / i64::try_from(runs).unwrap_or(1))),
        };
    }
    Ok((sums, runs))
}

impl<'a> Look<'a> {
    /// Estimates a node after all that it needs. None of one that makes no calls.
    fn node(&mut self, at: usize) -> Option<NodeEstimate> {
        let graph = self.graph;
        let node = &graph.nodes()[at];
        let (agent, items) = match &node.kind {
            NodeKind::Agent(agent) => (agent.as_ref(), None),
            NodeKind::Map(map) => {
                let items = self.items(&node.id, &map.items);
                (&map.agent, Some((items, map.items.as_str())))
            }
            other => {
                self.look_at_free(&node.id, other, &node.on_error);
                return None;
            }
        };
        let Target { provider, model } = &agent.targets[0];
        let answer_usual = u64::from(agent.max_tokens.unwrap_or(u32::MAX)).min(ANSWER_TOKENS_USUAL);
        let answer_max = u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
        if agent.max_tokens.is_none() {
            self.notes.push(format!(
                "{}: without `maxTokens`, an answer is taken to have {ANSWER_TOKENS_ASSUMED} tokens at most",
                node.id
            ));
        }
        let times = items.as_ref().map_or(1, |(items, _)| items.expected);
        let usual = self.amount(
            &agent.targets[0],
            self.prompt_expected(agent),
            answer_usual,
            CacheWrites::None,
        );
        let mut expected = usual.times(times);
        if self.runs > 0 {
            // A node that the newest runs have skipped is expected to be skipped again.
            let mean = self.history.get(&node.id).copied();
            expected = mean.unwrap_or(Amount::NOTHING);
        }
        let Retry { attempts, .. } = agent.retry;
        let prompts = self.prompts_max(&node.id, agent, items.as_ref());
        let worst = agent
            .targets
            .iter()
            .map(|target| {
                let writes = self
                    .providers
                    .cache_writes(&target.provider, agent.prompt_cache);
                let of = |&(bytes, calls): &(usize, u64)| {
                    let tokens = prompt_tokens_max(bytes as u64);
                    self.amount(target, tokens, answer_max, writes).times(calls)
                };
                prompts.iter().map(of).fold(Amount::NOTHING, Amount::plus)
            })
            .fold(Amount::NOTHING, Amount::plus)
            .times(u64::from(attempts));
        self.expected
            .insert(&node.id, answer_usual.saturating_mul(times));
        let answer_bytes = usize::try_from(answer_max).unwrap_or(usize::MAX);
        let answer_bytes = answer_bytes.max(bytes_instead(&node.on_error));
        match items {
            Some((items, _)) => {
                self.prompt_bound
                    .list(&node.id, items.worst as usize, answer_bytes);
            }
            None => self.prompt_bound.text(&node.id, answer_bytes),
        }
        Some(NodeEstimate {
            node_id: node.id.clone(),
            label: node.label.clone(),
            model: format!("{provider}/{model}"),
            expected,
            worst,
        })
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
        Amount {
            calls: 1,
            input_tokens,
            output_tokens,
            cost: self
                .providers
                .cost_at_most(provider, model, &usage, writes, self.at),
        }
    }

    /// How many items a map will have: known where its list comes from the input alone.
    fn items(&mut self, id: &str, template: &str) -> Items {
        match flow::items(template, &Scope::new(self.input, [])) {
            Ok(items) => {
                let count = items.len() as u64;
                Items {
                    known: Some(items),
                    expected: count,
                    worst: count,
                }
            }
            Err(_) => {
                let worst = flow::ITEMS_MAX as u64;
                self.notes.push(format!(
                    "{id}: how many items there will be is not known before; {ITEMS_USUAL} are expected, {worst} the most"
                ));
                Items {
                    known: None,
                    expected: ITEMS_USUAL,
                    worst,
                }
            }
        }
    }

    /// How long the prompts of a node are at most, in bytes, each with how many are so long.
    fn prompts_max(
        &mut self,
        id: &str,
        agent: &Agent,
        items: Option<&(Items, &str)>,
    ) -> Vec<(usize, u64)> {
        let Some((items, list)) = items else {
            let bytes = self.prompt_max(id, agent, Item::None);
            return vec![(bytes, 1)];
        };
        if let Some(known) = &items.known {
            let mut bytes = 0;
            for (index, item) in known.iter().enumerate() {
                bytes = self
                    .prompt_max(id, agent, Item::Known(item, index))
                    .max(bytes);
                if bytes >= PROMPT_BYTES_MAX {
                    break;
                }
            }
            return vec![(bytes, items.worst)];
        }
        // All items together are as long as what the list is made from.
        let without = self.prompt_max(id, agent, Item::Bytes(0));
        let with = self.prompt_max(id, agent, Item::Bytes(ITEM_BYTES_PROBED));
        let times = with.saturating_sub(without).div_ceil(ITEM_BYTES_PROBED);
        let more = self.prompt_bound.source_bytes(list).saturating_mul(times);
        let long = (more.div_ceil(PROMPT_BYTES_MAX) as u64).clamp(1, items.worst);
        let bytes = without.saturating_add(more).min(PROMPT_BYTES_MAX);
        vec![(bytes, long), (without, items.worst - long)]
    }

    /// How long a prompt may be with its system text, in bytes.
    fn prompt_max(&mut self, id: &str, agent: &Agent, item: Item<'_>) -> usize {
        let texts = [Some(agent.prompt.as_str()), agent.system.as_deref()];
        let lengths = texts.into_iter().flatten();
        lengths.map(|text| self.text_max(id, text, item)).sum()
    }

    /// How long what a template gives may be, in bytes.
    fn text_max(&mut self, id: &str, template: &str, item: Item<'_>) -> usize {
        if let Some(bytes) = self.prompt_bound.length_max(template, item) {
            return bytes;
        }
        let note = format!(
            "{id}: how long its text will be cannot be told before; it is taken to have {PROMPT_BYTES_MAX} bytes at most"
        );
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        PROMPT_BYTES_MAX
    }

    /// How long a prompt is expected to be, in tokens.
    fn prompt_expected(&self, agent: &Agent) -> u64 {
        let texts = [Some(agent.prompt.as_str()), agent.system.as_deref()];
        let lengths = texts.into_iter().flatten();
        lengths.map(|text| self.text_expected(text)).sum()
    }

    /// How long what a template gives is expected to be, in tokens: its own text with the input in it,
    /// and the outputs that it names, each time that it does.
    fn text_expected(&self, template: &str) -> u64 {
        let bytes = flow::length_without_outputs(template, self.input) as u64;
        let mut length = bytes.div_ceil(4);
        for (id, of_output) in &self.expected {
            let named = template.matches(&format!("nodes.{id}.")).count()
                + template.matches(&format!("nodes[\"{id}\"]")).count()
                + template.matches(&format!("nodes['{id}']")).count();
            length = length.saturating_add(of_output.saturating_mul(named as u64));
        }
        length
    }

    /// Notes how long what a node gives will be that makes no call.
    fn look_at_free(&mut self, id: &'a str, kind: &NodeKind, on_error: &OnError) {
        let instead = bytes_instead(on_error);
        let expected = match kind {
            NodeKind::Template(template) | NodeKind::Output(template) => {
                let bytes = self.text_max(id, template, Item::None);
                self.prompt_bound.text(id, bytes.max(instead));
                self.text_expected(template)
            }
            NodeKind::Http(_) => {
                self.prompt_bound.text(id, FETCHED_BYTES_MAX.max(instead));
                FETCHED_TOKENS_USUAL
            }
            NodeKind::Input(_) => {
                self.prompt_bound.input(id);
                (self.prompt_bound.input_bytes() as u64).div_ceil(4)
            }
            _ => {
                self.prompt_bound.text(id, "false".len());
                1
            }
        };
        self.expected.insert(id, expected);
    }
}

/// How long what a node gives is where it fails and the run goes on.
fn bytes_instead(on_error: &OnError) -> usize {
    match on_error {
        OnError::Continue(output) => output.len(),
        OnError::Fail => 0,
    }
}
