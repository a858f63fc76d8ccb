//! The items of a map that is under way: which is next, and what those that are over gave.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::unit::Tries;
use crate::store::ItemRecord;

/// How large the outputs of all items of a map may be together, in bytes.
const OUTPUTS_BYTES_MAX: usize = 16 << 20;

pub struct Items {
    pub values: Arc<Vec<Value>>,
    /// Why the map has failed; no more items begin.
    pub failed: Option<String>,
    pub tries: Vec<Tries>,
    /// What each has given that is over.
    outputs: Vec<Option<Arc<str>>>,
    output_bytes: usize,
    /// All before this one have begun.
    next: usize,
    /// How many have begun and are not over, with those that pause.
    in_flight: usize,
    at_once: usize,
    began: Instant,
}

impl Items {
    /// The items of a map, of which some may have been over before a restart.
    pub fn new(values: Vec<Value>, at_once: usize, before: &[ItemRecord]) -> Self {
        let mut outputs = vec![None; values.len()];
        let mut tries = vec![Tries::default(); values.len()];
        for record in before {
            if let Some(tries) = tries.get_mut(record.item) {
                tries.started = record.attempt;
                outputs[record.item] = record.finished_output().map(Arc::from);
            }
        }
        let done = outputs.iter().flatten();
        Self {
            output_bytes: done.map(|output: &Arc<str>| output.len()).sum(),
            values: Arc::new(values),
            failed: None,
            tries,
            outputs,
            next: 0,
            in_flight: 0,
            at_once,
            began: Instant::now(),
        }
    }

    /// Whether [`Items::take`] has something to give.
    pub fn has_next(&self) -> bool {
        self.in_flight < self.at_once && self.failed.is_none() && self.peek().is_some()
    }

    /// Hands out an item that may begin, the first in the order of the list.
    pub fn take(&mut self) -> Option<usize> {
        if !self.has_next() {
            return None;
        }
        let item = self.peek()?;
        self.next = item + 1;
        self.in_flight += 1;
        Some(item)
    }

    /// Hands out an item that a restart interrupted. Returns false if it is over.
    pub fn take_this(&mut self, item: usize) -> bool {
        let is_open = self.outputs.get(item).is_some_and(Option::is_none);
        self.in_flight += usize::from(is_open);
        is_open
    }

    fn peek(&self) -> Option<usize> {
        (self.next..self.outputs.len()).find(|&item| self.outputs[item].is_none())
    }

    pub fn complete(&mut self, item: usize, output: Arc<str>) {
        self.in_flight -= 1;
        self.output_bytes += output.len();
        self.outputs[item] = Some(output);
        if self.output_bytes > OUTPUTS_BYTES_MAX && self.failed.is_none() {
            self.failed = Some(format!(
                "the outputs of the items have over {OUTPUTS_BYTES_MAX} bytes together"
            ));
        }
    }

    /// An item is over and has given nothing: the run ends. Gives why, with the item's name.
    pub fn give_up(&mut self, item: usize, why: &str, cancelled: bool) -> String {
        self.in_flight -= 1;
        let why = format!("items[{item}]: {why}");
        if !cancelled {
            self.failed.get_or_insert_with(|| why.clone());
        }
        why
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// What the map gives, once all its items are over: a list in JSON. And how long it took, in
    /// milliseconds, since it began or went on.
    pub fn output(&self) -> Option<(String, u64)> {
        let outputs: Option<Vec<&str>> = self.outputs.iter().map(Option::as_deref).collect();
        let took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some((Value::from(outputs?).to_string(), took_ms))
    }
}
