//! The gateway's own answers in Gemini's API: its models, in pages. Pure.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::models::Model;
use crate::listener::{ApiError, RequestHead};

/// "at most 50 models will be returned per page" and "returns at most 1000 models per page, even if
/// you pass a larger pageSize": <https://ai.google.dev/api/models#method:-models.list>.
const PAGE_MODELS_DEFAULT: usize = 50;
const PAGE_MODELS_MAX: usize = 1_000;

/// Returns a page of the models. The token of a page is the last name before it.
pub fn list(models: &[Model], head: &RequestHead) -> Result<Value, ApiError> {
    let parameter = |name: &str, other: &str| head.query(name).or_else(|| head.query(other));
    let size = match parameter("pageSize", "page_size").filter(|size| !size.is_empty()) {
        None => PAGE_MODELS_DEFAULT,
        Some(size) => size.parse().map_err(|_| {
            ApiError::bad_request("bad_page_size", "`pageSize` must be a whole number")
        })?,
    };
    let size = if size == 0 { PAGE_MODELS_DEFAULT } else { size.min(PAGE_MODELS_MAX) };
    let token = parameter("pageToken", "page_token").unwrap_or_default();
    let token = percent_decode_str(token).decode_utf8_lossy();
    let start = match models.iter().position(|model| model.id == token) {
        Some(last) => last + 1,
        None if token.is_empty() => 0,
        None => {
            return Err(ApiError::bad_request("bad_page_token", "`pageToken` is unknown"));
        }
    };
    let rest = models.get(start..).unwrap_or_default();
    let page = &rest[..size.min(rest.len())];
    let mut document = json!({"models": page.iter().map(model).collect::<Vec<_>>()});
    if let Some(last) = page.last().filter(|_| page.len() < rest.len()) {
        document["nextPageToken"] = last.id.as_str().into();
    }
    Ok(document)
}

/// Returns the description of a model.
pub fn model(model: &Model) -> Value {
    let methods: &[&str] = match model.id.contains("embed") {
        true => &["embedContent", "batchEmbedContents", "countTokens"],
        false => &["generateContent", "streamGenerateContent", "countTokens"],
    };
    let mut document = json!({
        "name": format!("models/{}", model.id),
        "version": "",
        "displayName": model.display_name,
        "description": "",
        "supportedGenerationMethods": methods,
    });
    if let Some(tokens) = model.context_tokens {
        document["inputTokenLimit"] = tokens.into();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &[&str], query: &str) -> Result<Value, ApiError> {
        let models: Vec<Model> = names.iter().map(|name| Model::named(name, "gemini")).collect();
        let head = format!("GET /v1beta/models{query} HTTP/1.1\r\nhost: a\r\n\r\n");
        let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
        list(&models, &head)
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let names = ["a/1", "a/2", "b/1", "b/2", "c"];
        let (mut found, mut query) = (vec![], "?pageSize=2".to_owned());
        loop {
            let page = page(&names, &query).unwrap();
            found.extend(page["models"].as_array().unwrap().clone());
            let Some(token) = page["nextPageToken"].as_str() else { break };
            query = format!("?page_size=2&pageToken={}", token.replace('/', "%2F"));
        }
        let found: Vec<_> = found.iter().map(|model| model["name"].as_str().unwrap()).collect();
        assert_eq!(found, names.map(|name| format!("models/{name}")));
        assert_eq!(page(&names, "").unwrap()["models"].as_array().unwrap().len(), 5);
        for query in ["?pageSize=x", "?pageToken=unknown"] {
            assert_eq!(page(&names, query).unwrap_err().status, 400, "{query}");
        }
    }
}
