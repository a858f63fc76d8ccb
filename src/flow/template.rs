//! Prompts are minijinja templates over `input` and `nodes`; undefined names are errors.

use std::sync::Arc;

use minijinja::machinery::{Token, eval, make_string_output, tokenize};
use minijinja::value::Serde;
use minijinja::{AutoEscape, ErrorKind, Value};

use super::compile::{CONDITION, Compiled, ENVIRONMENT, ITEMS, SYNTAX, compile, describe, names};
use super::json;
use super::limits::{METER, Meter, Watch};

pub const PROMPT_BYTES_MAX: usize = 1 << 20;

pub const ITEMS_MAX: usize = 1_000;

/// Additional names in the templates of a map: the item and its index.
pub const ITEM_NAMES: &[&str] = &["item", "index"];

/// Twice the stack needed to parse and render any template within the limits. Only the touched
/// part of a stack uses memory.
pub const STACK_BYTES_MIN: usize = if cfg!(debug_assertions) { 4 << 20 } else { 1 << 20 };

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

/// Returns a template that renders an expression, with or without `{{ }}`, as `true` or `false`.
pub fn of_condition(expression: &str) -> String {
    wrapped(expression, CONDITION)
}

/// Returns a template that renders an expression, with or without `{{ }}`, as JSON.
pub fn of_items(expression: &str) -> String {
    wrapped(expression, ITEMS)
}

fn wrapped(expression: &str, (before, after): (&str, &str)) -> String {
    let bare = bare(expression);
    format!("{before}{bare}{after}")
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
pub struct Scope {
    variables: Vec<(&'static str, Value)>,
    watch: Option<Watch>,
}

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
        Self::of(vec![("input", Value::from(Serde(input))), ("nodes", nodes)])
    }

    pub(super) fn of(variables: Vec<(&'static str, Value)>) -> Self {
        Self { variables, watch: None }
    }

    /// Stops a rendering when `watch` returns a reason.
    pub fn with_watch(mut self, watch: Option<Watch>) -> Self {
        self.watch = watch;
        self
    }

    /// Adds an item of a map and its index, from 0.
    pub fn with_item(mut self, item: &serde_json::Value, index: usize) -> Self {
        self.variables.push((ITEM_NAMES[0], Value::from(Serde(item))));
        self.variables.push((ITEM_NAMES[1], Value::from(index)));
        self
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
    let Compiled { instructions, blocks } = compile(source).map_err(RenderError::Template)?;
    let meter = Arc::new(Meter::new(scope.watch.clone()));
    let metered = [(METER, Value::from_dyn_object(Arc::clone(&meter)))];
    let variables = scope.variables.iter().cloned().chain(metered);
    let variables = Value::from_pairs(variables.collect::<Vec<_>>());
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    let rendered =
        eval(&ENVIRONMENT, &instructions, variables, &blocks, &mut out, AutoEscape::None).map(drop);
    if text.len() > PROMPT_BYTES_MAX || meter.is_full() {
        let bytes = text.len().max(usize::try_from(meter.written()).unwrap_or(usize::MAX));
        return Err(RenderError::TooLarge { bytes });
    }
    rendered.map_err(|error| RenderError::Template(explain(&error, source, scope)))?;
    Ok(text)
}

/// Returns the length of a template's output without the outputs of nodes; an approximation if it
/// needs them.
pub fn length_without_outputs(source: &str, input: &serde_json::Value, watch: &Watch) -> usize {
    let nodes = names(source).unwrap_or_default().nodes;
    let empty = nodes.iter().map(|id| (id.as_str(), Output::Text("")));
    match render(source, &Scope::new(input, empty).with_watch(Some(watch.clone()))) {
        Ok(text) => text.len(),
        Err(_) => source.len() + input.to_string().len(),
    }
}

/// Returns the list from a template made by [`of_items`], or from a text with a JSON list, which
/// models return.
pub fn items(source: &str, scope: &Scope) -> Result<Vec<serde_json::Value>, RenderError> {
    use serde_json::Value;
    let exact = |text: &str| json::check_integers(text.as_bytes()).map_err(RenderError::Items);
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    let rendered = render(source, scope)?;
    exact(&rendered)?;
    let value = match read(&rendered) {
        Some(Value::String(text)) => match json::parse(json::unfenced(&text)) {
            Ok(value) => value,
            Err(_) => Value::String(text),
        },
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

/// Adds the missing inputs to the error about an undefined value, which is usually one of them.
fn explain(error: &minijinja::Error, source: &str, scope: &Scope) -> String {
    let text = describe(error, source);
    if error.kind() != ErrorKind::UndefinedError {
        return text;
    }
    let input = scope.variables.iter().find(|(name, _)| *name == "input");
    let input = input.map(|(_, value)| value.clone()).unwrap_or_default();
    let mut missing: Vec<String> = names(source).unwrap_or_default().inputs.into_iter().collect();
    missing.retain(|name| input.get_attr(name).map_or(true, |value| value.is_undefined()));
    match missing.as_slice() {
        [] => text,
        names => format!("{text}; the run's input has no `{}`", names.join("`, `")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile::ELIFS_MAX;
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
        assert!(names("fine\n{{ oops ").unwrap_err().starts_with("line 2, column "));
        let error = names("fine\n  {% if x then %}").unwrap_err();
        assert!(error.starts_with("line 2, column 11, at `then`: syntax error: "), "{error}");
    }

    fn fails(source: &str, input: serde_json::Value) -> String {
        match render(source, &Scope::new(&input, [])) {
            Ok(text) => panic!("{source}: {} bytes", text.len()),
            Err(error) => error.to_string(),
        }
    }

    fn shows(source: &str, input: serde_json::Value) -> String {
        render(source, &Scope::new(&input, [])).unwrap_or_else(|error| panic!("{source}: {error}"))
    }

    #[test]
    fn a_text_is_not_compared_with_a_number() {
        let input = json!({"words": "20", "n": 20, "mixed": [1, "2"], "texts": ["2", "1"]});
        for source in [
            "{{ input.words > 50 }}",
            "{{ input.words >= 50 }}",
            "{{ 50 < input.words }}",
            "{{ 50 <= input.words }}",
            "{{ input.words == 20 }}",
            "{{ 20 != input.words }}",
            "{{ 10 < input.words < 30 }}",
            "{% if input.words > 50 %}x{% endif %}",
            "{{ 'x' if input.words > 50 else 'y' }}",
            "{{ input.n in input.texts + ['20'] }}",
            "{{ '20' not in [input.n] }}",
            "{{ input.mixed | sort }}",
            "{{ input.mixed | max }}",
            "{{ [{'a': 1}, {'a': '2'}] | sort(attribute='a') }}",
            "{{ [{'a': 1, 'b': 1}, {'a': 1, 'b': '2'}] | sort(attribute='a, b') }}",
            "{{ [{'a': 1}, {'a': '2'}] | groupby('a') }}",
            "{{ [{'a': 1}, {'a': '2'}] | groupby(attribute='a') }}",
            "{{ {'a': 1, 'b': '2'} | dictsort(by='value') }}",
            "{{ {1: 1, '2': 2} | dictsort }}",
            "{{ input.texts | select('gt', 1) | list }}",
            "{{ input.words is lt 50 }}",
            "{{ [1, 'a'] < [1, 2] }}",
            "{{ input.words + 1 }}",
        ] {
            let error = fails(source, input.clone());
            assert!(error.contains("text") && error.contains("number"), "{source}: {error}");
            assert!(error.contains("`| int` or `| float`"), "{source}: {error}");
        }
        for (source, shown) in [
            ("{{ input.words | int > 50 }}", "False"),
            ("{{ 10 < input.n < 30 }}", "True"),
            ("{{ 10 < input.n < 15 }}", "False"),
            ("{{ input.words == 'x' }} {{ 'x' == 1 }}", "False False"),
            ("{{ 1 == 1.0 }} {{ 2 >= 1.5 }} {{ 'b' > 'a' }}", "True True True"),
            ("{{ [1, 2] < [1, 3] }} {{ 3 in [1, 3] }}", "True True"),
            ("{{ input.texts | sort | join }} {{ [3, 1] | sort | first }}", "12 1"),
        ] {
            assert_eq!(shows(source, input.clone()), shown, "{source}");
        }
        assert!(fails("{{ none > 1 }}", input).contains("null with a number"));
    }

    #[test]
    fn a_namespace_holds_copies_so_that_it_is_never_endless() {
        let ns = "{% set ns = namespace(x=1) %}{% set ns.x = ns %}";
        for (source, shown) in [
            ("{{ {ns: 1} | length }}", "1"),
            ("{{ ns | tojson }}", r#"{"x": {"x": 1}}"#),
            ("{{ debug() if ns == 1 }}done", "done"),
            (
                "{% set ns.x = [] %}{% for i in [1, 2] %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
                "[1, 2]",
            ),
        ] {
            assert_eq!(shows(&format!("{ns}{source}"), json!({})), shown, "{source}");
        }
        // Each step of these would nest the value one level deeper.
        for (start, step) in [
            ("namespace(x=[1])", "{% set ns.x = ns.x[:] %}"),
            ("namespace(x=[1])", "{% set ns.x = ns.x | zip(ns.x) %}"),
            ("namespace(x={})", "{% set ns.x = ns.x | chain({}) %}"),
            ("namespace(x=1)", "{% set n = namespace() %}{% set n.y = ns.x %}{% set ns.x = n %}"),
        ] {
            let source = format!(
                "{{% set ns = {start} %}}{{% for i in range(15000) %}}{step}{{% endfor %}}"
            );
            // It ends, with or without an error.
            let _ = render(&source, &Scope::new(&json!({}), []));
        }
    }

    #[test]
    fn filters_refuse_undefined_values_and_trim_numbers() {
        for filter in ["tojson", "urlencode", "join", "e", "zip", "pprint"] {
            let error = fails(&format!("{{{{ input.zz | {filter} }}}}"), json!({}));
            assert!(error.contains("undefined"), "{filter}: {error}");
        }
        assert_eq!(shows("{{ input.zz | default('a') }}", json!({})), "a");
        let input = json!({"n": " 8\n"});
        assert_eq!(
            shows("{{ input.n | int > 7 }} {{ input.n | float }}", input.clone()),
            "True 8.0"
        );
        assert_eq!(shows("{{ input.n | int(0) > 7 }}", input), "True");
    }

    #[test]
    fn no_step_of_a_template_needs_unbounded_memory() {
        let long = "x".repeat(100_000);
        let input = json!({"long": long, "many": vec![0; 10_000]});
        for source in [
            "{{ [1] | slice(100000000) | list | length }}",
            "{{ [1] | batch(100000000, 0) | list | length }}",
            "{{ '%100000000d' | format(1) | length }}",
            "{{ '%.100000000f' | format(1) | length }}",
            "{{ '%*d' | format(100000000, 1) | length }}",
            "{{ input.long | replace('x', input.long) | length }}",
            "{{ input.many | join(input.long) | length }}",
            "{{ input.many | join(d=input.long) | length }}",
            "{{ ('x' * 100000000) | length }}",
            "{{ ([1] * 100000000) | list | length }}",
            "{{ (1, 2) * 100000000 }}",
            "{{ ('a\n' * 1000) | indent(10000000) | length }}",
            "{{ [[1]] | tojson(indent=100000000) | length }}",
            "{{ [input.long] * 1000 | map('replace', 'x', input.long) | list | length }}",
            "{% set ns = namespace(x=input.long) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x=input.long) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x=input.many) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x=input.many) %}{% for i in range(9) %}{% set ns.x = [ns.x, ns.x, ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson | length }}",
            "{% set ns = namespace(x=[]) %}{% for i in range(30000) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "{% macro m() %}{{ input.long }}{% endmacro %}{% for i in range(9000) %}{% set x = m() %}{% endfor %}",
            "{% for i in range(9000) %}{% set x %}{{ input.long }}{% endset %}{% endfor %}",
            "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
            "{% for i in range(60000) %}{% set x = input.long[:1] %}{% endfor %}",
            "{% set x = input.long | upper %}{% for i in range(9000) %}{% set y = x | lower | list %}{% endfor %}",
        ] {
            let error = fails(source, input.clone());
            assert!(error.len() < 400, "{source}: {error}");
        }
    }

    #[test]
    fn long_work_of_a_template_is_bounded() {
        let input = json!({"many": (0..20_000).rev().collect::<Vec<_>>()});
        let source = "{% for i in range(60000) %}{% set x = input.many | sort %}{% endfor %}";
        let error = fails(source, input.clone());
        assert!(error.contains("work") || error.contains("64 MiB"), "{error}");
        // Usual work is not.
        let source = "{% set ns = namespace(x=[]) %}{% for i in range(2000) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x | length }}";
        assert_eq!(shows(source, input), "2000");
    }

    #[test]
    fn a_rendering_ends_when_its_watch_says_so() {
        let input = json!({"many": vec![0; 1_000]});
        let scope = Scope::new(&input, []).with_watch(Some(Watch::new(|| Some("cancelled"))));
        let error = render("{{ input.many | sort }}", &scope).unwrap_err();
        assert!(error.to_string().ends_with("cancelled"), "{error}");
    }

    #[test]
    fn unknown_names_are_faults_with_their_places() {
        for (source, message) in [
            (
                "a\n{{ input.x | uper }}",
                "line 2, column 14, at `uper`: unknown filter `uper`; known: `abs`, ",
            ),
            ("{{ input.x is emtpy }}", "unknown test `emtpy`; known: "),
            ("{{ nodes.a.ouput }}", "node `a` has no `ouput`; the only known name is `output`"),
            ("{{ nodes['a'].ouput }}", "node `a` has no `ouput`"),
            ("{{ nodes.a['ouput'] }}", "node `a` has no `ouput`"),
            ("{{ rnage(3) }}", "unknown function `rnage`; known: `debug`, "),
            ("{{ input.x.uper() }}", "unknown method `uper`; known: `capitalize`, "),
            (
                "{% for x in [1] %}{{ loop.indx }}{% endfor %}",
                "`loop` has no `indx`; known: `changed`, ",
            ),
            ("{% include 'x' %}", "a template cannot use other templates"),
            ("{% filter uper %}x{% endfilter %}", "unknown filter `uper`"),
            ("{% macro m() %}{{ 1 | uper }}{% endmacro %}", "unknown filter `uper`"),
            ("{{ [1 | uper] }}", "unknown filter `uper`"),
            ("{{ input.x | map('uper') | join }}", "unknown filter `uper`"),
            ("{{ input.x | select('emtpy') | list }}", "unknown test `emtpy`"),
            ("{{ input.x | rejectattr('a', 'emtpy') | list }}", "unknown test `emtpy`"),
        ] {
            let faults = names(source).unwrap().faults;
            assert_eq!(faults.len(), 1, "{source}: {faults:?}");
            assert!(faults[0].contains(message), "{source}: {faults:?}");
        }
    }

    #[test]
    fn every_known_filter_test_and_function_exists() {
        use super::super::filters::{FILTERS, FUNCTIONS, TESTS};
        for filter in FILTERS {
            assert_eq!(shows(&format!("{{{{ '{filter}' is filter }}}}"), json!({})), "True");
        }
        for test in TESTS {
            assert_eq!(shows(&format!("{{{{ '{test}' is test }}}}"), json!({})), "True");
        }
        for function in FUNCTIONS {
            assert_eq!(shows(&format!("{{{{ {function} is defined }}}}"), json!({})), "True");
        }
    }

    #[test]
    fn texts_have_the_usual_filters_and_methods() {
        let input = json!({"q": "a b&c/ä", "names": "b,a", "map": {"z": 1, "a": 2}});
        for (source, shown) in [
            ("{{ input.q | urlencode }}", "a%20b%26c/%C3%A4"),
            ("{{ input.names | split(',') | join('+') }}", "b+a"),
            ("{{ input.names.split(',')[1] }}", "a"),
            ("{{ input.names.replace('b', 'c').upper() }}", "C,A"),
            ("{{ input.names.startswith('b') }}", "True"),
            ("{{ 'one two three four' | truncate(10) }}", "one..."),
            ("{{ 'one two three four' | truncate(10, true) }}", "one two..."),
            ("{{ 'one two' | truncate(4) }}", "one two"),
            ("{{ 'one two' | truncate(4, leeway=0, end='…') }}", "one…"),
            ("{{ input.map | tojson }}", r#"{"z": 1, "a": 2}"#),
            ("{% for k, v in input.map | items %}{{ k }}{{ v }}{% endfor %}", "z1a2"),
            ("{% for k, v in input.map.items() %}{{ k }}{{ v }}{% endfor %}", "z1a2"),
            (
                "{% macro hi(n) %}Hi {{ n }}!{% endmacro %}{{ hi('x') }}{{ hi(n='y') }}",
                "Hi x!Hi y!",
            ),
            (
                "{{ ('```json\n{\"b\": 1, \"a\": 2}\n```' | fromjson) | tojson }}",
                r#"{"b": 1, "a": 2}"#,
            ),
            ("{{ ('\u{feff}[1]' | fromjson)[0] }}", "1"),
        ] {
            assert_eq!(shows(source, input.clone()), shown, "{source}");
        }
    }

    #[test]
    fn integers_stay_exact_or_are_refused() {
        let input = json!({"id": u64::MAX});
        assert_eq!(shows("{{ input.id | tojson }}", input.clone()), "18446744073709551615");
        assert_eq!(shows("{{ [input.id + 1] | tojson }}", input.clone()), "[18446744073709551616]");
        let source = "{{ '[1157000000000000000000000000000000]' | fromjson }}";
        assert!(fails(source, input.clone()).contains("does not fit into 64 bits"));
        assert!(fails("{{ ('9' * 60) | int }}", input.clone()).contains("too large"));
        let error = items(&of_items("[input.id + 1]"), &Scope::new(&input, [])).unwrap_err();
        assert!(error.to_string().contains("does not fit into 64 bits"), "{error}");
    }

    #[test]
    fn an_undefined_value_is_named_with_its_path() {
        let input = json!({"person": {"name": "Ada"}, "list": [{"a": 1}]});
        for (source, name) in [
            ("{{ input.person.nmae }}", "`input.person.nmae`"),
            ("{{ input.person.address.city }}", "`input.person.address`"),
            ("{% for it in input.list %}{{ it.b | upper }}{% endfor %}", "`it.b`"),
            ("{{ input.person.age > 3 }}", "`input.person.age`"),
            ("{{ 'x' ~ input.person.age }}", "`input.person.age`"),
            ("{% for x in input.person.pets %}{% endfor %}", "`input.person.pets`"),
        ] {
            let error = fails(source, input.clone());
            assert!(error.contains(name), "{source}: {error}");
        }
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
        let faults = names(&of_condition("input.n | uper")).unwrap().faults;
        assert!(faults[0].starts_with("line 1, column "), "{faults:?}");
        let error = render(&of_condition("input.n > 'x'"), &scope).unwrap_err().to_string();
        assert!(error.contains("line 1, column 1, at `input.n > 'x'`: "), "{error}");
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
        sources.push("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}".into());
        sources.push(format!(
            "{{% macro m(n) %}}{}{{{{ m(n) }}}}{}{{% endmacro %}}{{{{ m(1) }}}}",
            "{% if 1 %}".repeat(40),
            "{% endif %}".repeat(40)
        ));
        sources.push("{% block a %}{{ self.a() }}{% endblock %}".into());
        sources.push("{% for x in [[[]]] recursive %}{{ loop([x]) }}{% endfor %}".into());
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
