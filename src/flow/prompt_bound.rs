//! How long prompts may become, told before there is anything that goes into them. Pure.
//!
//! A template is rendered with texts in place of the outputs that are not there yet, as long as these may
//! be. Where a condition depends on them, each of its branches is taken, one after the other: that is as
//! long as any choice among them. What else depends on what is in a text, and not only on how long it is,
//! cannot be told.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use minijinja::Value;
use minijinja::machinery::{Token, tokenize};
use minijinja::value::{Object, ObjectRepr, Serde};

use super::template::{ITEM_NAMES, PROMPT_BYTES_MAX, RenderError, SYNTAX, Scope, names, render};

/// What stands for each byte of a text that is not there: of all, what becomes the longest in JSON, and in
/// a list that is shown as it is.
const FILL: &str = "\u{1f}";
/// The filters that give the more, the longer what they take is, whatever is in it. Not among them: those
/// that count characters, as these have up to four bytes, and those of upper and lower case, which may
/// have other lengths.
const MONOTONE_FILTERS: &[&str] = &["count", "join", "length", "string", "tojson", "trim"];
/// Longer texts are rounded up to a multiple of this, so that a thousand outputs need not a thousand of
/// them.
const STEP_BYTES: usize = 64 << 10;
/// How much is read and rendered for one run's templates; after it, each counts as long as a prompt may
/// be.
const WORK_BYTES_MAX: usize = 256 << 20;
/// How long the texts of a list are together that stands for one that is not there: what takes all of
/// a longer one is longer than a prompt may be in any case.
const LIST_BYTES_MAX: usize = 16 * PROMPT_BYTES_MAX;

/// What a template will see of a run that has not begun.
pub struct PromptBound<'a> {
    input: &'a serde_json::Value,
    /// With their lengths in bytes, of lists that of all texts together.
    outputs: HashMap<&'a str, (Value, usize)>,
    /// By length; those of one length are one.
    texts: HashMap<usize, Value>,
    /// How many bytes were read and rendered.
    work: usize,
}

/// What is known of the item of a map.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// There is none.
    None,
    /// It is this one, at that place.
    Known(&'a serde_json::Value, usize),
    /// It is not there yet; each of its parts may be as long.
    Bytes(usize),
}

/// A value of which only the length is known, as are its parts.
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
    /// Of a run with that input; no output is known of yet.
    pub fn new(input: &'a serde_json::Value) -> Self {
        Self {
            input,
            outputs: HashMap::new(),
            texts: HashMap::new(),
            work: 0,
        }
    }

    /// A node will give a text of so many bytes at most.
    pub fn text(&mut self, id: &'a str, bytes: usize) {
        let text = self.text_of(bytes);
        self.outputs.insert(id, (text, bytes));
    }

    /// A node will give a list of so many such texts at most.
    pub fn list(&mut self, id: &'a str, count: usize, bytes: usize) {
        let shown = count.min((LIST_BYTES_MAX / bytes.max(1)).max(1));
        let list = Value::from(vec![self.text_of(bytes); shown]);
        self.outputs.insert(id, (list, count.saturating_mul(bytes)));
    }

    /// A node will give `true` or `false`.
    pub fn flag(&mut self, id: &'a str) {
        let longest = false;
        let bytes = longest.to_string().len();
        self.outputs.insert(id, (Value::from(longest), bytes));
    }

    /// A node will give the run's input.
    pub fn input(&mut self, id: &'a str) {
        let input = (Value::from(Serde(self.input)), self.input_bytes());
        self.outputs.insert(id, input);
    }

    /// How long the run's input is, in JSON.
    pub fn input_bytes(&self) -> usize {
        self.input.to_string().len()
    }

    fn text_of(&mut self, bytes: usize) -> Value {
        let bytes = match bytes.min(PROMPT_BYTES_MAX) {
            long @ STEP_BYTES.. => long.next_multiple_of(STEP_BYTES),
            short => short,
        };
        let text = self.texts.entry(bytes);
        text.or_insert_with(|| Value::from(FILL.repeat(bytes)))
            .clone()
    }

    /// How many bytes a template gives at most, [`PROMPT_BYTES_MAX`] where it may go beyond that; none
    /// where it cannot be told.
    pub fn length_max(&mut self, source: &str, item: Item<'_>) -> Option<usize> {
        let names = names(source).ok()?;
        let depends = names.any_node
            || !names.nodes.is_empty()
            || (matches!(item, Item::Bytes(_)) && !names.unknown.is_empty());
        let source = match depends {
            true => Cow::Owned(all_branches(source, matches!(item, Item::Known(..)))?),
            false => Cow::Borrowed(source),
        };
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
        match item {
            Item::None => {}
            Item::Known(item, index) => {
                scope.push((ITEM_NAMES[0], Value::from(Serde(item))));
                scope.push((ITEM_NAMES[1], Value::from(index)));
            }
            Item::Bytes(bytes) => {
                let part = Part(self.text_of(bytes));
                scope.push((ITEM_NAMES[0], Value::from_object(part)));
                scope.push((ITEM_NAMES[1], Value::from(super::ITEMS_MAX)));
            }
        }
        if self.work > WORK_BYTES_MAX {
            return None;
        }
        let rendered = render(&source, &Scope(Value::from_pairs(scope)));
        let length = match rendered {
            Ok(text) => Some(text.len()),
            Err(RenderError::TooLarge { .. }) => Some(PROMPT_BYTES_MAX),
            Err(_) => None,
        };
        let work = source.len() + length.unwrap_or(PROMPT_BYTES_MAX);
        self.work = self.work.saturating_add(work);
        length
    }

    /// How long all is together that a template may take something of: the input, and the outputs that
    /// it names, or all.
    pub fn source_bytes(&self, source: &str) -> usize {
        let names = names(source).unwrap_or_default();
        let is_named = |id: &str| names.any_node || names.nodes.contains(id);
        let named = self.outputs.iter().filter(|(id, _)| is_named(id));
        let lengths = named.map(|(_, (_, bytes))| *bytes);
        lengths.fold(self.input_bytes(), usize::saturating_add)
    }
}

/// An `if` or a `for` that is read.
struct Block {
    /// The tags of an `if`.
    tags: Vec<Range<usize>>,
    is_if: bool,
    /// Whether what decides is not known.
    is_open: bool,
    /// Whether a name is set within it.
    sets: bool,
}

/// The template without the tags of conditions that ask for more than the input, so that all of their
/// branches are rendered. None where such a condition is within an expression, where a name is set in one
/// of the branches, and where what a tag gives does not depend on lengths alone.
fn all_branches(source: &str, is_item_known: bool) -> Option<String> {
    let mut names = Names::new(is_item_known);
    let mut blocks: Vec<Block> = Vec::new();
    let mut cuts: Vec<Range<usize>> = Vec::new();
    let mut tag: Vec<Token<'_>> = Vec::new();
    let mut start = None;
    for (token, span) in tokenize(source, false, SYNTAX.clone()).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => {
                let is_block = matches!(token, Token::BlockStart);
                start = Some((span.start_offset as usize, is_block));
                tag.clear();
            }
            Token::VariableEnd | Token::BlockEnd => {
                let (at, is_block) = start.take()?;
                let range = at..span.end_offset as usize;
                let name = match tag.first() {
                    Some(Token::Ident(name)) if is_block => *name,
                    _ => "",
                };
                let is_open = asks_for_more_than_input(&tag);
                match name {
                    "if" | "for" => blocks.push(Block {
                        tags: vec![range],
                        is_if: name == "if",
                        is_open: name == "if" && is_open,
                        sets: false,
                    }),
                    "elif" | "else" => {
                        let block = blocks.last_mut()?;
                        block.tags.push(range);
                        block.is_open |= block.is_if && is_open;
                    }
                    "endif" | "endfor" => {
                        let mut block = blocks.pop()?;
                        block.tags.push(range);
                        if block.is_open {
                            if block.sets {
                                return None;
                            }
                            cuts.append(&mut block.tags);
                        }
                    }
                    "set" => blocks.iter_mut().for_each(|block| block.sets = true),
                    // They change all that is within.
                    "filter" | "autoescape" => return None,
                    _ => {}
                }
                if !names.take(&tag, is_block) {
                    return None;
                }
                let inner = tag.get(usize::from(matches!(name, "if" | "elif"))..)?;
                if is_open && inner.iter().any(|token| is_word(Some(token), "if")) {
                    return None;
                }
            }
            token if start.is_some() => tag.push(token),
            _ => {}
        }
    }
    cuts.sort_by_key(|cut| cut.start);
    let mut rest = source.to_owned();
    for cut in cuts.into_iter().rev() {
        rest.replace_range(cut, "");
    }
    Some(rest)
}

/// What names stand for.
struct Names<'a> {
    /// Those of what is there already.
    known: BTreeSet<&'a str>,
    /// Those that stood for something else anywhere.
    unknown: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn new(is_item_known: bool) -> Self {
        let items = ITEM_NAMES.iter().copied().filter(|_| is_item_known);
        Self {
            known: ["loop", "range"].into_iter().chain(items).collect(),
            unknown: BTreeSet::new(),
        }
    }

    /// Takes in the next tag. Gives whether what it gives, and the names that it sets, become no longer
    /// where texts are shorter, whatever is in them.
    fn take(&mut self, tag: &[Token<'a>], is_block: bool) -> bool {
        let (name, rest) = match tag {
            [Token::Ident(name), rest @ ..] if is_block => (*name, rest),
            _ => ("", tag),
        };
        let is_end = |token: &Token<'_>| match name {
            "for" => is_word(Some(token), "in"),
            _ => matches!(token, Token::Assign),
        };
        let (targets, given) = match name {
            // Of them nothing is left but their branches.
            "if" | "elif" => return true,
            "for" | "set" => match rest.iter().position(is_end) {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                // What is set to what is within.
                None => (rest, rest),
            },
            _ => (&[][..], rest),
        };
        let asks = self.asks(given);
        for token in targets {
            let Token::Ident(name) = token else { continue };
            if asks || self.unknown.contains(name) {
                self.known.remove(name);
                self.unknown.insert(name);
            } else {
                self.known.insert(name);
            }
        }
        !asks || self.is_monotone(given)
    }

    /// Whether an expression asks for what is not there yet.
    fn asks(&self, given: &[Token<'_>]) -> bool {
        asks_for_more(given, &|name| self.known.contains(name))
    }

    fn is_monotone(&self, given: &[Token<'_>]) -> bool {
        given.iter().enumerate().all(|(at, token)| {
            let before = at.checked_sub(1).and_then(|before| given.get(before));
            match token {
                Token::Ident(name) => match before {
                    Some(Token::Pipe) => MONOTONE_FILTERS.contains(name),
                    // A method.
                    Some(Token::Dot) => !matches!(given.get(at + 1), Some(Token::ParenOpen)),
                    _ => !["and", "or", "not", "is", "in"].contains(name),
                },
                // A list, or a part of something: which, must not depend on a text.
                Token::BracketOpen => match before {
                    None => true,
                    Some(
                        Token::Ident(_) | Token::BracketClose | Token::ParenClose | Token::Str(_),
                    ) => !self.asks(within_brackets(&given[at + 1..])),
                    Some(_) => true,
                },
                Token::Dot
                | Token::Pipe
                | Token::Comma
                | Token::Assign
                | Token::Tilde
                | Token::Plus
                | Token::Mul
                | Token::BracketClose
                | Token::ParenOpen
                | Token::ParenClose
                | Token::Str(_)
                | Token::String(_)
                | Token::Int(_) => true,
                _ => false,
            }
        })
    }
}

/// What stands before the bracket that closes one that was opened before.
fn within_brackets<'b, 'a>(tokens: &'b [Token<'a>]) -> &'b [Token<'a>] {
    let mut depth = 1;
    let end = tokens.iter().position(|token| {
        match token {
            Token::BracketOpen => depth += 1,
            Token::BracketClose => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    &tokens[..end.unwrap_or(tokens.len())]
}

/// Whether a tag has names beside `input`. What stands behind a dot, or is a filter or a test, is none.
fn asks_for_more_than_input(tag: &[Token<'_>]) -> bool {
    asks_for_more(tag, &|_| false)
}

/// The same, where others are known too.
fn asks_for_more(tag: &[Token<'_>], is_known: &dyn Fn(&str) -> bool) -> bool {
    const WORDS: &[&str] = &[
        "if", "elif", "else", "input", "not", "and", "or", "in", "is", "true", "false", "none",
        "True", "False", "None",
    ];
    let behind = |at: usize, by: usize| at.checked_sub(by).and_then(|before| tag.get(before));
    tag.iter().enumerate().any(|(at, token)| match token {
        Token::Ident(name) => {
            let is_test = is_word(behind(at, 1), "is")
                || (is_word(behind(at, 1), "not") && is_word(behind(at, 2), "is"));
            let is_part = matches!(behind(at, 1), Some(Token::Dot | Token::Pipe));
            // Of an argument.
            let is_label = matches!(tag.get(at + 1), Some(Token::Assign));
            let is_name = !is_test && !is_part && !is_label && !WORDS.contains(name);
            is_name && !is_known(name)
        }
        _ => false,
    })
}

fn is_word(token: Option<&Token<'_>>, word: &str) -> bool {
    matches!(token, Some(Token::Ident(name)) if *name == word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn most(source: &str) -> Option<usize> {
        let input = json!({"is_long": false, "list": [1, 2]});
        let mut prompt_bound = PromptBound::new(&input);
        prompt_bound.text("a", 100);
        prompt_bound.list("each", 3, 10);
        prompt_bound.flag("is");
        prompt_bound.length_max(source, Item::None)
    }

    #[test]
    fn a_prompt_is_as_long_as_outputs_of_the_greatest_length_make_it() {
        for (source, bytes) in [
            ("four", 4),
            ("{{ nodes.a.output }}{{ nodes['a'].output }}", 200),
            (
                "{% for i in range(50) %}{{ nodes.a.output }}{% endfor %}",
                5_000,
            ),
            (
                "{% for i in input.list %}{{ nodes.a.output }}{% endfor %}",
                200,
            ),
            ("{{ nodes.each.output | join(',') }}", 32),
            ("{% for it in nodes.each.output %}{{ it }};{% endfor %}", 33),
            ("{{ nodes.each.output[1] }}", 10),
            ("{{ nodes.is.output }}", 5),
            // Quotes and such take more room there.
            ("{{ nodes.a.output | tojson }}", 602),
            ("{{ nodes.a.output | trim | string }}", 100),
            ("{{ nodes.each.output }}", 3 * (4 * 10 + 2) + 2 * 2 + 2),
            ("{{ nodes.a.output | length }}", 3),
            ("{{ nodes.a.output ~ '.' }}", 101),
            // What is known may be anything.
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
    fn all_branches_count_of_a_condition_that_depends_on_what_is_not_known() {
        for (source, bytes) in [
            (
                "{% if nodes.a.output == 'x' %}123{% else %}12{% endif %}",
                5,
            ),
            (
                "{% if nodes.is.output -%} 123 {%- elif nodes.a.output %}12{% endif %}",
                7,
            ),
            (
                "{% set x = nodes.a.output %}{% if x is startingwith('x') %}123{% endif %}",
                3,
            ),
            (
                "{% for it in nodes.each.output %}{% if it == 'x' %}123{% endif %}{% else %}-{% endfor %}",
                9,
            ),
            // The input is known.
            (
                "{% if input.is_long %}123{% else %}{{ nodes.a.output }}{% endif %}",
                100,
            ),
            (
                "{% if input.more is not defined %}1{% else %}{{ input.more }}{{ nodes.a.output }}{% endif %}",
                1,
            ),
        ] {
            assert_eq!(most(source), Some(bytes), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_not() {
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
    fn an_item_and_each_of_its_parts_may_be_as_long_as_the_list() {
        let input = json!({});
        let mut prompt_bound = PromptBound::new(&input);
        let unknown = Item::Bytes(30);
        for (source, bytes) in [
            ("{{ item }}", 30),
            ("{{ item.name }} {{ item.more.name }}", 61),
            (
                "{% if item.name == 'x' %}{{ item[0] }}{% else %}{{ item }}{% endif %}",
                60,
            ),
            ("{{ index }}", 4),
        ] {
            assert_eq!(
                prompt_bound.length_max(source, unknown),
                Some(bytes),
                "{source}"
            );
        }
        let item = json!({"name": "ants"});
        let known = Item::Known(&item, 7);
        let source = "{% if item.name == 'bees' %}{{ item.name }}{% endif %}{{ index }}";
        assert_eq!(prompt_bound.length_max(source, known), Some(1));
    }

    #[test]
    fn a_thousand_long_prompts_are_not_all_rendered() {
        let input = json!({"text": "x".repeat(PROMPT_BYTES_MAX - 1)});
        let mut prompt_bound = PromptBound::new(&input);
        let told = (0..1_000).map(|_| prompt_bound.length_max("{{ input.text }}", Item::None));
        let told = told.take_while(Option::is_some).count();
        assert!((100..500).contains(&told), "{told}");
    }
}
