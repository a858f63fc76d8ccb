//! Writes requests: <https://ai.google.dev/api/generate-content#request-body>.

use serde_json::{Value, json};

use super::super::dropped::Dropped;
use super::config::{write_generation, write_tool_config, write_tools};
use super::parts::{role, type_of_url, write_part};
use super::read_request::{GENERATION, SYSTEM, TOOL_CONFIG, TOOLS};
use super::write_own::write_own;
use crate::translation::{
    Api, Conversation, Extra, Media, Part, PartKind, Refusal, Role, Signature, Source, Target,
    ToolNames, Written, joined,
};

/// Replaces the signature of a call that another model made. Gemini 3 rejects the first call of a
/// step without one: <https://ai.google.dev/gemini-api/docs/thought-signatures>.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

/// Writes a request. That of a client of the same API is unchanged, except for the normal form that
/// `read_request` describes.
pub fn write_request(it: &Conversation, _: &Target) -> Result<Written, Refusal> {
    if it.api == Api::Gemini {
        let (dropped, names) = (Vec::new(), ToolNames::default());
        return Ok(Written { body: write_own(it), dropped, names });
    }
    let names = ToolNames::new(it, false);
    let mut dropped = Dropped::default();
    let mut body = Contents { it, names: &names }.write()?;
    let fields = [
        (TOOLS, write_tools(it, &names, &mut dropped)),
        (TOOL_CONFIG, write_tool_config(it, &names)?),
        (GENERATION, write_generation(it, &mut dropped)?),
    ];
    for (name, value) in fields {
        body.extend(value.map(|value| (name.to_owned(), value)));
    }
    drop_extras(it, &mut dropped);
    Ok(Written { body: Value::Object(body), dropped: dropped.0, names })
}

/// Lists the fields that only the client's API knows.
fn drop_extras(it: &Conversation, dropped: &mut Dropped) {
    // `stream_options` says only how chat completions stream their usage.
    let set = it.extra.iter().filter(|(name, value)| !value.is_null() && *name != "stream_options");
    set.for_each(|(name, _)| dropped.add(name));
    dropped.add_all("reasoning", &it.reasoning.extra);
    it.system.iter().for_each(|part| dropped.add_all("system[*]", &part.extra));
    let turns = turns_path(it.api);
    for turn in &it.turns {
        dropped.add_all(turns, &turn.extra);
        turn.parts.iter().for_each(|part| dropped.add_all(turns, &part.extra));
    }
    it.tools.iter().for_each(|tool| dropped.add_all("tools[*]", &tool.extra));
}

/// Returns the list of the client's API that contains its turns, for paths.
fn turns_path(api: Api) -> &'static str {
    match api {
        Api::Chat | Api::Messages => "messages[*]",
        Api::Responses => "input[*]",
        Api::Gemini => "contents[*]",
    }
}

struct Contents<'a> {
    it: &'a Conversation,
    names: &'a ToolNames,
}

impl<'a> Contents<'a> {
    /// Writes `contents` and the system text. Gemini refuses a request without contents, so a system
    /// text alone is the user's.
    fn write(&self) -> Result<Extra, Refusal> {
        let (system, turns) = self.it.split_system();
        let mut system_parts = Vec::new();
        for part in system {
            system_parts.extend(self.write_plain(part)?);
        }
        let mut contents: Vec<Value> = Vec::new();
        let mut calls: Vec<&str> = Vec::new();
        for (side, parts) in joined(&turns) {
            let written = match side {
                Role::Assistant => {
                    calls = parts.iter().filter_map(|part| call_id(part)).collect();
                    self.model_parts(&parts)?
                }
                _ => self.user_parts(&parts, &calls)?,
            };
            if !written.is_empty() {
                contents.push(json!({"role": role(side), "parts": written}));
            }
        }
        let mut body = Extra::new();
        match (contents.is_empty(), system_parts.is_empty()) {
            (_, true) => {}
            (true, _) => contents.push(json!({"role": "user", "parts": system_parts})),
            (false, _) => {
                body.insert(SYSTEM.to_owned(), json!({"parts": system_parts}));
            }
        }
        body.insert("contents".to_owned(), contents.into());
        Ok(body)
    }

    fn model_parts(&self, parts: &[&Part]) -> Result<Vec<Value>, Refusal> {
        let mut written = Vec::new();
        let mut is_first_call = true;
        for part in parts {
            match &part.kind {
                PartKind::ToolCall { name, arguments, .. } => {
                    let mut call = self.call(name, arguments);
                    call.signature = own_signature(part);
                    if is_first_call && call.signature.is_none() {
                        call.signature = Some(Signature::new(Api::Gemini, NO_SIGNATURE));
                    }
                    is_first_call = false;
                    written.push(write_part(&call, &Extra::new(), None));
                }
                // Thoughts of other models are no output of this one.
                PartKind::Thinking(text) => {
                    let own = own_signature(part);
                    let part =
                        Part { signature: own, ..Part::new(PartKind::Thinking(text.clone())) };
                    if part.signature.is_some() {
                        written.push(write_part(&part, &Extra::new(), None));
                    }
                }
                _ => written.extend(self.write_plain(part)?),
            }
        }
        Ok(written)
    }

    /// Returns a call without an id. Google only recommends ids, and Vertex AI refuses them:
    /// <https://github.com/vercel/ai/issues/15891>.
    fn call(&self, name: &str, arguments: &str) -> Part {
        let arguments = match self.names.is_wrapped(name) {
            true => ToolNames::wrapped_arguments(arguments).to_string(),
            false => arguments.to_owned(),
        };
        let (id, name) = (String::new(), self.names.at_provider(name));
        Part::new(PartKind::ToolCall { id, name, arguments, is_custom: false })
    }

    /// Writes the results first and in the order of their calls, because they must follow the calls,
    /// and then media within results, which only Gemini 3 takes there:
    /// <https://ai.google.dev/gemini-api/docs/function-calling>.
    fn user_parts(&self, parts: &[&Part], calls: &[&str]) -> Result<Vec<Value>, Refusal> {
        let mut results: Vec<(usize, Value)> = Vec::new();
        let (mut media, mut others) = (Vec::new(), Vec::new());
        for part in parts {
            let PartKind::ToolResult { id, content, is_error } = &part.kind else {
                others.extend(self.write_plain(part)?);
                continue;
            };
            let Some(name) = self.it.tool_name_of(id) else {
                let field = format!("{}.content", turns_path(self.it.api));
                let message = format!("has the result of an unknown tool call, `{id}`");
                return Err(Refusal::new(field, message));
            };
            let (texts, attached): (Vec<&Part>, Vec<&Part>) =
                content.iter().partition(|part| text_of(part).is_some());
            for part in attached {
                media.extend(self.write_plain(part)?);
            }
            let texts: Vec<&str> = texts.into_iter().filter_map(text_of).collect();
            let content = vec![Part::text(texts.join("\n"))];
            let result = PartKind::ToolResult { id: String::new(), content, is_error: *is_error };
            let name = self.names.at_provider(name);
            let place = calls.iter().position(|call| call == id).unwrap_or(calls.len());
            results.push((place, write_part(&Part::new(result), &Extra::new(), Some(&name))));
        }
        results.sort_by_key(|(place, _)| *place);
        Ok(results.into_iter().map(|(_, result)| result).chain(media).chain(others).collect())
    }

    /// Writes a text or media. Gemini refuses empty texts.
    fn write_plain(&self, part: &Part) -> Result<Option<Value>, Refusal> {
        let kind = match &part.kind {
            PartKind::Text(text) | PartKind::Refusal(text) if text.is_empty() => return Ok(None),
            PartKind::Text(text) | PartKind::Refusal(text) => PartKind::Text(text.clone()),
            PartKind::Image(media) => PartKind::Image(self.media(media)?),
            PartKind::Document(media) => PartKind::Document(self.media(media)?),
            PartKind::Audio(media) => PartKind::Audio(self.media(media)?),
            PartKind::Thinking(_) => return Ok(None),
            PartKind::Other(value) => {
                let kind = value["type"].as_str().unwrap_or("unknown");
                let message = format!("has a part that Gemini does not have: {kind}");
                return Err(Refusal::new(self.path("content"), message));
            }
            PartKind::ToolCall { .. } | PartKind::ToolResult { .. } => {
                let message = "has a tool call or result at the wrong side";
                return Err(Refusal::new(self.path("content"), message));
            }
        };
        let part = Part { signature: own_signature(part), ..Part::new(kind) };
        Ok(Some(write_part(&part, &Extra::new(), None)))
    }

    fn path(&self, field: &str) -> String {
        format!("{}.{field}", turns_path(self.it.api))
    }

    /// Google reads public files by HTTPS:
    /// <https://ai.google.dev/gemini-api/docs/file-input-methods>. Stored files of other providers do
    /// not exist there.
    fn media(&self, media: &Media) -> Result<Media, Refusal> {
        let source = match &media.source {
            Source::Data { .. } => media.source.clone(),
            Source::Url { url, media_type } if url.starts_with("https://") => {
                let known = media_type.as_deref().or_else(|| type_of_url(url));
                Source::Url { url: url.clone(), media_type: known.map(str::to_owned) }
            }
            Source::Url { .. } => {
                let message = "must contain the data or an HTTPS URL for the API of the provider";
                return Err(Refusal::new(self.path("content"), message));
            }
            Source::File(_) => {
                let message = "has a stored file, which the provider does not have";
                return Err(Refusal::new(self.path("content"), message));
            }
        };
        // Only Vertex AI has names of files: `_Blob_to_mldev` in Google's client for Python.
        Ok(Media { source, name: None })
    }
}

fn call_id(part: &Part) -> Option<&str> {
    match &part.kind {
        PartKind::ToolCall { id, .. } => Some(id),
        _ => None,
    }
}

fn text_of(part: &Part) -> Option<&str> {
    match &part.kind {
        PartKind::Text(text) => Some(text),
        _ => None,
    }
}

fn own_signature(part: &Part) -> Option<Signature> {
    part.signature.clone().filter(|signature| signature.api == Api::Gemini)
}
