//! The names of tools that a provider does not accept as the client wrote them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::conversation::{Conversation, Part, PartKind, Reply, ToolKind};
use super::piece::{Opened, Piece};

/// Limits the names of functions: OpenAI's limit, and the lowest of all APIs, in characters.
const NAME_CHARS_MAX: usize = 64;
/// The length of the hash in a shortened name, in characters.
const HASH_CHARS: usize = 8;
/// The field of a function that stands for a tool whose input is a text.
const INPUT: &str = "input";

/// Maps the names of tools at the provider to those of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolNames {
    /// By name at the provider; only names that differ.
    names: BTreeMap<String, String>,
    /// The client's tools whose input is a text, and that are functions at the provider.
    custom: BTreeSet<String>,
}

impl ToolNames {
    /// Chooses the names for a provider. `keeps_custom` is true if its API has custom tools.
    pub fn new(conversation: &Conversation, keeps_custom: bool) -> Self {
        let mut names = Self::default();
        for tool in &conversation.tools {
            match &tool.kind {
                ToolKind::Function { name, .. } => names.add(name),
                ToolKind::Custom { name, .. } => {
                    names.add(name);
                    if !keeps_custom {
                        names.custom.insert(name.clone());
                    }
                }
                ToolKind::Other(_) => {}
            }
        }
        names
    }

    fn add(&mut self, name: &str) {
        let accepted = accepted(name);
        if accepted != name {
            self.names.insert(accepted, name.to_owned());
        }
    }

    /// Returns the name at the provider.
    pub fn at_provider(&self, name: &str) -> String {
        accepted(name)
    }

    /// Returns the name of the client.
    fn at_client(&self, name: &str) -> String {
        self.names.get(name).map_or(name, String::as_str).to_owned()
    }

    /// Returns whether a client's tool with text input is a function at the provider.
    pub fn is_wrapped(&self, name: &str) -> bool {
        self.custom.contains(name)
    }

    /// Returns the parameters of a function that stands for a tool whose input is a text.
    pub fn wrapped_parameters() -> Value {
        json!({
            "type": "object",
            "properties": {INPUT: {"type": "string"}},
            "required": [INPUT],
            "additionalProperties": false,
        })
    }

    /// Returns the description of such a function, with the grammar of its input.
    pub fn wrapped_description(description: Option<&str>, format: Option<&Value>) -> String {
        let mut text = description.unwrap_or_default().to_owned();
        let format = format.filter(|format| format["type"] != "text");
        if let Some(definition) = format.and_then(|it| it["definition"].as_str()) {
            let syntax = format.and_then(|it| it["syntax"].as_str()).unwrap_or("grammar");
            text.push_str(&format!(
                "\n\n`{INPUT}` must match this {syntax} grammar:\n{definition}"
            ));
        }
        text
    }

    /// Returns the arguments of such a function.
    pub fn wrapped_arguments(input: &str) -> Value {
        json!({INPUT: input})
    }

    /// Gives the tool calls of an answer the client's names.
    pub fn restore(&self, reply: &mut Reply) {
        for part in &mut reply.parts {
            self.restore_part(part);
        }
    }

    fn restore_part(&self, part: &mut Part) {
        if let PartKind::ToolCall { name, arguments, is_custom, .. } = &mut part.kind {
            *name = self.at_client(name);
            if self.is_wrapped(name) {
                *arguments = unwrapped(arguments);
                *is_custom = true;
            }
        }
    }

    /// Returns a filter for the pieces of a stream.
    pub fn pieces(&self) -> RestoredPieces<'_> {
        RestoredPieces { names: self, held: None }
    }
}

/// Gives the tool calls of a stream the client's names.
pub struct RestoredPieces<'a> {
    names: &'a ToolNames,
    /// The arguments of a call whose input is a text, until they are complete.
    held: Option<String>,
}

impl RestoredPieces<'_> {
    /// Returns the pieces for the client.
    pub fn restore(&mut self, piece: Piece) -> [Option<Piece>; 2] {
        match piece {
            Piece::Open(Opened::ToolCall { id, name, is_custom }) => {
                let name = self.names.at_client(&name);
                let is_wrapped = self.names.is_wrapped(&name);
                self.held = is_wrapped.then(String::new);
                let is_custom = is_custom || is_wrapped;
                [Some(Piece::Open(Opened::ToolCall { id, name, is_custom })), None]
            }
            Piece::Delta(text) => match &mut self.held {
                Some(held) => {
                    held.push_str(&text);
                    [None, None]
                }
                None => [Some(Piece::Delta(text)), None],
            },
            Piece::Close => {
                let input = self.held.take().map(|held| Piece::Delta(unwrapped(&held)));
                [input, Some(Piece::Close)]
            }
            other => [Some(other), None],
        }
    }
}

/// Returns the text in the arguments of a wrapped tool; the arguments themselves if it is missing.
fn unwrapped(arguments: &str) -> String {
    let parsed = serde_json::from_str::<Value>(arguments).unwrap_or_default();
    parsed[INPUT].as_str().unwrap_or(arguments).to_owned()
}

/// Returns a name that every API accepts: letters, digits, `_` and `-`, at most 64, the first no
/// digit or `-`.
fn accepted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins_well && name.len() <= NAME_CHARS_MAX && name.chars().all(is_plain) {
        return name.to_owned();
    }
    let clean: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let first =
        if clean.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') { "" } else { "_" };
    let kept = NAME_CHARS_MAX - HASH_CHARS - 1 - first.len();
    let kept: String = clean.chars().take(kept).collect();
    format!("{first}{kept}_{:08x}", hash(name))
}

/// FNV-1a, so that different names stay different: <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub(super) fn hash(name: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    name.bytes().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_provider_rejects_are_shortened() {
        for name in ["get_weather", "_x", "a-b"] {
            assert_eq!(accepted(name), name);
        }
        let long = format!("mcp__server__{}", "x".repeat(90));
        for name in [&*long, "a.b", "1st", "", "ä"] {
            let short = accepted(name);
            assert!(short.len() <= NAME_CHARS_MAX && accepted(&short) == short, "{short}");
        }
        assert_ne!(accepted("a.b"), accepted("a/b"));
    }

    #[test]
    fn a_text_input_is_unwrapped_in_a_stream() {
        let names = ToolNames { custom: ["apply_patch".to_owned()].into(), ..Default::default() };
        let mut pieces = names.pieces();
        let call =
            Opened::ToolCall { id: "c".into(), name: "apply_patch".into(), is_custom: false };
        let all = [
            Piece::Open(call),
            Piece::Delta("{\"input\":\"a".into()),
            Piece::Delta("b\"}".into()),
            Piece::Close,
        ];
        let seen: Vec<Piece> =
            all.into_iter().flat_map(|piece| pieces.restore(piece)).flatten().collect();
        assert_eq!(seen[1..], [Piece::Delta("ab".into()), Piece::Close]);
    }
}
