//! Detects sessions that repeat themselves: the same request again and again, or a conversation
//! that grows without new text of the user. Only recent sessions are remembered.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{each_element, each_field};
use crate::time::Timestamp;

/// Limits the remembered sessions: a few megabytes.
const SESSIONS_MAX: usize = 2_000;
/// Limits the remembered requests and conversations of a session. Agents of one session take turns.
const ENTRIES_MAX: usize = 16;
/// A request that is not repeated within this time, in milliseconds, counts as a new one.
const REPEAT_WITHIN_MS: i64 = 10 * 60 * 1000;
/// Begins texts that Claude Code adds to the user's messages itself.
const REMINDER: &str = "<system-reminder>";

/// Counts above these are a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopLimits {
    /// Answered requests with the same prompt.
    pub repeats: u32,
    /// Requests of a growing conversation since the user's last text.
    pub turns: u32,
}

impl Default for LoopLimits {
    fn default() -> Self {
        Self { repeats: 5, turns: 50 }
    }
}

/// The id of the client's key and the session, because clients choose the ids of sessions.
pub type SessionKey = (Option<i64>, String);

pub struct Loops {
    limits: LoopLimits,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    by_key: HashMap<SessionKey, Session>,
    /// Numbers the accesses.
    clock: u64,
}

#[derive(Default)]
struct Session {
    accessed: u64,
    /// Both oldest first.
    requests: Vec<Request>,
    conversations: Vec<Conversation>,
}

struct Request {
    prompt: u64,
    count: u32,
    at: Timestamp,
}

struct Conversation {
    user_text: u64,
    messages: usize,
    turns: u32,
}

impl Loops {
    pub fn new(limits: LoopLimits) -> Self {
        Self { limits, sessions: Mutex::default() }
    }

    /// Counts a request. Returns the sign of a loop, if there is one.
    pub fn observe(
        &self,
        session: SessionKey,
        prompt_hash: &str,
        body: &str,
        at: Timestamp,
    ) -> Option<String> {
        let shape = Shape::of(body);
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(session);
        let count = session.count_request(hash_of(prompt_hash), at);
        if count > self.limits.repeats {
            return Some(format!("it sent the same request {count} times"));
        }
        let turns = if count == 1 { session.count_turn(shape) } else { 0 };
        (turns > self.limits.turns)
            .then(|| format!("it sent {turns} requests without new text of the user"))
    }

    /// Does not count a request that was not answered: clients repeat those for a good reason.
    pub fn forget(&self, session: SessionKey, prompt_hash: &str) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let prompt = hash_of(prompt_hash);
        let mut requests = sessions.get(session).requests.iter_mut();
        if let Some(request) = requests.find(|request| request.prompt == prompt) {
            request.count = request.count.saturating_sub(1);
        }
    }
}

impl Sessions {
    fn get(&mut self, key: SessionKey) -> &mut Session {
        self.clock += 1;
        if self.by_key.len() >= SESSIONS_MAX && !self.by_key.contains_key(&key) {
            // Rarely, a tenth of all at once, so that a new session costs little on average.
            let mut accessed: Vec<u64> = self.by_key.values().map(|it| it.accessed).collect();
            let (_, newest_old, _) = accessed.select_nth_unstable(SESSIONS_MAX / 10);
            let newest_old = *newest_old;
            self.by_key.retain(|_, session| session.accessed > newest_old);
        }
        let session = self.by_key.entry(key).or_default();
        session.accessed = self.clock;
        session
    }
}

impl Session {
    fn count_request(&mut self, prompt: u64, at: Timestamp) -> u32 {
        let before = take(&mut self.requests, |request| request.prompt == prompt);
        let is_recent = |it: &Request| at.0.abs_diff(it.at.0) <= REPEAT_WITHIN_MS.unsigned_abs();
        let count = before.filter(is_recent).map_or(0, |request| request.count);
        let count = count.saturating_add(1);
        self.requests.push(Request { prompt, count, at });
        count
    }

    /// Returns the number of requests since the user's last text.
    fn count_turn(&mut self, shape: Shape) -> u32 {
        let before = take(&mut self.conversations, |it| it.user_text == shape.user_text);
        let turns = match before {
            Some(before) if shape.continues || shape.messages > before.messages => {
                before.turns.saturating_add(1)
            }
            Some(before) => before.turns,
            None => 1,
        };
        let Shape { user_text, messages, .. } = shape;
        self.conversations.push(Conversation { user_text, messages, turns });
        turns
    }
}

/// Removes the entry that `is_it` accepts, or else the oldest one if there is no room.
fn take<T>(entries: &mut Vec<T>, is_it: impl Fn(&T) -> bool) -> Option<T> {
    match entries.iter().position(is_it) {
        Some(at) => Some(entries.remove(at)),
        None => {
            if entries.len() >= ENTRIES_MAX {
                entries.remove(0);
            }
            None
        }
    }
}

fn hash_of(text: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The conversation in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    /// Identifies all texts of the user.
    user_text: u64,
    messages: usize,
    /// True if the provider holds the earlier messages.
    continues: bool,
}

impl Shape {
    /// Reads the messages of the protocols of OpenAI, Anthropic and Gemini.
    fn of(body: &str) -> Self {
        let mut shape = Self::default();
        let mut hasher = DefaultHasher::new();
        // A body with a syntax error is refused elsewhere.
        let _ = each_field(body, |name, value| match name {
            "messages" | "input" | "contents" => {
                let text = value.get();
                if text.starts_with('"') {
                    text.hash(&mut hasher);
                }
                let _ = each_element(text, |message| {
                    shape.messages += 1;
                    hash_user_text(message, &mut hasher);
                });
            }
            "previous_response_id" | "conversation" => shape.continues = value.get() != "null",
            _ => {}
        });
        Self { user_text: hasher.finish(), ..shape }
    }
}

/// Hashes the user's texts in a message, without the results of tools.
fn hash_user_text(message: &RawValue, hasher: &mut DefaultHasher) {
    #[derive(Deserialize)]
    struct Message<'a> {
        role: Option<&'a str>,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
        /// Of Gemini.
        #[serde(borrow)]
        parts: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Part<'a> {
        #[serde(borrow)]
        text: Option<&'a RawValue>,
    }
    let Ok(message) = serde_json::from_str::<Message<'_>>(message.get()) else {
        return;
    };
    // The role of the only content of Gemini may be missing.
    let is_user = message.role.map_or(message.parts.is_some(), |role| role == "user");
    if !is_user {
        return;
    }
    let mut add = |text: &RawValue| {
        let is_added_by_client = text.get().trim_start_matches('"').starts_with(REMINDER);
        if !is_added_by_client {
            text.get().hash(hasher);
        }
    };
    for content in [message.content, message.parts].into_iter().flatten() {
        if content.get().starts_with('"') {
            add(content);
        }
        let _ = each_element(content.get(), |part| {
            if let Ok(Part { text: Some(text) }) = serde_json::from_str(part.get()) {
                add(text);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LIMITS: LoopLimits = LoopLimits { repeats: 3, turns: 5 };

    fn session(name: &str) -> SessionKey {
        (None, name.to_owned())
    }

    /// A conversation of an agent in the protocol of Anthropic after some calls of tools.
    fn agent(task: &str, calls: usize) -> String {
        let mut messages =
            vec![json!({"role": "user", "content": [{"type": "text", "text": task}]})];
        for call in 0..calls {
            messages
                .push(json!({"role": "assistant", "content": [{"type": "tool_use", "id": call}]}));
            messages.push(json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call, "content": format!("result {call}")},
                {"type": "text", "text": format!("<system-reminder>{call}</system-reminder>")}]}));
        }
        json!({"messages": messages}).to_string()
    }

    #[test]
    fn the_same_request_is_a_loop_above_its_limit() {
        let loops = Loops::new(LIMITS);
        let ask = |name: &str, prompt: &str, at| {
            loops.observe(session(name), prompt, "{}", Timestamp(at)).is_some()
        };
        assert_eq!([0, 1, 2, 3, 4].map(|at| ask("a", "p", at)), [false, false, false, true, true]);
        // Other requests, sessions and keys are not concerned.
        assert!(!ask("a", "q", 5));
        assert!(!ask("b", "p", 5));
        assert!(loops.observe((Some(1), "a".into()), "p", "{}", Timestamp(5)).is_none());
        // Neither is the same request much later.
        assert!(!ask("a", "p", REPEAT_WITHIN_MS + 5));
        // A request that was not answered does not count.
        for at in 0..9 {
            assert!(!ask("c", "p", at));
            loops.forget(session("c"), "p");
        }
    }

    #[test]
    fn growing_without_new_user_text_is_a_loop_above_its_limit() {
        let loops = Loops::new(LIMITS);
        let ask = |body: &str| loops.observe(session("a"), body, body, Timestamp(0)).is_some();
        // Two agents of one session take turns.
        for calls in 0..5 {
            assert!(!ask(&agent("build", calls)) && !ask(&agent("test", calls)), "{calls}");
        }
        assert!(ask(&agent("build", 5)) && ask(&agent("test", 5)));
        // New text of the user starts again.
        assert!(!ask(&agent("build and run", 6)));
        // Requests with the same text that do not grow are no loop.
        for system in 0..9 {
            let body = json!({"system": system, "messages": [{"role": "user", "content": "go"}]});
            assert!(!ask(&body.to_string()));
        }
    }

    #[test]
    fn every_protocol_shows_the_text_of_the_user() {
        let shape = |body: Value| Shape::of(&body.to_string());
        let call = json!({"type": "function_call", "name": "f", "arguments": "{}"});
        let result = json!({"type": "function_call_output", "output": "x"});
        let user =
            |text: &str| json!({"role": "user", "content": [{"type": "input_text", "text": text}]});
        let first = shape(json!({"input": [user("a")]}));
        let second = shape(json!({"input": [user("a"), call, result]}));
        assert_eq!((first.user_text, second.messages), (second.user_text, 3));
        assert_ne!(shape(json!({"input": [user("b")]})).user_text, first.user_text);
        assert_ne!(shape(json!({"input": "a"})).user_text, shape(json!({"input": "b"})).user_text);
        let continued = shape(json!({"previous_response_id": "r", "input": [result]}));
        assert!(continued.continues && continued.user_text == shape(json!({})).user_text);
        let part = |text: &str| json!({"role": "user", "parts": [{"text": text}]});
        let answer = json!({"role": "user", "parts": [{"functionResponse": {"name": "f"}}]});
        let first = shape(json!({"contents": [part("a")]}));
        let second = shape(json!({"contents": [part("a"), answer]}));
        assert_eq!((first.user_text, second.messages), (second.user_text, 2));
        assert_ne!(shape(json!({"contents": [part("b")]})).user_text, first.user_text);
        let without_role = shape(json!({"contents": [{"parts": [{"text": "a"}]}]}));
        assert_eq!(without_role.user_text, first.user_text);
        let tool = json!({"role": "tool", "content": "x"});
        let chat = |more: Value| json!({"messages": [{"role": "user", "content": "a"}, more]});
        assert_eq!(
            shape(chat(tool.clone())).user_text,
            shape(chat(json!({"role": "assistant"}))).user_text
        );
    }

    #[test]
    fn memory_is_bounded() {
        let loops = Loops::new(LIMITS);
        for at in 0..2 * SESSIONS_MAX {
            loops.observe(session(&at.to_string()), "p", "{}", Timestamp(0));
        }
        for at in 0..100 {
            loops.observe(
                session("long"),
                &at.to_string(),
                &agent(&at.to_string(), 1),
                Timestamp(0),
            );
        }
        let sessions = loops.sessions.lock().unwrap();
        assert!(sessions.by_key.len() <= SESSIONS_MAX, "{}", sessions.by_key.len());
        let long = &sessions.by_key[&session("long")];
        assert_eq!([long.requests.len(), long.conversations.len()], [ENTRIES_MAX; 2]);
    }
}
