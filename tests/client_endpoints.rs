//! Clients' calls other than conversations: embeddings, completions, moderations, reranking, images
//! and sound.

use std::io::Write;

use flowledger::config::Config;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::clients::{rows, server, server_with};
use crate::harness::{DEADLINE, TestServer, add_provider};
use crate::upstream::{STREAM_HEAD, Upstream, json_answer};

const EMBEDDINGS: &str = "/v1/embeddings";

fn answering(body: &Value) -> (Upstream, TestServer) {
    let upstream = Upstream::saying(json_answer("200 OK", &body.to_string()));
    let server = server(&upstream);
    (upstream, server)
}

/// Compares some columns of the only row.
fn assert_row(server: &TestServer, expected: &Value) {
    let row = rows(server, 1).remove(0);
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(row[name], *value, "{name} of {row}");
    }
}

fn form(fields: &[(&str, &str)], file: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part =
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(part.into_bytes());
    }
    body.extend(
        b"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\n",
    );
    body.extend(file);
    body.extend(b"\r\n--xyz--\r\n");
    body
}

#[test]
fn embeddings_are_priced_and_cached() {
    let answer = json!({
        "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1e-3]}],
        "model": "text-embedding-3-small", "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
    });
    let (upstream, server) = answering(&answer);
    let body = json!({"model": "openai/text-embedding-3-small", "input": ["a", "b"]}).to_string();
    let ask = || {
        let headers = [("x-flowledger-cache", "60"), ("x-flowledger-tags", "search")];
        let response = server.request("POST", EMBEDDINGS, &headers, body.as_bytes());
        assert_eq!((response.status, response.text()), (200, answer.to_string()));
        response.header("x-flowledger-cached").unwrap().to_owned()
    };
    assert_eq!(ask(), "false");
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert_eq!(sent, body.replace("openai/text", "text"));
    assert!(upstream.heads().recv_timeout(DEADLINE).unwrap().contains("post /v1/embeddings "));
    assert_row(
        &server,
        &json!({
            "status": "SUCCESS", "input_tokens": 1000, "output_tokens": 0,
            "usage_source": "provider", "total_cost_usd": 0.00002, "tags": "search",
        }),
    );
    assert_eq!(ask(), "true");
    let row = &rows(&server, 2)[1];
    assert_eq!((&row["cached"], &row["saved_usd"]), (&json!(true), &json!(0.00002)));
    // Another operation with the same body has another answer.
    let moderated =
        server.request("POST", "/v1/moderations", &[("x-flowledger-cache", "60")], body.as_bytes());
    assert_eq!(moderated.header("x-flowledger-cached"), None, "{}", moderated.text());
}

#[test]
fn echo_answers_embeddings_and_completions() {
    let server = TestServer::start();
    let ask = |body: Value| server.post(EMBEDDINGS, &body).json();
    let answer =
        ask(json!({"model": "echo/echo-1", "input": ["two words", "one"], "dimensions": 9}));
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let vectors: Vec<Vec<f64>> = (0..2)
        .map(|index| serde_json::from_value(answer["data"][index]["embedding"].clone()).unwrap())
        .collect();
    assert_eq!((vectors[0].len(), vectors[0] == vectors[1]), (9, false));
    let length: f64 = vectors[0].iter().map(|it| it * it).sum();
    assert!((length - 1.0).abs() < 1e-5);
    let again = ask(json!({"model": "echo/echo-1", "input": "two words", "dimensions": 9}));
    assert_eq!(again["data"][0]["embedding"], answer["data"][0]["embedding"]);
    let encoded = ask(
        json!({"model": "echo/echo-1", "input": "a", "encoding_format": "base64", "dimensions": 3}),
    );
    assert_eq!(encoded["data"][0]["embedding"].as_str().unwrap().len(), 16);
    let body = json!({"model": "echo/echo-1", "prompt": "Hi there"});
    let answer = server.post("/v1/completions", &body).json();
    assert_eq!(answer["choices"][0]["text"], "[echo of echo-1] Hi there");
    let body = json!({"model": "echo/echo-1", "prompt": "Hi", "stream": true});
    let text = server.post("/v1/completions", &body).text();
    assert!(text.contains("\"text\":\"Hi\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    let refused = server.post("/v1/images/generations", &json!({"model": "echo/x", "prompt": "p"}));
    assert_eq!((refused.status, refused.error_code()), (400, "wrong_protocol".into()));
    assert_eq!(rows(&server, 5)[0]["total_cost_usd"], 0);
}

#[test]
fn streamed_completions_hide_usage_that_was_not_requested() {
    let events = "data: {\"model\":\"gpt-3.5-turbo-instruct\",\"choices\":[{\"index\":0,\"text\":\"Hi\",\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n";
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":1000}}\n\n";
    let answer = format!("{STREAM_HEAD}{events}{usage}data: [DONE]\n\n");
    let upstream = Upstream::saying(answer);
    let server = server(&upstream);
    let body = json!({"model": "gpt-3.5-turbo-instruct", "prompt": "Say", "stream": true});
    let response = server.post("/v1/completions", &body);
    assert_eq!(response.text(), format!("{events}data: [DONE]\n\n"));
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(sent.contains(r#""stream_options":{"include_usage":true}"#), "{sent}");
    assert_row(
        &server,
        &json!({"input_tokens": 1000, "output_tokens": 1000, "total_cost_usd": 0.0035}),
    );
}

#[test]
fn moderations_are_free_at_openai() {
    let answer =
        json!({"id": "m", "model": "omni-moderation-latest", "results": [{"flagged": false}]});
    let (_upstream, server) = answering(&answer);
    let budgets = json!({"budgets": [{"name": "none", "per": "day", "limitUsd": "0"}]});
    assert_eq!(
        server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes()).status,
        200
    );
    let body = json!({"model": "omni-moderation-latest", "input": "How are you?"});
    assert_eq!(server.post("/v1/moderations", &body).json(), answer);
    assert_row(
        &server,
        &json!({"status": "SUCCESS", "total_cost_usd": 0, "usage_source": "estimated"}),
    );
}

#[test]
fn reranking_has_tokens_or_the_reason_of_an_unknown_cost() {
    let answer = json!({"results": [{"index": 0, "relevance_score": 0.9}],
        "meta": {"billed_units": {"search_units": 2}}});
    let (upstream, server) = answering(&answer);
    let body = json!({"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"]});
    assert_eq!(server.post("/v2/rerank", &body).json(), answer);
    assert!(upstream.heads().recv_timeout(DEADLINE).unwrap().contains("post /v2/rerank "));
    assert_row(
        &server,
        &json!({
            "status": "SUCCESS", "input_tokens": null, "usage_source": "none", "total_cost_usd": null,
            "cost_note": "2 search units",
        }),
    );
    assert_eq!(server.post("/v1/rerank", &body).status, 200);
    assert!(upstream.heads().recv_timeout(DEADLINE).unwrap().contains("post /v1/rerank "));
}

#[test]
fn images_are_priced_by_their_tokens() {
    let answer = json!({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": {
        "input_tokens": 100, "output_tokens": 1000, "total_tokens": 1100,
        "input_tokens_details": {"text_tokens": 100, "image_tokens": 0}}});
    let (_upstream, server) = answering(&answer);
    let body = json!({"model": "gpt-image-1", "prompt": "a bee"});
    assert_eq!(server.post("/v1/images/generations", &body).json(), answer);
    assert_row(
        &server,
        &json!({"input_tokens": 100, "output_tokens": 1000, "total_cost_usd": 0.0405}),
    );
}

#[test]
fn a_hard_budget_refuses_calls_without_a_known_bound() {
    let answer = json!({"created": 1, "data": [{"url": "u"}]});
    let (upstream, server) = answering(&answer);
    let set = |allows: bool| {
        let budget = json!({"name": "b", "per": "day", "limitUsd": "100", "allowUnpriced": allows});
        let body = json!({"budgets": [budget]}).to_string();
        assert_eq!(server.request("PUT", "/api/budget", &[], body.as_bytes()).status, 200);
    };
    set(false);
    let ask =
        || server.post("/v1/images/generations", &json!({"model": "gpt-image-1", "prompt": "p"}));
    assert_eq!(ask().status, 402);
    assert_eq!(upstream.count(), 0);
    set(true);
    assert_eq!(ask().status, 200);
    let row = &rows(&server, 2)[1];
    assert_eq!(row["total_cost_usd"], Value::Null);
    assert_eq!(row["cost_note"], "no usage in the response");
}

#[test]
fn sound_passes_byte_for_byte() {
    let sound: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 % 256) as u8).collect();
    let sent = sound.clone();
    let upstream = Upstream::start(move |_, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&sent);
    });
    let server = server(&upstream);
    let body = json!({"model": "openai/gpt-4o-mini-tts", "input": "Hi", "voice": "alloy"});
    let response = server.post("/v1/audio/speech", &body);
    assert_eq!(response.header("content-type"), Some("audio/mpeg"));
    assert_eq!(response.body, sound);
    assert_row(
        &server,
        &json!({
            "status": "SUCCESS", "usage_source": "none", "total_cost_usd": null,
            "cost_note": "no usage in the response",
        }),
    );
}

#[test]
fn a_form_keeps_all_bytes_but_the_model() {
    let answer = json!({"text": "Hi", "usage": {"type": "duration", "seconds": 3}});
    let (upstream, server) = answering(&answer);
    let body = form(&[("model", "openai/whisper-1"), ("language", "en")], b"\x00ID3\r\n--x\r\n");
    let headers = [("content-type", "multipart/form-data; boundary=xyz")];
    let response = server.request("POST", "/v1/audio/transcriptions", &headers, &body);
    assert_eq!(response.json(), answer, "{}", response.text());
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    let expected = form(&[("model", "whisper-1"), ("language", "en")], b"\x00ID3\r\n--x\r\n");
    assert_eq!(sent.as_bytes(), expected);
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    assert!(head.contains("content-type: multipart/form-data; boundary=xyz\n"), "{head}");
    assert!(!head.contains("application/json"), "{head}");
    assert_row(&server, &json!({"total_cost_usd": null, "cost_note": "3 seconds of audio"}));
    let refused = server.request("POST", "/v1/audio/transcriptions", &headers, b"--xyz\r\nnothing");
    assert_eq!((refused.status, refused.error_code()), (400, "bad_form".into()));
}

#[test]
fn streamed_transcripts_and_plain_subtitles_pass() {
    let events = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Hi\"}\n\n\
        data: {\"type\":\"transcript.text.done\",\"text\":\"Hi\",\"usage\":{\"type\":\"tokens\",\"input_tokens\":14,\"input_token_details\":{\"text_tokens\":0,\"audio_tokens\":14},\"output_tokens\":2,\"total_tokens\":16}}\n\n";
    let upstream = Upstream::start(move |body, stream| {
        let answer = match body.contains("srt") {
            true => "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n1\n00:00 --> 00:01\nHi\n".to_owned(),
            false => format!("{STREAM_HEAD}{events}data: [DONE]\n\n"),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server(&upstream);
    let headers = [("content-type", "multipart/form-data; boundary=xyz")];
    let ask = |fields: &[(&str, &str)]| {
        let body = form(fields, b"sound");
        server.request("POST", "/v1/audio/transcriptions", &headers, &body)
    };
    let streamed = ask(&[("model", "gpt-4o-transcribe"), ("stream", "true")]);
    assert_eq!(streamed.text(), format!("{events}data: [DONE]\n\n"));
    let row = &rows(&server, 1)[0];
    let parts = ["input_tokens", "output_tokens", "cost_note"].map(|name| row[name].clone());
    assert_eq!(parts, [json!(14), json!(2), json!("audio tokens")]);
    let plain = ask(&[("model", "whisper-1"), ("response_format", "srt")]);
    assert_eq!(plain.text(), "1\n00:00 --> 00:01\nHi\n");
    assert_eq!(plain.header("content-type"), Some("text/plain"));
    assert_eq!(rows(&server, 2)[1]["status"], "SUCCESS");
}

#[test]
fn a_broken_sound_ends_the_connection() {
    let upstream = Upstream::saying(
        "HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 100\r\nconnection: close\r\n\r\nID3",
    );
    let server = server(&upstream);
    let body = json!({"model": "tts-1", "input": "Hi", "voice": "alloy"}).to_string();
    let request = format!(
        "POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.ends_with("3\r\nID3\r\n"), "{answer}");
    assert_row(&server, &json!({"status": "FAILED", "total_cost_usd": null}));
}

#[test]
fn other_kinds_of_providers_refuse_these_calls() {
    let upstream = Upstream::saying("");
    let change = |config: &mut Config| {
        add_provider(config, "local", Kind::Ollama, upstream.url());
    };
    let server = server_with(&upstream, change);
    for (path, model) in [
        (EMBEDDINGS, "anthropic/claude-haiku-4-5"),
        ("/v1/moderations", "local/x"),
        ("/v1/rerank", "anthropic/x"),
    ] {
        let body = json!({"model": model, "input": "a", "query": "q", "documents": []});
        let refused = server.post(path, &body);
        assert_eq!(
            (refused.status, refused.error_code()),
            (400, "wrong_protocol".into()),
            "{path}"
        );
    }
    assert_eq!(upstream.count(), 0);
}
