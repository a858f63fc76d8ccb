//! Stores the bodies of calls, if that is switched on. This happens after the client has its answer,
//! so that no call waits for it.

use std::cell::RefCell;
use std::sync::Arc;

use super::client;
use super::keys::{KEY_DIGITS, PREFIX};
use super::protocol::{ErrorResponse, Protocol};
use crate::listener::{RequestHead, ResponseCopy};
use crate::providers::Providers;
use crate::secret::{Mask, Secret};
use crate::store::{BODY_BYTES_MAX, BodyPart, NewBody};
use crate::time::Timestamp;

/// Limits the length of a secret that is recognized at the end of a body that is cut, in bytes.
const SECRET_BYTES_MAX: usize = 8 << 10;
/// Limits how much of a body is copied and searched for secrets, in bytes.
pub(super) const COPY_BYTES_MAX: usize = BODY_BYTES_MAX + SECRET_BYTES_MAX;
/// Limits the length of a stored content type, in bytes.
const TYPE_BYTES_MAX: usize = 200;
/// The beginnings of content types that are not text.
const BINARY_TYPES: [&str; 5] = ["audio/", "image/", "video/", "multipart/", "application/octet-"];

pub(super) struct BodyStore {
    mask: Mask,
}

/// The ledger rows of a request.
#[derive(Default)]
pub(super) struct RequestRows {
    rows: RefCell<Vec<RequestRow>>,
}

struct RequestRow {
    id: i64,
    end_user: Option<String>,
    /// The response of an attempt that did not answer the client.
    error: Option<ErrorBody>,
}

struct ErrorBody {
    bytes: Vec<u8>,
    content_type: Option<String>,
}

impl RequestRows {
    pub(super) fn add(&self, id: i64, end_user: Option<&str>) {
        let end_user = end_user.map(str::to_owned);
        self.rows.borrow_mut().push(RequestRow { id, end_user, error: None });
    }

    /// Notes the error of an attempt, if it has a row.
    pub(super) fn end(&self, error: &ErrorResponse, protocol: Protocol) {
        let mut rows = self.rows.borrow_mut();
        // Without a row of this attempt, the last row has its error already.
        let Some(row) = rows.last_mut().filter(|row| row.error.is_none()) else {
            return;
        };
        row.error = Some(match error {
            ErrorResponse::Ours(refusal) => ErrorBody {
                bytes: protocol.error(refusal),
                content_type: Some("application/json".to_owned()),
            },
            ErrorResponse::Providers(head, body) => {
                let mut headers = head.headers.iter();
                let content_type = headers.find(|(name, _)| name == "content-type");
                let content_type = content_type.map(|(_, value)| value.clone());
                ErrorBody { bytes: body.clone(), content_type }
            }
        });
    }
}

impl BodyStore {
    pub(super) fn new(providers: &Providers, token: Option<&Secret>) -> Self {
        let secrets = providers.keys().chain(token).cloned();
        Self { mask: Mask::new(secrets).with_random(PREFIX, KEY_DIGITS) }
    }

    /// Returns the bodies to store for the rows of a request.
    pub(super) fn bodies(
        &self,
        rows: RequestRows,
        head: &RequestHead,
        request: &[u8],
        response: &ResponseCopy,
    ) -> Vec<Arc<NewBody>> {
        let rows = rows.rows.into_inner();
        if rows.is_empty() {
            return Vec::new();
        }
        let mut mask = self.mask.clone();
        client::offered(head).iter().for_each(|(key, ..)| mask.add(key));
        let request = part(&mask, request, request.len() as u64, head.header("content-type"));
        let at = Timestamp::now();
        let body = |row: RequestRow| {
            let response = match &row.error {
                Some(ErrorBody { bytes, content_type }) => {
                    part(&mask, bytes, bytes.len() as u64, content_type.as_deref())
                }
                None => {
                    let content_type = response.content_type.as_deref();
                    part(&mask, &response.bytes, response.length, content_type)
                }
            };
            let (ledger_id, end_user, request) = (row.id, row.end_user, request.clone());
            Arc::new(NewBody { ledger_id, end_user, at, request, response })
        };
        rows.into_iter().map(body).collect()
    }
}

/// Returns a body of `length` bytes that begins with these.
fn part(mask: &Mask, bytes: &[u8], length: u64, content_type: Option<&str>) -> BodyPart {
    let content_type = content_type.map(|text| {
        let end = text.len().min(TYPE_BYTES_MAX);
        text.get(..end).unwrap_or_default().to_ascii_lowercase()
    });
    let is_binary = |text: &String| BINARY_TYPES.iter().any(|start| text.starts_with(start));
    if content_type.as_ref().is_some_and(is_binary) {
        return BodyPart::new(None, length, false, content_type);
    }
    let searched = String::from_utf8_lossy(&bytes[..bytes.len().min(COPY_BYTES_MAX)]);
    let is_cut = searched.len() > BODY_BYTES_MAX || length > bytes.len() as u64;
    let text = mask.cut(&searched, BODY_BYTES_MAX);
    BodyPart::new(Some(&text), length, is_cut, content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_cut_and_binary_content_is_only_measured() {
        let mask = Mask::new([Secret::new("sk-live-123")]);
        let long = [vec![b'a'; BODY_BYTES_MAX - 4], b"sk-live-123".to_vec()].concat();
        let body = part(&mask, &long, 1_000_000, Some("Application/JSON"));
        let text = body.text().unwrap().unwrap();
        assert!(text.ends_with("aaa***") && text.len() == BODY_BYTES_MAX - 1);
        assert_eq!((body.bytes, body.is_cut), (1_000_000, true));
        assert_eq!(body.content_type.as_deref(), Some("application/json"));
        let short = part(&mask, b"a\xffb sk-live-123", 15, None);
        assert_eq!(short.text().unwrap().as_deref(), Some("a\u{fffd}b ***"));
        assert!(!short.is_cut);
        for binary in ["audio/mpeg", "multipart/form-data; boundary=x", "application/octet-stream"]
        {
            let body = part(&mask, &long, long.len() as u64, Some(binary));
            assert_eq!((body.text().unwrap(), body.bytes), (None, long.len() as u64));
        }
    }
}
