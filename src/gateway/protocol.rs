//! The protocols of the gateway's clients, for its own responses.

use serde_json::json;

use crate::listener::ApiError;
use crate::providers::AnswerHead;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    OpenAi,
    Anthropic,
    Gemini,
    Ollama,
}

impl Protocol {
    /// Returns the protocol's name. The provider of this name is used if the model's name contains
    /// no provider.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Ollama => "ollama",
        }
    }

    pub fn error(self, refusal: &ApiError) -> Vec<u8> {
        let ApiError { status, code, message, .. } = refusal;
        let document = match self {
            Self::OpenAi => json!({"error": {
                "message": message, "type": openai_type(*status), "param": null, "code": code,
            }}),
            Self::Anthropic => json!({"type": "error", "error": {
                "type": anthropic_type(*status), "message": message,
            }}),
            // <https://cloud.google.com/apis/design/errors#http_mapping>.
            Self::Gemini => json!({"error": {
                "code": status, "message": message, "status": google_status(*status),
            }}),
            Self::Ollama => json!({"error": message}),
        };
        document.to_string().into_bytes()
    }

    /// Returns an error event within a stream.
    pub fn error_event(self, refusal: &ApiError) -> Vec<u8> {
        let error = self.error(refusal);
        let (begin, end): (&[u8], &[u8]) = match self {
            Self::OpenAi | Self::Gemini => (b"data: ", b"\n\n"),
            Self::Anthropic => (b"event: error\ndata: ", b"\n\n"),
            Self::Ollama => (b"", b"\n"),
        };
        [begin, &error, end].concat()
    }
}

/// The form of an error within a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    Of(Protocol),
    /// OpenAI's Responses API, whose events have types. The field `error` is that of other streams,
    /// which OpenAI's SDKs look for.
    Response,
    /// The last element of Gemini's array.
    ContentArray,
}

impl ErrorForm {
    /// Returns the event of an error.
    pub fn event(self, refusal: &ApiError) -> Vec<u8> {
        let ApiError { status, code, message, .. } = refusal;
        match self {
            Self::Of(protocol) => protocol.error_event(refusal),
            Self::Response => {
                let error = json!({
                    "type": "error", "code": code, "message": message, "param": null,
                    "sequence_number": 0, "error": {
                        "message": message, "type": openai_type(*status), "param": null,
                        "code": code,
                    },
                });
                format!("event: error\ndata: {error}\n\n").into_bytes()
            }
            Self::ContentArray => {
                let error = Protocol::Gemini.error(refusal);
                [b",\r\n".as_slice(), &error, b"\n]\n"].concat()
            }
        }
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

fn google_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        402 => "FAILED_PRECONDITION",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        400..=498 => "INVALID_ARGUMENT",
        502 | 503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    }
}

/// The reason why a client gets no answer from a model.
#[derive(Clone, Debug)]
pub enum ErrorResponse {
    Ours(ApiError),
    Providers(AnswerHead, Vec<u8>),
}

impl From<ApiError> for Box<ErrorResponse> {
    fn from(error: ApiError) -> Self {
        Self::new(ErrorResponse::Ours(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_format_of_their_protocol() {
        let refusal = ApiError::new(402, "budget", "no");
        assert_eq!(
            String::from_utf8(Protocol::OpenAi.error(&refusal)).unwrap(),
            r#"{"error":{"message":"no","type":"insufficient_quota","param":null,"code":"budget"}}"#
        );
        let google = r#"{"error":{"code":402,"message":"no","status":"FAILED_PRECONDITION"}}"#;
        assert_eq!(String::from_utf8(Protocol::Gemini.error(&refusal)).unwrap(), google);
        for (form, expected) in [
            (
                ErrorForm::Of(Protocol::Anthropic),
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"billing_error\",\"message\":\"no\"}}\n\n",
            ),
            (ErrorForm::Of(Protocol::Gemini), &format!("data: {google}\n\n")),
            (ErrorForm::ContentArray, &format!(",\r\n{google}\n]\n")),
            (ErrorForm::Of(Protocol::Ollama), "{\"error\":\"no\"}\n"),
        ] {
            assert_eq!(String::from_utf8(form.event(&refusal)).unwrap(), expected, "{form:?}");
        }
        let event = String::from_utf8(ErrorForm::Response.event(&refusal)).unwrap();
        assert!(
            event.starts_with("event: error\ndata: {\"type\":\"error\",\"code\":\"budget\","),
            "{event}"
        );
    }
}
