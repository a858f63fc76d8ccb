use super::super::{Prices, StoredPrice};
use super::*;
use crate::event::Usage;
use crate::time::Timestamp;

fn noon() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

/// A price file in a new directory, and the prices loaded from it.
fn own(name: &str, text: &str) -> Result<(tempfile::TempDir, Prices)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let prices = Prices::built_in().with_own(&path)?;
    Ok((dir, prices))
}

fn stored(prices: &Prices, provider: &str, model: &str, at: Timestamp) -> Option<StoredPrice> {
    let quote = prices.find(provider, Some("http://127.0.0.1:1/v1"), model, at)?;
    Some(StoredPrice::from_json(quote.text().unwrap()).unwrap())
}

#[test]
fn user_prices_override_only_listed_models() {
    let (_dir, prices) = own(
        "mine.toml",
        r#"
        [[price]]
        provider = "OpenAI"
        model = "gpt-4o"
        input_per_mtok = "0.15"
        output_per_mtok = 3
        cache_read_per_mtok = "0.000001"
        per_request = "0.000000000001"
        tiers = [{ above = 1000, input_per_mtok = "0.3", output_per_mtok = "6" }]
        [[price]]
        provider = "local"
        model = "*"
        input_per_mtok = "0"
        [[price]]
        provider = "local"
        model = "big-*"
        per_request = "0.5"
        [[price]]
        provider = "local"
        model = "big-one"
        output_per_mtok = "1"
        "#,
    )
    .unwrap();
    let openai = stored(&prices, "openai", "GPT-4o", noon()).unwrap();
    assert_eq!((&*openai.source, &*openai.model), ("mine.toml", "gpt-4o"));
    assert_eq!(openai.picousd_per_token.input, 150_000);
    assert_eq!(openai.picousd_per_token.output, 3_000_000);
    assert_eq!(openai.picousd_per_token.cache_read, 1);
    assert_eq!(openai.request_picousd, 1);
    assert_eq!(openai.tiers[0].above, 1000);
    assert_eq!(openai.tiers[0].picousd_per_token.input, 300_000);
    let mini = stored(&prices, "openai", "gpt-4o-mini", noon()).unwrap();
    assert!(mini.source.starts_with("genai-prices "), "{mini:?}");
    let model = |name| stored(&prices, "local", name, noon()).unwrap().model;
    assert_eq!(model("small"), "*");
    assert_eq!(model("big-two"), "big-*");
    assert_eq!(model("big-one"), "big-one");
    assert_eq!(stored(&prices, "other", "small", noon()), None);
}

#[test]
fn a_future_user_price_keeps_the_current_price() {
    let (_dir, prices) = own(
        "mine.toml",
        "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\nfrom = 2027-02-01\n\
         input_per_mtok = '2'\n\
         [[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\nfrom = '2027-01-01'\n\
         input_per_mtok = '1'\n",
    )
    .unwrap();
    let input = |at: &str| {
        let stored = stored(&prices, "openai", "gpt-4o", at.parse().unwrap()).unwrap();
        (stored.source == "mine.toml").then_some(stored.picousd_per_token.input)
    };
    assert_eq!(input("2026-12-31T23:59:59.999Z"), None);
    assert_eq!(input("2027-01-01T00:00:00Z"), Some(1_000_000));
    assert_eq!(input("2027-01-31T23:59:59.999Z"), Some(1_000_000));
    assert_eq!(input("2027-02-01T00:00:00Z"), Some(2_000_000));
}

#[test]
fn user_prices_of_the_requested_model_come_first() {
    let (_dir, prices) =
        own("mine.toml", "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\ninput_per_mtok = '1'")
            .unwrap();
    let url = Some("https://api.openai.com/v1");
    let models = ["gpt-4o-2024-08-06", "gpt-4o"];
    let quote = prices.find_any("openai", url, &models, noon()).unwrap();
    assert!(quote.text().unwrap().contains("mine.toml"), "{quote:?}");
    let tokens = Usage { input_tokens: 7, ..Usage::default() };
    assert_eq!(quote.cost(&tokens).nanousd, 7_000);
}

#[test]
fn json_form_may_list_a_model_without_a_price() {
    let (_dir, prices) = own(
        "mine.json",
        r#"{"providers": [{"id": "openai", "hosts": [], "models": [
            {"id": "gpt-4o", "prices": [{"input": 5, "output": 7}]},
            {"id": "gpt-4", "prices": []}]}]}"#,
    )
    .unwrap();
    let gpt_4o = stored(&prices, "openai", "gpt-4o", noon()).unwrap();
    assert_eq!((&*gpt_4o.source, gpt_4o.picousd_per_token.output), ("mine.json", 7));
    assert_eq!(stored(&prices, "openai", "gpt-4", noon()), None);
    assert!(stored(&prices, "openai", "gpt-4o-mini", noon()).is_some());
}

#[test]
fn json_prices_have_dates_and_names_of_any_case() {
    let (_dir, prices) = own(
        "mine.json",
        r#"{"providers": [{"id": "OpenAI", "hosts": ["API.Acme.example"], "models": [
            {"id": "GPT-4o", "prices": [{"from": "2027-01-01", "input": 5}]},
            {"id": "both", "prices": [{"input": 7}, {"from": "2027-01-01", "input": 8}]}]}]}"#,
    )
    .unwrap();
    let input = |model: &str, at: &str| {
        let stored = stored(&prices, "openai", model, at.parse().unwrap()).unwrap();
        (stored.source == "mine.json").then_some(stored.picousd_per_token.input)
    };
    assert_eq!(input("gpt-4o", "2026-12-31T23:59:59.999Z"), None);
    assert_eq!(input("gpt-4o", "2027-01-01T00:00:00Z"), Some(5));
    assert_eq!(input("both", "2026-12-31T23:59:59.999Z"), Some(7));
    assert_eq!(input("both", "2027-01-01T00:00:00Z"), Some(8));
    let url = Some("https://api.acme.example/v1");
    assert!(prices.find("other", url, "both", noon()).is_some());
}

#[test]
fn errors_of_toml_name_file_and_line() {
    // After an entry with a provider and a model; then anywhere.
    let lines = [
        ("input_per_mtok = 0.15", 4, "in quotes"),
        ("input_per_mtok = '-1'", 4, "`-1`"),
        ("input_per_mtok = '1.'", 4, "`1.`"),
        ("input_per_mtok = '1e3'", 4, "`1e3`"),
        ("input_per_mtok = '0.0000001'", 4, "more than 6 digits"),
        ("input_per_mtok = '100000.000001'", 4, "the limit is 100000 US"),
        ("input_per_mtok = '1000000000'", 4, "is too large"),
        ("per_request = '1000.1'", 4, "the limit is 1000 US dollars"),
        ("inputs_per_mtok = '1'", 4, "inputs_per_mtok"),
        ("from = 'soon'", 4, "soon"),
        ("", 1, "both are missing"),
        ("output_per_mtok = '1'\ntiers = [{above = 1}]", 1, "tier above 1"),
        (
            "output_per_mtok = '1'\n[[price]]\nprovider = 'a'\nmodel = 'm'\noutput_per_mtok = '2'",
            5,
            "line 1 has the same",
        ),
    ];
    let entry = "[[price]]\nprovider = 'a'\nmodel = 'm'\n";
    let lines = lines.map(|(rest, line, word)| (format!("{entry}{rest}"), line, word));
    let texts = [
        ("\n[[price]]\nprovider = 'a'\nmodel = 'm'", 2, "both are missing"),
        ("[[price]]\nprovider = 'a'\nmodel = 'a*b'\n", 1, "`a*b`"),
        ("[[price]]\nprovider = 'a'", 1, "model"),
        ("price = 1", 1, "invalid type"),
        ("[[price]\n", 1, ""),
    ];
    let texts = texts.map(|(text, line, word)| (text.to_owned(), line, word));
    for (text, line, word) in lines.into_iter().chain(texts) {
        let error = own("mine.toml", &text).err().unwrap();
        assert!(matches!(error, Error::Config(_)));
        let error = error.to_string();
        let place = format!("mine.toml: line {line}: ");
        assert!(error.contains(&place), "{text}: {error}");
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn errors_of_json_and_of_a_missing_file_name_the_file() {
    let json = "{\"providers\": [\n{\"id\": \"a\", \"hosts\": [], \"models\": [\n{\"id\": \"m\",\n\
                \"prices\": [{\"input\": -1}]}]}]}";
    let error = own("mine.json", json).err().unwrap().to_string();
    assert!(error.contains("mine.json: line 4: provider `a`, model `m`"), "{error}");
    let missing = Prices::built_in().with_own(Path::new("/nowhere/prices.toml"));
    let error = missing.err().unwrap().to_string();
    assert!(error.contains("/nowhere/prices.toml"), "{error}");
}

#[test]
fn a_changed_file_is_reloaded_and_an_unreadable_one_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let write = |amount: &str| {
        let text = format!("[[price]]\nprovider = 'a'\nmodel = 'm'\ninput_per_mtok = {amount}");
        std::fs::write(&path, text).unwrap();
    };
    write("'1'");
    let own = UserPrices::read(&path).unwrap();
    let input = |table: &Table| {
        let quote = table.find_own("a", None, "m", noon()).unwrap().unwrap();
        quote.price.rates.input
    };
    let looked_at_again = || input(&own.table_checked_after(Duration::ZERO));
    assert_eq!(looked_at_again(), 1_000_000);
    write("'22'");
    // The file is not checked again so soon.
    assert_eq!(input(&own.table()), 1_000_000);
    assert_eq!(looked_at_again(), 22_000_000);
    write("wrong");
    assert_eq!(looked_at_again(), 22_000_000);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(looked_at_again(), 22_000_000);
    // As editors leave the file during a save.
    std::fs::write(&path, "").unwrap();
    assert_eq!(looked_at_again(), 22_000_000);
    write("'3'");
    assert_eq!(looked_at_again(), 3_000_000);
}
