use super::*;
use std::fs;

use crate::gateway::ClientPolicy;
use crate::providers::Kind;

fn load(toml: &str, overrides: Overrides, variables: &[(&str, &str)]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, toml).unwrap();
    fs::write(dir.path().join("key"), "from-file\n").unwrap();
    let overrides = Overrides { config: Some(path), ..overrides };
    from(overrides, variables)
}

/// Reads no file; HOME is set.
fn from(overrides: Overrides, variables: &[(&str, &str)]) -> Result<Config> {
    let all = [variables, &[("HOME", "/home/user")]].concat();
    Config::from_sources(overrides, &|name| {
        all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn the_data_directory_needs_an_absolute_path() {
    let data = |variables: &[(&str, &str)]| from(Overrides::default(), variables).unwrap().data;
    assert_eq!(data(&[]), PathBuf::from("/home/user/.local/share/flowledger"));
    assert_eq!(data(&[("XDG_DATA_HOME", "/x")]), PathBuf::from("/x/flowledger"));
    assert_eq!(data(&[("XDG_DATA_HOME", "x")]), data(&[]));
    for home in [None, Some("relative")] {
        let error = Config::from_sources(Overrides::default(), &|name| {
            home.filter(|_| name == "HOME").map(str::to_owned)
        });
        let error = error.unwrap_err().to_string();
        assert!(["HOME", "XDG_DATA_HOME", "--data"].iter().all(|it| error.contains(it)), "{error}");
    }
}

fn key(config: &Config, provider: &str) -> Option<String> {
    config.providers[provider].api_key.as_ref().map(|key| key.expose().to_owned())
}

#[test]
fn the_default_configuration_listens_on_loopback() {
    let config = from(Overrides::default(), &[]).unwrap();
    assert_eq!(config.listen.to_string(), LISTEN_DEFAULT);
    assert!(config.providers["echo"].missing_key_hint.is_none());
    assert!(
        config.providers["openai"].missing_key_hint.as_ref().unwrap().contains("OPENAI_API_KEY")
    );
}

#[test]
fn flags_override_the_file() {
    let toml = "listen = '127.0.0.1:1'\ndata = 'a'";
    let overrides = Overrides { listen: Some("127.0.0.1:2".into()), ..Overrides::default() };
    let config = load(toml, overrides, &[]).unwrap();
    assert_eq!((config.listen.port(), config.data), (2, PathBuf::from("a")));
}

#[test]
fn the_price_file_path_is_relative_to_the_config_file() {
    let toml = "prices = 'mine.toml'";
    let config = load(toml, Overrides::default(), &[]).unwrap();
    let path = config.prices.unwrap();
    assert!(path.is_absolute() && path.ends_with("mine.toml"), "{path:?}");
    let overrides = Overrides { prices: Some("other.toml".into()), ..Overrides::default() };
    let config = load(toml, overrides, &[]).unwrap();
    assert_eq!(config.prices, Some("other.toml".into()));
}

#[test]
fn api_keys_come_from_the_configured_source() {
    let toml = "
        [providers.mine]
        kind = 'openai'
        base_url = 'http://127.0.0.1:9/v1'
        api_key_env = 'MY_KEY'
        [providers.filed]
        kind = 'anthropic'
        base_url = 'http://127.0.0.1:9'
        api_key_file = 'key'
        [providers.openai]
        base_url = 'http://127.0.0.1:9/v1'";
    let variables = [("MY_KEY", "from-env"), ("OPENAI_API_KEY", "usual")];
    let config = load(toml, Overrides::default(), &variables).unwrap();
    assert_eq!(key(&config, "mine").as_deref(), Some("from-env"));
    assert_eq!(key(&config, "filed").as_deref(), Some("from-file"));
    assert_eq!(key(&config, "openai").as_deref(), Some("usual"));
    assert_eq!(config.providers["openai"].base_url, "http://127.0.0.1:9/v1");
}

#[test]
fn aliases_and_client_policies_come_from_the_file() {
    let toml = "
        [aliases]
        fast = ['openai/a', 'openrouter/b/c']
        slow = 'echo/echo-slow'
        [providers.openai]
        on_disconnect = 'abort'
        pass_through_key = true";
    let gateway = load(toml, Overrides::default(), &[]).unwrap().gateway;
    assert_eq!(gateway.aliases["fast"].len(), 2);
    assert_eq!(gateway.aliases["fast"][1].model, "b/c");
    assert_eq!(gateway.aliases["slow"][0].provider, "echo");
    let expected = ClientPolicy { drain_max: None, pass_through_key: true };
    assert_eq!(gateway.policies["openai"], expected);
}

#[test]
fn stream_usage_is_requested_unless_refused() {
    let toml = "
        [providers.mine]
        kind = 'openai'
        base_url = 'http://127.0.0.1:9/v1'
        [providers.odd]
        kind = 'openai'
        base_url = 'http://127.0.0.1:9/v1'
        stream_usage = false";
    let config = load(toml, Overrides::default(), &[]).unwrap();
    for (name, expected) in [("openai", true), ("mine", true), ("mistral", false), ("odd", false)] {
        assert_eq!(config.providers[name].stream_usage, expected, "{name}");
    }
    for (toml, expected) in [
        ("[providers.mistral]\napi_key = 'k'", false),
        ("[providers.mistral]\nstream_usage = true", true),
    ] {
        let config = load(toml, Overrides::default(), &[]).unwrap();
        assert_eq!(config.providers["mistral"].stream_usage, expected, "{toml}");
    }
}

#[test]
fn gemini_key_is_read_from_either_variable() {
    for (variables, expected) in [
        (&[("GOOGLE_API_KEY", "b")][..], "b"),
        (&[("GOOGLE_API_KEY", "b"), ("GEMINI_API_KEY", "a")], "a"),
    ] {
        let config = load("", Overrides::default(), variables).unwrap();
        assert_eq!(key(&config, "gemini").as_deref(), Some(expected));
        assert_eq!(config.providers["gemini"].kind, Kind::Gemini);
    }
}

#[test]
fn ollama_url_follows_the_ollama_host_variable() {
    let ollama = |toml: &str, variables: &[(&str, &str)]| {
        let mut config = load(toml, Overrides::default(), variables).unwrap();
        let provider = config.providers.remove("ollama").unwrap();
        assert!(provider.missing_key_hint.is_none());
        (provider.kind, provider.base_url)
    };
    for (host, url) in [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("box.lan", "http://box.lan:11434"),
        ("http://box.lan:1/", "http://box.lan:1"),
        ("http://box.lan", "http://box.lan:80"),
        ("https://box.lan/ollama", "https://box.lan:443/ollama"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("[fe80::1]", "http://[fe80::1]:11434"),
        ("box:99999", "http://box:11434"),
    ] {
        let found = ollama("", &[("OLLAMA_HOST", host)]);
        assert_eq!(found, (Kind::Ollama, url.to_owned()), "{host}");
    }
    let overrides = [("OLLAMA_HOST", "a"), ("OLLAMA_BASE_URL", "http://b:1/v1")];
    assert_eq!(ollama("", &overrides).1, "http://b:1/v1");
    // The configuration of Ollama before it had its own kind.
    let openai = "[providers.ollama]\nkind = 'openai'";
    let expected = |url: &str| (Kind::OpenAi, url.to_owned());
    assert_eq!(ollama(openai, &[]), expected("http://127.0.0.1:11434/v1"));
    assert_eq!(ollama(openai, &overrides), expected("http://b:1/v1"));
    let own = format!("{openai}\nbase_url = 'http://c:1/x'");
    assert_eq!(ollama(&own, &[]), expected("http://c:1/x"));
}

#[test]
fn an_open_address_needs_a_token() {
    let open = || Overrides { listen: Some("0.0.0.0:7700".into()), ..Overrides::default() };
    let error = load("", open(), &[]).unwrap().check_exposure().unwrap_err().to_string();
    assert!(error.contains("token"), "{error}");
    let with_token = Overrides { token: Some("t".into()), ..open() };
    load("", with_token, &[]).unwrap().check_exposure().unwrap();
}

#[test]
fn errors_name_the_setting_and_hide_keys() {
    for (toml, expected) in [
        ("listen = 'nowhere'", "listen: `nowhere`"),
        ("token = ''", "token"),
        ("\nport = 3", "line 2"),
        ("[providers.x]\nkind = 'openai'", "providers.x.base_url"),
        ("[providers.x]\nbase_url = 'http://a'", "providers.x.kind"),
        ("[providers.x]\nkind = 'openai'\nbase_url = 'a'", "must start with"),
        ("[providers.openai]\napi_key = 'sk-1'\napi_key_env = 'A'", "set only one of"),
        ("[providers.openai]\napi_key = 'sk-1'\nwrong = 1", "line 3"),
        ("[timeouts]\ntotal_s = -1", "timeouts.total_s"),
        ("[limits]\ncalls = 101", "limits.calls: must be a whole number from 1 to 100, not 101"),
        ("[providers.openai]\nrequests_per_minute = 0", "providers.openai.requests_per_minute"),
        ("[providers.openai]\ntokens_per_minute = 0", "providers.openai.tokens_per_minute"),
        ("[limits]\nactive_runs = 0", "limits.active_runs"),
        ("allow_origins = ['example.org']", "allow_origins"),
        ("[aliases]\nfast = []", "aliases.fast: must name 1 to 16"),
        ("[aliases]\nfast = ['nobody/m']", "aliases.fast: `nobody/m` is not PROVIDER/MODEL"),
    ] {
        let error = load(toml, Overrides::default(), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{toml}: {error}");
        assert!(!error.contains("sk-1"), "{error}");
    }
}

#[test]
fn pools_of_keys_come_from_all_sources() {
    let toml = "
        [providers.openai]
        api_keys = [{env = 'A', weight = 4}, {file = 'key'}, {key = 'inline', weight = 0}]";
    let config = load(toml, Overrides::default(), &[]).unwrap();
    let pool = &config.pools["openai"];
    let names: Vec<&str> = pool.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["A", "key", "#3"]);
    assert_eq!(pool.iter().map(|key| key.weight).collect::<Vec<_>>(), [4, 1, 0]);
    // The first key that is set stands for the pool.
    assert_eq!(key(&config, "openai").as_deref(), Some("from-file"));
    config.check_pools().unwrap();
    let config = load(toml, Overrides::default(), &[("A", "a")]).unwrap();
    assert_eq!(key(&config, "openai").as_deref(), Some("a"));
    assert_eq!(config.key_names["anthropic"], "ANTHROPIC_API_KEY");
}

#[test]
fn wrong_pools_and_aliases_are_refused_with_their_name() {
    for (toml, expected) in [
        ("[providers.openai]\napi_keys = []", "providers.openai.api_keys: must have 1 to 16"),
        ("[providers.openai]\napi_keys = [{}]", "key #1 must have one of env, file and key"),
        ("[providers.openai]\napi_keys = [{env = 'A', key = 'k'}]", "one of env, file and key"),
        ("[providers.openai]\napi_keys = [{key = 'k', weight = 0}]", "no key has a weight"),
        ("[providers.openai]\napi_keys = [{key = 'k', weight = 9000000}]", "from 0 to 1000000"),
        ("[providers.openai]\napi_keys = [{key = ''}]", "key #1 is empty"),
        ("[providers.openai]\napi_keys = [{file = 'none'}]", "cannot read"),
        ("[providers.openai]\napi_keys = [{key = 'k'}, {key = 'k'}]", "#1 and #2 are the same"),
        ("[providers.openai]\napi_key = 'k'\napi_keys = [{key = 'k'}]", "set only one of"),
        ("[providers.openai]\napi_keys = [{kye = 'k'}]", "unknown field `kye`"),
        ("[aliases]\nfast = [{model = 'echo/m', weight = 0}]", "aliases.fast: no model has a weig"),
        ("[aliases]\nfast = [{model = 'echo/m', wight = 1}]", "unknown field `wight`"),
        ("[aliases]\nfast = [{weight = 1}]", "missing field `model`"),
        ("[aliases]\nfast = [1]", "aliases.fast: a model must be a string or a table"),
        ("[aliases]\nfast = [{model = 'echo/m', hours = '22-6'}]", "such as 22:00-06:00"),
        ("[aliases]\nfast = [{model = 'echo/m', zone = 'UTC'}]", "`zone` needs `hours`"),
        (
            "[aliases]\nfast = [{model = 'echo/m', hours = '22:00-06:00', zone = 'Mars'}]",
            "unknown time zone `Mars`",
        ),
        ("[health]\nopen_s = 0", "health.open_s: must be a finite number above 0"),
    ] {
        let error = load(toml, Overrides::default(), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{toml}: {error}");
        assert!(!error.contains("'k'"), "{error}");
    }
}

#[test]
fn pools_that_can_never_serve_are_refused() {
    for (toml, expected) in [
        (
            "[providers.openai]\napi_keys = [{env = 'A'}, {env = 'B'}]",
            Some("providers.openai.api_keys: no key was found; set A or B"),
        ),
        ("[providers.openai]\napi_keys = [{env = 'A'}]\npass_through_key = true", None),
        (
            "[aliases]\nfast = ['openai/m', 'groq/m']",
            Some("aliases.fast: no model can be used: the API key of openai is missing (set OPEN"),
        ),
        (
            "[aliases]\nfast = ['openai/m', {model = 'ollama/m', weight = 0}]",
            Some("aliases.fast: no model can be used"),
        ),
        ("[aliases]\nfast = ['openai/m', 'ollama/m']", None),
        ("[aliases]\nfast = ['openai/m']\n[providers.openai]\npass_through_key = true", None),
        // Claude Code sends its own login.
        ("[aliases]\nfast = ['anthropic/m']", None),
        ("[aliases]\nfast = [{model = 'echo/m', hours = '22:00-06:00'}]", None),
    ] {
        let checked = load(toml, Overrides::default(), &[]).unwrap().check_pools();
        let error = checked.err().map(|error| error.to_string());
        match expected {
            Some(expected) => assert!(error.as_ref().unwrap().contains(expected), "{error:?}"),
            None => assert_eq!(error, None, "{toml}"),
        }
    }
}
