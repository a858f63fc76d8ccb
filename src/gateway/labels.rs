//! Labels that group a client's calls, from request headers. Pure.

use crate::ids::FlowId;
use crate::listener::ApiError;
use crate::listener::RequestHead;

/// Limits a role, in bytes.
const ROLE_BYTES_MAX: usize = 100;
/// Limits the number of tags.
const TAGS_MAX: usize = 16;
/// Limits a tag, in bytes.
const TAG_BYTES_MAX: usize = 64;

/// The labels of a client's calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// `X-Flowledger-Role`.
    pub role: Option<String>,
    /// `X-Flowledger-Tags`, separated by commas.
    pub tags: Option<String>,
    /// `X-Flowledger-Flow`; the flow need not exist.
    pub flow_id: Option<FlowId>,
}

impl Labels {
    pub fn read(head: &RequestHead) -> Result<Self, ApiError> {
        let role = match head.header("x-flowledger-role").unwrap_or_default() {
            "" => None,
            role if role.len() <= ROLE_BYTES_MAX && role.bytes().all(is_visible) => {
                Some(role.to_owned())
            }
            _ => {
                let message = format!(
                    "`X-Flowledger-Role` must have up to {ROLE_BYTES_MAX} printable ASCII characters"
                );
                return Err(ApiError::bad_request("bad_role", message));
            }
        };
        let flow_id = match head.header("x-flowledger-flow").unwrap_or_default() {
            "" => None,
            id => Some(id.parse().map_err(|_| {
                let message = "`X-Flowledger-Flow` must be the id of a flow, a whole number";
                ApiError::bad_request("bad_flow", message)
            })?),
        };
        Ok(Self { role, tags: tags(head)?, flow_id })
    }
}

fn tags(head: &RequestHead) -> Result<Option<String>, ApiError> {
    let tags: Vec<&str> = head.items("x-flowledger-tags").filter(|tag| !tag.is_empty()).collect();
    let is_tag = |tag: &&str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/=@-".contains(&byte);
        tag.len() <= TAG_BYTES_MAX && tag.bytes().all(is_allowed)
    };
    if tags.len() > TAGS_MAX || !tags.iter().all(is_tag) {
        let message = format!(
            "`X-Flowledger-Tags` must be up to {TAGS_MAX} comma-separated tags, each with up to \
             {TAG_BYTES_MAX} letters, digits or . _ : / = @ -"
        );
        return Err(ApiError::bad_request("bad_tags", message));
    }
    Ok(Some(tags.join(",")).filter(|tags| !tags.is_empty()))
}

fn is_visible(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<Labels, ApiError> {
        let head = format!("POST /v1/messages HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
        Labels::read(&head)
    }

    #[test]
    fn labels_are_parsed_and_trimmed() {
        assert_eq!(read("").unwrap(), Labels::default());
        let labels = read(
            "x-flowledger-role: planner\r\nx-flowledger-tags: a=1, team:x ,,\r\nx-flowledger-flow: 7\r\n",
        );
        let expected = Labels {
            role: Some("planner".into()),
            tags: Some("a=1,team:x".into()),
            flow_id: Some(7),
        };
        assert_eq!(labels.unwrap(), expected);
    }

    #[test]
    fn long_and_unsafe_labels_are_refused() {
        let long = "x".repeat(101);
        let many = "t,".repeat(17);
        for (fields, code) in [
            (format!("x-flowledger-role: {long}\r\n"), "bad_role"),
            (format!("x-flowledger-tags: {long}\r\n"), "bad_tags"),
            (format!("x-flowledger-tags: {many}\r\n"), "bad_tags"),
            ("x-flowledger-tags: a b\r\n".into(), "bad_tags"),
            ("x-flowledger-tags: <b>\r\n".into(), "bad_tags"),
            ("x-flowledger-flow: one\r\n".into(), "bad_flow"),
        ] {
            assert_eq!(read(&fields).unwrap_err().code, code, "{fields}");
        }
    }
}
