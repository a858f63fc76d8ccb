//! Derives the origin of a call from the client's own request: its program, session and end user.
//! Headers of flowledger take precedence. Pure.
//!
//! A derived name that is too long or has control characters is ignored, because the client did not
//! send it for this purpose. An explicit one is an error.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::each_field;
use crate::event::Attribution;
use crate::listener::{ApiError, RequestHead};

/// Limits a session, an end user and a project, in bytes.
const NAME_BYTES_MAX: usize = 200;
/// Limits the name of a client, in bytes.
const CLIENT_BYTES_MAX: usize = 64;
/// Limits a JSON value that is parsed for the names in it.
const METADATA_BYTES_MAX: usize = 64 << 10;
/// Names of HTTP libraries, which reveal less than the headers of an SDK.
const LIBRARIES: [&str; 6] = ["node", "node-fetch", "undici", "axios", "python-httpx", "Mozilla"];

/// Headers that carry a session, the most specific ones first.
///
/// - Claude Code since 2.1.86: coder/aibridge#241
/// - Codex: openai/codex#21757 (`session-id`, before `session_id`), #9107 (`conversation_id`)
/// - opencode: the first for its own provider, the other two for all others
/// - Open WebUI with `ENABLE_FORWARD_USER_INFO_HEADERS`: `open_webui/env.py`
const SESSION_HEADERS: [&str; 8] = [
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "conversation_id",
    "x-opencode-session",
    "x-session-id",
    "x-session-affinity",
    "x-openwebui-chat-id",
];
/// A JSON object of Codex with `session_id` and `thread_id`.
const CODEX_METADATA: &str = "x-codex-turn-metadata";
/// Headers that carry an end user. Open WebUI's id never changes, unlike the address and the name.
const USER_HEADERS: [&str; 3] =
    ["x-openwebui-user-id", "x-openwebui-user-email", "x-openwebui-user-name"];

/// Returns the origin of a request; `body` is its decoded body.
///
/// # Errors
/// 400 for an invalid `X-Flowledger-Session`, `X-Flowledger-User` or `X-Flowledger-Project`.
pub fn read(head: &RequestHead, body: &str) -> Result<Attribution, ApiError> {
    let session = explicit(head, "X-Flowledger-Session", "bad_session")?;
    let end_user = explicit(head, "X-Flowledger-User", "bad_user")?;
    let project = explicit(head, "X-Flowledger-Project", "bad_project")?;
    let derived = Derived::of(head, body);
    let session = session.or_else(|| derived.sessions.first().cloned());
    // Some clients repeat their session in a field for users.
    let is_session =
        |user: &String| derived.sessions.contains(user) || session.as_ref() == Some(user);
    Ok(Attribution {
        client: client(head),
        end_user: end_user.or_else(|| derived.end_user.clone().filter(|user| !is_session(user))),
        session,
        project,
    })
}

fn explicit(
    head: &RequestHead,
    name: &str,
    code: &'static str,
) -> Result<Option<String>, ApiError> {
    let value = head.header(&name.to_ascii_lowercase()).unwrap_or_default();
    let is_valid = |it: &str| it.len() <= NAME_BYTES_MAX && it.chars().all(is_printable);
    match value {
        "" => Ok(None),
        value if is_valid(value) => Ok(Some(value.to_owned())),
        _ => {
            let message =
                format!("`{name}` must have up to {NAME_BYTES_MAX} printable ASCII characters");
            Err(ApiError::bad_request(code, message))
        }
    }
}

/// Control characters, invisible ones, and marks that reorder the text around them.
fn is_printable(c: char) -> bool {
    let is_mark = matches!(
        c,
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    !c.is_control() && !is_mark
}

fn name(text: &str) -> Option<String> {
    let text = text.trim();
    let is_valid = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(is_printable);
    is_valid.then(|| text.to_owned())
}

#[derive(Default)]
struct Derived {
    /// All names of the session, the most specific one first.
    sessions: Vec<String>,
    end_user: Option<String>,
}

impl Derived {
    fn of(head: &RequestHead, body: &str) -> Self {
        let mut derived = Self {
            sessions: SESSION_HEADERS
                .iter()
                .filter_map(|header| name(head.header(header)?))
                .collect(),
            end_user: USER_HEADERS.iter().find_map(|header| {
                // Open WebUI quotes the name like a part of a URL.
                name(&percent_decode_str(head.header(header)?).decode_utf8_lossy())
            }),
        };
        let turn = head.header(CODEX_METADATA).map(Ids::parse).unwrap_or_default();
        derived.add(turn.session_id.or(turn.thread_id), None);
        let fields = BodyFields::read(body);
        // `safety_identifier` supersedes `user`: help.openai.com/en/articles/5428082
        for user in [fields.safety_identifier, fields.user].into_iter().flatten() {
            derived.add_user(&user);
        }
        if let Some(user) = &fields.metadata.user_id {
            derived.add_user(user);
        }
        let Ids { session_id, thread_id, .. } = fields.client_metadata;
        derived.add(fields.metadata.session_id.or(session_id).or(thread_id), None);
        derived.add(fields.prompt_cache_key, None);
        derived
    }

    /// Keeps the end user that was found first.
    fn add(&mut self, session: Option<Cow<'_, str>>, end_user: Option<Cow<'_, str>>) {
        self.sessions.extend(session.and_then(|session| name(&session)));
        self.end_user = self.end_user.take().or_else(|| name(&end_user?));
    }

    /// Adds the parts of a user's name: of Claude Code, or a plain one.
    fn add_user(&mut self, user: &str) {
        let ids = ClaudeUser::parse(user);
        let end_user = [ids.account, ids.device].into_iter().flatten().find(|it| !it.is_empty());
        self.add(ids.session, end_user);
    }
}

/// The user of Claude Code, whose parts are kept apart: a session is no user.
#[derive(Debug, Default, PartialEq)]
struct ClaudeUser<'a> {
    device: Option<Cow<'a, str>>,
    /// Empty if Claude Code has no login.
    account: Option<Cow<'a, str>>,
    session: Option<Cow<'a, str>>,
}

impl<'a> ClaudeUser<'a> {
    /// Parses `{"device_id": …, "account_uuid": …, "session_id": …}` (since 2.1.78, see
    /// ding113/claude-code-hub#939), `user_HASH_account_UUID_session_UUID` (before), or the plain
    /// name of another client.
    fn parse(user: &'a str) -> Self {
        let user = user.trim();
        if user.starts_with('{') {
            let ids = Ids::parse(user);
            let Ids { device_id, account_uuid, session_id, user_id, .. } = ids;
            return Self {
                device: device_id.or(user_id),
                account: account_uuid,
                session: session_id,
            };
        }
        let parts = user.strip_prefix("user_").and_then(|rest| {
            let (device, rest) = rest.split_once("_account_")?;
            let (account, session) = rest.split_once("_session_")?;
            Some([device, account, session].map(|part| Some(Cow::Borrowed(part))))
        });
        match parts {
            Some([device, account, session]) => Self { device, account, session },
            None => Self { device: Some(user.into()), ..Self::default() },
        }
    }
}

/// Ids in a JSON object of a client.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ids<'a> {
    #[serde(borrow, deserialize_with = "text")]
    user_id: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    thread_id: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    device_id: Option<Cow<'a, str>>,
    #[serde(borrow, deserialize_with = "text")]
    account_uuid: Option<Cow<'a, str>>,
}

/// Reads a string; none for any other value.
fn text<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    <&RawValue>::deserialize(json).map(string)
}

impl<'a> Ids<'a> {
    fn parse(json: &'a str) -> Self {
        if json.len() > METADATA_BYTES_MAX {
            return Self::default();
        }
        serde_json::from_str(json).unwrap_or_default()
    }
}

#[derive(Default)]
struct BodyFields<'a> {
    user: Option<Cow<'a, str>>,
    safety_identifier: Option<Cow<'a, str>>,
    prompt_cache_key: Option<Cow<'a, str>>,
    metadata: Ids<'a>,
    /// Of Codex: openai/codex, `codex-rs/core/src/client.rs`.
    client_metadata: Ids<'a>,
}

impl<'a> BodyFields<'a> {
    fn read(body: &'a str) -> Self {
        let mut fields = Self::default();
        // A body with a syntax error is refused elsewhere.
        let _ = each_field(body, |name, value| match name {
            "user" => fields.user = string(value),
            "safety_identifier" => fields.safety_identifier = string(value),
            "prompt_cache_key" => fields.prompt_cache_key = string(value),
            "metadata" => fields.metadata = Ids::parse(value.get()),
            "client_metadata" => fields.client_metadata = Ids::parse(value.get()),
            _ => {}
        });
        fields
    }
}

fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = value.get();
    if !quoted.starts_with('"') || quoted.len() > METADATA_BYTES_MAX {
        return None;
    }
    match quoted.trim_matches('"') {
        plain if !quoted.contains('\\') => Some(plain.into()),
        _ => serde_json::from_str(quoted).ok().map(Cow::Owned),
    }
}

/// Returns the product in the `User-Agent`, or the language of the SDK if that says more.
fn client(head: &RequestHead) -> Option<String> {
    let product = head.header("user-agent").and_then(product);
    let sdk = head.header("x-stainless-lang").map(|language| format!("stainless/{language}"));
    let sdk = sdk.filter(|sdk| sdk.len() <= CLIENT_BYTES_MAX && sdk.bytes().all(is_token));
    match product {
        Some(product) if sdk.is_none() || !LIBRARIES.contains(&product.as_str()) => Some(product),
        product => sdk.or(product),
    }
}

/// Returns the first product without its version, such as `claude-cli` or `OpenAI/Python`.
fn product(agent: &str) -> Option<String> {
    let mut parts = agent.split_ascii_whitespace().next()?.split('/');
    let name = parts.next().unwrap_or_default();
    // The SDKs of OpenAI and Anthropic put their language where others put the version.
    let language = parts
        .next()
        .filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphabetic()));
    let product = match language {
        None => name.to_owned(),
        // The asynchronous client is the same SDK.
        Some(language) => format!("{}/{language}", name.strip_prefix("Async").unwrap_or(name)),
    };
    let is_valid = (1..=CLIENT_BYTES_MAX).contains(&product.len());
    (is_valid && product.bytes().all(is_token)).then_some(product)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._/+@-".contains(&byte)
}

#[cfg(test)]
mod tests;
