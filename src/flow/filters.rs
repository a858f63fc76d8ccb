//! The filters and functions of templates. All filters run through [`apply`], which bounds the
//! memory of those whose result can be much larger than their input.

use minijinja::value::{Kwargs, Rest, Serde, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};

use super::json;
use super::limits::{Extent, Meter};
use super::operators::{self, check_sortable};

/// The filter that applies another one; no template can name it. Its arguments are the value, the
/// name of the other filter, and the arguments of that filter.
pub const APPLY: &str = "|";
/// The filter that checks the size of a value; no template can name it.
pub const KEEP: &str = "=";

/// The filter that counts a value as work; no template can name it.
pub const WEIGH: &str = "?";

/// The filter that copies a value deeply; no template can name it.
pub const COPY: &str = "&";

/// The filters that accept an undefined value.
const OF_UNDEFINED: &[&str] = &["d", "default"];
/// The filters that read a number from a text, with white space around it.
const NUMBERS: &[&str] = &["float", "int"];

/// All filters, for errors about unknown ones.
pub const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "format",
    "fromjson",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "zip",
];
/// All tests, for errors about unknown ones.
pub const TESTS: &[&str] = &[
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "int",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "safe",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];
/// All functions, for errors about unknown ones.
pub const FUNCTIONS: &[&str] = &["debug", "dict", "namespace", "range"];

/// Filters that look at a small part of a value.
const CHEAP: &[&str] =
    &["attr", "bool", "count", "d", "default", "first", "float", "int", "length", "safe"];
/// Filters that keep a text in one piece. All others may make a list of its characters.
const OF_TEXT: &[&str] = &[
    "capitalize",
    "e",
    "escape",
    "format",
    "fromjson",
    "indent",
    "lines",
    "lower",
    "pprint",
    "replace",
    "split",
    "string",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
];
/// Filters that compare the values of a list.
const ORDERING: &[&str] = &["dictsort", "groupby", "max", "min", "sort"];

/// The memory of a value in a list, in bytes.
const PART_BYTES: u64 = 32;
/// Limits numbers in the format of `format`, and the indentation of `tojson`.
const WIDTH_MAX: u64 = 100_000;
const JSON_INDENT_MAX: u64 = 64;
/// The most memory that a byte of JSON takes when it is parsed.
const JSON_BYTES_FACTOR: u64 = 16;
/// 2 to the power of 127: integers of templates are smaller.
const INT_END: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;
const TRUNCATE_CHARS: usize = 255;
/// A text that is longer by at most this many characters is not truncated, as in Jinja2.
const TRUNCATE_LEEWAY: usize = 5;

pub fn add_to(environment: &mut Environment<'static>) {
    operators::add_to(environment);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("truncate", truncate);
    environment.add_filter(APPLY, |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let mut args = args.into_values();
        // The rewritten template always passes both.
        let name = (args.len() > 1).then(|| args.remove(1));
        let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
        apply(state, name, &args)
    });
    environment.add_filter(KEEP, |state: &mut State<'_, '_>, value: &Value| {
        Meter::of(state).keep(value.clone())
    });
    environment.add_filter(WEIGH, |state: &mut State<'_, '_>, value: &Value| {
        Meter::of(state).weigh(value).map(|_| value.clone())
    });
    environment.add_filter(COPY, |state: &mut State<'_, '_>, value: &Value| {
        let meter = Meter::of(state);
        meter.weigh(value)?;
        meter.keep(copy(value)?)
    });
    environment.add_function("debug", debug);
    environment.set_formatter(write);
}

fn fault(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Applies a filter to the first argument, and bounds its work and memory.
fn apply(state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
    let meter = Meter::of(state);
    let Some((value, others)) = args.split_first() else {
        return Err(fault("a filter needs a value"));
    };
    if value.is_undefined() && !OF_UNDEFINED.contains(&name) {
        // The error of a filter for texts names the value.
        let refused = state.apply_filter("upper", std::slice::from_ref(value));
        return Err(refused.err().unwrap_or_else(|| ErrorKind::UndefinedError.into()));
    }
    if let Some(text) = value.as_str().filter(|_| NUMBERS.contains(&name))
        && text.trim().len() < text.len()
    {
        let trimmed = std::iter::once(Value::from(text.trim())).chain(others.iter().cloned());
        return apply(state, name, &trimmed.collect::<Vec<_>>());
    }
    if name == "map"
        && let Some((filter, others)) = others.split_first()
        && let Some(filter) = filter.as_str()
    {
        return map(state, &meter, value, filter, others);
    }
    if name == "int" {
        check_int(value)?;
    }
    if CHEAP.contains(&name) {
        meter.work(text_length(value) / PART_BYTES)?;
    } else {
        let extent = meter.weigh(value)?;
        for other in others {
            meter.weigh(other)?;
        }
        meter.memory(result_bytes(name, value, others, extent)?)?;
        if ORDERING.contains(&name) {
            check_order(name, value, others)?;
        }
    }
    let result = state.apply_filter(name, args)?;
    meter.keep(result)
}

/// Returns a copy without lazy lists and without references to namespaces. A namespace that holds
/// itself would be endless and never freed.
fn copy(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| copy(&item));
            Ok(Value::from(items.collect::<Result<Vec<_>, _>>()?))
        }
        ValueKind::Map => {
            let entries = value.try_iter()?.map(|key| {
                let item = value.get_item(&key)?;
                Ok((copy(&key)?, copy(&item)?))
            });
            Ok(Value::from_pairs(entries.collect::<Result<Vec<_>, Error>>()?))
        }
        _ => Ok(value.clone()),
    }
}

/// Refuses a text that `int` would change to the largest integer.
fn check_int(value: &Value) -> Result<(), Error> {
    let number: f64 = match value.as_str() {
        Some(text) => text.trim().parse().unwrap_or_default(),
        None => f64::try_from(value.clone()).unwrap_or_default(),
    };
    if number.abs() >= INT_END || number.is_nan() {
        return Err(fault(format!("{number:e} is too large for an integer")));
    }
    Ok(())
}

fn map(
    state: &mut State<'_, '_>,
    meter: &Meter,
    value: &Value,
    filter: &str,
    others: &[Value],
) -> Result<Value, Error> {
    meter.weigh(value)?;
    let mut mapped = Vec::new();
    for item in value.try_iter()? {
        let args: Vec<Value> = std::iter::once(item).chain(others.iter().cloned()).collect();
        mapped.push(apply(state, filter, &args)?);
    }
    meter.keep(Value::from(mapped))
}

fn text_length(value: &Value) -> u64 {
    value.as_str().map_or(0, str::len) as u64
}

/// Returns the numbers and the lengths of the texts among the arguments.
fn arguments(others: &[Value]) -> (u64, u64) {
    let (mut number, mut length) = (0, 0);
    let mut add = |value: &Value| {
        number = number.max(value.as_usize().unwrap_or_default() as u64);
        length = length.max(text_length(value));
    };
    for other in others {
        add(other);
        if let Ok(keywords) = Kwargs::try_from(other.clone()) {
            for name in keywords.args() {
                if let Ok(value) = keywords.get::<Value>(name) {
                    add(&value);
                }
            }
        }
    }
    (number, length)
}

/// Returns how much memory a filter needs at least for a result that is larger than its input.
fn result_bytes(name: &str, value: &Value, others: &[Value], of: Extent) -> Result<u64, Error> {
    let (number, length) = arguments(others);
    let text = value.as_str().unwrap_or_default();
    let lines = || text.matches('\n').count() as u64 + 1;
    let text_bytes = text.len() as u64;
    Ok(match name {
        "join" => of.bytes.saturating_add(length.saturating_mul(of.parts)),
        "replace" => {
            let shown;
            let from = match others.first() {
                Some(from) if from.as_str().is_some() => from.as_str().unwrap_or_default(),
                Some(from) => {
                    shown = from.to_string();
                    shown.as_str()
                }
                None => return Ok(0),
            };
            let to = others.get(1).map_or(0, |to| match to.as_str() {
                Some(to) => to.len(),
                None => to.to_string().len(),
            });
            let count = text.matches(from).count() as u64;
            text_bytes.saturating_add(count.saturating_mul(to as u64))
        }
        "format" => {
            let widths = text.split(|c: char| !c.is_ascii_digit());
            let widths = widths.filter(|digits| !digits.is_empty());
            let widest = widths.map(|digits| digits.parse().unwrap_or(u64::MAX)).max();
            let widest =
                widest.unwrap_or_default().max(if text.contains('*') { number } else { 0 });
            if widest > WIDTH_MAX {
                return Err(fault(format!("a format is wider than {WIDTH_MAX} characters")));
            }
            let fields = text.matches('%').count() as u64;
            of.bytes.saturating_add(fields.saturating_mul(widest))
        }
        "batch" | "slice" => of.bytes.saturating_add(number.saturating_mul(PART_BYTES)),
        "indent" => text_bytes.saturating_add(lines().saturating_mul(number)),
        "lines" => text_bytes.saturating_add(lines().saturating_mul(PART_BYTES)),
        "split" => {
            let separator = others.first().and_then(Value::as_str).filter(|it| !it.is_empty());
            let count = match separator {
                Some(separator) => text.matches(separator).count(),
                None => text.matches(char::is_whitespace).count(),
            };
            text_bytes.saturating_add((count as u64 + 1).saturating_mul(PART_BYTES))
        }
        "tojson" if number > JSON_INDENT_MAX => {
            let message = format!("the indentation of `tojson` is more than {JSON_INDENT_MAX}");
            return Err(fault(message));
        }
        "tojson" | "pprint" => {
            let indent = number.max(4).saturating_mul(of.depth);
            of.bytes.saturating_add(of.parts.saturating_mul(indent))
        }
        "fromjson" => text_bytes.saturating_mul(JSON_BYTES_FACTOR),
        _ if OF_TEXT.contains(&name) => text_bytes,
        _ => text_bytes.saturating_mul(PART_BYTES),
    })
}

/// Checks that a filter does not order texts and numbers together, which have no common order.
fn check_order(name: &str, value: &Value, others: &[Value]) -> Result<(), Error> {
    let keywords = others.last().and_then(|last| Kwargs::try_from(last.clone()).ok());
    let keyword = |name| keywords.as_ref().and_then(|it| it.get::<String>(name).ok());
    let positional = |at: usize| others.get(at).and_then(Value::as_str).map(str::to_owned);
    if name == "dictsort" {
        let is_by_value = keyword("by").is_some_and(|by| by == "value");
        let keys = value.try_iter()?;
        let keys = keys.map(|key| if is_by_value { value.get_item(&key) } else { Ok(key) });
        return check_sortable(keys.collect::<Result<Vec<_>, _>>()?.iter());
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    let attribute = keyword("attribute").or_else(|| positional(0).filter(|_| name == "groupby"));
    let Some(paths) = attribute else {
        let items: Vec<Value> = value.try_iter()?.collect();
        return check_sortable(items.iter());
    };
    for path in paths.split(',').map(str::trim) {
        let items = value.try_iter()?.filter_map(|item| at_path(item, path));
        check_sortable(items.collect::<Vec<_>>().iter())?;
    }
    Ok(())
}

/// Returns the value at a path like `a.b`; none if there is none.
fn at_path(value: Value, path: &str) -> Option<Value> {
    path.split('.').try_fold(value, |value, name| match name.parse::<usize>() {
        Ok(index) => value.get_item_by_index(index).ok(),
        Err(_) => value.get_attr(name).ok(),
    })
}

/// Parses JSON, for example `{{ (nodes.a.output | fromjson).name }}`. Models often put a Markdown
/// fence around it.
fn from_json(text: &str) -> Result<Value, Error> {
    let value = json::parse(json::unfenced(text))
        .map_err(|error| fault(format!("not valid JSON: {error}")))?;
    Ok(Value::from(Serde(value)))
}

/// Shortens a text to a number of characters, at the end of a word, as in Jinja2.
fn truncate(
    text: &str,
    length: Option<usize>,
    killwords: Option<bool>,
    end: Option<&str>,
    keywords: Kwargs,
) -> Result<String, Error> {
    let length = length.or(keywords.get("length")?).unwrap_or(TRUNCATE_CHARS);
    let killwords = killwords.or(keywords.get("killwords")?).unwrap_or(false);
    let end = end.or(keywords.get("end")?).unwrap_or("...");
    let leeway = keywords.get::<Option<usize>>("leeway")?.unwrap_or(TRUNCATE_LEEWAY);
    keywords.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length.saturating_sub(end.chars().count());
    let cut = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
    let mut short = &text[..cut];
    if !killwords && let Some((words, _)) = short.rsplit_once(' ') {
        short = words;
    }
    Ok(format!("{short}{end}"))
}

/// Shows values, or all variables of the template.
fn debug(state: &mut State<'_, '_>, args: Rest<Value>) -> Result<String, Error> {
    let meter = Meter::of(state);
    let names: Vec<String> = match args.is_empty() {
        true => ["input", "nodes", "item", "index"].map(str::to_owned).into(),
        false => Vec::new(),
    };
    let named = names.into_iter().filter_map(|name| Some((state.lookup(&name)?, name)));
    let named: Vec<(Value, String)> = named.collect();
    let mut text = String::new();
    let unnamed = args.0.into_iter().map(|value| (value, String::new()));
    for (value, name) in named.into_iter().chain(unnamed) {
        let Extent { parts, bytes, depth } = meter.weigh(&value)?;
        meter.memory(bytes.saturating_add(parts.saturating_mul(4 * depth)))?;
        let equals = if name.is_empty() { "" } else { " = " };
        text.push_str(&format!("{name}{equals}{value:#?}\n"));
    }
    Ok(text)
}

/// Writes a value to the output, and counts its length before.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let meter = Meter::of(state);
    let bytes = match value.kind() {
        ValueKind::String | ValueKind::Bytes => value.as_bytes().map_or(0, <[u8]>::len) as u64,
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => meter.weigh(value)?.bytes,
        ValueKind::Plain => value.to_string().len() as u64,
        _ => 1,
    };
    meter.work(0)?;
    meter.write(bytes)?;
    escape_formatter(out, state, value)
}
