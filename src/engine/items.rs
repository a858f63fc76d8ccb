//! The items of a map in progress: the next one to start and the outputs of those that are over.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::unit::Tries;
use crate::store::ItemRecord;

/// Limits the total size of a map's outputs, in bytes.
const OUTPUTS_BYTES_MAX: usize = 16 << 20;

pub struct Items {
    pub values: Arc<Vec<Value>>,
    /// The reason why the map has failed; no more items start.
    pub failed: Option<String>,
    pub tries: Vec<Tries>,
    /// The outputs of the finished items, by index.
    outputs: Vec<Option<Arc<str>>>,
    output_bytes: usize,
    /// All items before this index have started.
    next: usize,
    /// The number of items that are started and not over, including those that pause.
    in_flight: usize,
    at_once: usize,
    began: Instant,
}

impl Items {
    /// Creates the items of a map; `before` are those that started before a restart.
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

    /// Returns whether [`Items::take`] would return an item.
    pub fn has_next(&self) -> bool {
        self.in_flight < self.at_once && self.failed.is_none() && self.peek().is_some()
    }

    /// Starts the next item in the order of the list.
    pub fn take(&mut self) -> Option<usize> {
        if !self.has_next() {
            return None;
        }
        let item = self.peek()?;
        self.next = item + 1;
        self.in_flight += 1;
        Some(item)
    }

    /// Starts an item again that a restart interrupted. Returns false if it is over.
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
                "the outputs of all items have {} bytes; the limit is {OUTPUTS_BYTES_MAX}",
                self.output_bytes
            ));
        }
    }

    /// Ends an item without an output, which fails the run. Returns the reason with the
    /// item's name.
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

    /// Returns the map's output, a JSON list, if all its items have outputs. Also returns its
    /// duration in milliseconds since it started or was restored.
    pub fn output(&self) -> Option<(String, u64)> {
        let outputs: Option<Vec<&str>> = self.outputs.iter().map(Option::as_deref).collect();
        let took_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some((Value::from(outputs?).to_string(), took_ms))
    }
}
