//! Writes requests of clients of the same API.

use serde_json::{Value, json};

use super::super::dropped::Dropped;
use super::config::{write_generation, write_tool_config, write_tools};
use super::parts::{role, write_part};
use super::read_request::{
    GENERATION, SYSTEM, TOOL_CONFIG, TOOLS, name_of_result, read_request, read_system, read_tools,
};
use crate::translation::{Conversation, Extra, PartKind, ToolNames, Turn};

/// Writes a request. Fields that are kept as the client wrote them are used unless their typed form
/// has changed. The names in `contents` become camel case.
pub(super) fn write_own(it: &Conversation) -> Value {
    let mut body = it.extra.clone();
    body.retain(|path, _| !is_in_config(path));
    body.insert("contents".to_owned(), it.turns.iter().map(|turn| write_turn(it, turn)).collect());
    let fields = [
        (SYSTEM, system(it)),
        (TOOLS, tools(it)),
        (TOOL_CONFIG, choice(it)),
        (GENERATION, generation(it)),
    ];
    for (name, value) in fields {
        body.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(body)
}

/// Returns whether the path of an extra field leads into a field that is kept.
fn is_in_config(path: &str) -> bool {
    [TOOL_CONFIG, GENERATION]
        .iter()
        .any(|name| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn write_turn(it: &Conversation, turn: &Turn) -> Value {
    let mut content = turn.extra.clone();
    let parts = turn.parts.iter().map(|part| {
        let name = match &part.kind {
            PartKind::ToolResult { id, .. } if name_of_result(&part.extra).is_none() => {
                it.tool_name_of(id)
            }
            _ => None,
        };
        write_part(part, &part.extra, name)
    });
    content.insert("parts".to_owned(), parts.collect());
    content.entry("role").or_insert_with(|| role(turn.role).into());
    Value::Object(content)
}

fn system(it: &Conversation) -> Option<Value> {
    let own = it.own.get(SYSTEM);
    let is_same = |own: &&Value| read_system((*own).clone()).as_ref() == Ok(&it.system);
    if let Some(own) = own.filter(is_same) {
        return Some(own.clone());
    }
    let parts = it.system.iter().map(|part| write_part(part, &part.extra, None));
    Some(json!({"parts": parts.collect::<Vec<_>>()})).filter(|_| !it.system.is_empty())
}

fn tools(it: &Conversation) -> Option<Value> {
    let is_same = |own: &&Value| read_tools((*own).clone()).as_ref() == Ok(&it.tools);
    match it.own.get(TOOLS).filter(is_same) {
        Some(own) => Some(own.clone()),
        None => write_tools(it, &ToolNames::default(), &mut Dropped::default()),
    }
}

fn choice(it: &Conversation) -> Option<Value> {
    let is_same = |read: &Conversation| read.tool_choice == it.tool_choice;
    kept(it, TOOL_CONFIG, is_same).or_else(|| {
        let config = write_tool_config(it, &ToolNames::default());
        with_extra(it, TOOL_CONFIG, config.ok().flatten())
    })
}

fn generation(it: &Conversation) -> Option<Value> {
    let of = |it: &Conversation| {
        let numbers = (it.max_tokens, it.temperature, it.top_p, it.top_k, it.seed);
        let others = (it.frequency_penalty, it.presence_penalty, it.stop.clone());
        (numbers, others, it.format.clone(), it.reasoning.clone())
    };
    kept(it, GENERATION, |read| of(read) == of(it)).or_else(|| {
        let config = write_generation(it, &mut Dropped::default());
        with_extra(it, GENERATION, config.ok().flatten())
    })
}

/// Returns a field as the client wrote it, if its typed form is the same.
fn kept(it: &Conversation, name: &str, is_same: impl Fn(&Conversation) -> bool) -> Option<Value> {
    let own = it.own.get(name)?;
    let read = read_request(&json!({name: own})).ok()?;
    Some(own.clone()).filter(|_| is_same(&read))
}

/// Adds the fields that have no typed form.
fn with_extra(it: &Conversation, name: &str, config: Option<Value>) -> Option<Value> {
    let mut fields = match config {
        Some(Value::Object(fields)) => fields,
        _ => Extra::new(),
    };
    for (path, value) in &it.extra {
        let path = path.strip_prefix(name).and_then(|path| path.strip_prefix('.'));
        match path.map(|path| path.split_once('.').ok_or(path)) {
            None => {}
            Some(Err(field)) => {
                fields.insert(field.to_owned(), value.clone());
            }
            Some(Ok((field, rest))) => {
                if let Value::Object(inner) = fields.entry(field).or_insert_with(|| json!({})) {
                    inner.insert(rest.to_owned(), value.clone());
                }
            }
        }
    }
    Some(Value::Object(fields)).filter(|config| *config != json!({}))
}
