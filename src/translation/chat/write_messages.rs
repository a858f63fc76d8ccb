//! Writes the turns of another API as messages.

use serde_json::{Value, json};

use super::content::write_media;
use super::fields::object;
use super::message::{NO_ARGUMENTS, call, put_signature};
use super::thoughts::{self, CONTENT, DETAILS, THINKING, text_of, write_detail, write_thinking};
use super::write_own::put_some;
use crate::translation::dropped::Dropped;
use crate::translation::tool_names::hash;
use crate::translation::{
    Api, Conversation, Extra, Media, Part, PartKind, Refusal, Role, Source, ToolNames,
};

/// OpenAI's limit, in characters; its error is "string too long. Expected a string with maximum
/// length 40": <https://github.com/langgenius/dify/issues/28987>.
const ID_CHARS_MAX: usize = 40;
/// Mistral's ids have exactly this many letters and digits:
/// <https://github.com/anomalyco/opencode/issues/1680>.
const MISTRAL_ID_CHARS: usize = 9;
const PARAGRAPH: &str = "\n\n";

pub(super) struct Messages<'a> {
    conversation: &'a Conversation,
    names: &'a ToolNames,
    is_mistral: bool,
    messages: Vec<Value>,
    dropped: Dropped,
}

/// A part and its place in the client's request.
#[derive(Clone, Copy)]
struct Placed<'a> {
    turn: usize,
    at: usize,
    role: Role,
    part: &'a Part,
}

impl<'a> Messages<'a> {
    /// Returns the messages, and the names of fields that are dropped.
    pub(super) fn write(
        conversation: &'a Conversation,
        names: &'a ToolNames,
    ) -> Result<(Vec<Value>, Vec<String>), Refusal> {
        let dropped = Dropped::default();
        let is_mistral = is_mistral(&conversation.model);
        let mut writer = Self { conversation, names, is_mistral, messages: Vec::new(), dropped };
        writer.note_dropped();
        let placed = writer.placed();
        let (system, others): (Vec<Placed>, Vec<Placed>) =
            placed.into_iter().partition(|it| is_system(it.role));
        writer.message("system", Vec::new(), &system)?;
        for run in others.chunk_by(|a, b| a.role == b.role) {
            match run {
                [Placed { role: Role::Assistant, .. }, ..] => writer.answer(run)?,
                run => writer.question(run)?,
            }
        }
        Ok((writer.messages, writer.dropped.0))
    }

    /// Returns all parts of the request.
    ///
    /// The system texts of later turns join the first ones: the templates of many models accept one
    /// system message, at the beginning, <https://github.com/vllm-project/vllm/issues/41114>.
    fn placed(&self) -> Vec<Placed<'a>> {
        let system = self.conversation.system.iter().enumerate();
        let system = system.map(|(at, part)| Placed { turn: 0, at, role: Role::System, part });
        let turns = self.conversation.turns.iter().enumerate();
        let parts = turns.flat_map(|(turn, it)| {
            let parts = it.parts.iter().enumerate();
            parts.map(move |(at, part)| Placed { turn, at, role: it.role, part })
        });
        system.chain(parts).collect()
    }

    fn note_dropped(&mut self) {
        let list = list_name(self.conversation.api);
        self.conversation.system.iter().for_each(|part| {
            self.dropped.add_all("system[*]", &part.extra);
        });
        for turn in &self.conversation.turns {
            self.dropped.add_all(list, &turn.extra);
            for part in &turn.parts {
                self.dropped.add_all(list, &part.extra);
                if let PartKind::ToolResult { content, is_error, .. } = &part.kind {
                    content.iter().for_each(|part| self.dropped.add_all(list, &part.extra));
                    if *is_error {
                        self.dropped.add(format!("{list}.is_error"));
                    }
                }
            }
        }
    }

    /// Adds the results of tools, then the other parts of the user. The results must follow the
    /// calls at once: <https://platform.openai.com/docs/guides/function-calling>.
    fn question(&mut self, parts: &[Placed<'a>]) -> Result<(), Refusal> {
        let mut media = Vec::new();
        for placed in parts {
            if let PartKind::ToolResult { id, content, .. } = &placed.part.kind {
                self.result(*placed, id, content, &mut media)?;
            }
        }
        let is_result = |it: &Placed| matches!(it.part.kind, PartKind::ToolResult { .. });
        let others: Vec<Placed> = parts.iter().filter(|it| !is_result(it)).copied().collect();
        let results = parts.len() - others.len();
        let before = self.messages.len();
        self.message("user", media, &others)?;
        // Mistral rejects a user's message after a tool's:
        // https://github.com/zed-industries/zed/issues/37021
        if self.is_mistral && results > 0 && self.messages.len() > before {
            self.messages.insert(before, json!({"role": "assistant", "content": "OK."}));
        }
        Ok(())
    }

    /// Adds the result of a tool, which can only be a text. Adds other parts to `media`.
    fn result(
        &mut self,
        placed: Placed,
        client_id: &str,
        content: &[Part],
        media: &mut Vec<Value>,
    ) -> Result<(), Refusal> {
        let id = self.id(client_id);
        let mut texts = Vec::new();
        let mut others = Vec::new();
        for part in content {
            match &part.kind {
                PartKind::Text(text) => texts.push(text.as_str()),
                _ => others.push(self.content_part(Placed { part, ..placed })?),
            }
        }
        if !others.is_empty() {
            let name = self.conversation.tool_name_of(client_id);
            let name = name.map(|name| self.names.at_provider(name)).unwrap_or_default();
            let text = format!("Output of the call {id} of the tool {name}:");
            media.push(json!({"type": "text", "text": text}));
            texts.push("The output follows in the next message of the user.");
        }
        media.extend(others);
        let content = texts.join(PARAGRAPH);
        let result = json!({"role": "tool", "tool_call_id": id, "content": content});
        self.messages.push(result);
        Ok(())
    }

    /// Adds a message of the user or the system, with these parts after `content`; none without
    /// parts. Several texts become one, because not all servers accept lists:
    /// <https://github.com/BerriAI/litellm/issues/6642>.
    fn message(
        &mut self,
        role: &str,
        mut content: Vec<Value>,
        parts: &[Placed],
    ) -> Result<(), Refusal> {
        let is_empty = |it: &Placed| text(it.part).is_some_and(str::is_empty);
        let parts: Vec<Placed> = parts.iter().filter(|it| !is_empty(it)).copied().collect();
        if parts.is_empty() && content.is_empty() {
            return Ok(());
        }
        let texts: Option<Vec<&str>> = parts.iter().map(|it| text(it.part)).collect();
        let content: Value = match texts.filter(|_| content.is_empty()) {
            Some(texts) => texts.join(PARAGRAPH).into(),
            None => {
                for part in parts {
                    content.push(self.content_part(part)?);
                }
                content.into()
            }
        };
        self.messages.push(json!({"role": role, "content": content}));
        Ok(())
    }

    /// Returns the id at the provider, the same for a call and its result.
    fn id(&self, id: &str) -> String {
        if self.is_mistral { mistral_id(id) } else { short_id(id) }
    }

    /// Adds a message of the assistant; none if only thoughts of other APIs remain of it.
    fn answer(&mut self, parts: &[Placed<'a>]) -> Result<(), Refusal> {
        let (mut text, mut refusal, mut calls) = (String::new(), String::new(), Vec::new());
        for placed in parts {
            match &placed.part.kind {
                PartKind::Text(it) => text.push_str(it),
                PartKind::Refusal(it) => refusal.push_str(it),
                PartKind::Thinking(_) => {}
                PartKind::ToolCall { .. } => calls.extend(self.call(placed.part)),
                _ => return Err(self.refused(*placed)),
            }
        }
        if text.is_empty() && refusal.is_empty() && calls.is_empty() {
            return Ok(());
        }
        let mut message = object(json!({"role": "assistant", "content": null}));
        let thoughts: Vec<&Part> = parts.iter().map(|placed| placed.part).collect();
        put_own_thoughts(&mut message, &thoughts, !calls.is_empty(), &text);
        if !text.is_empty() && !message["content"].is_array() {
            message.insert("content".to_owned(), text.into());
        }
        put_some(&mut message, "refusal", Some(refusal).filter(|text| !text.is_empty()));
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), calls.into());
        }
        self.messages.push(Value::Object(message));
        Ok(())
    }

    fn call(&self, part: &Part) -> Option<Value> {
        let PartKind::ToolCall { id, name, arguments, is_custom } = &part.kind else {
            return None;
        };
        let arguments = if *is_custom {
            ToolNames::wrapped_arguments(arguments).to_string()
        } else if arguments.trim().is_empty() {
            NO_ARGUMENTS.to_owned()
        } else {
            arguments.clone()
        };
        let mut call = call(&self.id(id), &self.names.at_provider(name), &arguments, false);
        if let Some(signature) = &part.signature {
            put_signature(&mut call, signature);
        }
        Some(Value::Object(call))
    }

    fn content_part(&self, placed: Placed) -> Result<Value, Refusal> {
        let written = match &placed.part.kind {
            PartKind::Text(text) => Some(json!({"type": "text", "text": text})),
            PartKind::Image(media) | PartKind::Document(media) | PartKind::Audio(media) => {
                foreign_media(&placed.part.kind, media)
            }
            _ => None,
        };
        written.ok_or_else(|| self.refused(placed))
    }

    fn refused(&self, placed: Placed) -> Refusal {
        let Placed { turn, at, role, .. } = placed;
        let path = match self.conversation.api {
            Api::Gemini => format!("contents[{turn}].parts[{at}]"),
            Api::Responses => format!("input[{turn}].content[{at}]"),
            Api::Messages | Api::Chat if role == Role::System => format!("system[{at}]"),
            Api::Messages | Api::Chat => format!("messages[{turn}].content[{at}]"),
        };
        Refusal::not_expressible(path, Api::Chat)
    }
}

fn is_system(role: Role) -> bool {
    matches!(role, Role::System | Role::Developer)
}

fn list_name(api: Api) -> &'static str {
    match api {
        Api::Gemini => "contents[*]",
        Api::Responses => "input[*]",
        Api::Messages | Api::Chat => "messages[*]",
    }
}

fn text(part: &Part) -> Option<&str> {
    match &part.kind {
        PartKind::Text(text) => Some(text),
        _ => None,
    }
}

/// Returns a part with a medium; none if this API cannot have it: files that another provider
/// stores, and documents at a URL.
fn foreign_media(kind: &PartKind, media: &Media) -> Option<Value> {
    let is_url = matches!(media.source, Source::Url { .. });
    let is_document = matches!(kind, PartKind::Document(_));
    if matches!(media.source, Source::File(_)) || (is_document && is_url) {
        return None;
    }
    let mut media = media.clone();
    if is_document && media.name.is_none() {
        // OpenAI requires a name beside the data:
        // https://platform.openai.com/docs/guides/pdf-files?api-mode=chat
        media.name = Some("document.pdf".to_owned());
    }
    write_media(kind, &media)
}

/// Returns an id of at most [`ID_CHARS_MAX`] characters.
fn short_id(id: &str) -> String {
    if id.chars().count() <= ID_CHARS_MAX {
        return id.to_owned();
    }
    let kept: String = id.chars().take(ID_CHARS_MAX - 9).collect();
    format!("{kept}_{:08x}", hash(id))
}

fn mistral_id(id: &str) -> String {
    if id.len() == MISTRAL_ID_CHARS && id.chars().all(|c| c.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    format!("{:0width$x}", hash(id), width = MISTRAL_ID_CHARS)
}

/// Returns whether the name is one of Mistral's models: Mistral, Magistral, Devstral, Mixtral, …
pub(super) fn is_mistral(model: &str) -> bool {
    let name = model.to_ascii_lowercase();
    ["stral", "xtral"].iter().any(|family| name.contains(family))
}

/// Adds the thoughts that a server of this API wrote, in the form in which it needs them back.
///
/// DeepSeek requires `reasoning_content` in messages with tool calls, and ignores it in others:
/// <https://api-docs.deepseek.com/guides/thinking_mode>. Groq and Cerebras reject `reasoning` in
/// messages: <https://github.com/karthink/gptel/issues/774>.
fn put_own_thoughts(message: &mut Extra, parts: &[&Part], has_calls: bool, text: &str) {
    let of = |field: &'static str| {
        let parts = parts.iter().copied();
        parts.filter(move |part| text_of(part).is_some() && thoughts::origin(part) == Some(field))
    };
    if has_calls && of(CONTENT).next().is_some() {
        let joined: String = of(CONTENT).filter_map(text_of).collect();
        message.insert(CONTENT.to_owned(), joined.into());
    }
    let details = of(DETAILS).enumerate();
    let details: Vec<Value> =
        details.map(|(at, part)| Value::Object(write_detail(part, at))).collect();
    if !details.is_empty() {
        message.insert(DETAILS.to_owned(), details.into());
    }
    let mut content: Vec<Value> =
        of(THINKING).map(|part| Value::Object(write_thinking(part))).collect();
    if !content.is_empty() {
        if !text.is_empty() {
            content.push(json!({"type": "text", "text": text}));
        }
        message.insert("content".to_owned(), content.into());
    }
}
