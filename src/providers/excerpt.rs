//! Excerpts of external text, for messages, logs and tables.

/// Limits the excerpt of a text that cannot be interpreted, in characters.
pub(super) const EXCERPT_CHARS_MAX: usize = 300;

/// Describes a body that is not an answer: empty, an HTML page, or its beginning.
pub(super) fn describe(body: &str) -> String {
    let body = body.trim();
    if body.is_empty() {
        return "empty body".into();
    }
    if is_html(body) {
        return match title(body) {
            Some(title) => format!("HTML page “{title}”"),
            None => format!("HTML page: {}", one_line(body, EXCERPT_CHARS_MAX)),
        };
    }
    one_line(body, EXCERPT_CHARS_MAX)
}

pub(super) fn is_html(body: &str) -> bool {
    let begins_with = |tag: &str| {
        let start = body.trim_start().as_bytes().get(..tag.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()))
    };
    begins_with("<!doctype html") || begins_with("<html")
}

fn title(page: &str) -> Option<String> {
    // ASCII lower case keeps every byte position.
    let lower = page.to_ascii_lowercase();
    let start = lower.find("<title")?;
    let start = start + lower[start..].find('>')? + 1;
    let end = start + lower[start..].find("</title")?;
    Some(one_line(&page[start..end], EXCERPT_CHARS_MAX)).filter(|title| !title.is_empty())
}

/// Returns `text` in one line, without control characters, cut to `chars_max` characters, because
/// external text goes to logs and tables.
pub(super) fn one_line(text: &str, chars_max: usize) -> String {
    let is_gap = |c: char| c.is_whitespace() || c.is_control();
    let words = text.split(is_gap).filter(|word| !word.is_empty());
    let mut chars = words.flat_map(|word| std::iter::once(' ').chain(word.chars())).skip(1);
    let mut line: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        line.truncate(line.trim_end().len());
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_html_page_is_described_by_its_title() {
        assert_eq!(
            describe("\n<!DOCTYPE html><html><head><TITLE lang=en>502 Bad\nGateway</TITLE>"),
            "HTML page “502 Bad Gateway”"
        );
        assert_eq!(describe("<html><body>Hi"), "HTML page: <html><body>Hi");
        assert!(!is_html("<ht"));
    }
}
