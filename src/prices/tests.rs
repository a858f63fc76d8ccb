use super::pattern::{Mark, Pattern};
use super::price::{PICO_PER_NANO, REQUEST_PICOUSD_MAX, TOKEN_PICOUSD_MAX};
use super::table::{Model, Provider, Version};
use super::when::When;
use super::*;
use crate::event::Usage;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Oracle {
    deviations: std::collections::BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    provider: String,
    base_url: Option<String>,
    model: String,
    at: Timestamp,
    usage: Usage,
    hour_write_tokens: u64,
    /// Why the package's cost is wrong; one of the file's `deviations`.
    #[serde(default)]
    deviation: Option<String>,
    cost_nanousd: Option<i64>,
    /// Allowed differences of our prices, by field.
    #[serde(default)]
    within_nanousd: i64,
}

fn noon() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn built_in(provider: &str, base_url: Option<&str>, model: &str) -> Option<Price> {
    let prices = Prices::built_in();
    let quote = prices.find(provider, base_url, model, noon());
    quote.map(|quote| quote.price.as_ref().clone())
}

/// A table with one provider, `acme` at `api.acme.example`.
fn acme(models: Value) -> Result<Prices, String> {
    let source = json!({
        "package": "p", "version": "1", "repository": "r", "retrieved": "2026-01-01"
    });
    let provider = json!({"id": "acme", "hosts": ["api.acme.example"], "models": models});
    Prices::from_json(&json!({"source": source, "providers": [provider]}).to_string())
}

fn one_price(price: Value) -> Result<Price, String> {
    let prices = acme(json!([{"id": "m", "prices": [price]}]))?;
    let quote = prices.find("acme", None, "m", noon()).unwrap();
    Ok(quote.price.as_ref().clone())
}

fn usage(counts: [u64; 5]) -> Usage {
    let [input, read, write, output, reasoning] = counts;
    Usage {
        input_tokens: input,
        cached_input_tokens: read,
        cache_write_tokens: write,
        output_tokens: output,
        reasoning_tokens: reasoning,
        ..Usage::default()
    }
}

#[test]
fn built_in_table_is_valid_and_names_its_source() {
    let table = json_format::parse(include_str!("../../assets/prices.json")).unwrap();
    let count: usize = table.providers.iter().map(|p| p.models.len()).sum();
    assert!(count > 2_000, "{count}");
    let source = &table.source;
    assert!(source.starts_with("genai-prices "), "{source}");
}

#[test]
fn each_extra_price_names_its_page_and_date() {
    let file: Value = serde_json::from_str(include_str!("../../assets/prices-extra.json")).unwrap();
    assert_eq!(file["source"]["package"], "litellm");
    assert!(file["source"]["license"].as_str().unwrap().starts_with("MIT"));
    let providers = file["providers"].as_array().unwrap();
    let models = providers.iter().flat_map(|provider| provider["models"].as_array().unwrap());
    let entries: Vec<&Value> = models.chain(file["regional"].as_array().unwrap()).collect();
    assert!(entries.len() > 100, "{}", entries.len());
    for entry in entries {
        assert!(entry["source"].as_str().unwrap().starts_with("https://"), "{entry}");
        entry["date"].as_str().unwrap().parse::<jiff::civil::Date>().unwrap();
    }
}

/// In US dollars, of 1,000 prompt tokens and 500 answer tokens.
fn cost(provider: &str, base_url: &str, model: &str, at: &str) -> Option<String> {
    let prices = Prices::built_in();
    let quote = prices.find(provider, Some(base_url), model, at.parse().unwrap())?;
    Some(quote.cost(&usage([1_000, 0, 0, 500, 0])).to_string())
}

#[test]
fn an_alias_has_the_price_of_its_model_at_that_time() {
    let at = |model, at| cost("m", "https://api.mistral.ai/v1", model, at).unwrap();
    assert_eq!(at("mistral-large-latest", "2026-11-22"), "0.00125");
    assert_eq!(at("mistral-large-latest", "2025-12-02"), "0.00125");
    assert_eq!(at("mistral-large-latest", "2025-12-01T23:59:59.999Z"), "0.005");
    assert_eq!(at("Mistral-Large-2411", "2026-11-22"), "0.005");
    assert_eq!(at("ministral-3b-latest", "2026-11-22"), "0.00015");
    assert_eq!(at("ministral-3b-latest", "2025-12-01"), "0.00006");
    assert_eq!(at("ministral-8b-latest", "2026-11-22"), "0.000225");
    assert_eq!(at("devstral-latest", "2026-11-22"), "0.0014");
    assert_eq!(at("magistral-medium-latest", "2026-12-01"), "0.00525");
    let prices = Prices::built_in();
    let quote = prices.find("mistral", None, "mistral-large-latest", noon()).unwrap();
    let stored = StoredPrice::from_json(quote.text().unwrap()).unwrap();
    assert!(stored.source.starts_with("https://mistral.ai/pricing"), "{}", stored.source);
    assert!(stored.source.ends_with(", 2026-06-17"), "{}", stored.source);
}

#[test]
fn peak_prices_apply_on_weekdays_only() {
    let at = |model, at| cost("d", "https://api.deepseek.com", model, at).unwrap();
    // 2026-11-20 is a Friday.
    assert_eq!(at("deepseek-v4-pro", "2026-11-20T03:59:59.999Z"), "0.0033");
    assert_eq!(at("deepseek-v4-pro", "2026-11-20T04:00:00Z"), "0.00165");
    assert_eq!(at("deepseek-v4-pro", "2026-11-20T06:00:00Z"), "0.0033");
    for weekend in ["2026-11-21T02:00:00Z", "2026-11-22T09:00:00Z"] {
        assert_eq!(at("deepseek-v4-pro", weekend), "0.00165", "{weekend}");
        assert_eq!(at("deepseek-flash", weekend), "0.00045", "{weekend}");
        assert_eq!(at("deepseek-v4-flash-0731", weekend), "0.00045", "{weekend}");
    }
    // Before 2026-08-23 in China, peak hours applied on all days; before 2026-08-17, on none.
    assert_eq!(at("deepseek-v4-pro", "2026-08-22T02:00:00Z"), "0.0033");
    assert_eq!(at("deepseek-v4-pro", "2026-08-15T02:00:00Z"), "0.00087");
    assert_eq!(at("deepseek-v4-flash", "2026-08-18T02:00:00Z"), "0.0011");
    let quote = Prices::built_in().find(
        "deepseek",
        None,
        "deepseek-flash",
        "2026-11-20T02:00:00Z".parse().unwrap(),
    );
    let text = quote.unwrap().text().unwrap().to_string();
    assert!(text.contains(r#""daily":[60,240],"days":[1,2,3,4,5]"#), "{text}");
    assert_eq!(serde_json::to_string(&StoredPrice::from_json(&text).unwrap()).unwrap(), text);
}

#[test]
fn regional_addresses_have_their_surcharge() {
    let at = |host: &str, model| cost("openai", host, model, "2026-11-22");
    let plain = "https://api.openai.com/v1";
    for region in ["eu", "us", "au", "jp"] {
        let host = format!("https://{region}.api.openai.com/v1");
        assert_eq!(at(plain, "gpt-5.4").unwrap(), "0.01");
        assert_eq!(at(&host, "gpt-5.4").unwrap(), "0.011");
        assert_eq!(at(&host, "gpt-6-astra-2026-10-01"), Some("0.0385".to_owned()));
        // Released before 2026-03-05.
        assert_eq!(at(&host, "gpt-4o"), at(plain, "gpt-4o"));
        assert_eq!(at(&host, "gpt-5-2025-08-07"), at(plain, "gpt-5-2025-08-07"));
        // Not documented.
        assert!(at(plain, "gpt-chat-latest").is_some());
        assert_eq!(at(&host, "gpt-chat-latest"), None);
    }
    let prices = Prices::built_in();
    let eu = "https://eu.api.openai.com/v1";
    let find = |model| prices.find("openai", Some(eu), model, noon()).unwrap();
    assert_eq!(find("gpt-5.4").surcharges().unwrap(), ["data residency eu x1.1"]);
    assert_eq!(find("gpt-4o").surcharges(), None);
    assert!(find("gpt-5.4").is_same_as(&find("gpt-5.4-2026-03-05")));
    let note = prices.unknown_surcharge(eu, &["gpt-chat-latest"]);
    assert_eq!(note.as_deref(), Some("data residency eu"));
    assert_eq!(prices.unknown_surcharge(plain, &["gpt-chat-latest"]), None);
    let vertex = |host, model| cost("v", host, model, "2026-11-22");
    let (global, regional) =
        ("https://aiplatform.googleapis.com", "https://us-east5-aiplatform.googleapis.com/v1");
    assert_eq!(vertex(global, "claude-sonnet-4-5@20250929").unwrap(), "0.0105");
    assert_eq!(vertex(regional, "claude-sonnet-4-5@20250929").unwrap(), "0.01155");
    assert_eq!(vertex(regional, "gemini-2.5-flash"), vertex(global, "gemini-2.5-flash"));
    for model in [
        "claude-opus-4-6",
        "claude-opus-4.6",
        "claude-4.6-opus",
        "anthropic/claude-opus-4-6",
        "publishers/anthropic/models/claude-opus-4-6",
    ] {
        assert_eq!(vertex(global, model).unwrap(), "0.0175", "{model}");
        assert_eq!(vertex(regional, model).unwrap(), "0.01925", "{model}");
    }
    for (host, region) in
        [("aiplatform.eu.rep.googleapis.com", "eu"), ("us.rep.googleapis.com", "us")]
    {
        for model in ["claude-opus-4-6", "google/gemini-2.5-flash"] {
            assert_eq!(vertex(host, model), None, "{host} {model}");
            let note = prices.unknown_surcharge(host, &[model]);
            assert_eq!(note, Some(format!("regional endpoint {region}")));
        }
    }
}

#[test]
fn azure_has_prices_of_its_own_for_other_makers() {
    let host = "https://me.services.ai.azure.com/models";
    // Both hours are DeepSeek's own former off-peak hours and not.
    for at in ["2026-11-20T02:00:00Z", "2026-11-20T20:00:00Z"] {
        let at = |model| cost("az", host, model, at);
        assert_eq!(at("DeepSeek-R1").unwrap(), "0.00405");
        assert_eq!(at("DeepSeek-V4-Pro").unwrap(), "0.00348");
        // Listed by the maker only.
        for model in ["deepseek-chat", "deepseek-reasoner", "kimi-k3", "grok-4-0709"] {
            assert_eq!(at(model), None, "{model}");
        }
        assert_eq!(at("gpt-4o").unwrap(), "0.0075");
    }
    assert_eq!(cost("az", "https://me.openai.azure.com", "deepseek-chat", "2026-11-20"), None);
}

#[test]
fn paths_of_publishers_are_part_of_no_name() {
    let at = |host: &str, model: &str| cost("g", host, model, "2026-11-22");
    let host = "https://generativelanguage.googleapis.com/v1beta/openai";
    let plain = at(host, "gemini-2.5-flash");
    assert_eq!(plain.as_deref(), Some("0.00155"));
    for path in ["google/", "models/", "publishers/google/models/", "Models/"] {
        assert_eq!(at(host, &format!("{path}gemini-2.5-flash")), plain, "{path}");
    }
    let vertex = "https://aiplatform.googleapis.com/v1";
    let path = "projects/p/locations/global/publishers/anthropic/models/claude-opus-4-5";
    assert_eq!(at(vertex, path), at("https://api.anthropic.com", "claude-opus-4-5"));
    assert_eq!(at("https://api.openai.com/v1", "google/gpt-4o"), None);
}

#[test]
fn routing_variants_have_the_price_of_their_model() {
    let at = |model: &str| cost("o", "https://openrouter.ai/api/v1", model, "2026-11-22");
    for variant in [":nitro", ":floor", ":exacto", ":Nitro", ":nitro:floor"] {
        assert_eq!(at(&format!("openai/gpt-4o{variant}")), Some("0.0075".to_owned()), "{variant}");
    }
    for variant in [":free", ":batch-2", ":online", ":other"] {
        assert_eq!(at(&format!("openai/gpt-4o{variant}")), None, "{variant}");
    }
    assert_ne!(at("openai/gpt-4o:extended"), at("openai/gpt-4o"));
    assert_eq!(cost("o", "https://api.openai.com", "gpt-4o:nitro", "2026-11-22"), None);
}

#[test]
fn the_second_source_adds_makers() {
    let at = |host, model| cost("x", host, model, "2026-11-22");
    let qwen = "https://dashscope-intl.aliyuncs.com/compatible-mode/v1";
    assert_eq!(at(qwen, "qwen-max").unwrap(), "0.0048");
    assert_eq!(at("https://dashscope.aliyuncs.com/compatible-mode/v1", "qwen-max"), None);
    assert_eq!(at("https://api.together.ai/v1", "moonshotai/Kimi-K3.1-Pro").unwrap(), "0.007");
    let tuned = "ft:gpt-4.1-2025-04-14:acme::abc";
    assert_eq!(at("https://api.openai.com/v1", tuned).unwrap(), "0.009");
    assert_eq!(at("https://models.github.ai/inference", "openai/gpt-4o"), None);
}

#[test]
fn costs_match_the_oracle() {
    let text = include_str!("../../tests/fixtures/prices-oracle.json");
    let oracle: Oracle = serde_json::from_str(text).unwrap();
    assert!(oracle.cases.len() >= 350, "{}", oracle.cases.len());
    let deviating = oracle.cases.iter().filter(|case| case.within_nanousd > 0);
    assert!(deviating.count() < 10, "the oracle says too little");
    let count = |kind: &str| {
        let is_kind = |case: &&Case| case.deviation.as_deref() == Some(kind);
        oracle.cases.iter().filter(is_kind).count()
    };
    let kinds: Vec<(&str, usize)> =
        oracle.deviations.keys().map(|kind| (kind.as_str(), count(kind))).collect();
    // The kinds in which genai-prices is wrong; the file describes them.
    assert_eq!(
        kinds,
        [("days", 12), ("moved alias", 1), ("other maker", 0), ("rounded", 4), ("unpriced", 3)]
    );
    let prices = Prices::built_in();
    for case in oracle.cases {
        let price = prices.find(&case.provider, case.base_url.as_deref(), &case.model, case.at);
        let usage = Usage { cache_write_1h_tokens: case.hour_write_tokens, ..case.usage };
        let cost = price.map(|price| price.cost(&usage).nanousd);
        let wanted = case.cost_nanousd;
        let off = cost.unwrap_or(0).abs_diff(wanted.unwrap_or(0));
        assert!(
            cost.is_some() == wanted.is_some() && off <= case.within_nanousd.unsigned_abs(),
            "{}/{} at {}: {cost:?}, but {wanted:?} by the oracle",
            case.provider,
            case.model,
            case.at
        );
    }
}

#[test]
fn unknown_model_has_no_price_and_echo_is_free() {
    assert_eq!(built_in("openai", None, "gpt-4o-nothing"), None);
    assert_eq!(built_in("openai", None, ""), None);
    assert_eq!(built_in("ollama", Some("http://localhost:11434"), "llama3"), None);
    let echo = built_in("echo", None, "echo-1").unwrap();
    assert_eq!(echo.cost(&usage([u64::MAX; 5])), Usd::ZERO);
    assert_eq!(built_in("echo", Some("https://example.org"), "echo-1"), None);
}

#[test]
fn the_url_takes_precedence_over_the_name() {
    let groq = built_in("groq", None, "llama-3.3-70b-versatile");
    assert!(groq.is_some());
    let model = "llama-3.3-70b-versatile";
    for url in ["https://api.groq.com/openai/v1", "api.groq.com", "HTTPS://user@API.GROQ.com:443?x"]
    {
        assert_eq!(built_in("openai", Some(url), model), groq, "{url}");
    }
    for url in ["https://api.groq.com.example", "https://example.org/api.groq.com"] {
        assert_eq!(built_in("mine", Some(url), model), None, "{url}");
    }
    let local = Some("http://localhost:4000/v1");
    assert!(built_in("gemini", local, "gemini-2.5-pro").is_some());
    assert!(built_in("mistral", local, "mistral-small-latest").is_some());
    assert!(built_in("mistral-local", None, "mistral-small-latest").is_some());
    assert_eq!(built_in("mistral-local", local, "mistral-small-latest"), None);
}

#[test]
fn path_distinguishes_the_providers_of_one_host() {
    let (model, host) = ("deepseek-ai/DeepSeek-R1", "https://router.huggingface.co");
    let path = |path: &str| built_in("hf", Some(&format!("{host}{path}")), model);
    assert!(path("/novita/v3/openai").is_some());
    assert_eq!(path("/novitas"), None);
    assert_eq!(path(""), None);
    let aws = |host: &str| built_in("x", Some(host), "amazon.nova-pro-v1:0");
    assert!(aws("bedrock-runtime.eu-west-1.amazonaws.com").is_some());
    assert_eq!(aws("bedrock-runtime.amazonaws.com"), None);
}

#[test]
fn the_last_effective_price_applies_else_the_first() {
    let prices = acme(json!([{"id": "m", "prices": [
        {"from": "2026-01-01", "input": 1},
        {"from": "2026-02-01", "input": 2},
        {"daily": [1380, 60], "input": 3},
    ]}]))
    .unwrap();
    let input = |at: &str| {
        let at = at.parse().unwrap();
        prices.find("acme", None, "m", at).unwrap().price.rates.input
    };
    assert_eq!(input("2025-06-01T12:00:00Z"), 1);
    assert_eq!(input("2026-01-31T22:59:59.999Z"), 1);
    assert_eq!(input("2026-01-31T23:00:00Z"), 3);
    assert_eq!(input("2026-02-01T00:59:59.999Z"), 3);
    assert_eq!(input("2026-02-01T01:00:00Z"), 2);
    assert_eq!(input("1969-12-31T23:30:00Z"), 3);
}

#[test]
fn the_first_matching_model_wins_even_without_a_price() {
    let prices = acme(json!([
        {"id": "a-voice", "match": "^a-voice", "prices": []},
        {"id": "a", "match": ["^a-", "#b-####", "#c-#*", {"and": ["~d", {"not": ["$x", "~-x-"]}]}],
         "prices": [{"input": 1}]},
        {"id": "dated", "match": "=e-2026-01-31:free", "prices": [{"input": 1}]},
        {"id": "compact", "match": "=f-20260131", "prices": [{"input": 1}]},
        {"id": "Upper", "prices": [{"output": 1}]},
    ]))
    .unwrap();
    let known = |model| prices.find("acme", None, model, noon()).is_some();
    for model in
        ["A-1", "b-0123", "c-9", "c-9-x", "d", "x-dy", "e-20260131:free", "f-20260131", "uPPER"]
    {
        assert!(known(model), "{model}");
    }
    for model in [
        "a-voice-1",
        "b-012",
        "b-01234",
        "b-012x",
        "c-",
        "dx",
        "d-x-1",
        "e-20260132:free",
        "f-2026-01-31",
        "é-20260131",
        "g-2026013é",
    ] {
        assert!(!known(model), "{model}");
    }
}

#[test]
fn missing_price_falls_back_to_the_more_general_one() {
    let rates = |price| one_price(price).unwrap().rates;
    let bare = rates(json!({"input": 10, "output": 20}));
    let full = |read, write, hour, reasoning| Rates {
        input: 10,
        cache_read: read,
        cache_write: write,
        cache_write_1h: hour,
        output: 20,
        reasoning,
    };
    assert_eq!(bare, full(10, 10, 10, 20));
    let some = rates(json!({"input": 10, "cache_write": 12, "output": 20, "reasoning": 3}));
    assert_eq!(some, full(10, 12, 12, 3));
}

#[test]
fn the_tier_of_the_prompt_prices_the_whole_call() {
    let price = one_price(json!({"input": 1000, "cache_read": 100, "output": 5000, "tiers": [
        {"above": 10, "input": 2000, "cache_read": 200, "output": 9000},
        {"above": 20, "input": 3000, "cache_read": 300, "output": 9000},
    ]}))
    .unwrap();
    let nanos = |counts| price.cost(&usage(counts)).nanousd;
    assert_eq!(nanos([10, 10, 0, 1, 0]), 1 + 5);
    assert_eq!(nanos([11, 10, 0, 1, 0]), 2 + 2 + 9);
    assert_eq!(nanos([21, 20, 0, 0, 0]), 3 + 6);
}

#[test]
fn sum_is_rounded_once_half_to_even_and_stays_in_range() {
    let price = one_price(json!({"input": 500, "output": 1, "request": 2000})).unwrap();
    let nanos = |input, output| price.cost(&usage([input, 0, 0, output, 0])).nanousd;
    assert_eq!(nanos(0, 0), 2);
    assert_eq!(nanos(1, 0), 2);
    assert_eq!(nanos(1, 1), 3);
    assert_eq!(nanos(3, 0), 4);
    let most = TOKEN_PICOUSD_MAX;
    let expensive = json!({"input": most, "output": most, "request": REQUEST_PICOUSD_MAX});
    let expensive = one_price(expensive).unwrap();
    assert_eq!(expensive.cost(&usage([u64::MAX; 5])).nanousd, i64::MAX);
    // Contradictory counts are priced as far as possible.
    assert_eq!(price.cost(&usage([0, 4, 4, 0, 3000])).nanousd, 2 + 4 + 3);
}

#[test]
fn error_in_a_price_names_its_model() {
    let fault = |price: Value| acme(json!([{"id": "m", "prices": [price]}])).err().unwrap();
    for (price, word) in [
        (json!({"input": -1}), "-1"),
        (json!({"input": 1.5}), "1.5"),
        (json!({"input": TOKEN_PICOUSD_MAX + 1}), "the limit is"),
        (json!({"input": 1, "request": REQUEST_PICOUSD_MAX + 1}), "`request`"),
        (json!({"input": 1, "ouput": 1}), "ouput"),
        (json!({"cache_read": 1}), "both are missing"),
        (json!({"from": "soon", "input": 1}), "soon"),
        (json!({"daily": [0, 1441], "input": 1}), "1441"),
        (json!({"days": [0], "input": 1}), "from 1, Monday"),
        (json!({"input": 1, "tiers": [{"above": 2, "days": [1], "input": 1}]}), "a tier must"),
        (
            json!({"input": 1, "tiers": [{"above": 2, "input": 1}, {"above": 2, "input": 1}]}),
            "ascending",
        ),
    ] {
        let error = fault(price);
        assert!(error.contains("provider `acme`, model `m`"), "{error}");
        assert!(error.contains(word), "{error}");
    }
    for clause in [
        json!(""),
        json!("gpt"),
        json!(1),
        json!({}),
        json!({"or": []}),
        json!({"not": "=a", "and": []}),
    ] {
        let models = json!([{"id": "m", "match": clause, "prices": []}]);
        let error = acme(models).err().unwrap();
        assert!(error.contains("model `m`"), "{error}");
    }
    let error = acme(json!([{"id": "m", "prices": []}, {"name": "x"}])).err().unwrap();
    assert!(error.contains("model number 2"), "{error}");
}

#[test]
fn invalid_file_is_refused() {
    let source = r#""source":{"package":"p","version":"1","repository":"r","retrieved":"d"}"#;
    let provider = r#"{"id":"a","hosts":[],"fallback":[],"models":[]}"#;
    let lost = r#"{"id":"a","hosts":[],"fallback":["b"],"models":[]}"#;
    let file = |providers: &str| format!(r#"{{{source},"providers":[{providers}]}}"#);
    assert!(Prices::from_json(&file(provider)).is_ok());
    for (text, word) in [
        (String::new(), "line 1: EOF"),
        ("{}".to_owned(), "providers"),
        ("[]".to_owned(), "line 1"),
        (file(&format!("{provider},{provider}")), "duplicate provider `a`"),
        (file(lost), "`b`"),
        (file(r#"{"id":"a","hosts":[],"models":[],"extra":1}"#), "extra"),
    ] {
        let error = Prices::from_json(&text).err().unwrap();
        assert!(error.contains(word), "{error}");
    }
}

/// Otherwise a longer prompt could cost less, and the property below would fail.
#[test]
fn higher_tiers_are_never_cheaper() {
    for price in built_in_prices() {
        let mut below = &price.rates;
        for rates in price.tiers.iter().map(|tier| &tier.picousd_per_token) {
            assert!(below.input <= rates.input && below.cache_read <= rates.cache_read);
            assert!(below.cache_write <= rates.cache_write);
            assert!(below.cache_write_1h <= rates.cache_write_1h);
            assert!(below.output <= rates.output && below.reasoning <= rates.reasoning);
            below = rates;
        }
    }
}

fn built_in_prices() -> Vec<&'static Price> {
    let models = BUILT_IN.providers.iter().flat_map(|p| &p.models);
    let versions = models.flat_map(|model| &model.versions);
    versions.map(|version| &*version.price).collect()
}

fn built_in_price() -> impl Strategy<Value = &'static Price> {
    proptest::sample::select(built_in_prices())
}

/// Any count; the limits of tiers and of the type are as likely as the rest.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..1_000_000, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #[test]
    fn costs_never_panic_and_are_never_negative(
        price in built_in_price(), counts in proptest::array::uniform5(count()), hour in count(),
    ) {
        let usage = Usage { cache_write_1h_tokens: hour, ..usage(counts) };
        prop_assert!(price.cost(&usage) >= Usd::ZERO);
    }

    #[test]
    fn rounding_errors_are_at_most_half_a_nano_dollar(
        price in built_in_price(), counts in proptest::array::uniform5(0u64..10_000_000),
    ) {
        let exact = {
            let usage = usage(counts);
            price.picodollars(1, usage.input_tokens, &usage)
        };
        let nanos = price.cost(&usage(counts)).nanousd;
        let rounded = u128::try_from(nanos).unwrap() * PICO_PER_NANO;
        prop_assert!(rounded.abs_diff(exact) <= PICO_PER_NANO / 2);
    }

    /// The sum is rounded once, so before rounding the parts add up exactly.
    #[test]
    fn parts_add_up_to_the_total(
        price in built_in_price(), kinds in proptest::array::uniform6(0u64..400_000),
    ) {
        let [plain, read, short, hour, answer, reasoning] = kinds;
        let whole = Usage {
            input_tokens: plain + read + short + hour,
            cached_input_tokens: read,
            cache_write_tokens: short + hour,
            cache_write_1h_tokens: hour,
            output_tokens: answer + reasoning,
            reasoning_tokens: reasoning,
            ..Usage::default()
        };
        let rates = price.rates_for(whole.input_tokens).named().map(|(_, rate)| rate);
        let parts = kinds.iter().zip(rates);
        let parts: u128 = parts.map(|(count, rate)| u128::from(*count) * u128::from(rate)).sum();
        let total = u128::from(price.request) + parts;
        prop_assert_eq!(price.picodollars(1, whole.input_tokens, &whole), total);
        let nanos = u128::try_from(price.cost(&whole).nanousd).unwrap();
        prop_assert!((nanos * PICO_PER_NANO).abs_diff(total) <= PICO_PER_NANO / 2);
    }

    #[test]
    fn stored_price_reproduces_the_cost(
        price in built_in_price(), counts in proptest::array::uniform5(count()), hour in count(),
        from in proptest::option::of(0i64..4_000_000_000_000),
    ) {
        let version = Version::new(When::starting(from.map(Timestamp)), price.clone());
        let table = Table { source: "s 1".to_owned(), ..Table::default() };
        let model = Model { id: None, source: None, names: Pattern::new(Mark::Equals, "m"), versions: Box::new([version]) };
        let provider = Provider {
            id: "p".into(), hosts: Vec::new(), name_match: None, model_match: None,
            fallback: Vec::new(), models: Vec::new(),
        };
        let quote = table.quote(&provider, &model, Timestamp(i64::MAX)).unwrap();
        let stored = StoredPrice::from_json(quote.text().unwrap()).unwrap();
        prop_assert_eq!((&*stored.source, &*stored.provider, &*stored.model), ("s 1", "p", "m"));
        prop_assert_eq!(stored.from.map(|from| from.0), from);
        let usage = Usage { cache_write_1h_tokens: hour, ..usage(counts) };
        prop_assert_eq!(stored.price().cost(&usage), price.cost(&usage));
    }

    /// In order: uncached, cache read, cache write, answer, reasoning.
    #[test]
    fn more_tokens_never_cost_less(
        price in built_in_price(),
        kinds in proptest::array::uniform5(0u64..400_000),
        kind in 0usize..5,
        more in 0u64..400_000,
    ) {
        let normal = |k: [u64; 5]| usage([k[0] + k[1] + k[2], k[1], k[2], k[3] + k[4], k[4]]);
        let mut grown = kinds;
        grown[kind] += more;
        prop_assert!(price.cost(&normal(grown)) >= price.cost(&normal(kinds)));
    }

    #[test]
    fn arbitrary_text_never_panics(
        name in "\\PC{0,20}", url in proptest::option::of("\\PC{0,30}"),
        model in "[a-z0-9é/:-]{0,30}", at in any::<i64>(),
    ) {
        let prices = Prices::built_in();
        let _ = prices.find(&name, url.as_deref(), &model, Timestamp(at));
        let _ = prices.find("litellm", None, &model, Timestamp(at));
        let _ = Prices::from_json(&model);
    }
}
