//! What is known of the calls of each node, summed up by days, so that a pass costs what is new.
//!
//! Pure: rows come in, sums are asked for. Prices change what a row would cost elsewhere by the length
//! of its prompt (tiers), so sums are kept apart by classes of length; within a class, what calls would
//! cost at another price follows from the sums of their tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::event::{CallStatus, FlowId, Timestamp, Usage, UsageSource};
use crate::store::CallFact;

/// How far back calls count, in days.
pub const WINDOW_DAYS: i64 = 30;
const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// How many nodes are known; calls of more are not looked at.
const NODES_MAX: usize = 10_000;
/// How many of the newest prompts are remembered, to see which are bought again.
const PROMPTS_MAX: usize = 100_000;
/// For how long providers keep the beginning of a prompt unless asked otherwise, in milliseconds
/// (Anthropic: 5 minutes).
const PROMPT_CACHE_MS: i64 = 5 * 60 * 1000;

/// For how long an answer would be kept that is bought again: what is proposed as `cache.maxAgeS`.
pub const ANSWER_AGE_S: i64 = 7 * 24 * 60 * 60;
const ANSWER_AGE_MS: i64 = ANSWER_AGE_S * 1000;

/// A provider and a model.
pub type Target = (String, String);

/// Something that was paid for, so many times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// How many calls.
    pub calls: u64,
    /// What they cost together, nano-dollars.
    pub nanousd: i64,
    /// The sum of the squares of what each cost: how much the sum may vary.
    pub squares: f64,
}

impl Amount {
    fn add(&mut self, nanousd: i64) {
        self.calls += 1;
        self.nanousd = self.nanousd.saturating_add(nanousd);
        self.squares += nanousd as f64 * nanousd as f64;
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            nanousd: self.nanousd.saturating_add(other.nanousd),
            squares: self.squares + other.squares,
        }
    }
}

/// Calls whose prompts are of one class of length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// What they cost.
    pub amount: Amount,
    /// Their tokens together.
    pub usage: Usage,
    /// The longest prompt of them, in tokens.
    pub prompt_tokens_max: u64,
    /// How many had tokens that were estimated.
    pub estimated: u64,
}

impl Sums {
    fn add(&mut self, usage: &Usage, nanousd: i64) {
        self.amount.add(nanousd);
        self.usage = add(&self.usage, usage);
        self.prompt_tokens_max = self.prompt_tokens_max.max(usage.input_tokens);
        self.estimated += u64::from(usage.source == UsageSource::Estimated);
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            amount: self.amount.plus(other.amount),
            usage: add(&self.usage, &other.usage),
            prompt_tokens_max: self.prompt_tokens_max.max(other.prompt_tokens_max),
            estimated: self.estimated + other.estimated,
        }
    }
}

fn add(a: &Usage, b: &Usage) -> Usage {
    Usage {
        input_tokens: a.input_tokens.saturating_add(b.input_tokens),
        cached_input_tokens: a.cached_input_tokens.saturating_add(b.cached_input_tokens),
        cache_write_tokens: a.cache_write_tokens.saturating_add(b.cache_write_tokens),
        cache_write_1h_tokens: a
            .cache_write_1h_tokens
            .saturating_add(b.cache_write_1h_tokens),
        output_tokens: a.output_tokens.saturating_add(b.output_tokens),
        reasoning_tokens: a.reasoning_tokens.saturating_add(b.reasoning_tokens),
        source: UsageSource::Provider,
    }
}

/// The calls of a node to one target, of a day or of all days of the window.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Answered calls whose cost is known, by class of length.
    pub answered: BTreeMap<usize, Sums>,
    /// How many answered calls have no known cost.
    pub unpriced: u64,
    /// Of those answered: the same prompt was answered before.
    pub repeated: Amount,
    /// Calls that failed and were billed.
    pub failed: Amount,
    /// Calls that took too long and were billed.
    pub timed_out: Amount,
    /// Answered calls that began soon enough after the one before that a provider would still have
    /// kept the beginning of its prompt.
    pub soon: u64,
    /// Calls that a budget refused.
    pub refused: u64,
    /// The longest answer, in tokens.
    pub output_tokens_max: u64,
    /// How long answered calls took together, milliseconds.
    pub latency_ms: u64,
}

impl Calls {
    fn merge(&mut self, other: &Self) {
        for (class, sums) in &other.answered {
            let mine = self.answered.entry(*class).or_default();
            *mine = mine.plus(sums);
        }
        self.unpriced += other.unpriced;
        self.repeated = self.repeated.plus(other.repeated);
        self.failed = self.failed.plus(other.failed);
        self.timed_out = self.timed_out.plus(other.timed_out);
        self.soon += other.soon;
        self.refused += other.refused;
        self.output_tokens_max = self.output_tokens_max.max(other.output_tokens_max);
        self.latency_ms = self.latency_ms.saturating_add(other.latency_ms);
    }

    /// All answered calls whose cost is known.
    pub fn answered(&self) -> Sums {
        let all = self.answered.values();
        all.fold(Sums::default(), |sum, one| sum.plus(one))
    }
}

#[derive(Debug, Default)]
struct TargetFacts {
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    days: BTreeMap<i64, Calls>,
}

/// The calls of a node to one target in the window.
#[derive(Clone, Debug)]
pub struct Known {
    /// When the first of them was made.
    pub since: Timestamp,
    /// Summed up.
    pub calls: Calls,
}

/// See the module.
pub struct Facts {
    /// The last row that was seen.
    cursor: i64,
    /// Rows up to it that were not settled.
    pending: BTreeSet<i64>,
    nodes: HashMap<FlowId, HashMap<String, BTreeMap<Target, TargetFacts>>>,
    node_count: usize,
    /// Rows up to this one do not count for the node: it was changed after them.
    outdated: HashMap<(FlowId, String), i64>,
    /// When each of the newest prompts was answered.
    prompts: HashMap<u64, Timestamp>,
    prompts_in_order: VecDeque<u64>,
    /// Prompts longer than each of these are of the next class.
    bounds: Vec<u64>,
    /// Flows whose facts changed since somebody asked.
    changed: BTreeSet<FlowId>,
}

impl Facts {
    /// Nothing is known, and rows up to `after` are not wanted. `bounds` are the lengths of prompts, in
    /// tokens, beyond which prices change, in ascending order.
    pub fn new(after: i64, bounds: Vec<u64>) -> Self {
        Self {
            cursor: after,
            pending: BTreeSet::new(),
            nodes: HashMap::new(),
            node_count: 0,
            outdated: HashMap::new(),
            prompts: HashMap::new(),
            prompts_in_order: VecDeque::new(),
            bounds,
            changed: BTreeSet::new(),
        }
    }

    /// The last row that was seen.
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Rows that were seen before they were settled.
    pub fn pending(&self) -> Vec<i64> {
        self.pending.iter().copied().collect()
    }

    /// Whether a row was seen before it was settled, and not since.
    pub fn is_pending(&self, id: i64) -> bool {
        self.pending.contains(&id)
    }

    /// Flows of which something new is known since this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<FlowId> {
        std::mem::take(&mut self.changed)
    }

    /// Flows of which something is known.
    pub fn flows(&self) -> impl Iterator<Item = FlowId> {
        self.nodes.keys().copied()
    }

    /// Rows up to `last_call` do not count for that node any more.
    pub fn forget(&mut self, flow_id: FlowId, node_id: &str, last_call: i64) {
        let key = (flow_id, node_id.to_owned());
        let known = self.outdated.entry(key).or_insert(0);
        if *known >= last_call {
            return;
        }
        *known = last_call;
        if let Some(nodes) = self.nodes.get_mut(&flow_id)
            && nodes.remove(node_id).is_some()
        {
            self.node_count -= 1;
        }
    }

    /// Takes a row in: a new one, or one that was pending.
    pub fn take(&mut self, row: &CallFact<'_>) {
        self.cursor = self.cursor.max(row.id);
        if row.status == CallStatus::Pending {
            self.pending.insert(row.id);
            return;
        }
        self.pending.remove(&row.id);
        let Some((flow_id, node_id)) = row.node else {
            return;
        };
        if !self.outdated.is_empty() {
            let key = (flow_id, node_id.to_owned());
            if self.outdated.get(&key).is_some_and(|last| row.id <= *last) {
                return;
            }
        }
        self.changed.insert(flow_id);
        // It cost nothing, and nobody was asked.
        if row.cached {
            return;
        }
        let is_repeated = row.status == CallStatus::Success && self.is_repeated(flow_id, row);
        let class = self
            .bounds
            .partition_point(|bound| *bound < row.usage.input_tokens);
        let Some(target) = self.target(flow_id, node_id, row) else {
            return;
        };
        let is_soon = target.last_at.is_some_and(|last| {
            let pause = row.at.0.saturating_sub(last.0);
            (0..PROMPT_CACHE_MS).contains(&pause)
        });
        target.first_at = Some(target.first_at.map_or(row.at, |first| first.min(row.at)));
        let day = target.days.entry(row.at.0.div_euclid(MS_PER_DAY));
        let day = day.or_default();
        if row.refused {
            day.refused += 1;
            return;
        }
        target.last_at = Some(row.at);
        if row.status == CallStatus::Success {
            day.output_tokens_max = day.output_tokens_max.max(row.usage.output_tokens);
        }
        match (row.status, row.cost) {
            (CallStatus::Success, Some(cost)) => {
                let sums = day.answered.entry(class).or_default();
                sums.add(&row.usage, cost.nanousd);
                if is_repeated {
                    day.repeated.add(cost.nanousd);
                }
                day.soon += u64::from(is_soon);
                let latency_ms = row.latency_ms.unwrap_or(0);
                day.latency_ms = day.latency_ms.saturating_add(latency_ms);
            }
            (CallStatus::Success, None) => day.unpriced += 1,
            (CallStatus::Timeout, Some(cost)) if cost.nanousd > 0 => {
                day.timed_out.add(cost.nanousd);
            }
            (CallStatus::Failed, Some(cost)) if cost.nanousd > 0 => day.failed.add(cost.nanousd),
            _ => {}
        }
    }

    /// The facts of the target that a row is about; none where there is no room.
    fn target(
        &mut self,
        flow_id: FlowId,
        node_id: &str,
        row: &CallFact<'_>,
    ) -> Option<&mut TargetFacts> {
        let nodes = self.nodes.entry(flow_id).or_default();
        if !nodes.contains_key(node_id) {
            if self.node_count >= NODES_MAX {
                return None;
            }
            self.node_count += 1;
            nodes.insert(node_id.to_owned(), BTreeMap::new());
        }
        let targets = nodes.get_mut(node_id)?;
        let target = (row.provider.to_owned(), row.model.to_owned());
        Some(targets.entry(target).or_default())
    }

    fn is_repeated(&mut self, flow_id: FlowId, row: &CallFact<'_>) -> bool {
        let mut hasher = DefaultHasher::new();
        (flow_id, row.node, row.provider, row.model, row.prompt_hash).hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(bought) = self.prompts.get_mut(&hash) {
            let age_ms = row.at.0.saturating_sub(bought.0);
            let is_kept = (0..=ANSWER_AGE_MS).contains(&age_ms);
            if !is_kept {
                *bought = row.at;
            }
            return is_kept;
        }
        self.prompts.insert(hash, row.at);
        self.prompts_in_order.push_back(hash);
        if self.prompts_in_order.len() > PROMPTS_MAX
            && let Some(oldest) = self.prompts_in_order.pop_front()
        {
            self.prompts.remove(&oldest);
        }
        false
    }

    /// Forgets days before the window.
    pub fn expire(&mut self, now: Timestamp) {
        let first_day = now.0.div_euclid(MS_PER_DAY) - WINDOW_DAYS;
        for (flow_id, nodes) in &mut self.nodes {
            let before = nodes.len();
            nodes.retain(|_, targets| {
                targets.retain(|_, target| {
                    let all = target.days.len();
                    target.days = target.days.split_off(&first_day);
                    if target.days.len() < all {
                        self.changed.insert(*flow_id);
                    }
                    !target.days.is_empty()
                });
                !targets.is_empty()
            });
            self.node_count -= before - nodes.len();
        }
        self.nodes.retain(|_, nodes| !nodes.is_empty());
    }

    /// The calls of a node to a target, where there are any.
    pub fn known(
        &self,
        flow_id: FlowId,
        node_id: &str,
        provider: &str,
        model: &str,
    ) -> Option<Known> {
        let targets = self.nodes.get(&flow_id)?.get(node_id)?;
        let target = targets.get(&(provider.to_owned(), model.to_owned()))?;
        target.known()
    }

    /// The calls of a node to all its targets.
    pub fn of_node(&self, flow_id: FlowId, node_id: &str) -> Vec<(&Target, Known)> {
        let targets = self
            .nodes
            .get(&flow_id)
            .and_then(|nodes| nodes.get(node_id));
        let all = targets.into_iter().flatten();
        all.filter_map(|(target, facts)| Some((target, facts.known()?)))
            .collect()
    }

    /// The calls of a node to all its targets, summed up, where there are any.
    pub fn sum_of_node(&self, flow_id: FlowId, node_id: &str) -> Option<Known> {
        let all = self.of_node(flow_id, node_id).into_iter();
        all.map(|(_, known)| known).reduce(|mut sum, known| {
            sum.since = sum.since.min(known.since);
            sum.calls.merge(&known.calls);
            sum
        })
    }

    /// How many calls each target has answered, of all flows.
    pub fn targets(&self) -> BTreeMap<Target, u64> {
        let mut all = BTreeMap::new();
        let nodes = self.nodes.values().flat_map(HashMap::values);
        for (target, facts) in nodes.flatten() {
            if let Some(known) = facts.known() {
                *all.entry(target.clone()).or_insert(0) += known.calls.answered().amount.calls;
            }
        }
        all
    }
}

impl TargetFacts {
    fn known(&self) -> Option<Known> {
        let (first_day, _) = self.days.first_key_value()?;
        let mut calls = Calls::default();
        self.days.values().for_each(|day| calls.merge(day));
        let since = self.first_at?.max(Timestamp(first_day * MS_PER_DAY));
        Some(Known { since, calls })
    }
}
