//! Base64 in the alphabet that all makers accept, read from either alphabet of
//! <https://www.rfc-editor.org/rfc/rfc4648>.

use data_encoding::{BASE64, BASE64_NOPAD};

pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Returns nothing if the text is not base64.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_NOPAD.decode(standard_digits(text).as_bytes()).ok()
}

/// Returns a text with padding and without the letters of the alphabet for URLs, which Google's SDK for
/// Python writes and other makers refuse. Any other text stays as it is.
pub(super) fn standard(text: &str) -> String {
    if !text.contains(['-', '_']) {
        return text.to_owned();
    }
    decode(text).map_or_else(|| text.to_owned(), |bytes| encode(&bytes))
}

fn standard_digits(text: &str) -> String {
    let digits = text.trim_end_matches('=').chars();
    digits
        .map(|digit| match digit {
            '-' => '+',
            '_' => '/',
            digit => digit,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_alphabets_are_read_and_one_is_written() {
        // The vectors of RFC 4648, section 10.
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(encode(plain.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(decode("Zg=a"), None);
        assert_eq!(decode("\u{e4}"), None);
        assert_eq!(standard("-_-_"), "+/+/");
        assert_eq!(standard("_w"), "/w==");
        for text in ["Zg==", "no_base64", "+/+/"] {
            assert_eq!(standard(text), text);
        }
    }
}
