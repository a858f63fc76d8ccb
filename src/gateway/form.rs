//! Reads the fields of a form in a request body (`multipart/form-data`, RFC 7578) in place. Pure.

use std::ops::Range;

use crate::listener::{ApiError, RequestHead};

/// Limits the fields of a form.
const FIELDS_MAX: usize = 1_000;
/// Limits the value of a field that is read, in bytes.
const VALUE_BYTES_MAX: usize = 4 << 10;

pub struct Form<'a> {
    body: &'a [u8],
    pub boundary: &'a str,
    /// The name and the value's range of each field, in order.
    fields: Vec<(String, Range<usize>)>,
}

/// Returns the boundary of a form, if the request has one.
pub fn boundary(head: &RequestHead) -> Option<&str> {
    let content_type = head.header("content-type")?;
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    (1..=70).contains(&boundary.len()).then_some(boundary)
}

/// Returns a parameter of a header.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let is_named = key.trim().eq_ignore_ascii_case(name);
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        is_named.then_some(quoted.unwrap_or(value))
    })
}

impl<'a> Form<'a> {
    /// Finds the fields of a form.
    ///
    /// # Errors
    /// 400 for a body that is no such form.
    pub fn read(body: &'a [u8], boundary: &'a str) -> Result<Self, ApiError> {
        let delimiter = format!("\r\n--{boundary}");
        let delimiter = delimiter.as_bytes();
        let mut form = Self { body, boundary, fields: Vec::new() };
        // No client writes anything before the first field.
        let begin = body.strip_prefix(&delimiter[2..]).ok_or_else(bad_form)?;
        let mut at = body.len() - begin.len();
        while !body[at..].starts_with(b"--") {
            if form.fields.len() == FIELDS_MAX {
                return Err(bad_form());
            }
            // White space may follow the delimiter.
            let line = find(body, b"\r\n", at).ok_or_else(bad_form)?;
            let is_empty = body[at..line].iter().all(|byte| b" \t".contains(byte));
            let head_end = find(body, b"\r\n\r\n", line).filter(|_| is_empty);
            let head_end = head_end.ok_or_else(bad_form)?;
            let start = head_end + 4;
            // The delimiter of an empty value shares the line break of the head.
            let end = find(body, delimiter, start - 2).ok_or_else(bad_form)?.max(start);
            let head = String::from_utf8_lossy(&body[line..head_end]).into_owned();
            form.fields.push((name(&head).ok_or_else(bad_form)?, start..end));
            at = find(body, delimiter, start - 2).ok_or_else(bad_form)? + delimiter.len();
        }
        Ok(form)
    }

    /// Returns a short text field and its range, if there is one.
    ///
    /// # Errors
    /// 400 for a field that occurs twice, and for one that is no text.
    pub fn value(&self, name: &str) -> Result<Option<(Range<usize>, &'a str)>, ApiError> {
        let mut all = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let Some((known, range)) = all.next() else {
            return Ok(None);
        };
        if all.next().is_some() || known != name {
            let message = format!("duplicate or unclear field `{name}`");
            return Err(ApiError::bad_request("ambiguous", message));
        }
        let value = self.body.get(range.clone()).filter(|it| it.len() <= VALUE_BYTES_MAX);
        let value = value.and_then(|value| std::str::from_utf8(value).ok());
        value.map(|value| Some((range.clone(), value))).ok_or_else(|| {
            ApiError::bad_request("bad_field", format!("field `{name}` must be a short text"))
        })
    }
}

/// Returns a field in the form of a body's beginning.
pub fn field(boundary: &str, name: &str, value: &str) -> String {
    format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

/// Returns the name in the head of a field.
fn name(head: &str) -> Option<String> {
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (_, parameters) = disposition.split_once(';')?;
    parameter(parameters, "name").map(str::to_owned)
}

fn find(body: &[u8], text: &[u8], from: usize) -> Option<usize> {
    let first = *text.first()?;
    let mut at = from;
    loop {
        at += body.get(at..)?.iter().position(|byte| *byte == first)?;
        if body[at..].starts_with(text) {
            return Some(at);
        }
        at += 1;
    }
}

fn bad_form() -> ApiError {
    let message = "cannot read the form in the request body (multipart/form-data)";
    ApiError::bad_request("bad_form", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_in_place() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n\
            --x  \r\nX-Y: z\r\ncontent-disposition: form-data; filename=\"name=a\"; name=file\r\n\r\n\r\n--y\r\n\
            --x\r\nContent-Disposition: form-data; name=\"empty\"\r\n\r\n\r\n--x--";
        let form = Form::read(body, "x").unwrap();
        let names: Vec<&str> = form.fields.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["model", "file", "empty"]);
        assert_eq!(form.value("model").unwrap().unwrap().1, "m");
        assert_eq!(form.value("file").unwrap().unwrap().1, "\r\n--y");
        assert_eq!(form.value("empty").unwrap().unwrap().1, "");
        assert!(form.value("n").unwrap().is_none());
        let part = field("x", "model", "m");
        let twice = [part.as_bytes(), part.as_bytes(), b"--x--"].concat();
        let refusal = Form::read(&twice, "x").unwrap().value("model").unwrap_err();
        assert_eq!(refusal.code, "ambiguous");
    }

    #[test]
    fn the_boundary_is_a_parameter_of_the_content_type() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"", Some("a b")),
            ("multipart/form-data", None),
            ("application/json; boundary=a", None),
        ] {
            let head =
                format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\n\r\n");
            let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
            assert_eq!(boundary(&head), expected, "{content_type}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_forms_never_panic(body in "(--b|\r\n|-|[a-z]|content-disposition: form-data; name=){0,40}") {
            let _ = Form::read(body.as_bytes(), "b");
        }
    }
}
