//! Text that must never be printed: API keys, the access token, secrets of webhooks.

mod mask;

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use self::mask::Mask;
use crate::error::{Error, Result};

/// A shorter secret is a dummy for a local server, and may occur in names by chance.
const NAME_REDACTED_BYTES_MIN: usize = 8;

/// A key or token. `Debug` and `Display` print `***`; only [`Secret::expose`] returns the text, so
/// that a search for that name finds every place that reads a secret.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret {
    text: String,
    /// The keys of a pool, with this one, the longest first. They are redacted together.
    #[serde(skip)]
    pool: Option<Arc<[String]>>,
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), pool: None }
    }

    /// Lets each of these keys redact all of them.
    pub fn pooled(keys: &[Self]) -> Vec<Self> {
        let mut all: Vec<String> = keys.iter().map(|key| key.text.clone()).collect();
        // A key may begin with another one.
        all.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let pool: Arc<[String]> = all.into();
        keys.iter().map(|key| Self { pool: Some(Arc::clone(&pool)), ..key.clone() }).collect()
    }

    /// Returns 256 random bits in hexadecimal.
    pub fn random() -> Result<Self> {
        random_hex::<32>().map(Self::new)
    }

    /// Returns the SHA-256 in hexadecimal. Safe to store only for [`Secret::random`]: a chosen word
    /// could be guessed.
    pub fn hash(&self) -> String {
        crate::ids::hex(&Sha256::digest(self.text.as_bytes()))
    }

    /// Returns the text itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns true if `offered` is this secret. Takes constant time for equal lengths.
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.text.as_bytes().ct_eq(offered).into()
    }

    /// Replaces this secret, and the others of its pool, in `text`, because some servers repeat a
    /// refused key in their error message. In JSON, any character of it may be escaped.
    pub fn redact(&self, text: &str) -> String {
        self.redact_longer(text, 1)
    }

    /// Replaces the secrets that have at least `bytes_min` bytes.
    fn redact_longer(&self, text: &str, bytes_min: usize) -> String {
        let secrets = self.pool.as_deref().unwrap_or(std::slice::from_ref(&self.text));
        let secrets = secrets.iter().filter(|secret| secret.len() >= bytes_min);
        secrets.fold(text.to_owned(), |text, secret| redact(secret, &text))
    }

    /// Replaces this secret in a name, such as a model's, unless the secret is short: with the key
    /// `k`, every `k` would be replaced.
    pub fn redact_name(&self, name: &str) -> String {
        self.redact_longer(name, NAME_REDACTED_BYTES_MIN)
    }
}

fn redact(secret: &str, text: &str) -> String {
    let text = text.replace(secret, "***");
    if !text.contains('\\') {
        return text;
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        if let Some(after) = skip_escaped(secret, rest) {
            clean.push_str("***");
            rest = after;
        } else {
            clean.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    clean
}

/// Returns the text after the secret if `text` begins with it, plain or escaped.
fn skip_escaped<'a>(secret: &str, text: &'a str) -> Option<&'a str> {
    secret.chars().try_fold(text, |rest, wanted| {
        skip_escape(rest, wanted).or_else(|| rest.strip_prefix(wanted))
    })
}

/// Returns the text after the JSON escape of `wanted` (RFC 8259, section 7), if `text` begins with
/// it.
fn skip_escape(text: &str, wanted: char) -> Option<&str> {
    let escape = text.strip_prefix('\\')?;
    match escape.strip_prefix('u') {
        Some(code) => {
            let (digits, rest) = code.split_at_checked(4)?;
            let code = u32::from_str_radix(digits, 16).ok()?;
            (code == u32::from(wanted)).then_some(rest)
        }
        None => escape.strip_prefix(wanted).filter(|_| !wanted.is_alphanumeric()),
    }
}

/// Returns `N` random bytes in hexadecimal.
pub fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::internal(format!("cannot read random bytes from the system: {error}"))
    })?;
    Ok(crate::ids::hex(&bytes))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("sk-live-123");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.redact("bad key sk-live-123."), "bad key ***.");
    }

    #[test]
    fn a_secret_with_json_escapes_is_redacted() {
        let secret = Secret::new("sk/a\"b\\c");
        for text in [
            r#"sk/a"b\c"#,
            r#"sk\/a\"b\\c"#,
            r#"sk\u002fa\u0022b\u005Cc"#,
            r#"\u0073\u006B/a\"b\\c"#,
        ] {
            let json = format!(r#"{{"ä\n":"bad key {text}.","x":"\u00"}}"#);
            let clean = r#"{"ä\n":"bad key ***.","x":"\u00"}"#;
            assert_eq!(secret.redact(&json), clean, "{text}");
        }
        for text in [r"sk\", r"sk\u002", r"sk\u002ä", r"\n\\", r#"sk\/a\"b\\d"#] {
            assert_eq!(secret.redact(text), text);
        }
    }

    #[test]
    fn a_short_secret_does_not_garble_names() {
        assert_eq!(Secret::new("k").redact_name("claude-haiku"), "claude-haiku");
        assert_eq!(Secret::new("k").redact("key: k"), "***ey: ***");
        let secret = Secret::new("sk-live-123");
        assert_eq!(secret.redact_name("m-sk-live-123"), "m-***");
    }

    #[test]
    fn keys_of_a_pool_are_redacted_together() {
        let keys = Secret::pooled(&[Secret::new("sk-live-1"), Secret::new("sk-live-123")]);
        for key in &keys {
            assert_eq!(key.redact("sk-live-123 sk-live-1"), "*** ***");
            assert_eq!(key.redact_name("m-sk-live-123"), "m-***");
        }
        assert_eq!(keys[0].expose(), "sk-live-1");
    }

    #[test]
    fn random_secrets_are_long_and_unique() {
        let (one, other) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_eq!(one.expose().len(), 64);
        assert_ne!(one.expose(), other.expose());
        assert_ne!(one.hash(), other.hash());
        assert_eq!(one.hash(), one.clone().hash());
    }

    #[test]
    fn only_equal_text_matches() {
        let secret = Secret::new("abc");
        assert!(secret.matches(b"abc"));
        assert!(!secret.matches(b"abd"));
        assert!(!secret.matches(b"ab"));
    }
}
