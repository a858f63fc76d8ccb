//! A unit of work, and how often it was tried.

/// The work of one worker: a node, or an item of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// The node, by its index in the graph.
    pub node: usize,
    /// The item, by its place in the list.
    pub item: Option<usize>,
}

impl Unit {
    pub fn node(node: usize) -> Self {
        Self { node, item: None }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Tries {
    /// How often it was started, over all targets and restarts.
    pub started: u32,
    /// The target that is called. After a restart it is the first again.
    pub target: usize,
    /// How often that target was called.
    pub attempts: u32,
}
