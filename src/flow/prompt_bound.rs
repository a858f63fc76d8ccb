//! Bounds the length of prompts before the outputs of earlier nodes are known. Pure.
//!
//! Templates are rendered with filler texts of the maximum length in place of unknown outputs. A
//! condition on them is replaced by the sequence of all its branches, which is at least as long as
//! any choice of branches. There is no bound if a result may depend on more than the length of an
//! unknown text.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use minijinja::Value;
use minijinja::machinery::{Token, tokenize};
use minijinja::value::{Object, ObjectRepr, Serde};

use super::compile::{SYNTAX, names};
use super::limits::Watch;
use super::template::{ITEM_NAMES, ITEMS_MAX, PROMPT_BYTES_MAX, RenderError, Scope, render};

/// The filler: no other byte becomes longer when escaped in JSON or in a displayed list.
const FILL: &str = "\u{1f}";
/// Filters whose output length never decreases for a longer input, regardless of its text. Filters
/// that count characters are excluded, because a character has up to four bytes, and so are changes
/// of case, which may change the length.
const MONOTONE_FILTERS: &[&str] = &["count", "join", "length", "string", "tojson", "trim"];
/// Texts are rounded up to a multiple of this, so that a thousand outputs share few fillers.
const STEP_BYTES: usize = 64 << 10;
/// Limits the bytes parsed and rendered for the templates of one run; further templates have no
/// bound.
const WORK_BYTES_MAX: usize = 256 << 20;
/// Limits the total size of a filler list: a longer one exceeds any prompt.
const LIST_BYTES_MAX: usize = 16 * PROMPT_BYTES_MAX;

/// The template variables of a run that has not started.
pub struct PromptBound<'a> {
    input: &'a serde_json::Value,
    /// The fillers with their lengths in bytes; for lists, the total length of the texts.
    outputs: HashMap<&'a str, (Value, usize)>,
    fillers: HashMap<usize, Value>,
    /// Bytes parsed and rendered so far.
    work: usize,
    watch: Option<Watch>,
}

/// The known properties of a map's item.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    None,
    Known(&'a serde_json::Value, usize),
    /// The item and each of its parts have at most this many bytes.
    Bytes(usize),
}

/// A value with known length and unknown content; its parts have the same bound.
#[derive(Debug)]
struct Part(Value);

impl Object for Part {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::from_dyn_object(Arc::clone(self)))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().unwrap_or_default())
    }
}

impl<'a> PromptBound<'a> {
    pub fn new(input: &'a serde_json::Value, watch: Option<Watch>) -> Self {
        Self { input, outputs: HashMap::new(), fillers: HashMap::new(), work: 0, watch }
    }

    /// Adds a node whose output is a text of at most `bytes`.
    pub fn text(&mut self, id: &'a str, bytes: usize) {
        let text = self.filler(bytes);
        self.outputs.insert(id, (text, bytes));
    }

    /// Adds a node whose output is a list of at most `count` texts of at most `bytes` each.
    pub fn list(&mut self, id: &'a str, count: usize, bytes: usize) {
        let shown = count.min((LIST_BYTES_MAX / bytes.max(1)).max(1));
        let list = Value::from(vec![self.filler(bytes); shown]);
        self.outputs.insert(id, (list, count.saturating_mul(bytes)));
    }

    /// Adds a node whose output is the run's input.
    pub fn input(&mut self, id: &'a str) {
        let input = (Value::from(Serde(self.input)), self.input_bytes());
        self.outputs.insert(id, input);
    }

    /// Returns the length of the run's input in JSON.
    pub fn input_bytes(&self) -> usize {
        self.input.to_string().len()
    }

    fn filler(&mut self, bytes: usize) -> Value {
        let bytes = match bytes.min(PROMPT_BYTES_MAX) {
            long @ STEP_BYTES.. => long.next_multiple_of(STEP_BYTES),
            short => short,
        };
        let filler = self.fillers.entry(bytes);
        filler.or_insert_with(|| Value::from(FILL.repeat(bytes))).clone()
    }

    /// Returns the maximum length of a template's output in bytes, up to [`PROMPT_BYTES_MAX`]; none
    /// if it cannot be bounded.
    pub fn length_max(&mut self, source: &str, item: Item<'_>) -> Option<usize> {
        let names = names(source).ok()?;
        let is_item_open = matches!(item, Item::Bytes(_)) && !names.unknown.is_empty();
        let source = match names.any_node || !names.nodes.is_empty() || is_item_open {
            true => Cow::Owned(all_branches(source, matches!(item, Item::Known(..)))?),
            false => Cow::Borrowed(source),
        };
        if self.work > WORK_BYTES_MAX {
            return None;
        }
        let named = |id: &str| names.any_node || names.nodes.contains(id);
        let outputs = self.outputs.iter().filter(|(id, _)| named(id));
        let outputs = outputs.map(|(id, (output, _))| {
            let node = Value::from_pairs([("output", output.clone())]);
            (Value::from(*id), node)
        });
        let mut scope = vec![
            ("input", Value::from(Serde(self.input))),
            ("nodes", Value::from_pairs(outputs.collect::<Vec<_>>())),
        ];
        let item = match item {
            Item::None => None,
            Item::Known(item, index) => Some((Value::from(Serde(item)), index)),
            Item::Bytes(bytes) => {
                let part = Value::from_object(Part(self.filler(bytes)));
                Some((part, ITEMS_MAX))
            }
        };
        if let Some((item, index)) = item {
            scope.push((ITEM_NAMES[0], item));
            scope.push((ITEM_NAMES[1], Value::from(index)));
        }
        let length = match render(&source, &Scope::of(scope).with_watch(self.watch.clone())) {
            Ok(text) => Some(text.len()),
            Err(RenderError::TooLarge { .. }) => Some(PROMPT_BYTES_MAX),
            Err(_) => None,
        };
        let work = source.len() + length.unwrap_or(PROMPT_BYTES_MAX);
        self.work = self.work.saturating_add(work);
        length
    }

    /// Returns the total length of a template's sources: the input, and the outputs that it names.
    pub fn source_bytes(&self, source: &str) -> usize {
        let names = names(source).unwrap_or_default();
        let is_named = |id: &str| names.any_node || names.nodes.contains(id);
        let named = self.outputs.iter().filter(|(id, _)| is_named(id));
        let lengths = named.map(|(_, (_, bytes))| *bytes);
        lengths.fold(self.input_bytes(), usize::saturating_add)
    }
}

/// Returns the `{{ … }}` and `{% … %}` of a template: the keyword of the latter, the rest, and the
/// range in the source.
fn tags(source: &str) -> Vec<(&str, &str, Range<usize>)> {
    let (mut tags, mut start) = (Vec::new(), 0..0);
    for (token, span) in tokenize(source, false, SYNTAX.clone()).map_while(Result::ok) {
        let span = span.start_offset as usize..span.end_offset as usize;
        let inner = source.get(start.end..span.start).unwrap_or_default().trim();
        let keyword_end = match token {
            Token::VariableStart | Token::BlockStart => {
                start = span;
                continue;
            }
            Token::VariableEnd => 0,
            Token::BlockEnd => {
                inner.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(inner.len())
            }
            _ => continue,
        };
        let (keyword, rest) = inner.split_at(keyword_end);
        tags.push((keyword, rest.trim(), start.start..span.end));
    }
    tags
}

/// An `if` or `for` block while it is parsed.
#[derive(Default)]
struct Block {
    /// The ranges of this block's own tags.
    tags: Vec<Range<usize>>,
    /// True for an `if` on an unknown value.
    is_open: bool,
    /// True if the block sets a name.
    sets: bool,
}

/// Returns the template without the tags of conditions on unknown values. Returns none if one of
/// their branches sets a name, or if the result of another tag may depend on more than lengths.
fn all_branches(source: &str, is_item_known: bool) -> Option<String> {
    let mut known: BTreeSet<&str> = ["input", "range"].into();
    known.extend(ITEM_NAMES.iter().filter(|_| is_item_known));
    let mut unknown: BTreeSet<&str> = BTreeSet::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for (keyword, rest, range) in tags(source) {
        let (targets, expression) = match keyword {
            "for" => rest.split_once(" in ")?,
            "set" => rest.split_once('=')?,
            // These tags change the text inside them.
            "filter" | "autoescape" => return None,
            _ => ("", rest),
        };
        let names = names_of_expression(expression);
        let is_known = names.is_some_and(|names| names.iter().all(|name| known.contains(&**name)));
        for name in targets.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if is_known && !unknown.contains(name) {
                known.insert(name);
            } else {
                known.remove(name);
                unknown.insert(name);
            }
        }
        let is_open = !is_known && matches!(keyword, "if" | "elif");
        if !is_known && !is_open && !is_monotone(expression) {
            return None;
        }
        match keyword {
            "if" | "for" => blocks.push(Block::default()),
            "set" => blocks.iter_mut().for_each(|block| block.sets = true),
            _ => {}
        }
        if matches!(keyword, "if" | "elif" | "else" | "endif") {
            let block = blocks.last_mut()?;
            block.tags.push(range);
            block.is_open |= is_open;
        }
        if matches!(keyword, "endif" | "endfor") {
            let block = blocks.pop()?;
            if block.is_open && block.sets {
                return None;
            }
            cuts.extend(block.tags.into_iter().filter(|_| block.is_open));
        }
    }
    cuts.sort_by_key(|cut| cut.start);
    let mut rest = source.to_owned();
    for cut in cuts.into_iter().rev() {
        rest.replace_range(cut, "");
    }
    Some(rest)
}

/// Returns the top-level names that an expression uses; none if it cannot be parsed.
fn names_of_expression(expression: &str) -> Option<HashSet<String>> {
    if expression.is_empty() {
        return Some(HashSet::new());
    }
    Some(names(&format!("{{{{ {expression} }}}}")).ok()?.roots)
}

/// Returns whether an expression consists only of names, their parts, constants, sums of these, and
/// [`MONOTONE_FILTERS`].
fn is_monotone(expression: &str) -> bool {
    const OPERATORS: &[&str] = &["and", "else", "if", "in", "is", "not", "or", "recursive"];
    let tokens = tokenize(expression, true, SYNTAX.clone()).map_while(Result::ok);
    let tokens: Vec<Token<'_>> = tokens.map(|(token, _)| token).collect();
    tokens.iter().enumerate().all(|(at, token)| {
        let before = at.checked_sub(1).map(|before| &tokens[before]);
        match (before, token, &tokens[at + 1..]) {
            (Some(Token::Pipe), Token::Ident(name), _) => MONOTONE_FILTERS.contains(name),
            (_, Token::Ident(_), [Token::ParenOpen, ..]) => false,
            (Some(Token::Dot), Token::Ident(_), _) => true,
            (_, Token::Ident(name), _) => !OPERATORS.contains(name),
            // A part with a constant key.
            (_, Token::BracketOpen, [Token::Int(_) | Token::Str(_), Token::BracketClose, ..]) => {
                true
            }
            (_, Token::Dot | Token::Pipe | Token::Comma | Token::Assign | Token::Tilde, _) => true,
            (_, Token::Plus | Token::Mul | Token::Int(_), _) => true,
            (_, Token::Str(_) | Token::String(_), _) => true,
            (_, Token::BracketClose | Token::ParenOpen | Token::ParenClose, _) => true,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn most(source: &str) -> Option<usize> {
        let input = json!({"is_long": false, "list": [1, 2]});
        let mut prompt_bound = PromptBound::new(&input, None);
        prompt_bound.text("a", 100);
        prompt_bound.list("each", 3, 10);
        prompt_bound.text("is", 5);
        prompt_bound.length_max(source, Item::None)
    }

    #[test]
    fn the_longest_outputs_make_the_longest_prompt() {
        for (source, bytes) in [
            ("four", 4),
            ("{{ nodes.a.output }}{{ nodes['a'].output }}", 200),
            ("{% for i in range(50) %}{{ nodes.a.output }}{% endfor %}", 5_000),
            ("{% for i in input.list %}{{ nodes.a.output }}{% endfor %}", 200),
            ("{{ nodes.each.output | join(',') }}", 32),
            ("{% for it in nodes.each.output %}{{ it }};{% endfor %}", 33),
            ("{{ nodes.each.output[1] }}", 10),
            ("{{ nodes.is.output }}", 5),
            // JSON escapes quotes and similar characters, which makes the text longer.
            ("{{ nodes.a.output | tojson }}", 602),
            ("{{ nodes.a.output | trim | string }}", 100),
            ("{{ nodes.each.output }}", 3 * (4 * 10 + 2) + 2 * 2 + 2),
            ("{{ nodes.a.output | length }}", 3),
            ("{{ nodes.a.output ~ '.' }}", 101),
            // Any expression may use known values.
            (
                "{% for i in input.list %}{{ i | string | upper or 'x' }}{% endfor %}{{ nodes.a.output }}",
                102,
            ),
            (
                "{% set x = input.is_long or 'no' %}{{ x | replace('o', '0') }}{{ nodes.a.output }}",
                102,
            ),
            ("{{ nodes.a.output * 30000 }}", PROMPT_BYTES_MAX),
        ] {
            assert_eq!(most(source), Some(bytes), "{source}");
        }
    }

    #[test]
    fn all_branches_of_an_unknown_condition_count() {
        for (source, bytes) in [
            ("{% if nodes.a.output == 'x' %}123{% else %}12{% endif %}", 5),
            ("{% if nodes.is.output -%} 123 {%- elif nodes.a.output %}12{% endif %}", 7),
            ("{% set x = nodes.a.output %}{% if x is startingwith('x') %}123{% endif %}", 3),
            (
                "{% for it in nodes.each.output %}{% if it == 'x' %}123{% endif %}{% else %}-{% endfor %}",
                9,
            ),
            // The input is known, so the condition is.
            ("{% if input.is_long %}123{% else %}{{ nodes.a.output }}{% endif %}", 100),
            (
                "{% if input.more is not defined %}1{% else %}{{ input.more }}{{ nodes.a.output }}{% endif %}",
                1,
            ),
        ] {
            assert_eq!(most(source), Some(bytes), "{source}");
        }
    }

    #[test]
    fn results_that_depend_on_texts_are_unbounded() {
        for source in [
            "{{ '123' if nodes.a.output == 'x' else '12' }}",
            "{% for it in nodes.each.output if it == 'x' %}1{% endfor %}",
            "{{ nodes.a.output | replace('a', 'bcd') }}",
            "{{ nodes.a.output | indent(4) }}",
            "{{ nodes.a.output | indent(width=4) }}",
            "{% for it in nodes.a.output | lines %}- {{ it }}{% endfor %}",
            "{% for it in nodes.a.output | split(',') %}- {{ it }}{% endfor %}",
            "{{ nodes.each.output | unique | join }}",
            "{{ nodes.each.output | select('eq', 'x') | join }}",
            "{{ nodes.a.output or 'nothing was found' }}",
            "{{ nodes.a.output and 'something was found' }}",
            "{{ nodes.a.output | upper }}",
            "{{ nodes.a.output | first }}",
            "{{ nodes.a.output[:5] }}",
            "{% set x = nodes.a.output | length %}{{ input.list[x] }}",
            "{% set x = namespace(n=nodes.a.output) %}{{ x.n }}",
            "{{ nodes.a.output != 'x' }}",
            "{{ 'x' * (1000 - nodes.a.output | length) }}",
            "{{ input.list[nodes.a.output | length] | default('none') }}",
            "{% set x = nodes.a.output %}{{ x | replace('a', 'bcd') }}",
            "{% set x %}{{ nodes.a.output }}{% endset %}{{ x | replace('a', 'bcd') }}",
            "{% filter indent(4) %}{{ nodes.a.output }}{% endfilter %}",
            "{% set x = 'long' %}{% if nodes.is.output %}{% set x = '' %}{% endif %}{{ x }}",
            "{% for x in nodes.each.output %}{% for x in input.list %}{% endfor %}{{ x | indent }}{% endfor %}",
            "{{ (nodes.a.output | fromjson).name }}",
            "{% for i in range(nodes.a.output | int) %}1{% endfor %}",
            "{{ input.missing }}",
            "{{ nodes.a.output",
        ] {
            assert_eq!(most(source), None, "{source}");
        }
    }

    #[test]
    fn items_and_their_fields_are_bounded_by_the_list() {
        let input = json!({});
        let mut prompt_bound = PromptBound::new(&input, None);
        let unknown = Item::Bytes(30);
        for (source, bytes) in [
            ("{{ item }}", 30),
            ("{{ item.name }} {{ item.more.name }}", 61),
            ("{% if item.name == 'x' %}{{ item[0] }}{% else %}{{ item }}{% endif %}", 60),
            ("{{ index }}", 4),
        ] {
            assert_eq!(prompt_bound.length_max(source, unknown), Some(bytes), "{source}");
        }
        let item = json!({"name": "ants"});
        let known = Item::Known(&item, 7);
        let source = "{% if item.name == 'bees' %}{{ item.name }}{% endif %}{{ index }}";
        assert_eq!(prompt_bound.length_max(source, known), Some(1));
    }

    #[test]
    fn rendering_for_a_bound_is_limited() {
        let input = json!({"text": "x".repeat(PROMPT_BYTES_MAX - 1)});
        let mut prompt_bound = PromptBound::new(&input, None);
        let told = (0..1_000).map(|_| prompt_bound.length_max("{{ input.text }}", Item::None));
        let told = told.take_while(Option::is_some).count();
        assert!((100..500).contains(&told), "{told}");
    }
}
