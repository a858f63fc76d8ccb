//! Matching of names and addresses in a price table. All are compared in lower case.

use serde::Deserialize;

/// Selects names. In a file: a text whose first character selects the kind of match, a list of
/// alternatives, `{"and": […]}`, or `{"not": …}`.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a string that starts with one of `=^$~#`, an array, `{\"and\": […]}` or `{\"not\": …}`"
)]
pub(super) enum Pattern {
    Text(TextPattern),
    Any(Box<[Pattern]>),
    All { and: Box<[Pattern]> },
    Not { not: Box<Pattern> },
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct TextPattern {
    mark: Mark,
    text: Box<str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Equals,
    StartsWith,
    EndsWith,
    Contains,
    /// `#` is a digit; a trailing `*` matches any rest.
    Shape,
}

impl TryFrom<String> for TextPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut chars = text.chars();
        let mark = match chars.next() {
            Some('=') => Mark::Equals,
            Some('^') => Mark::StartsWith,
            Some('$') => Mark::EndsWith,
            Some('~') => Mark::Contains,
            Some('#') => Mark::Shape,
            _ => return Err("must start with one of `=^$~#`"),
        };
        Ok(Self { mark, text: chars.as_str().to_lowercase().into() })
    }
}

impl Pattern {
    pub(super) fn new(mark: Mark, text: &str) -> Self {
        Self::Text(TextPattern { mark, text: text.into() })
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Text(TextPattern { mark, text }) => match mark {
                Mark::Equals => *name == **text,
                Mark::StartsWith => name.starts_with(&**text),
                Mark::EndsWith => name.ends_with(&**text),
                Mark::Contains => name.contains(&**text),
                Mark::Shape => has_shape(name, text),
            },
            Self::Any(any) => any.iter().any(|pattern| pattern.matches(name)),
            Self::All { and } => and.iter().all(|pattern| pattern.matches(name)),
            Self::Not { not } => !not.matches(name),
        }
    }

    /// Returns whether the name equals one of the texts of the pattern.
    pub(super) fn names(&self, name: &str) -> bool {
        match self {
            Self::Text(pattern) => pattern.mark != Mark::Shape && *name == *pattern.text,
            Self::Any(any) => any.iter().any(|pattern| pattern.names(name)),
            Self::All { .. } | Self::Not { .. } => false,
        }
    }

    /// Adds the names that match exactly.
    pub(super) fn exact_into<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Self::Text(TextPattern { mark, text }) if *mark == Mark::Equals => names.push(text),
            Self::Any(any) => any.iter().for_each(|pattern| pattern.exact_into(names)),
            _ => {}
        }
    }

    /// Returns the text of an exact name or of a prefix.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(pattern) => &pattern.text,
            _ => "",
        }
    }
}

fn has_shape(text: &str, shape: &str) -> bool {
    let (shape, open_end) = match shape.strip_suffix('*') {
        Some(start) => (start.as_bytes(), true),
        None => (shape.as_bytes(), false),
    };
    let text = text.as_bytes();
    let long_enough = text.len() == shape.len() || (open_end && text.len() > shape.len());
    let fits = |(byte, wanted): (&u8, &u8)| match wanted {
        b'#' => byte.is_ascii_digit(),
        _ => byte == wanted,
    };
    long_enough && text.iter().zip(shape).all(fits)
}

/// Returns `host/path` in lower case, without scheme, user, port, query and fragment.
pub(super) fn address(url: &str) -> String {
    let rest = url.trim();
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    format!("{host}{path}").to_lowercase()
}

/// Returns whether the address is the pattern's or below it; `*` (once in a part) is one or more
/// characters other than `/`. Upstream accepts every address that starts like the pattern; here
/// `api.openai.com.example` is not `api.openai.com`.
pub(super) fn host_matches(pattern: &str, address: &str) -> bool {
    let mut parts = address.split('/');
    pattern.split('/').all(|wanted| {
        let part = parts.next().unwrap_or_default();
        match wanted.split_once('*') {
            None => part == wanted,
            Some((start, end)) => {
                part.len() > start.len() + end.len()
                    && part.starts_with(start)
                    && part.ends_with(end)
            }
        }
    })
}

/// Writes the dates in a name with dashes; none if it has no other dates. Routers write `-20251211`
/// for the table's `-2025-12-11`. As upstream does, unknown names are retried in that form.
pub(super) fn with_dashed_dates(name: &str) -> Option<String> {
    let dashed = |segment: &str| {
        let (digits, after) = segment.split_at_checked(8)?;
        let ends = after.is_empty() || after.starts_with(':');
        if !ends || !digits.starts_with("20") || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let date = format!("{}-{}-{}", &digits[..4], &digits[4..6], &digits[6..]);
        // Eight digits that are not a date are part of the name.
        date.parse::<jiff::civil::Date>().ok()?;
        Some(format!("{date}{after}"))
    };
    let (first, rest) = name.split_once('-')?;
    let mut out = first.to_owned();
    for segment in rest.split('-') {
        out.push('-');
        out.push_str(dashed(segment).as_deref().unwrap_or(segment));
    }
    Some(out).filter(|out| out != name)
}
