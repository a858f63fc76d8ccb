//! The turns of another API's request, in the order that Anthropic requires.

use std::collections::{BTreeMap, VecDeque};

use super::super::base64;
use super::super::conversation::{Conversation, Media, Part, PartKind, Role, Source, Turn};
use super::super::dropped::Dropped;
use super::super::tool_names::hash;
use super::super::{Api, Refusal, ToolNames};

/// Stands for the user at the beginning of a conversation that the model began. The shortest text
/// that is accepted: a text must not be blank.
const BEGINNING: &str = ".";
/// Follows an answer at the end: models since 4.6 require a user's turn there, and earlier ones would
/// extend the answer in place of a new one
/// (<https://platform.claude.com/docs/en/about-claude/models/whats-new-claude-4-6#prefill-removal>).
const CONTINUATION: &str = "Continue.";
const NO_RESULT: &str = "The tool returned no result.";

/// The system texts and the turns for Anthropic.
pub(super) struct Turns {
    pub system: Vec<Part>,
    pub turns: Vec<Turn>,
}

/// Converts the turns. Those of one side are joined. The results of tools are moved to the beginning
/// of the turn after their calls, and a missing one is added as an error.
///
/// # Errors
/// A part has no equivalent, or a result belongs to no call.
pub(super) fn converted(
    from: &Conversation,
    names: &ToolNames,
    dropped: &mut Dropped,
) -> Result<Turns, Refusal> {
    let mut converter = Converter { api: from.api, names, dropped, results: BTreeMap::new() };
    let mut system = Vec::new();
    for (index, part) in from.system.iter().enumerate() {
        system.extend(converter.system_part(part, || format!("system[{index}]"))?);
    }
    let mut spoken: Vec<Turn> = Vec::new();
    for (index, turn) in from.turns.iter().enumerate() {
        converter.dropped.add_all(&format!("{}[*]", list_name(from.api)), &turn.extra);
        let is_system = matches!(turn.role, Role::System | Role::Developer);
        let mut parts = Vec::new();
        for (place, part) in turn.parts.iter().enumerate() {
            let path = || path(from.api, index, place);
            match is_system {
                true => system.extend(converter.system_part(part, path)?),
                false => parts.extend(converter.spoken_part(part, path)?),
            }
        }
        match spoken.last_mut() {
            _ if is_system => {}
            Some(last) if last.role == turn.role => last.parts.extend(parts),
            _ => spoken.push(Turn::new(turn.role, parts)),
        }
    }
    let turns = converter.with_results(spoken)?;
    Ok(Turns { system, turns })
}

/// Returns the name of the list of turns in the client's request.
fn list_name(api: Api) -> &'static str {
    match api {
        Api::Chat | Api::Messages => "messages",
        Api::Responses => "input",
        Api::Gemini => "contents",
    }
}

fn path(api: Api, turn: usize, part: usize) -> String {
    let parts = if api == Api::Gemini { "parts" } else { "content" };
    format!("{}[{turn}].{parts}[{part}]", list_name(api))
}

struct Converter<'a> {
    api: Api,
    names: &'a ToolNames,
    dropped: &'a mut Dropped,
    /// By id of the call, with the path in the client's request.
    results: BTreeMap<String, VecDeque<(Part, String)>>,
}

impl Converter<'_> {
    fn system_part(
        &mut self,
        part: &Part,
        path: impl Fn() -> String,
    ) -> Result<Option<Part>, Refusal> {
        match &part.kind {
            PartKind::Text(_) => self.part(part, &path),
            _ => Err(Refusal::not_expressible(path(), Api::Messages)),
        }
    }

    /// Holds the result of a tool; returns other parts.
    fn spoken_part(
        &mut self,
        part: &Part,
        path: impl Fn() -> String,
    ) -> Result<Option<Part>, Refusal> {
        let converted = self.part(part, &path)?;
        let id = converted.as_ref().and_then(|part| match &part.kind {
            PartKind::ToolResult { id, .. } => Some(id.clone()),
            _ => None,
        });
        let (Some(id), Some(result)) = (id, &converted) else {
            return Ok(converted);
        };
        self.results.entry(id).or_default().push_back((result.clone(), path()));
        Ok(None)
    }

    /// Returns nothing for a part that is left out: a blank text, which the maker rejects, and
    /// thinking that it did not sign.
    fn part(&mut self, part: &Part, path: &dyn Fn() -> String) -> Result<Option<Part>, Refusal> {
        let kind = match &part.kind {
            PartKind::Text(text) | PartKind::Refusal(text) if text.trim().is_empty() => {
                return Ok(None);
            }
            PartKind::Text(text) | PartKind::Refusal(text) => PartKind::Text(text.clone()),
            PartKind::Image(media) => PartKind::Image(image(media, path)?),
            PartKind::Document(media) => document(media, path)?,
            PartKind::Audio(_) | PartKind::Other(_) => {
                return Err(Refusal::not_expressible(path(), Api::Messages));
            }
            PartKind::ToolCall { id, name, arguments, is_custom } => PartKind::ToolCall {
                id: accepted_id(id),
                name: self.names.at_provider(name),
                arguments: match is_custom {
                    true => ToolNames::wrapped_arguments(arguments).to_string(),
                    false => arguments.clone(),
                },
                is_custom: false,
            },
            PartKind::ToolResult { id, content, is_error } => {
                let mut kept = Vec::new();
                for part in content {
                    kept.extend(self.part(part, path)?);
                }
                let (id, is_error) = (accepted_id(id), *is_error);
                PartKind::ToolResult { id, content: kept, is_error }
            }
            PartKind::Thinking(text) => {
                let signature = part.signature.clone().filter(|it| it.api == Api::Messages);
                let kind = PartKind::Thinking(text.clone());
                return Ok(signature.map(|it| Part { signature: Some(it), ..Part::new(kind) }));
            }
        };
        Ok(Some(self.with_cache_mark(kind, part)))
    }

    /// Keeps marks of the prompt cache, which clients of several makers write in any API:
    /// <https://docs.litellm.ai/docs/completion/prompt_caching>.
    fn with_cache_mark(&mut self, kind: PartKind, from: &Part) -> Part {
        let mut extra = from.extra.clone();
        let mark = extra.remove("cache_control").filter(|mark| mark["type"] == "ephemeral");
        self.dropped.add_all(&format!("{}[*]", list_name(self.api)), &extra);
        let mut part = Part::new(kind);
        part.extra.extend(mark.map(|mark| ("cache_control".to_owned(), mark)));
        part
    }

    /// Puts the results behind their calls, and makes the conversation begin and end with the user.
    fn with_results(mut self, spoken: Vec<Turn>) -> Result<Vec<Turn>, Refusal> {
        let mut turns = Vec::new();
        let mut awaited = Vec::new();
        for turn in spoken {
            if turn.role == Role::Assistant {
                push(&mut turns, Role::User, std::mem::take(&mut awaited));
                awaited = self.results_of(&turn);
                push(&mut turns, Role::Assistant, turn.parts);
            } else {
                awaited.extend(turn.parts);
                push(&mut turns, Role::User, std::mem::take(&mut awaited));
            }
        }
        push(&mut turns, Role::User, awaited);
        if let Some((_, path)) = self.results.into_values().flatten().next() {
            return Err(Refusal::new(path, "is the result of no tool call in the conversation"));
        }
        if turns.first().is_none_or(|turn| turn.role != Role::User) {
            turns.insert(0, Turn::new(Role::User, vec![Part::text(BEGINNING)]));
        }
        if turns.last().is_some_and(|turn| turn.role == Role::Assistant) {
            turns.push(Turn::new(Role::User, vec![Part::text(CONTINUATION)]));
        }
        Ok(turns)
    }

    fn results_of(&mut self, turn: &Turn) -> Vec<Part> {
        let mut results = Vec::new();
        for part in &turn.parts {
            let PartKind::ToolCall { id, .. } = &part.kind else {
                continue;
            };
            let queue = self.results.get_mut(id);
            let result = queue.and_then(VecDeque::pop_front).map(|(result, _)| result);
            results.push(result.unwrap_or_else(|| {
                let content = vec![Part::text(NO_RESULT)];
                Part::new(PartKind::ToolResult { id: id.clone(), content, is_error: true })
            }));
        }
        results
    }
}

fn push(turns: &mut Vec<Turn>, role: Role, parts: Vec<Part>) {
    match turns.last_mut() {
        _ if parts.is_empty() => {}
        Some(last) if last.role == role => last.parts.extend(parts),
        _ => turns.push(Turn::new(role, parts)),
    }
}

/// Returns an id of letters, digits, `_` and `-`, which are all that the maker accepts
/// (<https://github.com/maximhq/bifrost/issues/5097>).
fn accepted_id(id: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !id.is_empty() && id.chars().all(is_plain) {
        return id.to_owned();
    }
    let clean: String = id.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    format!("{clean}_{:08x}", hash(id))
}

fn refused_media(path: &dyn Fn() -> String, reason: &str) -> Refusal {
    Refusal::new(path(), format!("cannot be sent to the messages API of the provider: {reason}"))
}

/// <https://platform.claude.com/docs/en/build-with-claude/vision>.
fn image(media: &Media, path: &dyn Fn() -> String) -> Result<Media, Refusal> {
    let source = match &media.source {
        Source::Data { media_type, base64 } => {
            let media_type = if media_type == "image/jpg" { "image/jpeg" } else { media_type };
            let known = ["image/jpeg", "image/png", "image/gif", "image/webp"];
            if !known.contains(&media_type) {
                return Err(refused_media(path, "its media type is not JPEG, PNG, GIF or WebP"));
            }
            Source::Data { media_type: media_type.to_owned(), base64: base64.clone() }
        }
        other => web_source(other, path)?,
    };
    Ok(Media { source, name: None })
}

fn web_source(source: &Source, path: &dyn Fn() -> String) -> Result<Source, Refusal> {
    match source {
        Source::Url { url, .. } if url.starts_with("https://") => {
            Ok(Source::Url { url: url.clone(), media_type: None })
        }
        Source::Url { .. } => Err(refused_media(path, "its URL does not begin with https://")),
        _ => Err(refused_media(path, "the file is stored at another provider")),
    }
}

/// PDFs, and texts as they are: <https://platform.claude.com/docs/en/build-with-claude/pdf-support>.
fn document(media: &Media, path: &dyn Fn() -> String) -> Result<PartKind, Refusal> {
    let name = media.name.clone();
    let media_type = match &media.source {
        Source::Data { media_type, .. } => Some(media_type.as_str()),
        Source::Url { media_type, .. } => media_type.as_deref(),
        Source::File(_) => None,
    };
    let source = match (media_type, &media.source) {
        (Some(kind), _) if kind.starts_with("image/") => {
            return Ok(PartKind::Image(image(media, path)?));
        }
        (Some("application/pdf"), Source::Data { .. }) => media.source.clone(),
        (Some(_), Source::Data { base64, .. }) => {
            let text = base64::decode(base64).and_then(|bytes| String::from_utf8(bytes).ok());
            if text.is_none_or(|text| text.trim().is_empty()) {
                return Err(refused_media(path, "it is neither a PDF nor a text"));
            }
            Source::Data { media_type: "text/plain".into(), base64: base64.clone() }
        }
        (Some(kind), _) if kind != "application/pdf" => {
            return Err(refused_media(path, "it is not a PDF"));
        }
        (_, other) => web_source(other, path)?,
    };
    Ok(PartKind::Document(Media { source, name }))
}
