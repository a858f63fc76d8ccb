//! Flows: the graph, its templates, and the order of its nodes. Pure: no I/O, no clock.

mod compile;
mod filters;
mod fingerprint;
mod graph;
mod json;
mod limits;
mod node;
mod operators;
mod progress;
mod prompt_bound;
mod read;
mod template;

pub use fingerprint::{Concern, canonical_json, fingerprint};
pub use graph::{EDGES_MAX, Graph};
pub use json::{check_integers, parse as parse_json, without_mark};
pub use limits::Watch;
pub use node::{Agent, Http, Node, NodeKind, OnError, Target};
pub use progress::{Progress, Verdict};
pub use prompt_bound::{Item, PromptBound};
pub use read::{CACHE_AGE_MAX, WAIT_MAX, name_of};
pub use template::{
    ITEMS_MAX, Output, PROMPT_BYTES_MAX, RenderError, STACK_BYTES_MIN as TEMPLATE_STACK_BYTES_MIN,
    Scope, constant_beginning, items, length_without_outputs, render,
};
