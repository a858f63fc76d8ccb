//! Reads JSON without changing its numbers.

use serde_json::Value;

/// A UTF-8 byte order mark, which some editors and servers put before a text.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// The number of digits that every integer of 64 bits can have.
const SAFE_DIGITS: usize = 18;
/// Limits the digits in an error.
const SHOWN_DIGITS: usize = 30;

/// Returns a text without a byte order mark at its beginning.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// Returns the text in a Markdown code fence, or the whole text if it is no such block.
pub fn unfenced(text: &str) -> &str {
    let trimmed = text.trim_start_matches('\u{feff}').trim();
    let inner = trimmed.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    // The rest of the first line names the language.
    match inner.and_then(|inner| inner.split_once('\n')) {
        Some((language, body)) if !language.contains(['{', '[', '"']) => body,
        _ => text,
    }
}

/// Parses JSON.
///
/// # Errors
/// Returns the reason why the text is not valid, or which integer does not fit into 64 bits.
pub fn parse(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check_integers(text.as_bytes())?;
    Ok(value)
}

/// Checks that valid JSON has no integer beyond 64 bits, because it would be rounded.
///
/// # Errors
/// Names the first such integer.
pub fn check_integers(text: &[u8]) -> Result<(), String> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => at = end_of_string(text, at),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
                let length = text[at..].iter().take_while(|byte| is_part(byte)).count();
                check_integer(&text[at..at + length])?;
                at += length;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Returns the index after a string that begins at `start`.
fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

fn check_integer(number: &[u8]) -> Result<(), String> {
    if number.len() <= SAFE_DIGITS || number.iter().any(|byte| b".eE".contains(byte)) {
        return Ok(());
    }
    let digits = String::from_utf8_lossy(number);
    if digits.parse::<i64>().is_ok() || digits.parse::<u64>().is_ok() {
        return Ok(());
    }
    let shown: String = digits.chars().take(SHOWN_DIGITS).collect();
    let more = if digits.len() > SHOWN_DIGITS { "…" } else { "" };
    Err(format!("the integer {shown}{more} does not fit into 64 bits; send it as a string"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_are_refused() {
        for fits in ["18446744073709551615", "-9223372036854775808", "1e77", "1.5", "[0, -0]"] {
            assert!(parse(fits).is_ok(), "{fits}");
        }
        for over in [
            "18446744073709551616",
            "-9223372036854775809",
            r#"{"a": [1, 9e9, 1157000000000000000000000000000000000000]}"#,
        ] {
            let error = parse(over).unwrap_err();
            assert!(error.contains("does not fit into 64 bits"), "{error}");
        }
        let in_text = r#"{"18446744073709551616": "a \" 18446744073709551616"}"#;
        assert!(parse(in_text).is_ok());
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(parse("\u{feff}[1]").unwrap(), serde_json::json!([1]));
        assert_eq!(without_mark("\u{feff}[1]".as_bytes()), b"[1]");
    }
}
