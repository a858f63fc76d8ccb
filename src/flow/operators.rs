//! The operators of templates. Unlike minijinja's own, they refuse to compare a text with a number,
//! and report their work to the [`Meter`].

use std::cmp::Ordering;

use minijinja::machinery::Span;
use minijinja::machinery::ast::{BinOp, BinOpKind, Const, Expr, Spanned};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::limits::Meter;

/// The filter for a chain of comparisons, as in `1 < x < 5`. Its arguments are operators and values.
pub const CHAIN: &str = "<>";

/// The name of each operator; a filter of that name computes it. No template can name these filters.
const OPERATORS: &[(&str, BinOpKind)] = &[
    ("+", BinOpKind::Add),
    ("-", BinOpKind::Sub),
    ("*", BinOpKind::Mul),
    ("/", BinOpKind::Div),
    ("//", BinOpKind::FloorDiv),
    ("%", BinOpKind::Rem),
    ("**", BinOpKind::Pow),
    ("~", BinOpKind::Concat),
];

/// The comparisons, with the names of their tests.
const COMPARISONS: &[(&str, &[&str])] = &[
    ("==", &["==", "eq", "equalto"]),
    ("!=", &["!=", "ne"]),
    ("<", &["<", "lt", "lessthan"]),
    ("<=", &["<=", "le"]),
    (">", &[">", "gt", "greaterthan"]),
    (">=", &[">=", "ge"]),
    ("in", &["in"]),
    ("not in", &[]),
];

/// Adds the operators as filters, and the tests that compare.
pub fn add_to(environment: &mut Environment<'static>) {
    for &(name, kind) in OPERATORS {
        environment.add_filter(name, move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
            check_defined(state, &[a, b])?;
            calculate(&Meter::of(state), name, kind, a, b)
        });
    }
    for &(name, tests) in COMPARISONS {
        environment.add_filter(name, move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
            check_defined(state, &[a, b])?;
            holds(&Meter::of(state), name, a, b)
        });
        for &test in tests {
            environment.add_test(test, move |state: &mut State<'_, '_>, a: &Value, b: &Value| {
                check_defined(state, &[a, b])?;
                holds(&Meter::of(state), name, a, b)
            });
        }
    }
    environment.add_filter(CHAIN, chain);
}

fn chain(state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>) -> Result<bool, Error> {
    let meter = Meter::of(state);
    let args = args.into_values();
    let mut args = args.iter();
    let mut left = args.next();
    while let (Some(a), Some(name), Some(b)) = (left, args.next(), args.next()) {
        check_defined(state, &[a, b])?;
        if !holds(&meter, name.as_str().unwrap_or_default(), a, b)? {
            return Ok(false);
        }
        left = Some(b);
    }
    Ok(true)
}

fn fault(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Names a value's type as JSON does.
pub fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "an undefined value",
        ValueKind::None => "null",
        ValueKind::Bool => "a boolean",
        ValueKind::Number => "a number",
        ValueKind::String | ValueKind::Bytes => "a text",
        ValueKind::Seq | ValueKind::Iterable => "a list",
        ValueKind::Map => "an object",
        _ => "another value",
    }
}

/// Checks that no value is undefined. The error of the formatter names the one that is.
fn check_defined(state: &mut State<'_, '_>, values: &[&Value]) -> Result<(), Error> {
    match values.iter().find(|value| value.is_undefined()) {
        Some(value) => state.format((*value).clone()).map(drop),
        None => Ok(()),
    }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn calculate(
    meter: &Meter,
    name: &str,
    kind: BinOpKind,
    a: &Value,
    b: &Value,
) -> Result<Value, Error> {
    // Texts and lists have no other operators.
    let (a_size, b_size) = match name {
        "+" | "*" | "~" => (meter.weigh(a)?, meter.weigh(b)?),
        _ => Default::default(),
    };
    let count = |value: &Value| value.as_usize().unwrap_or_default() as u64;
    match name {
        "*" if a.is_number() != b.is_number() => {
            let times = if a.is_number() { count(a) } else { count(b) };
            let bytes = a_size.bytes.max(b_size.bytes);
            meter.memory(bytes.saturating_mul(times))?;
        }
        // Each value may become longer when it is shown in a list.
        "~" => meter.memory(4 * (a_size.bytes + b_size.bytes))?,
        // A list is copied only once in every 32 additions.
        "+" if is_list(a) => meter.memory(a_size.parts + b_size.parts)?,
        "+" => meter.memory(a_size.bytes + b_size.bytes)?,
        _ => meter.work(1)?,
    }
    let span = Span::default();
    let constant = |value: &Value| Expr::Const(Spanned::new(Const { value: value.clone() }, span));
    let operation = BinOp { op: kind, left: constant(a), right: constant(b) };
    let result = Expr::BinOp(Spanned::new(operation, span)).as_const();
    let result = result.ok_or_else(|| cannot_calculate(name, a, b))?;
    if is_list(&result) {
        meter.weigh(&result)?;
    }
    Ok(result)
}

fn cannot_calculate(name: &str, a: &Value, b: &Value) -> Error {
    let (left, right) = (type_name(a), type_name(b));
    if a.is_number() && b.is_number() {
        return fault(format!("cannot calculate {a} {name} {b}"));
    }
    let hint = hint(a, b);
    fault(format!("cannot use `{name}` with {left} and {right}{hint}"))
}

fn hint(a: &Value, b: &Value) -> &'static str {
    let kinds = [a.kind(), b.kind()];
    match kinds.contains(&ValueKind::String) && kinds.contains(&ValueKind::Number) {
        true => "; convert the text with `| int` or `| float`",
        false => "",
    }
}

fn holds(meter: &Meter, name: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    // Texts and numbers are the usual case, and cheap.
    let are_plain = [a, b].iter().all(|value| matches!(value.kind(), ValueKind::Number));
    if !are_plain {
        meter.weigh(a)?;
        meter.weigh(b)?;
    }
    Ok(match name {
        "==" => are_equal(a, b)?,
        "!=" => !are_equal(a, b)?,
        "<" => order(a, b, name)?.is_lt(),
        "<=" => order(a, b, name)?.is_le(),
        ">" => order(a, b, name)?.is_gt(),
        ">=" => order(a, b, name)?.is_ge(),
        "in" => contains(b, a)?,
        _ => !contains(b, a)?,
    })
}

/// Compares for equality. A text that looks like the number on the other side is an error, because
/// the result would be false.
fn are_equal(a: &Value, b: &Value) -> Result<bool, Error> {
    let (text, number) = match (a.as_str(), b.as_str()) {
        (Some(text), None) if b.is_number() => (text, b),
        (None, Some(text)) if a.is_number() => (text, a),
        _ => return Ok(a == b),
    };
    let parsed: Option<f64> = text.trim().parse().ok();
    match parsed.zip(f64::try_from(number.clone()).ok()) {
        Some((parsed, number)) if parsed == number => Err(fault(format!(
            "cannot compare the text `{text}` with the number {number}; convert the text with `| int` or `| float`"
        ))),
        _ => Ok(false),
    }
}

/// Compares two values of the same type.
///
/// # Errors
/// Fails for two types, and names both.
fn order(a: &Value, b: &Value, name: &str) -> Result<Ordering, Error> {
    if is_list(a) && is_list(b) {
        let mut others = b.try_iter()?;
        for item in a.try_iter()? {
            let Some(other) = others.next() else {
                return Ok(Ordering::Greater);
            };
            match order(&item, &other, name)? {
                Ordering::Equal => {}
                unequal => return Ok(unequal),
            }
        }
        return Ok(if others.next().is_some() { Ordering::Less } else { Ordering::Equal });
    }
    match a.kind() == b.kind() {
        true => Ok(a.cmp(b)),
        false => {
            let (left, right, hint) = (type_name(a), type_name(b), hint(a, b));
            Err(fault(format!("cannot compare {left} with {right} (`{name}`){hint}")))
        }
    }
}

fn contains(container: &Value, value: &Value) -> Result<bool, Error> {
    match container.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in container.try_iter()? {
                if are_equal(&item, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        ValueKind::Map => Ok(!container.get_item(value)?.is_undefined()),
        ValueKind::String => {
            let text = container.as_str().unwrap_or_default();
            Ok(match value.as_str() {
                Some(part) => text.contains(part),
                None => text.contains(&value.to_string()),
            })
        }
        _ => Err(fault(format!("cannot search in {}", type_name(container)))),
    }
}

/// Checks that values can be sorted: not both texts and numbers.
///
/// # Errors
/// Fails for a list with both, and names both types.
pub fn check_sortable<'a>(values: impl Iterator<Item = &'a Value>) -> Result<(), Error> {
    let mut text = None;
    let mut number = None;
    for value in values {
        match value.kind() {
            ValueKind::String => text = Some(value),
            ValueKind::Number => number = Some(value),
            _ => {}
        }
        if let (Some(text), Some(number)) = (text, number) {
            order(text, number, "<")?;
        }
    }
    Ok(())
}
