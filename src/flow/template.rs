//! Prompts are minijinja templates over `input` and `nodes`; undefined names are errors.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Template, UndefinedBehavior, Value};

pub const PROMPT_BYTES_MAX: usize = 1 << 20;

/// Limits the template instructions of a rendering. A loop over a thousand items with a few
/// expressions each fits; an endless loop ends within milliseconds.
const FUEL: u64 = 200_000;

pub const ITEMS_MAX: usize = 1_000;

/// Additional names in the templates of a map: the item and its index.
pub const ITEM_NAMES: &[&str] = &["item", "index"];

/// Limits the nesting of blocks; the default of 500 needs more than a small stack.
const RECURSION_MAX: usize = 50;

/// Limits the tokens of one `{{ … }}` or `{% … %}`. minijinja bounds the nesting of parentheses and
/// blocks, but compiles chains (`1 + 1 + …`, `a.b.c`, `not not x`) by unbounded recursion, and a stack
/// overflow ends the process.
const TAG_TOKENS_MAX: usize = 200;

/// Limits the `elif` tags, because each is compiled as an `if` inside the one before.
const ELIFS_MAX: usize = 100;

/// Twice the stack needed to parse and render any template within these limits. Only the touched
/// part of a stack uses memory.
pub const STACK_BYTES_MIN: usize = if cfg!(debug_assertions) { 4 << 20 } else { 1 << 20 };

pub(super) static SYNTAX: LazyLock<SyntaxConfig> = LazyLock::new(|| {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    syntax.unwrap_or_else(|error| {
        log::error!("template syntax: {error}");
        SyntaxConfig::default()
    })
});

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_syntax(SYNTAX.clone());
    environment.add_filter("fromjson", from_json);
    environment
});

/// Implements the filter in `{{ (nodes.a.output | fromjson).name }}`.
fn from_json(text: &str) -> Result<Value, minijinja::Error> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("not valid JSON: {error}"))
    })?;
    Ok(Value::from(Serde(value)))
}

/// Parses a template, and rejects one that would need too much stack.
fn parse(source: &str) -> Result<Template<'_, '_>, String> {
    let (mut in_tag, mut elifs) = (0, 0);
    // An invalid token ends the loop; the parser then fails at the same place with the reason.
    for (token, span) in tokenize(source, false, SYNTAX.clone()).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        in_tag += 1;
        let line = span.start_line;
        if in_tag > TAG_TOKENS_MAX {
            return Err(format!(
                "line {line}: an expression has more than {TAG_TOKENS_MAX} tokens; split it with `{{% set %}}`"
            ));
        }
        if elifs > ELIFS_MAX {
            return Err(format!("line {line}: the template has more than {ELIFS_MAX} `elif` tags"));
        }
    }
    ENVIRONMENT.template_from_str(source).map_err(|error| describe(&error))
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub nodes: BTreeSet<String>,
    /// True if other nodes may be used too, as in `nodes[input.which]`.
    pub any_node: bool,
    pub inputs: BTreeSet<String>,
    pub unknown: BTreeSet<String>,
}

/// Returns the names that a template uses.
///
/// # Errors
/// Returns the reason and the line of a syntax error.
pub fn names(source: &str) -> Result<Names, String> {
    let template = parse(source)?;
    let mut names = Names::default();
    for path in template.undeclared_variables(true) {
        let mut parts = path.split('.');
        match (parts.next().unwrap_or_default(), parts.next()) {
            ("nodes", Some(id)) => drop(names.nodes.insert(id.to_owned())),
            ("input", Some(name)) => drop(names.inputs.insert(name.to_owned())),
            ("nodes" | "input", None) => {}
            (other, _) if ENVIRONMENT.globals().any(|(name, _)| name == other) => {}
            (other, _) => drop(names.unknown.insert(other.to_owned())),
        }
    }
    let (of_nodes, of_input) = (subscripts(source, "nodes"), subscripts(source, "input"));
    names.nodes.extend(of_nodes.keys);
    names.any_node = of_nodes.any;
    names.inputs.extend(of_input.keys);
    Ok(names)
}

/// Returns the top-level names that an expression uses; none if it cannot be parsed.
pub(super) fn names_of_expression(expression: &str) -> Option<HashSet<String>> {
    if expression.is_empty() {
        return Some(HashSet::new());
    }
    let source = format!("{{{{ {expression} }}}}");
    Some(parse(&source).ok()?.undeclared_variables(false))
}

/// Returns the constant prefix of a template's output, and whether that is all of it.
pub fn constant_beginning(source: &str) -> (String, bool) {
    let mut text = String::new();
    for token in tokenize(source, false, SYNTAX.clone()) {
        match token {
            Ok((Token::TemplateData(data), _)) => text.push_str(data),
            _ => return (text, false),
        }
    }
    (text, true)
}

/// The uses of a name as `name["key"]`.
#[derive(Default)]
struct Subscripts {
    keys: BTreeSet<String>,
    /// True if there are uses without a constant key: `name[x]`, `name | items`, `debug()`.
    any: bool,
}

/// Ids like `node-1` need `nodes["node-1"]`, but minijinja's own analysis covers dotted names only.
fn subscripts(source: &str, name: &str) -> Subscripts {
    let tokens: Vec<Token> =
        tokenize(source, false, SYNTAX.clone()).map_while(|token| Some(token.ok()?.0)).collect();
    let mut subscripts = Subscripts::default();
    for (at, token) in tokens.iter().enumerate() {
        let is_attribute = at > 0 && matches!(tokens[at - 1], Token::Dot);
        match token {
            Token::Ident("debug") => subscripts.any = true,
            Token::Ident(ident) if *ident == name && !is_attribute => match &tokens[at + 1..] {
                [Token::Dot, Token::Ident(_), ..] => {}
                [Token::BracketOpen, key, Token::BracketClose, ..] => match key {
                    Token::Str(key) => drop(subscripts.keys.insert((*key).to_owned())),
                    Token::String(key) => drop(subscripts.keys.insert(key.to_string())),
                    _ => subscripts.any = true,
                },
                _ => subscripts.any = true,
            },
            _ => {}
        }
    }
    subscripts
}

/// Returns a template that renders an expression, with or without `{{ }}`, as `true` or `false`.
pub fn of_condition(expression: &str) -> String {
    let bare = bare(expression);
    format!("{{% if ({bare}) %}}true{{% else %}}false{{% endif %}}")
}

/// Returns a template that renders an expression, with or without `{{ }}`, as JSON.
pub fn of_items(expression: &str) -> String {
    let bare = bare(expression);
    format!("{{{{ ({bare}) | tojson }}}}")
}

fn bare(expression: &str) -> &str {
    let inner = expression.trim();
    inner.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}")).unwrap_or(inner)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// Empty if the node was skipped.
    Text(&'a str),
    Flag(bool),
    List(&'a serde_json::Value),
    Input,
}

/// The variables of a template: `input` and the outputs of earlier nodes.
#[derive(Debug, Clone)]
pub struct Scope(pub(super) Value);

impl Scope {
    pub fn new<'a>(
        input: &serde_json::Value,
        outputs: impl IntoIterator<Item = (&'a str, Output<'a>)>,
    ) -> Self {
        let nodes = Value::from_pairs(outputs.into_iter().map(|(id, output)| {
            let output = match output {
                Output::Text(text) => Value::from(text),
                Output::Flag(flag) => Value::from(flag),
                Output::List(list) => Value::from(Serde(list)),
                Output::Input => Value::from(Serde(input)),
            };
            (Value::from(id), Value::from_pairs([("output", output)]))
        }));
        Self(Value::from_pairs([("input", Value::from(Serde(input))), ("nodes", nodes)]))
    }

    /// Adds an item of a map and its index, from 0.
    pub fn with_item(&self, item: &serde_json::Value, index: usize) -> Self {
        let of = |name| self.0.get_attr(name).unwrap_or_default();
        Self(Value::from_pairs([
            ("input", of("input")),
            ("nodes", of("nodes")),
            (ITEM_NAMES[0], Value::from(Serde(item))),
            (ITEM_NAMES[1], Value::from(index)),
        ]))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error("cannot render the template: {0}")]
    Template(String),
    /// Not a list, or a list that is too long.
    #[error("`items` {0}")]
    Items(String),
    #[error("the rendered template has {bytes} bytes; the limit is {PROMPT_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

pub fn render(source: &str, scope: &Scope) -> Result<String, RenderError> {
    let mut out = Bounded { text: Vec::new(), bytes: 0 };
    let template = parse(source).map_err(RenderError::Template)?;
    let rendered = template.render_captured_to(&scope.0, &mut out).map(drop);
    if out.bytes > PROMPT_BYTES_MAX {
        return Err(RenderError::TooLarge { bytes: out.bytes });
    }
    rendered.map_err(|error| RenderError::Template(explain(&error, source, scope)))?;
    String::from_utf8(out.text).map_err(|error| RenderError::Template(error.to_string()))
}

/// Returns the length of a template's output without the outputs of nodes; an approximation if it
/// needs them.
pub fn length_without_outputs(source: &str, input: &serde_json::Value) -> usize {
    let nodes = names(source).unwrap_or_default().nodes;
    let empty = nodes.iter().map(|id| (id.as_str(), Output::Text("")));
    match render(source, &Scope::new(input, empty)) {
        Ok(text) => text.len(),
        Err(_) => source.len() + input.to_string().len(),
    }
}

/// Returns the list from a template made by [`of_items`], or from a text with a JSON list, which
/// models return.
pub fn items(source: &str, scope: &Scope) -> Result<Vec<serde_json::Value>, RenderError> {
    use serde_json::Value;
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    let value = match read(&render(source, scope)?) {
        Some(Value::String(text)) => read(&text).unwrap_or(Value::String(text)),
        value => value.unwrap_or_default(),
    };
    let kind = match value {
        Value::Array(items) if items.len() <= ITEMS_MAX => return Ok(items),
        Value::Array(items) => {
            let count = items.len();
            let message = format!("has {count} items; the limit is {ITEMS_MAX}");
            return Err(RenderError::Items(message));
        }
        Value::String(_) => "a string without a JSON array",
        Value::Object(_) => "an object",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a boolean",
        Value::Null => "null",
    };
    Err(RenderError::Items(format!("must be an array, not {kind}")))
}

/// Rejects output over the limit, so that a loop cannot exhaust the memory.
struct Bounded {
    text: Vec<u8>,
    bytes: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> std::io::Result<usize> {
        self.bytes = self.bytes.saturating_add(piece.len());
        if self.bytes > PROMPT_BYTES_MAX {
            return Err(std::io::Error::other("over the limit"));
        }
        self.text.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// minijinja does not name the undefined value; usually it is a missing input.
fn explain(error: &minijinja::Error, source: &str, scope: &Scope) -> String {
    let text = describe(error);
    if error.kind() != ErrorKind::UndefinedError {
        return text;
    }
    let input = scope.0.get_attr("input").unwrap_or_default();
    let mut missing: Vec<String> = names(source).unwrap_or_default().inputs.into_iter().collect();
    missing.retain(|name| input.get_attr(name).map_or(true, |value| value.is_undefined()));
    match missing.as_slice() {
        [] => text,
        names => format!("{text}; the run's input has no `{}`", names.join("`, `")),
    }
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::OutOfFuel => "the template executes too many instructions".to_owned(),
        kind => kind.to_string(),
    };
    match error.detail() {
        Some(detail) => format!("{line}{message}: {detail}"),
        None => format!("{line}{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_found_in_attributes_and_subscripts() {
        let names = names(r#"{{ input.topic }} {{ nodes["node-1"].output }} {{ nodes.a.output }} {{ x }} {% for i in range(3) %}{{ i }}{% endfor %} nodes["text"]"#).unwrap();
        assert_eq!(names.inputs, ["topic".to_owned()].into());
        assert_eq!(names.nodes, ["a".to_owned(), "node-1".to_owned()].into());
        assert_eq!(names.unknown, ["x".to_owned()].into());
    }

    #[test]
    fn names_are_found_beside_quoted_tag_ends_not_in_raw_text() {
        let names = |source| names(source).unwrap().nodes;
        let found = names(r#"{{ "}}" ~ nodes["node-1"].output }}"#);
        assert_eq!(found, ["node-1".to_owned()].into());
        let found = names(r#"{% raw %}{{ nodes["node-1"].output }}{% endraw %}"#);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn dynamic_node_references_are_detected() {
        let any = |source| names(source).unwrap().any_node;
        for source in [
            "{{ nodes[input.which].output }}",
            "{% for id in nodes %}{{ id }}{% endfor %}",
            "{% set all = nodes %}{{ all.a.output }}",
            "{{ nodes['a' ~ 'b'].output }}",
            "{{ nodes | tojson }}",
            "{{ debug() }}",
        ] {
            assert!(any(source), "{source}");
        }
        for source in [
            "{{ nodes.a.output }} {{ nodes['node-1'].output }}",
            "{{ input.nodes }} nodes",
            "{{ 'nodes' }}",
        ] {
            assert!(!any(source), "{source}");
        }
    }

    #[test]
    fn the_constant_prefix_equals_the_start_of_the_rendering() {
        let scope = Scope::new(&json!({"x": "X"}), []);
        for (source, expected) in [
            ("Rules.\n{{ input.x }} {{ input.x }}", ("Rules.\n", false)),
            ("Rules. \n {{- input.x }}", ("Rules.", false)),
            (
                "Rules.{# not \n this #} More. {%- if input.x %} y{% endif %}",
                ("Rules. More.", false),
            ),
            ("{% raw %}{{ x }}{% endraw %} {{ input.x }}", ("{{ x }} ", false)),
            ("a {%- raw -%} {{ x }} {%- endraw -%} b", ("a{{ x }}b", true)),
            ("{{ input.x }} Rules.", ("", false)),
            ("All of it.\r\n\n", ("All of it.\r\n\n", true)),
        ] {
            let (text, is_all) = constant_beginning(source);
            assert_eq!((text.as_str(), is_all), expected, "{source}");
            let given = render(source, &scope).unwrap();
            assert!(given.starts_with(&text), "{given}");
            assert!(!is_all || given == text, "{given}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        assert!(names("fine\n{{ oops ").unwrap_err().starts_with("line 2: "));
    }

    #[test]
    fn outputs_and_inputs_are_rendered() {
        let scope = Scope::new(&json!({"topic": "ants"}), [("plan", Output::Text("1. dig"))]);
        let text = render("{{ input.topic }}: {{ nodes.plan.output }}\n", &scope).unwrap();
        assert_eq!(text, "ants: 1. dig\n");
    }

    #[test]
    fn a_condition_can_use_inputs_and_outputs() {
        let scope = Scope::new(
            &json!({"n": 3, "none": ""}),
            [("c", Output::Flag(false)), ("in", Output::Input), ("t", Output::Text("yes"))],
        );
        let holds = |expression| render(&of_condition(expression), &scope).unwrap();
        for expression in [
            "input.n > 2",
            "{{ input.n == 3 }}",
            "not nodes.c.output",
            "nodes.in.output.n",
            "'e' in nodes.t.output",
        ] {
            assert_eq!(holds(expression), "true", "{expression}");
        }
        for expression in ["input.n > 3", "input.none", "nodes.c.output"] {
            assert_eq!(holds(expression), "false", "{expression}");
        }
        assert!(names(&of_condition("input.n >")).is_err());
    }

    #[test]
    fn json_text_can_be_parsed() {
        let text = r#"{"items": [{"name": "ant"}], "more": null}"#;
        let scope = Scope::new(&json!({}), [("a", Output::Text(text))]);
        let source = "{{ (nodes.a.output | fromjson).items[0].name }}";
        assert_eq!(render(source, &scope).unwrap(), "ant");
        let error = render("{{ 'ant' | fromjson }}", &scope).unwrap_err();
        assert!(error.to_string().contains("not valid JSON"), "{error}");
    }

    #[test]
    fn an_undefined_name_is_an_error_with_its_line() {
        let scope = Scope::new(&json!({}), []);
        let error = render("a\n{{ input.topic }}", &scope).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(error.to_string().ends_with("the run's input has no `topic`"), "{error}");
        assert_eq!(render("{{ input.topic | default('ants') }}", &scope).unwrap(), "ants");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let scope = Scope::new(&json!({}), []);
        let source =
            "{% for i in range(9000) %}{% for j in range(9000) %}x{% endfor %}{% endfor %}";
        assert!(render(source, &scope).is_err());
    }

    #[test]
    fn no_template_overflows_the_stack() {
        let nested = |count| {
            let inner = "1".to_owned() + &"+1".repeat(90);
            let elifs = "{% elif x %}".repeat(ELIFS_MAX);
            let inside = format!("{{% if x %}}{elifs}{{{{ {inner} }}}}{{% endif %}}");
            "{% if x %}".repeat(count) + &inside + &"{% endif %}".repeat(count)
        };
        let chain = |link: &str, count| "{{ 1".to_owned() + &link.repeat(count) + " }}";
        let mut sources: Vec<String> = [100, 140].map(nested).into();
        for count in [45, 90, 190, 10_000] {
            for link in [
                "+1",
                " or 1",
                "**1",
                "~1",
                "<1",
                ".a",
                "|e",
                "[0]",
                "()",
                " if 1 else 1",
                " is odd",
            ] {
                sources.push(chain(link, count));
            }
            for prefix in ["not ", "-", "(", "[", "1 if 1 else ", "{1:"] {
                sources.push(format!("{{{{ {}1 }}}}", prefix.repeat(count)));
            }
            sources.push(format!("{{{{ {}1{} }}}}", "(".repeat(count), ")".repeat(count)));
            sources.push(format!("{{{{ {}1{} }}}}", "[".repeat(count), "]".repeat(count)));
            sources.push(format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(count)));
        }
        let all = std::thread::Builder::new().stack_size(STACK_BYTES_MIN / 2).spawn(move || {
            for source in sources {
                let _ = names(&source);
                let _ = render(&source, &Scope::new(&json!({}), []));
            }
        });
        all.unwrap().join().unwrap();
        assert!(names(&chain("+1", 10_000)).unwrap_err().contains("more than 200 tokens"));
    }

    #[test]
    fn a_prompt_over_the_limit_is_refused() {
        let half = "x".repeat(PROMPT_BYTES_MAX / 2 + 1);
        let scope = Scope::new(&json!({}), [("a", Output::Text(half.as_str()))]);
        let error = render("{{ nodes.a.output }}{{ nodes.a.output }}", &scope).unwrap_err();
        assert!(matches!(error, RenderError::TooLarge { .. }), "{error}");
    }
}
