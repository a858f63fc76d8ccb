//! What is known of the calls of each node, summed up by days, so that a pass costs what is new.
//!
//! Pure: rows come in, sums are asked for. Prices change what a row would cost elsewhere by the length
//! of its prompt (tiers), so sums are kept apart by classes of length; within a class, what calls would
//! cost at another price follows from the sums of their tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::saving::Seen;
use crate::event::{CallStatus, FlowId, Timestamp, Usage, UsageSource};
use crate::flow::Concern;
use crate::store::{CallRow, NodeChange};

/// How far back calls count, in days.
pub const WINDOW_DAYS: i64 = 30;
/// Milliseconds in a day.
pub const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// How many nodes are known; calls of more are not looked at.
const NODES_MAX: usize = 10_000;
/// How many of the newest prompts are remembered, to see which are bought again.
const PROMPTS_MAX: usize = 100_000;
/// For how long providers keep the beginning of a prompt unless asked otherwise, in milliseconds
/// (Anthropic: 5 minutes).
const PROMPT_CACHE_MS: i64 = 5 * 60 * 1000;
/// How many of the newest answers of a node are remembered, to see which had begun when a call was made;
/// more calls than this are hardly under way at once.
const BEGUN_MAX: usize = 32;

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
    /// How many were made when the answer to another had begun, and soon enough after that for the
    /// provider to have kept the beginning of its prompt until then.
    pub soon: u64,
}

impl Sums {
    fn add(&mut self, usage: &Usage, nanousd: i64, is_soon: bool) {
        self.amount.add(nanousd);
        self.soon += u64::from(is_soon);
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
            soon: self.soon + other.soon,
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
    /// Answered calls whose cost is known and whose prompt was not answered before, by class of length.
    first: BTreeMap<usize, Sums>,
    /// How many answered calls have no known cost.
    pub unpriced: u64,
    /// Those whose prompt was answered before.
    repeated: BTreeMap<usize, Sums>,
    /// Calls that were answered, at whatever cost, since it was changed what is done about failures.
    pub tried: u64,
    /// Calls that failed and were billed, since then.
    pub failed: Amount,
    /// Calls that took too long and were billed, since then.
    pub timed_out: Amount,
    /// Calls that a budget refused.
    pub refused: u64,
    /// The longest answer, in tokens.
    pub output_tokens_max: u64,
}

impl Calls {
    fn merge(&mut self, other: &Self) {
        merge(&mut self.first, &other.first);
        merge(&mut self.repeated, &other.repeated);
        self.unpriced += other.unpriced;
        self.tried += other.tried;
        self.failed = self.failed.plus(other.failed);
        self.timed_out = self.timed_out.plus(other.timed_out);
        self.refused += other.refused;
        self.output_tokens_max = self.output_tokens_max.max(other.output_tokens_max);
    }

    /// All answered calls whose cost is known.
    pub fn answered(&self) -> Sums {
        sum(&self.first).plus(&sum(&self.repeated))
    }

    /// The same by class of length.
    pub fn classes(&self) -> impl Iterator<Item = Sums> {
        let mut all = self.first.clone();
        merge(&mut all, &self.repeated);
        all.into_values()
    }

    /// Those of them whose prompt was answered before.
    pub fn repeated(&self) -> Amount {
        sum(&self.repeated).amount
    }

    /// Calls that were answered, at whatever cost.
    pub fn answers(&self) -> u64 {
        self.answered().amount.calls + self.unpriced
    }
}

fn merge(mine: &mut BTreeMap<usize, Sums>, others: &BTreeMap<usize, Sums>) {
    for (class, sums) in others {
        let mine = mine.entry(*class).or_default();
        *mine = mine.plus(sums);
    }
}

fn sum(classes: &BTreeMap<usize, Sums>) -> Sums {
    let all = classes.values();
    all.fold(Sums::default(), |sum, one| sum.plus(one))
}

#[derive(Debug, Default)]
struct TargetStats {
    first_at: Option<Timestamp>,
    /// When the newest answers began, in order.
    begun: Vec<Timestamp>,
    days: BTreeMap<i64, Calls>,
}

/// The calls of a node to one target in the window.
#[derive(Clone, Debug)]
pub struct Known {
    /// When the first of them was made.
    pub since: Timestamp,
    /// Summed up.
    pub calls: Calls,
    /// Summed up day by day.
    days: BTreeMap<i64, Calls>,
}

impl Known {
    /// Something of these calls that was paid for.
    pub fn seen(&self, of: impl Fn(&Calls) -> Amount) -> Seen {
        let days = self.days.values().map(|day| of(day).nanousd);
        Seen {
            amount: of(&self.calls),
            by_day: days.filter(|nanousd| *nanousd > 0).collect(),
        }
    }
}

/// What does not count for a node, by what of it was changed.
#[derive(Clone, Copy, Debug, Default)]
struct Outdated {
    question: Changed,
    repeats: Changed,
    failures: Changed,
}

/// A change of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    /// Rows up to this one do not count.
    last_call: i64,
    at: Option<Timestamp>,
}

impl Outdated {
    fn of(&mut self, concern: Concern) -> &mut Changed {
        match concern {
            Concern::Question => &mut self.question,
            Concern::Repeats => &mut self.repeats,
            Concern::Failures => &mut self.failures,
        }
    }
}

/// When the days begin that are known at a moment.
pub fn window_start(now: Timestamp) -> Timestamp {
    Timestamp((now.0.div_euclid(MS_PER_DAY) - WINDOW_DAYS) * MS_PER_DAY)
}

/// See the module.
pub struct CallStats {
    /// The last row that was seen.
    cursor: i64,
    /// Rows up to it that were not settled.
    pending: BTreeSet<i64>,
    nodes: HashMap<FlowId, HashMap<String, BTreeMap<Target, TargetStats>>>,
    node_count: usize,
    /// How many calls each target has answered by day, whatever became of the nodes that made them: what
    /// serves others does not change with a node.
    answered: BTreeMap<Target, BTreeMap<i64, u64>>,
    /// Of nodes that were changed: which rows do not count.
    outdated: HashMap<FlowId, HashMap<String, Outdated>>,
    /// When each of the newest prompts was answered.
    prompts: HashMap<u64, Timestamp>,
    prompts_in_order: VecDeque<u64>,
    /// Prompts longer than each of these are of the next class.
    bounds: Vec<u64>,
    /// Flows whose facts changed since somebody asked.
    changed: BTreeSet<FlowId>,
}

impl CallStats {
    /// Nothing is known, and rows up to `after` are not wanted. `bounds` are the lengths of prompts, in
    /// tokens, beyond which prices change, in ascending order.
    pub fn new(after: i64, bounds: Vec<u64>) -> Self {
        Self {
            cursor: after,
            pending: BTreeSet::new(),
            nodes: HashMap::new(),
            node_count: 0,
            answered: BTreeMap::new(),
            outdated: HashMap::new(),
            prompts: HashMap::new(),
            prompts_in_order: VecDeque::new(),
            bounds,
            changed: BTreeSet::new(),
        }
    }

    /// The lengths of prompts by which sums are kept apart.
    pub fn bounds(&self) -> &[u64] {
        &self.bounds
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

    /// What calls before a change of their node told of what it concerned does not count any more.
    pub fn forget(&mut self, change: &NodeChange) {
        let NodeChange {
            flow_id,
            node_id,
            concern,
            last_call,
            at,
        } = change;
        let nodes = self.outdated.entry(*flow_id).or_default();
        let known = nodes.entry(node_id.clone()).or_default().of(*concern);
        if known.last_call >= *last_call {
            if known.last_call == *last_call {
                known.at = known.at.max(Some(*at));
            }
            return;
        }
        *known = Changed {
            last_call: *last_call,
            at: Some(*at),
        };
        let Some(nodes) = self.nodes.get_mut(flow_id) else {
            return;
        };
        if *concern == Concern::Question {
            self.node_count -= usize::from(nodes.remove(node_id).is_some());
            return;
        }
        let targets = nodes.get_mut(node_id).into_iter().flatten();
        for day in targets.flat_map(|(_, target)| target.days.values_mut()) {
            if *concern == Concern::Repeats {
                day.repeated.clear();
            } else {
                (day.tried, day.failed, day.timed_out) = Default::default();
            }
        }
    }

    /// What was changed of a flow that is gone is of no use.
    pub fn forget_changes(&mut self, flow_id: FlowId) {
        self.outdated.remove(&flow_id);
    }

    /// When a node was changed so that what calls before told of that does not count; none where that is
    /// not known, or was changed together with the question.
    pub fn changed_at(
        &self,
        flow_id: FlowId,
        node_id: &str,
        concern: Concern,
    ) -> Option<Timestamp> {
        let mut outdated = *self.outdated.get(&flow_id)?.get(node_id)?;
        let changed = *outdated.of(concern);
        // A new node is one that was changed in all that it says.
        let is_of_its_own =
            concern == Concern::Question || changed.last_call > outdated.question.last_call;
        changed.at.filter(|_| is_of_its_own)
    }

    /// Takes a row in: a new one, or one that was pending.
    pub fn take(&mut self, row: &CallRow<'_>) {
        self.cursor = self.cursor.max(row.id);
        if row.status == CallStatus::Pending {
            self.pending.insert(row.id);
            return;
        }
        self.pending.remove(&row.id);
        let Some((flow_id, node_id)) = row.node else {
            return;
        };
        // What was cached cost nothing, and nobody was asked.
        if !row.cached {
            self.count_answer(row);
        }
        let changed = self.outdated.get(&flow_id);
        let outdated = changed.and_then(|nodes| nodes.get(node_id));
        let outdated = outdated.copied().unwrap_or_default();
        if row.id <= outdated.question.last_call {
            return;
        }
        self.changed.insert(flow_id);
        if row.cached {
            return;
        }
        // One that was asked before what it asks was changed is another one.
        let question = outdated.question.last_call;
        let is_repeated =
            row.status == CallStatus::Success && self.is_repeated(flow_id, question, row);
        let is_since_repeats = row.id > outdated.repeats.last_call;
        let is_since_failures = row.id > outdated.failures.last_call;
        let class = self
            .bounds
            .partition_point(|bound| *bound < row.usage.input_tokens);
        let Some(target) = self.target(flow_id, node_id, row) else {
            return;
        };
        target.first_at = Some(target.first_at.map_or(row.at, |first| first.min(row.at)));
        let day = target.days.entry(row.at.0.div_euclid(MS_PER_DAY));
        let day = day.or_default();
        if row.refused {
            day.refused += 1;
            return;
        }
        let mut is_soon = false;
        if row.status == CallStatus::Success {
            day.output_tokens_max = day.output_tokens_max.max(row.usage.output_tokens);
            is_soon = note_begun(&mut target.begun, row);
            day.tried += u64::from(is_since_failures);
        }
        match (row.status, row.cost) {
            (CallStatus::Success, Some(cost)) if !is_repeated => {
                let sums = day.first.entry(class).or_default();
                sums.add(&row.usage, cost.nanousd, is_soon);
            }
            (CallStatus::Success, Some(cost)) if is_since_repeats => {
                let sums = day.repeated.entry(class).or_default();
                sums.add(&row.usage, cost.nanousd, is_soon);
            }
            (CallStatus::Success, None) => day.unpriced += 1,
            (CallStatus::Timeout, Some(cost)) if is_since_failures && cost.nanousd > 0 => {
                day.timed_out.add(cost.nanousd);
            }
            (CallStatus::Failed, Some(cost)) if is_since_failures && cost.nanousd > 0 => {
                day.failed.add(cost.nanousd);
            }
            _ => {}
        }
    }

    /// Counts a call for its target; one without an answer tells that it was asked.
    fn count_answer(&mut self, row: &CallRow<'_>) {
        let target = (row.provider.to_owned(), row.model.to_owned());
        let days = self.answered.entry(target).or_default();
        let answers = days.entry(row.at.0.div_euclid(MS_PER_DAY)).or_default();
        *answers += u64::from(row.status == CallStatus::Success);
    }

    /// The facts of the target that a row is about; none where there is no room.
    fn target(
        &mut self,
        flow_id: FlowId,
        node_id: &str,
        row: &CallRow<'_>,
    ) -> Option<&mut TargetStats> {
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

    fn is_repeated(&mut self, flow_id: FlowId, question: i64, row: &CallRow<'_>) -> bool {
        let mut hasher = DefaultHasher::new();
        let target = (row.provider, row.model);
        (flow_id, row.node, question, target, row.prompt_hash).hash(&mut hasher);
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
        let first_day = window_start(now).0.div_euclid(MS_PER_DAY);
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
        self.answered.retain(|_, days| {
            *days = days.split_off(&first_day);
            !days.is_empty()
        });
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
            for (day, calls) in &known.days {
                sum.days.entry(*day).or_default().merge(calls);
            }
            sum
        })
    }

    /// How many calls each target has answered, of all flows.
    pub fn targets(&self) -> BTreeMap<Target, u64> {
        let all = self.answered.iter();
        all.map(|(target, days)| (target.clone(), days.values().sum()))
            .collect()
    }
}

/// Notes when an answer began. Gives whether another had begun when its call was made, and not too long
/// before: until then nothing is kept that a call could read, and after that nothing more.
fn note_begun(begun: &mut Vec<Timestamp>, row: &CallRow<'_>) -> bool {
    let before = begun.partition_point(|at| *at <= row.at);
    let is_soon = before
        .checked_sub(1)
        .and_then(|newest| begun.get(newest))
        .is_some_and(|at| row.at.0.saturating_sub(at.0) < PROMPT_CACHE_MS);
    if let Some(ms) = row.begun_ms {
        let at = row
            .at
            .0
            .saturating_add(i64::try_from(ms).unwrap_or(i64::MAX));
        begun.insert(begun.partition_point(|other| other.0 <= at), Timestamp(at));
        if begun.len() > BEGUN_MAX {
            begun.remove(0);
        }
    }
    is_soon
}

impl TargetStats {
    fn known(&self) -> Option<Known> {
        let (first_day, _) = self.days.first_key_value()?;
        let mut calls = Calls::default();
        self.days.values().for_each(|day| calls.merge(day));
        let since = self.first_at?.max(Timestamp(first_day * MS_PER_DAY));
        Some(Known {
            since,
            calls,
            days: self.days.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Usd;

    const MINUTE_MS: i64 = 60 * 1000;

    /// An answered call of 10 nano-dollars, whose answer began after a second.
    fn answered(id: i64, at_ms: i64, prompt: &str) -> CallRow<'_> {
        CallRow {
            id,
            at: Timestamp(at_ms),
            node: Some((1, "n")),
            provider: "p",
            model: "m",
            status: CallStatus::Success,
            usage: Usage {
                input_tokens: 5,
                output_tokens: 1,
                ..Usage::default()
            },
            cost: Some(Usd::from_nanousd(10)),
            begun_ms: Some(1_000),
            latency_ms: Some(2_000),
            prompt_hash: prompt,
            cached: false,
            saved: None,
            refused: false,
        }
    }

    fn sums(facts: &CallStats) -> (Sums, Amount, Amount) {
        let known = facts.known(1, "n", "p", "m").unwrap();
        let calls = known.calls;
        (calls.answered(), calls.repeated(), calls.failed)
    }

    #[test]
    fn a_beginning_is_read_only_by_calls_made_when_an_answer_to_another_has_begun() {
        let mut facts = CallStats::new(0, Vec::new());
        let soon = [
            (0, false),
            // At once with the first, and before anything came.
            (0, false),
            (999, false),
            (1_000, true),
            (4 * MINUTE_MS, true),
            // Five minutes after the answer before had begun.
            (9 * MINUTE_MS + 1_000, false),
            // Settled late: what has begun after it does not count.
            (500, false),
        ];
        let mut expected = 0;
        for (id, (at_ms, is_soon)) in (1..).zip(soon) {
            facts.take(&answered(id, at_ms, &id.to_string()));
            expected += u64::from(is_soon);
            let known = facts.known(1, "n", "p", "m").unwrap();
            assert_eq!(known.calls.answered().soon, expected, "{at_ms}");
        }
    }

    fn change(concern: Concern) -> NodeChange {
        NodeChange {
            flow_id: 1,
            node_id: "n".into(),
            concern,
            last_call: 6,
            at: Timestamp(9),
        }
    }

    #[test]
    fn only_what_a_change_concerns_is_forgotten_also_of_rows_that_are_read_later() {
        let failed = |id| CallRow {
            status: CallStatus::Failed,
            ..answered(id, 0, "a")
        };
        let refused = |id| CallRow {
            refused: true,
            ..failed(id)
        };
        // Bought again: longer than others, after another answer had begun, and one of unknown cost.
        let mut longest = answered(4, 2_000, "a");
        (longest.usage.input_tokens, longest.usage.output_tokens) = (50, 9);
        let unpriced = CallRow {
            cost: None,
            ..answered(5, 3_000, "a")
        };
        let rows = [
            answered(1, 0, "a"),
            answered(2, 0, "a"),
            failed(3),
            longest,
            unpriced,
            refused(6),
        ];
        let mut known = Vec::new();
        let take = |facts: &mut CallStats| rows.iter().for_each(|row| facts.take(row));
        for forgets_first in [false, true] {
            let mut facts = CallStats::new(0, Vec::new());
            if !forgets_first {
                take(&mut facts);
                let (all, repeated, failed) = sums(&facts);
                let calls = (all.amount.calls, repeated.calls, failed.calls);
                assert_eq!(calls, (3, 2, 1));
                assert_eq!(all.soon, 1);
            }
            for concern in [Concern::Repeats, Concern::Failures] {
                facts.forget(&change(concern));
            }
            if forgets_first {
                take(&mut facts);
            }
            let (all, repeated, failed) = sums(&facts);
            assert_eq!((repeated.calls, failed.calls), (0, 0));
            assert_eq!((all.amount.nanousd, all.usage.input_tokens), (10, 5));
            assert_eq!((all.soon, all.prompt_tokens_max), (0, 5));
            let calls = facts.known(1, "n", "p", "m").unwrap();
            assert_eq!((calls.since, calls.calls.refused), (Timestamp(0), 1));
            assert_eq!(calls.calls.output_tokens_max, 9);
            known.push(format!("{calls:?}"));
            let question = Concern::Question;
            assert_eq!(facts.changed_at(1, "n", question), None);
            facts.forget(&change(Concern::Question));
            assert!(facts.known(1, "n", "p", "m").is_none());
            assert_eq!(facts.changed_at(1, "n", question), Some(Timestamp(9)));
            // At another temperature, say, so that it is not bought again.
            facts.take(&answered(7, 0, "a"));
            let (all, repeated, _) = sums(&facts);
            assert_eq!((all.amount.calls, repeated.calls), (1, 0));
        }
        assert_eq!(known[0], known[1]);
    }

    #[test]
    fn a_model_stays_one_that_flows_use_when_the_node_that_used_it_is_changed() {
        let used = BTreeMap::from([(("p".to_owned(), "m".to_owned()), 2)]);
        for forgets_first in [false, true] {
            let mut facts = CallStats::new(0, Vec::new());
            if forgets_first {
                facts.forget(&change(Concern::Question));
            }
            facts.take(&answered(1, 0, "a"));
            facts.take(&answered(2, 0, "b"));
            facts.forget(&change(Concern::Question));
            assert!(facts.known(1, "n", "p", "m").is_none());
            assert_eq!(facts.targets(), used);
            facts.expire(Timestamp((WINDOW_DAYS + 1) * MS_PER_DAY));
            assert_eq!(facts.targets(), BTreeMap::new());
        }
    }

    #[test]
    fn what_was_changed_of_a_node_alone_has_a_moment_of_its_own_and_answers_count_since_then() {
        let at = |facts: &CallStats, concern| facts.changed_at(1, "n", concern);
        let mut facts = CallStats::new(0, Vec::new());
        for concern in Concern::ALL {
            let new = NodeChange {
                last_call: 0,
                at: Timestamp(1),
                ..change(concern)
            };
            facts.forget(&new);
        }
        for id in 1..=6 {
            facts.take(&answered(id, 0, "a"));
        }
        assert_eq!(at(&facts, Concern::Failures), None);
        facts.forget(&change(Concern::Failures));
        assert_eq!(at(&facts, Concern::Failures), Some(Timestamp(9)));
        assert_eq!(at(&facts, Concern::Repeats), None);
        facts.take(&answered(7, 0, "a"));
        let calls = facts.known(1, "n", "p", "m").unwrap().calls;
        assert_eq!((calls.answers(), calls.tried), (7, 1));
    }

    #[test]
    fn nothing_is_kept_of_changes_to_a_flow_that_is_gone() {
        let mut facts = CallStats::new(0, Vec::new());
        facts.forget(&change(Concern::Question));
        facts.forget_changes(1);
        assert!(facts.outdated.is_empty());
    }
}
