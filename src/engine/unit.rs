//! Units of work and the counts of their attempts.

/// The work of one worker: a node, or an item of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// The index of the node in the graph.
    pub node: usize,
    /// The index of the item in the list.
    pub item: Option<usize>,
}

impl Unit {
    pub fn node(node: usize) -> Self {
        Self { node, item: None }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// The number of starts over all targets and restarts.
    pub started: u32,
    /// The index of the present target. A restart resets it to the first.
    pub target: usize,
    /// The number of calls to that target.
    pub attempts: u32,
}
