//! Text that must never be printed: API keys, the access token, secrets of webhooks.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// A shorter secret is a dummy for a local server, and may occur in names by chance.
const NAME_REDACTED_BYTES_MIN: usize = 8;

/// A key or token. `Debug` and `Display` print `***`; only [`Secret::expose`] returns the text, so
/// that a search for that name finds every place that reads a secret.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns 256 random bits in hexadecimal.
    pub fn random() -> Result<Self> {
        random_hex::<32>().map(Self)
    }

    /// Returns the SHA-256 in hexadecimal. Safe to store only for [`Secret::random`]: a chosen word
    /// could be guessed.
    pub fn hash(&self) -> String {
        crate::ids::hex(&Sha256::digest(self.0.as_bytes()))
    }

    /// Returns the text itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns true if `offered` is this secret. Takes constant time for equal lengths.
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }

    /// Replaces this secret in `text`, because some servers repeat a refused key in their error
    /// message. In JSON, any character of it may be escaped.
    pub fn redact(&self, text: &str) -> String {
        if self.0.is_empty() {
            return text.to_owned();
        }
        let text = text.replace(&self.0, "***");
        if !text.contains('\\') {
            return text;
        }
        let mut clean = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(first) = rest.chars().next() {
            if let Some(after) = self.skip_escaped(rest) {
                clean.push_str("***");
                rest = after;
            } else {
                clean.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        clean
    }

    /// Returns the text after this secret if `text` begins with it, plain or escaped.
    fn skip_escaped<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.0.chars().try_fold(text, |rest, wanted| {
            skip_escape(rest, wanted).or_else(|| rest.strip_prefix(wanted))
        })
    }

    /// Replaces this secret in a name, such as a model's, unless the secret is short: with the key
    /// `k`, every `k` would be replaced.
    pub fn redact_name(&self, name: &str) -> String {
        if self.0.len() < NAME_REDACTED_BYTES_MIN {
            return name.to_owned();
        }
        self.redact(name)
    }
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
