//! A cache of the parsed flows of recent runs, because parsing a document, checking its graph and
//! compiling its templates is repeated work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::flow::Graph;
use crate::ids::FlowId;
use crate::store::FlowRecord;

const FLOWS_MAX: usize = 64;
/// Flows with a longer document, in bytes, are not kept. A graph takes several times as
/// much memory.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;

#[derive(Clone)]
pub struct Runnable {
    pub graph: Arc<Graph>,
    pub data: Arc<str>,
}

struct CacheEntry {
    id: FlowId,
    /// The parsed document. If the flow has another one now, the entry is stale.
    document: String,
    runnable: Runnable,
}

#[derive(Default)]
pub struct FlowCache {
    /// The most recently used one is at the back.
    flows: Mutex<VecDeque<CacheEntry>>,
}

impl FlowCache {
    /// Returns the parsed flow if its document is unchanged.
    pub fn get(&self, flow: &FlowRecord) -> Option<Runnable> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let at = flows
            .iter()
            .rposition(|entry| entry.id == flow.id && entry.document == flow.document)?;
        let entry = flows.remove(at)?;
        let runnable = entry.runnable.clone();
        flows.push_back(entry);
        Some(runnable)
    }

    /// Stores a flow; if the cache is full, replaces the least recently used one.
    pub fn put(&self, flow: &FlowRecord, runnable: &Runnable) {
        if flow.document.len() > DOCUMENT_BYTES_MAX {
            return;
        }
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.retain(|entry| entry.id != flow.id);
        if flows.len() == FLOWS_MAX {
            flows.pop_front();
        }
        flows.push_back(CacheEntry {
            id: flow.id,
            document: flow.document.clone(),
            runnable: runnable.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use serde_json::json;

    fn flow(id: FlowId, document: &str) -> FlowRecord {
        FlowRecord {
            id,
            name: "f".into(),
            document: document.into(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    fn runnable() -> Runnable {
        let data = json!({"nodes": [{"id": "in", "type": "input"}], "edges": []});
        Runnable {
            graph: Arc::new(Graph::parse(&data, &|_| true).unwrap()),
            data: data.to_string().into(),
        }
    }

    #[test]
    fn an_outdated_flow_is_never_returned() {
        let cache = FlowCache::default();
        assert!(cache.get(&flow(1, "a")).is_none());
        cache.put(&flow(1, "a"), &runnable());
        assert!(cache.get(&flow(1, "a")).is_some());
        assert!(cache.get(&flow(2, "a")).is_none());
        assert!(cache.get(&flow(1, "b")).is_none());
        cache.put(&flow(1, "b"), &runnable());
        assert!(cache.get(&flow(1, "a")).is_none());
        assert!(cache.get(&flow(1, "b")).is_some());
    }

    #[test]
    fn the_least_recently_used_is_evicted_and_large_ones_skipped() {
        let cache = FlowCache::default();
        let count = FlowId::try_from(FLOWS_MAX).unwrap();
        for id in 0..count {
            cache.put(&flow(id, "x"), &runnable());
        }
        assert!(cache.get(&flow(0, "x")).is_some());
        cache.put(&flow(count, "x"), &runnable());
        assert!(cache.get(&flow(0, "x")).is_some());
        assert!(cache.get(&flow(1, "x")).is_none());
        let long = "x".repeat(DOCUMENT_BYTES_MAX + 1);
        cache.put(&flow(count, &long), &runnable());
        assert!(cache.get(&flow(count, &long)).is_none());
    }
}
