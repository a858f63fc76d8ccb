//! The queue of accepted runs. Flows take turns, so that none starves the others; within a flow the
//! oldest run comes first. The runs themselves are in the database; the queue holds ids only.

use std::collections::{HashMap, VecDeque};

use crate::ids::{FlowId, RunId};

pub struct Waiting {
    pub run_id: RunId,
    pub waiter: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
pub struct Queue {
    /// Never holds an empty list.
    by_flow: HashMap<FlowId, VecDeque<Waiting>>,
    /// The flows in `by_flow`, each once; the front has the next turn.
    turns: VecDeque<FlowId>,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub fn push(&mut self, flow_id: FlowId, waiting: Waiting) {
        let of_flow = self.by_flow.entry(flow_id).or_default();
        if of_flow.is_empty() {
            self.turns.push_back(flow_id);
        }
        of_flow.push_back(waiting);
    }

    pub fn pop(&mut self) -> Option<Waiting> {
        let flow_id = self.turns.pop_front()?;
        let of_flow = self.by_flow.get_mut(&flow_id)?;
        let next = of_flow.pop_front();
        if of_flow.is_empty() {
            self.by_flow.remove(&flow_id);
        } else {
            self.turns.push_back(flow_id);
        }
        next
    }

    pub fn remove(&mut self, run_id: &str) -> Option<Waiting> {
        let (&flow_id, of_flow) = self
            .by_flow
            .iter_mut()
            .find(|(_, of_flow)| of_flow.iter().any(|waiting| waiting.run_id == run_id))?;
        let at = of_flow.iter().position(|waiting| waiting.run_id == run_id)?;
        let removed = of_flow.remove(at);
        if of_flow.is_empty() {
            self.by_flow.remove(&flow_id);
            self.turns.retain(|&other| other != flow_id);
        }
        removed
    }
}

#[cfg(test)]
mod tests;
