//! `flowledger run FLOW.json`: runs a flow from a file, without a server, on the same database.
//!
//! The result goes to standard output, everything else to standard error, so that the result can be
//! piped.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, unbounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::input::{Inputs, Source};
use super::output::{add_row, one_line, print_result, say};
use super::serve::signals;
use super::{FAILED, table};
use crate::config::Config;
use crate::engine::Amount;
use crate::error::{Error, Result};
use crate::event::{Event, RunStatus};
use crate::flow::{Graph, Node, NodeKind, Target, parse_json};
use crate::http;
use crate::hub::Message;
use crate::money::Usd;
use crate::server::Core;
use crate::store::{Change, FlowRecord, NewFlow, NodeRecord, NodeStatus, Receipt, Run};
use crate::threads::OnFatal;
use crate::time::Timestamp;

/// Refresh interval of the line that shows running nodes.
const TICK: Duration = Duration::from_millis(100);
/// 128 + SIGINT, the exit status that shells report for Ctrl-C.
const INTERRUPTED: u8 = 130;

/// The flags that change what `run` does.
#[derive(Clone, Copy)]
pub struct Mode {
    /// Estimates the cost instead of running the flow.
    pub dry_run: bool,
    /// Prints the run or the estimate as JSON.
    pub json: bool,
}

/// Runs the flow and prints its progress. The exit status is 0 only if the flow completed and its
/// result was written.
pub fn run(config: &Config, file: &Path, inputs: &Inputs, mode: Mode) -> Result<ExitCode> {
    let mut source = Source::default();
    let text = source.read(file, "the flow")?;
    let input = source.inputs(inputs)?;
    let body: Value = parse_json(&text)
        .map_err(|error| Error::Config(format!("{} is not valid JSON: {error}", file.display())))?;
    let interrupted = signals()?;
    let (tap, events) = unbounded();
    let on_fatal: OnFatal = Arc::new(|name: &str| {
        say(format_args!(
            "flowledger: the {name} thread stopped unexpectedly; committed data is kept"
        ));
        std::process::exit(FAILED.into());
    });
    // Other queued runs wait for a server, because this process ends with its own run.
    let core = Core::start(config, Some(tap), false, &on_fatal)?;
    let done = if mode.dry_run {
        estimate(&core, file, body, input, mode.json)
    } else {
        run_in(&core, file, body, input, &events, &interrupted, mode.json)
    };
    core.shutdown();
    done
}

fn run_in(
    core: &Core,
    file: &Path,
    body: Value,
    input: Value,
    events: &Receiver<Message>,
    interrupted: &Receiver<()>,
    as_json: bool,
) -> Result<ExitCode> {
    let (flow, graph) = save(core, file, body)?;
    let accepted = core.engine.execute(&flow, typed(&graph, input), "cli")?;
    let (over_in, over) = bounded(1);
    let run_id = accepted.run_id.clone();
    let waiter = std::thread::Builder::new()
        .name("wait".into())
        .spawn(move || drop(over_in.send(accepted.wait())))
        .map_err(Error::io("cannot start a thread"))?;
    let mut progress = Progress::new(graph.nodes().len());
    let mut was_interrupted = false;
    loop {
        select! {
            recv(events) -> message => progress.show_all(message.as_ref().map(std::slice::from_ref).unwrap_or_default(), &run_id),
            recv(interrupted) -> signal => if signal.is_ok() {
                was_interrupted = true;
                progress.line("Cancelling the run");
                let _ = core.engine.cancel(&run_id);
            },
            recv(over) -> result => {
                result.map_err(|_| Error::Stopping)??;
                break;
            }
        }
    }
    let _ = waiter.join();
    // The end is published before the waiter is notified.
    progress.show_all(&events.try_iter().collect::<Vec<_>>(), &run_id);
    progress.end();
    let (run, nodes) = core.store.run(&run_id)?;
    let json = as_json.then(|| http::run_json(&core.store, &run_id)).transpose()?;
    let written = report(&graph, &run, &nodes, json);
    Ok(match run.status {
        RunStatus::Completed => written,
        _ if was_interrupted => ExitCode::from(INTERRUPTED),
        _ => ExitCode::from(FAILED),
    })
}

fn estimate(
    core: &Core,
    file: &Path,
    body: Value,
    input: Value,
    as_json: bool,
) -> Result<ExitCode> {
    let (flow, graph) = save(core, file, body)?;
    let estimate = core.engine.estimate(&flow, typed(&graph, input))?;
    if as_json {
        let json = serde_json::to_string_pretty(&estimate)
            .map_err(|error| Error::internal(format!("cannot encode the estimate: {error}")))?;
        return Ok(print_result(|out| writeln!(out, "{json}")));
    }
    let head = ["Node", "Model", "Calls", "Expected", "Calls", "Maximum"];
    let mut table = table(&head, 2..6);
    let row = |label: &str, model: &str, expected: Amount, worst: Amount| {
        [
            label.to_owned(),
            model.to_owned(),
            expected.calls.to_string(),
            money(expected.cost),
            worst.calls.to_string(),
            money(worst.cost),
        ]
    };
    for node in &estimate.nodes {
        add_row(&mut table, row(&node.label, &node.model, node.expected, node.worst));
    }
    add_row(&mut table, row("Total", "", estimate.expected, estimate.worst));
    let written = print_result(|out| writeln!(out, "{table}"));
    match estimate.runs {
        0 => say("Expected: estimated from the prompts, because the flow has not run yet"),
        1 => say("Expected: as in the last run"),
        runs => say(format_args!("Expected: mean of the last {runs} runs")),
    }
    for note in &estimate.notes {
        say(note);
    }
    Ok(written)
}

/// Saves the flow under its file's path, so that all runs of the file belong together. A flow from
/// a pipe has no path, so its name counts.
fn save(core: &Core, file: &Path, body: Value) -> Result<(FlowRecord, Graph)> {
    let (name, document) = http::check_document(body, &|data| core.engine.parse(data).map(drop))?;
    let path = fs::canonicalize(file).ok().filter(|path| path.is_file());
    let origin = match path {
        Some(path) => path.to_string_lossy().into_owned(),
        None => format!("standard input: {name}"),
    };
    let present = core.store.flow_by_origin(&origin)?;
    let new = NewFlow { name, document, origin: Some(origin), at: Timestamp::now() };
    let id = match present {
        Some(flow) if flow.document == new.document => flow.id,
        Some(FlowRecord { id, .. }) => {
            core.journal.commit_one(Change::UpdateFlow { id, flow: new })?;
            id
        }
        None => match core.journal.commit_one(Change::CreateFlow(new))? {
            Receipt::Flow(id) => id,
            _ => return Err(Error::internal("the journal returned no flow id")),
        },
    };
    let flow = core.store.flow(id)?;
    let document: Value = serde_json::from_str(&flow.document)
        .map_err(|error| Error::internal(format!("flow {id} is not valid JSON: {error}")))?;
    let graph = core.engine.parse(&document["data"])?;
    Ok((flow, graph))
}

/// Returns the input with the types that the flow declares, because `--input` has texts only.
fn typed(graph: &Graph, mut input: Value) -> Value {
    if let Value::Object(input) = &mut input {
        graph.read_texts(input);
    }
    input
}

/// Prints finished nodes, and on a terminal a line with the running ones.
struct Progress {
    bar: ProgressBar,
    running: Vec<String>,
}

impl Progress {
    fn new(nodes: usize) -> Self {
        // Hidden if standard error is not a terminal.
        let bar = ProgressBar::with_draw_target(Some(nodes as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self { bar, running: Vec::new() }
    }

    fn show_all(&mut self, messages: &[Message], run_id: &str) {
        for message in messages {
            let Ok(event) = serde_json::from_str::<Event>(&message.text) else {
                continue;
            };
            let context = event.context();
            if context.is_some_and(|context| context.run_id.as_deref() == Some(run_id)) {
                self.show(&event);
            }
        }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::NodeStarted { label, .. } => {
                self.running.push(one_line(label).into_owned());
                self.line(&format!("… {}", one_line(label)));
            }
            Event::NodeCompleted {
                label, input_tokens, output_tokens, cost, latency_ms, ..
            } => {
                let label = one_line(label);
                self.running.retain(|running| *running != label);
                self.bar.inc(1);
                self.line(&format!(
                    "✓ {label}: {input_tokens} → {output_tokens} tokens, {}, {}",
                    money(*cost),
                    seconds(*latency_ms)
                ));
            }
            Event::NodeFailed { label, error, .. } => {
                let label = one_line(label);
                self.running.retain(|running| *running != label);
                self.line(&format!("✗ {label}: {error}"));
            }
            _ => {}
        }
        self.bar.set_message(self.running.join(", "));
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Prints the run's result or `json`, and a table of its nodes. Returns the exit status for the
/// result.
fn report(graph: &Graph, run: &Run, nodes: &[NodeRecord], json: Option<String>) -> ExitCode {
    let records = nodes.iter().map(|record| (record.node_id.as_str(), record));
    let records: HashMap<&str, &NodeRecord> = records.collect();
    let of_node = |node: usize| records.get(graph.nodes()[node].id.as_str());
    let written = print_result(|out| match json {
        Some(json) => writeln!(out, "{json}"),
        None => graph
            .results()
            .into_iter()
            .filter_map(|node| of_node(node)?.output.as_deref())
            .try_for_each(|output| writeln!(out, "{}", output.trim_end())),
    });
    let head = ["Node", "Model", "Status", "Tokens in", "Tokens out", "Cost", "Time"];
    let mut table = table(&head, 3..7);
    for node in graph.nodes() {
        add_row(&mut table, node_row(node, records.get(node.id.as_str()).copied()));
    }
    let started = run.started_at.unwrap_or(run.created_at);
    let time_ms = run.finished_at.map_or(0, |end| end.0 - started.0);
    let total = [
        "Total".to_owned(),
        String::new(),
        run.status.as_str().to_lowercase(),
        run.input_tokens.to_string(),
        run.output_tokens.to_string(),
        money(run.cost),
        seconds(u64::try_from(time_ms).unwrap_or(0)),
    ];
    add_row(&mut table, total);
    say(&table);
    if let Some(error) = &run.error {
        match &run.error_node {
            Some(node) => {
                say(format_args!("The flow failed at node `{}`: {error}", one_line(node)));
            }
            None => say(format_args!("The flow failed: {error}")),
        }
    }
    written
}

fn node_row(node: &Node, record: Option<&NodeRecord>) -> [String; 7] {
    let model = match &node.kind {
        NodeKind::Agent(agent) => {
            let Target { provider, model } = &agent.targets[0];
            format!("{provider}/{model}")
        }
        other => other.name().to_owned(),
    };
    let none = || "–".to_owned();
    let Some(record) = record else {
        let status = "not run".to_owned();
        return [node.label.clone(), model, status, none(), none(), none(), none()];
    };
    let is_completed = record.status == NodeStatus::Completed;
    [
        node.label.clone(),
        model,
        format!("{:?}", record.status).to_lowercase(),
        record.input_tokens.to_string(),
        record.output_tokens.to_string(),
        if is_completed { money(record.cost) } else { none() },
        record.latency_ms.map_or_else(none, seconds),
    ]
}

fn money(cost: Option<Usd>) -> String {
    cost.map_or_else(|| "unknown cost".into(), |cost| format!("${cost}"))
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}
