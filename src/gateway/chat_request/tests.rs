use proptest::prelude::*;

use super::*;

fn read(body: &str) -> Result<ChatRequest<'_>, ApiError> {
    ChatRequest::read(ApiFormat::ChatCompletions, body.as_bytes(), None)
}

#[test]
fn all_texts_include_tools_tool_calls_and_results() {
    let texts = |body: &str| read(body).unwrap().all_texts();
    let body = r#"{"model":"m","tools":[{"function":{"name":"look"}}],"messages":[
        {"role":"user","content":"a"},
        {"role":"assistant","content":null,"tool_calls":[{"id":"x","function":{"name":"f","arguments":"{\"b\":1}"}}]},
        {"role":"tool","tool_call_id":"x","content":[{"type":"text","text":"c"}]}]}"#;
    assert_eq!(texts(body), "a\nf\n{\"b\":1}\nc\n[{\"function\":{\"name\":\"look\"}}]");
    let body = r#"{"model":"m","system":[{"type":"text","text":"s"}],"messages":[
        {"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":{"b":1}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":[
            {"type":"text","text":"c"},{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]},
        {"role":"user","content":[
            {"type":"tool_result","content":"d"},
            {"type":"document","source":{"type":"text","data":"e"}},
            {"type":"document","source":{"type":"content","content":[{"type":"text","text":"g"}]}}]}]}"#;
    assert_eq!(texts(body), "s\nf\n{\"b\":1}\nc\nd\ne\ng");
}

#[test]
fn a_byte_order_mark_is_not_forwarded() {
    let body = r#"{"model":"a","stream":true,"messages":[]}"#;
    let marked = format!("\u{feff}{body}");
    let request = read(&marked).unwrap();
    for asks_usage in [false, true] {
        let expected = read(body).unwrap().for_model("b", asks_usage);
        assert_eq!(request.for_model("b", asks_usage), expected);
    }
    assert!(read(&format!("\u{feff}{marked}")).is_err());
}

#[test]
fn possible_cache_markers_are_detected() {
    for (content, expected) in [
        (r#""Hi""#, CacheWrites::None),
        (r#""\u00e9 \u001b""#, CacheWrites::None),
        (
            r#"[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]"#,
            CacheWrites::Short,
        ),
        (
            r#"[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]"#,
            CacheWrites::Long,
        ),
        (
            r#"[{"type": "text", "text": "Hi", "cache\u005fcontrol": {"type": "ephemeral"}}]"#,
            CacheWrites::Long,
        ),
        (
            r#"[{"type": "text", "text": "Hi", "\u0063ache_control": {"type": "ephemeral"}}]"#,
            CacheWrites::Long,
        ),
    ] {
        let body =
            format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}"#);
        assert_eq!(read(&body).unwrap().cache_writes, expected, "{body}");
    }
}

fn read_response(body: &str) -> Result<ChatRequest<'_>, ApiError> {
    ChatRequest::read(ApiFormat::Responses, body.as_bytes(), None)
}

#[test]
fn a_response_request_has_its_own_fields() {
    let body = r#"{"model":"m","stream":true,"instructions":"s","max_output_tokens":7,
        "max_tokens":9,"n":3,"input":[{"role":"developer","content":"d"},
        {"role":"user","content":[{"type":"input_text","text":"a"}]},
        {"type":"function_call","name":"f","arguments":"{\"b\":1}"},
        {"type":"function_call_output","output":"c"},
        {"type":"function_call_output","output":[{"type":"input_text","text":"e"}]},
        {"type":"reasoning","summary":[{"type":"summary_text","text":"g"}],"encrypted_content":"h"}]}"#;
    let request = read_response(body).unwrap();
    assert!(request.is_streamed && request.is_stored && !request.is_background);
    assert_eq!(request.max_tokens, Some(7));
    assert_eq!(request.texts(), (Some("s".into()), "a".into()));
    assert_eq!(request.all_texts(), "s\nd\na\nf\n{\"b\":1}\nc\ne\ng");
    let request = read_response(r#"{"model":"m","input":"Hi","store":false}"#).unwrap();
    assert_eq!(request.texts(), (None, "Hi".into()));
    assert_eq!(request.all_texts(), "Hi");
    assert!(!request.is_stored);
    assert_ne!(request.prompt_hash(), read_response(body).unwrap().prompt_hash());
}

#[test]
fn a_response_request_names_what_it_continues() {
    let body = r#"{"model":"m","previous_response_id":"resp_1","background":true}"#;
    let request = read_response(body).unwrap();
    assert!(request.is_background);
    assert_eq!(request.previous_response.as_deref(), Some("resp_1"));
    for conversation in [r#""conv_1""#, r#"{"id":"conv_1"}"#] {
        let body = format!(r#"{{"model":"m","conversation":{conversation}}}"#);
        let request = read_response(&body).unwrap();
        assert_eq!(request.conversation.as_deref(), Some("conv_1"));
    }
    for (fields, code) in [
        (r#""conversation":{"id":"a","id":"b"}"#, "ambiguous"),
        (r#""conversation":{}"#, "bad_id"),
        (r#""previous_response_id":7"#, "bad_id"),
        (r#""previous_response_id":"a","previous_response_id":"b""#, "ambiguous"),
        (r#""background":1"#, "bad_value"),
        (r#""store":"no""#, "bad_value"),
    ] {
        let body = format!(r#"{{"model":"m",{fields}}}"#);
        assert_eq!(read_response(&body).unwrap_err().code, code, "{body}");
    }
    let plain = read_response(r#"{"model":"m","prompt":null}"#).unwrap().prompt;
    let body = r#"{"model":"m","prompt":{"id":"pmpt_1"}}"#;
    let template = read_response(body).unwrap().prompt;
    let tokens = |prompt: Prompt| prompt.media_tokens(ApiFormat::Responses);
    assert!(tokens(template) >= tokens(plain) + 1_000_000);
}

fn rewritten(body: &str, asks_usage: bool) -> String {
    let asked = read(body).unwrap();
    String::from_utf8(asked.for_model("new", asks_usage)).unwrap()
}

#[test]
fn only_the_model_is_replaced() {
    let body = "{ \"a\" : 1.0e+2,\"model\":\t\"p\\/old\" , \"n\":123456789012345678901234567890.10,\n \"x\": {\"model\":\"p/old\"}, \"a\":2}";
    assert_eq!(rewritten(body, false), body.replacen("\"p\\/old\"", "\"new\"", 1));
    assert_eq!(read(body).unwrap().model, "p/old");
}

#[test]
fn a_deployment_replaces_the_model_of_the_body() {
    for (body, expected) in [
        (r#"{"messages":[]}"#, r#"{"model":"new","messages":[]}"#),
        (r#" { } "#, r#" {"model":"new" } "#),
        (r#"{"model":"x","n":1}"#, r#"{"model":"new","n":1}"#),
    ] {
        let format = ApiFormat::ChatCompletions;
        let request = ChatRequest::read(format, body.as_bytes(), Some("named")).unwrap();
        assert_eq!(request.model, "named");
        assert_eq!(String::from_utf8(request.for_model("new", false)).unwrap(), expected);
    }
}

#[test]
fn usage_is_requested_beside_the_client_options() {
    assert_eq!(
        rewritten(r#"{"model":"m","stream":true }"#, true),
        r#"{"model":"new","stream":true,"stream_options":{"include_usage":true} }"#
    );
    assert_eq!(
        rewritten(
            r#"{"stream_options":{"include_obfuscation":false,"include_usage":false},"model":"m"}"#,
            true
        ),
        r#"{"stream_options":{"include_obfuscation":false,"include_usage":true},"model":"new"}"#
    );
    assert_eq!(
        rewritten(r#"{"model":"m","stream_options":null}"#, true),
        r#"{"model":"new","stream_options":{"include_usage":true}}"#
    );
    assert_eq!(
        rewritten(r#"{"model":"m","stream_options":{ }}"#, true),
        r#"{"model":"new","stream_options":{"include_usage":true }}"#
    );
    assert_eq!(
        rewritten(
            r#"{"model":"m","stream_options":{ "x": 1.10,"big":123456789012345678901234567890, "a" :[] }}"#,
            true
        ),
        r#"{"model":"new","stream_options":{"include_usage":true, "x": 1.10,"big":123456789012345678901234567890, "a" :[] }}"#
    );
    for (options, expected) in [
        (r#"{"include_usage":true}"#, true),
        (r#"{"include_usage": false, "x":true}"#, false),
        ("{}", false),
        ("null", false),
    ] {
        let body = format!(r#"{{"model":"m","stream_options":{options}}}"#);
        assert_eq!(read(&body).unwrap().wants_usage, expected, "{body}");
    }
}

#[test]
fn invalid_and_ambiguous_requests_are_refused() {
    for (body, code) in [
        ("", "invalid_json"),
        ("[]", "invalid_json"),
        ("{\"model\":\"m\"} x", "invalid_json"),
        ("{}", "missing_model"),
        (r#"{"model":7}"#, "bad_model"),
        (r#"{"model":""}"#, "bad_model"),
        (r#"{"model":"a","model":"b"}"#, "ambiguous"),
        (r#"{"model":"a","stream":true,"stream":false}"#, "ambiguous"),
        (r#"{"model":"a","mode\u006c":"b"}"#, "ambiguous"),
        (r#"{"model":"a","stream":"yes"}"#, "bad_stream"),
        (r#"{"model":"a","Model":"b"}"#, "ambiguous"),
        (r#"{"model":"a","MAX_TOKENS":1}"#, "ambiguous"),
        (r#"{"model":"a","max_tokens":1,"max_tokens":90000000}"#, "ambiguous"),
        (r#"{"model":"a","n":1,"n":1}"#, "ambiguous"),
        (r#"{"model":"a","messages":[],"messages":[]}"#, "ambiguous"),
        (
            r#"{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}"#,
            "ambiguous",
        ),
    ] {
        assert_eq!(read(body).unwrap_err().code, code, "{body}");
    }
}

#[test]
fn the_token_limit_covers_all_choices() {
    for (fields, expected) in [
        ("", None),
        (r#","max_tokens":null,"n":null"#, None),
        (r#","max_tokens":10"#, Some(10)),
        (r#","max_tokens":0"#, Some(0)),
        (r#","max_tokens":10,"max_completion_tokens":20"#, Some(20)),
        (r#","max_tokens":20,"max_completion_tokens":10"#, Some(20)),
        (r#","max_tokens":10,"max_completion_tokens":null"#, Some(10)),
        (r#","max_tokens":10,"n":3"#, Some(30)),
        (r#","max_tokens":10,"n":3.0"#, Some(30)),
        (r#","n":2"#, Some(2 * ANSWER_TOKENS_ASSUMED)),
        (r#","max_tokens":9e7"#, Some(90_000_000)),
        (r#","max_tokens":90000000.0"#, Some(90_000_000)),
        (r#","max_tokens":4294967295,"n":3"#, Some(u32::MAX)),
        (r#","max_tokens":99999999999999999999"#, Some(u32::MAX)),
        (r#","max_tokens":-1"#, Some(ANSWER_TOKENS_ASSUMED)),
    ] {
        let body = format!(r#"{{"model":"m"{fields}}}"#);
        assert_eq!(read(&body).unwrap().max_tokens, expected, "{body}");
    }
    for value in ["1.5", "1e400", "\"10\"", "true", "[]", "{}"] {
        for name in ["max_tokens", "max_completion_tokens", "n"] {
            let body = format!(r#"{{"model":"m","{name}":{value}}}"#);
            assert_eq!(read(&body).unwrap_err().code, "bad_limit", "{body}");
        }
    }
}

#[test]
fn a_limit_beyond_the_reservation_is_not_lowered() {
    for (prompt, is_lowered) in [(r#""a""#, true), (r#"["a","b"]"#, false)] {
        let body = format!(r#"{{"model":"m","prompt":{prompt},"max_tokens":3000000000}}"#);
        let request = ChatRequest::read(ApiFormat::Completions, body.as_bytes(), None).unwrap();
        assert_eq!(request.limit.output().is_some(), is_lowered, "{body}");
    }
}

#[test]
fn limits_of_other_formats_cover_all_answers() {
    for (format, body, expected, is_unbounded) in [
        (ApiFormat::Completions, r#"{"model":"m","prompt":"a"}"#, None, false),
        (
            ApiFormat::Completions,
            r#"{"model":"m","prompt":["a","b"],"max_tokens":7,"n":2,"best_of":3}"#,
            Some(42),
            false,
        ),
        (
            ApiFormat::Completions,
            r#"{"model":"m","prompt":[1,2,3],"max_tokens":7}"#,
            Some(7),
            false,
        ),
        (
            ApiFormat::Completions,
            r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":7}"#,
            Some(14),
            false,
        ),
        (ApiFormat::Embeddings, r#"{"model":"m","input":["a","b"]}"#, Some(0), false),
        (
            ApiFormat::Embeddings,
            r#"{"model":"m","input":[{"image":"https://a/b"}]}"#,
            Some(0),
            true,
        ),
        (ApiFormat::Moderations, r#"{"model":"m","input":"a"}"#, Some(0), false),
        (
            ApiFormat::Rerank,
            r#"{"model":"m","query":"a","documents":[{"text":"b"}]}"#,
            Some(0),
            false,
        ),
        (ApiFormat::Images, r#"{"model":"m","prompt":"a"}"#, None, true),
    ] {
        let request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
        assert_eq!(request.max_tokens, expected, "{body}");
        assert_eq!(request.priced_options.is_unbounded, is_unbounded, "{body}");
    }
    let body = r#"{"model":"m","query":"q","documents":["a",{"text":"b"}]}"#;
    let request = ChatRequest::read(ApiFormat::Rerank, body.as_bytes(), None).unwrap();
    assert_eq!(request.all_texts(), "q\na\nb");
}

#[test]
fn moderations_have_a_default_model() {
    let body = br#"{"input": "a"}"#;
    let request = ChatRequest::read(ApiFormat::Moderations, body, None).unwrap();
    assert_eq!(request.model, "omni-moderation-latest");
    let sent: Value = serde_json::from_slice(&request.for_model(&request.model, false)).unwrap();
    assert_eq!(sent, serde_json::json!({"model": "omni-moderation-latest", "input": "a"}));
    let named = ChatRequest::read(ApiFormat::Moderations, b"{}", Some("m")).unwrap();
    assert_eq!(named.model, "m");
    let missing = ChatRequest::read(ApiFormat::Embeddings, body, None);
    assert_eq!(missing.err().map(|error| error.code), Some("missing_model"));
}

#[test]
fn only_the_model_of_a_form_is_replaced() {
    let body = b"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nopenai/whisper-1\r\n--b\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\xff\r\n\x00\r\n--b--\r\n";
    let form = Form::read(body, "b").unwrap();
    let request = ChatRequest::read_form(ApiFormat::Transcriptions, body, &form, None).unwrap();
    assert_eq!((&*request.model, request.is_streamed), ("openai/whisper-1", false));
    let sent = request.for_model("whisper-1", false);
    assert_eq!(sent.len(), body.len() - "openai/".len());
    let again = Form::read(&sent, "b").unwrap();
    assert_eq!(again.value("model").unwrap().unwrap().1, "whisper-1");
    let body = b"--b\r\ncontent-disposition: form-data; name=\"n\"\r\n\r\n2\r\n--b--\r\n";
    let form = Form::read(body, "b").unwrap();
    let read = |deployment| ChatRequest::read_form(ApiFormat::ImageEdits, body, &form, deployment);
    assert_eq!(read(None).unwrap_err().code, "missing_model");
    let sent = read(Some("x")).unwrap().for_model("x", false);
    let again = Form::read(&sent, "b").unwrap();
    assert_eq!(again.value("model").unwrap().unwrap().1, "x");
    assert_eq!(again.value("n").unwrap().unwrap().1, "2");
}

#[test]
fn echo_receives_the_last_user_text() {
    let body = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},
        {"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url"},{"type":"text","text":"c"}]}]}"#;
    assert_eq!(read(body).unwrap().texts(), (Some("s".into()), "b\nc".into()));
}

fn gemini(format: ApiFormat, body: &str) -> ChatRequest<'_> {
    ChatRequest::read(format, body.as_bytes(), Some("p/m")).unwrap()
}

#[test]
fn the_model_of_a_path_is_replaced_wherever_the_body_repeats_it() {
    for (format, body, expected) in [
        (ApiFormat::GenerateContent, r#"{"contents":[]}"#, r#"{"contents":[]}"#),
        (
            ApiFormat::ContentTokenCount,
            r#"{"generateContentRequest":{"model":"models/p/m","contents":[]}}"#,
            r#"{"generateContentRequest":{"model":"models/new","contents":[]}}"#,
        ),
        (
            ApiFormat::BatchEmbedContents,
            r#"{"requests":[{"model": "models/p/m","content":{"model":1}},{"x":1,"model":"models\/p\/m"}]}"#,
            r#"{"requests":[{"model": "models/new","content":{"model":1}},{"x":1,"model":"models/new"}]}"#,
        ),
        (
            ApiFormat::EmbedContent,
            r#"{"model":"models/p/m","content":{}}"#,
            r#"{"model":"models/new","content":{}}"#,
        ),
    ] {
        let request = gemini(format, body);
        assert_eq!(request.model, "p/m");
        assert_eq!(String::from_utf8(request.for_model("new", false)).unwrap(), expected);
    }
}

#[test]
fn the_limit_of_gemini_covers_all_candidates() {
    for (config, expected) in [
        ("{}", None),
        ("null", None),
        (r#"{"maxOutputTokens":10}"#, Some(10)),
        (r#"{"max_output_tokens":10,"candidate_count":3}"#, Some(30)),
        (r#"{"candidateCount":2}"#, Some(2 * ANSWER_TOKENS_ASSUMED)),
    ] {
        for name in ["generationConfig", "generation_config"] {
            let body = format!(r#"{{"contents":[],"{name}":{config}}}"#);
            let request = gemini(ApiFormat::ContentStream, &body);
            assert_eq!(request.max_tokens, expected, "{body}");
            assert!(request.is_streamed);
        }
    }
    let read = |body: &str| {
        let request = ChatRequest::read(ApiFormat::ContentArray, body.as_bytes(), Some("m"));
        request.map(|request| request.max_tokens).map_err(|refusal| refusal.code)
    };
    for (format, body, thinking_tokens, expected) in [
        (
            ApiFormat::GenerateContent,
            r#"{"generationConfig":{"maxOutputTokens": 900,"thinkingConfig":{"thinkingBudget":50}}}"#,
            50,
            r#"{"generationConfig":{"maxOutputTokens": 100,"thinkingConfig":{"thinkingBudget":50}}}"#,
        ),
        (
            ApiFormat::OllamaChat,
            r#"{"model":"m","options":{"num_predict":-1}}"#,
            0,
            r#"{"model":"m","options":{"num_predict":100}}"#,
        ),
    ] {
        let request = ChatRequest::read(format, body.as_bytes(), Some("m")).unwrap();
        assert_eq!(request.limit.output().unwrap().thinking_tokens, thinking_tokens);
        let edits = request.limit.edits(100, "max_tokens");
        let lowered = request.edited("m", false, &edits);
        assert_eq!(String::from_utf8(lowered).unwrap(), expected);
    }
    let both = r#"{"generationConfig":{},"generation_config":{"maxOutputTokens":9}}"#;
    assert_eq!(read(both), Err("ambiguous"));
    assert_eq!(read(r#"{"generationConfig":[]}"#), Err("invalid_json"));
    let embedding = gemini(ApiFormat::EmbedContent, r#"{"content":{"parts":[]}}"#);
    assert_eq!(embedding.max_tokens, Some(0));
}

#[test]
fn texts_of_gemini_are_those_of_its_parts() {
    let body = r#"{"systemInstruction":{"parts":[{"text":"s"}]},"tools":[{"x":1}],"contents":[
        {"role":"user","parts":[{"text":"a"}]},
        {"role":"model","parts":[{"functionCall":{"name":"f","args":{"b":1}}}]},
        {"role":"user","parts":[{"functionResponse":{"name":"f","response":{"c":2}}},{"text":"d"}]}]}"#;
    let request = gemini(ApiFormat::GenerateContent, body);
    assert_eq!(request.all_texts(), "s\na\nf\n{\"b\":1}\nf\n{\"c\":2}\nd\n[{\"x\":1}]");
    let (system, prompt) = request.texts();
    assert_eq!((system.as_deref(), &*prompt), (Some("s"), "f\n{\"c\":2}\nd"));
    let body = r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#;
    assert_eq!(gemini(ApiFormat::GenerateContent, body).texts(), (None, "Hi".into()));
    for (format, body) in [
        (ApiFormat::EmbedContent, r#"{"content":{"parts":[{"text":"a"},{"text":"b"}]}}"#),
        (
            ApiFormat::BatchEmbedContents,
            r#"{"requests":[{"content":{"parts":[{"text":"a"}]}},{"content":{"parts":[{"text":"b"}]}}]}"#,
        ),
        (
            ApiFormat::ContentTokenCount,
            r#"{"generateContentRequest":{"contents":[{"parts":[{"text":"a"},{"text":"b"}]}]}}"#,
        ),
    ] {
        assert_eq!(gemini(format, body).all_texts(), "a\nb", "{body}");
    }
    let cached = gemini(ApiFormat::GenerateContent, r#"{"cachedContent":"cachedContents/x"}"#);
    let plain = gemini(ApiFormat::GenerateContent, r#"{"otherContent_":"cachedContents/x"}"#);
    let tokens =
        |request: &ChatRequest<'_>| request.prompt.media_tokens(ApiFormat::GenerateContent);
    assert_eq!((tokens(&cached), tokens(&plain)), (1_000_000, 0));
}

#[test]
fn ollama_streams_unless_the_request_says_no() {
    let read = |format, body: &str| {
        let request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
        (request.is_streamed, request.max_tokens, request.all_texts(), request.texts().1)
    };
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"a"}]"#;
    let texts = || ("a".to_owned(), "a".to_owned());
    for (format, fields, expected) in [
        (ApiFormat::OllamaChat, format!("{chat}}}"), (true, None)),
        (ApiFormat::OllamaChat, format!(r#"{chat},"stream":false}}"#), (false, None)),
        (
            ApiFormat::OllamaChat,
            format!(r#"{chat},"stream":null,"options":{{"num_predict":7}}}}"#),
            (true, Some(7)),
        ),
        (
            ApiFormat::OllamaGenerate,
            r#"{"model":"m","prompt":"a","options":{"num_predict":-1}}"#.into(),
            (true, Some(ANSWER_TOKENS_ASSUMED)),
        ),
        (ApiFormat::OllamaEmbed, r#"{"model":"m","input":["a"]}"#.into(), (false, Some(0))),
        (ApiFormat::OllamaEmbeddings, r#"{"model":"m","prompt":"a"}"#.into(), (false, Some(0))),
    ] {
        let (is_streamed, max_tokens, all, last) = read(format, &fields);
        assert_eq!((is_streamed, max_tokens), expected, "{fields}");
        assert_eq!((all, last), texts(), "{fields}");
    }
    let body = r#"{"name":"p/m","verbose":true}"#;
    let show = ChatRequest::read(ApiFormat::OllamaShow, body.as_bytes(), None).unwrap();
    assert_eq!(show.for_model("m", false), br#"{"name":"m","verbose":true}"#);
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        value in "[\\[\\]{}\",:a0]{0,20}",
        format in prop::sample::select(&[
            ApiFormat::ChatCompletions, ApiFormat::Messages, ApiFormat::Responses,
            ApiFormat::ContentStream, ApiFormat::ContentTokenCount, ApiFormat::EmbedContent,
            ApiFormat::BatchEmbedContents, ApiFormat::OllamaChat, ApiFormat::OllamaGenerate,
            ApiFormat::OllamaEmbed, ApiFormat::OllamaShow,
        ][..]),
    ) {
        let _ = ChatRequest::read(format, &body, Some("m"));
        for name in Shape::of(format).known_fields {
            let body = format!(r#"{{"model":"m","{name}":{value}}}"#);
            if let Ok(request) = ChatRequest::read(format, body.as_bytes(), Some("m")) {
                let _ = (request.all_texts(), request.texts(), request.for_model("n", true));
            }
        }
    }

    #[test]
    fn other_fields_keep_their_bytes(before in "[ \\n]{0,3}", value in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?", after in "[ \\t]{0,3}") {
        let body = format!("{before}{{\"x\":{value}{after},\"model\":\"m\"}}");
        let expected = format!("{before}{{\"x\":{value}{after},\"model\":\"new\"}}");
        prop_assert_eq!(rewritten(&body, false), expected);
    }
}
