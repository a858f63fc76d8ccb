//! A flow as a pure thing: its graph, its templates, and what may run next. No I/O, no clock.

mod graph;
mod progress;
mod template;

pub use graph::{Agent, Edge, Graph, Http, NODES_MAX, Node, NodeKind, OnError, Retry, Target};
pub use progress::{NodeState, Progress, Verdict};
pub use template::{
    Output, PROMPT_BYTES_MAX, RenderError, STACK_BYTES_MIN as TEMPLATE_STACK_BYTES_MIN, Scope,
    render,
};
