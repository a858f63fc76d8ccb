//! Replaces secrets in texts that are stored for people.

use super::{NAME_REDACTED_BYTES_MIN, Secret};

const MASK: &str = "***";

/// Replaces secrets in texts, plain or with escapes, also in JSON within JSON. Secrets of fewer than
/// [`NAME_REDACTED_BYTES_MIN`] bytes are left alone: with the key `k`, every `k` would be replaced.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Without backslashes.
    secrets: Vec<Secret>,
    /// Begins a secret of any such text with a number of hexadecimal digits.
    random: Option<(&'static str, usize)>,
}

impl Mask {
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut mask = Self::default();
        secrets.into_iter().for_each(|secret| mask.add(&secret));
        mask
    }

    /// Also replaces texts of `prefix` and this number of hexadecimal digits.
    pub fn with_random(self, prefix: &'static str, digits: usize) -> Self {
        Self { random: Some((prefix, digits)), ..self }
    }

    pub fn add(&mut self, secret: &Secret) {
        let plain = Plain::of(secret.expose()).text;
        let is_known = self.secrets.iter().any(|known| known.expose() == plain);
        if plain.len() >= NAME_REDACTED_BYTES_MIN && !is_known {
            self.secrets.push(Secret::new(plain));
        }
    }

    /// Returns about the first `bytes_max` bytes of a text without secrets. A secret that continues
    /// after them is replaced as well.
    pub fn cut(&self, text: &str, bytes_max: usize) -> String {
        let mut end = bytes_max.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let plain = Plain::of(text);
        let secrets = self.secrets.iter().flat_map(|secret| plain.find(secret.expose()));
        let random = self.random.iter().flat_map(|(prefix, digits)| plain.random(prefix, *digits));
        let mut found: Vec<(usize, usize)> = secrets.chain(random).collect();
        found.sort_unstable();
        let (mut clean, mut at) = (String::with_capacity(end), 0);
        for (from, to) in found {
            if from >= end {
                break;
            }
            if from >= at {
                clean.push_str(&text[at..from]);
                clean.push_str(MASK);
            }
            at = at.max(to);
        }
        clean.push_str(text.get(at..end).unwrap_or_default());
        clean
    }
}

/// A text without backslashes and with decoded escapes of ASCII characters (RFC 8259, section 7).
struct Plain {
    text: String,
    /// The place of each of its bytes in the text before, and the end of that.
    places: Vec<usize>,
}

impl Plain {
    fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut plain = Self { text: String::with_capacity(text.len()), places: Vec::new() };
        plain.places.reserve(text.len() + 1);
        let mut from = 0;
        while let Some(byte) = bytes.get(from) {
            // Escapes within escapes have more than one backslash.
            let escaped = bytes[from..].iter().take_while(|byte| **byte == b'\\').count();
            let at = from + escaped;
            let code = (escaped > 0).then(|| escaped_code(&bytes[at..])).flatten();
            let end = if let Some(character) = code {
                plain.push(character, from);
                at + 5
            } else if escaped > 0 {
                // The next character takes the place of its backslashes.
                match text[at..].chars().next() {
                    Some(next) => {
                        plain.push(next, from);
                        at + next.len_utf8()
                    }
                    None => {
                        plain.push('\\', from);
                        at
                    }
                }
            } else if byte.is_ascii() {
                plain.push(char::from(*byte), from);
                from + 1
            } else {
                let next = text[from..].chars().next().unwrap_or_default();
                plain.push(next, from);
                from + next.len_utf8().max(1)
            };
            from = end;
        }
        plain.places.push(text.trim_end_matches('\\').len());
        plain
    }

    fn push(&mut self, character: char, place: usize) {
        self.text.push(character);
        self.places.resize(self.text.len(), place);
    }

    /// Returns the places of a text.
    fn find<'a>(&'a self, secret: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.text.match_indices(secret).map(|(at, found)| self.range(at, found.len()))
    }

    /// Returns the places of texts of `prefix` and a number of hexadecimal digits.
    fn random<'a>(
        &'a self,
        prefix: &'a str,
        digits: usize,
    ) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.text.match_indices(prefix).filter_map(move |(at, _)| {
            let after = self.text.as_bytes().get(at + prefix.len()..)?.get(..digits)?;
            let is_random = after.iter().all(u8::is_ascii_hexdigit);
            is_random.then(|| self.range(at, prefix.len() + digits))
        })
    }

    fn range(&self, at: usize, length: usize) -> (usize, usize) {
        (self.places[at], self.places[at + length])
    }
}

/// Returns the ASCII character of an escape that continues with these bytes, if it is `uXXXX`.
fn escaped_code(bytes: &[u8]) -> Option<char> {
    let digits = bytes.strip_prefix(b"u")?.get(..4)?;
    let code = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    code.is_ascii().then_some(char::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|it| Secret::new(*it))).with_random("fl-", 8)
    }

    #[test]
    fn secrets_are_masked_plain_and_escaped() {
        let mask = mask(&["sk-live7/123\"x", "sk-live7", "0123456789", "short"]);
        for (text, expected) in [
            ("{\"a\":\"sk-live7/123\\\"x\"}", "{\"a\":\"***\"}"),
            ("sk-live7\\/123\\\"x, ä sk-live7\\nsk-live7", "***, ä ***\\n***"),
            ("\\u0073k-live7 ä\\u0073", "*** ä\\u0073"),
            ("{\\\"a\\\":\\\"sk-live7\\\\\\/123\\\\\\\"x\\\"}", "{\\\"a\\\":\\\"***\\\"}"),
            ("01234567890123456789", "******"),
            ("short sk-liv fl-1234567x", "short sk-liv fl-1234567x"),
            ("fl-12345678 fl-\\u0061bcdef01\\", "*** ***\\"),
            ("", ""),
        ] {
            assert_eq!(mask.cut(text, 1_000), expected, "{text}");
        }
    }

    #[test]
    fn a_cut_leaves_no_part_of_a_secret() {
        let mask = mask(&["sk-live-123"]);
        let text = "ä sk-live-123 b";
        for end in 0..=text.len() {
            let clean = mask.cut(text, end);
            assert!("ä *** b".starts_with(&clean), "{end}: {clean}");
            assert!(!clean.contains("sk"), "{end}: {clean}");
        }
        assert_eq!(mask.cut(text, 5), "ä ***");
    }
}
