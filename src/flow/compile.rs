//! Parses and compiles templates.
//!
//! The syntax tree is rebuilt before it is compiled: operators, filters and long texts become calls
//! that report their work (see [`limits`](super::limits)). The same pass collects the names that a
//! template uses, and finds unknown filters, tests, functions and attributes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use minijinja::machinery::ast::{
    self, BinOpKind, Call, CallArg, CallType, CompareOpKind, Const, EmitExpr, Expr, Filter,
    Spanned, Stmt,
};
use minijinja::machinery::{CodeGenerator, Instructions, Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::filters::{self, APPLY, COPY, FILTERS, FUNCTIONS, KEEP, TESTS, WEIGH};
use super::operators::CHAIN;

/// Limits the template instructions of a rendering. A loop over a thousand items with a few
/// expressions each fits; an endless loop ends within milliseconds.
const FUEL: u64 = 200_000;

/// Limits the nesting of blocks; the default of 500 needs more than a small stack.
const RECURSION_MAX: usize = 50;

/// Limits the tokens of one `{{ … }}` or `{% … %}`. minijinja bounds the nesting of parentheses and
/// blocks, but compiles chains (`1 + 1 + …`, `a.b.c`, `not not x`) by unbounded recursion, and a stack
/// overflow ends the process.
const TAG_TOKENS_MAX: usize = 200;

/// Limits the `elif` tags, because each is compiled as an `if` inside the one before.
pub const ELIFS_MAX: usize = 100;

/// A longer text outside of tags is written by a step that counts its length. Shorter ones are
/// bounded by the number of instructions.
const COUNTED_TEXT_BYTES: usize = 64;

/// The template around the expression of a condition, and around that of the items of a map. Columns
/// in errors count from the expression.
pub const CONDITION: (&str, &str) = ("{% if (", ") %}true{% else %}false{% endif %}");
pub const ITEMS: (&str, &str) = ("{{ (", ") | tojson }}");

/// Limits the text of an error that shows the place of a fault.
const SHOWN_CHARS: usize = 40;

/// Methods of Python's strings and dictionaries, with the filters that do the same.
const METHODS: &[(&str, &str)] = &[
    ("capitalize", "capitalize"),
    ("items", "items"),
    ("keys", "list"),
    ("lower", "lower"),
    ("replace", "replace"),
    ("split", "split"),
    ("splitlines", "lines"),
    ("strip", "trim"),
    ("title", "title"),
    ("upper", "upper"),
];
/// Methods of Python's strings, with the tests that do the same.
const TEST_METHODS: &[(&str, &str)] = &[("endswith", "endingwith"), ("startswith", "startingwith")];

const LOOP_NAMES: &[&str] = &[
    "changed",
    "cycle",
    "depth",
    "depth0",
    "first",
    "index",
    "index0",
    "last",
    "length",
    "revindex",
    "revindex0",
];
/// Tests that read a whole text.
const TEXT_TESTS: &[&str] = &["endingwith", "lower", "startingwith", "upper"];

pub static SYNTAX: LazyLock<SyntaxConfig> = LazyLock::new(|| {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    syntax.unwrap_or_else(|error| {
        log::error!("template syntax: {error}");
        SyntaxConfig::default()
    })
});

pub static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_syntax(SYNTAX.clone());
    // Errors then name the undefined value.
    environment.set_debug(true);
    filters::add_to(&mut environment);
    environment
});

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub nodes: BTreeSet<String>,
    /// True if other nodes may be used too, as in `nodes[input.which]`.
    pub any_node: bool,
    pub inputs: BTreeSet<String>,
    pub unknown: BTreeSet<String>,
    /// The names outside of the template that it uses.
    pub roots: HashSet<String>,
    /// Unknown filters and the like, which fail when they are reached.
    pub faults: Vec<String>,
}

pub struct Compiled<'a> {
    pub instructions: Instructions<'a>,
    pub blocks: BTreeMap<&'a str, Instructions<'a>>,
}

/// Compiles a template, and rejects one that would need too much stack.
///
/// # Errors
/// Returns the place and the reason of a syntax error.
pub fn compile(source: &str) -> Result<Compiled<'_>, String> {
    let mut rewriter = Rewriter::default();
    let tree = rewriter.template(source)?;
    let mut generator = CodeGenerator::new("template", source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    Ok(Compiled { instructions, blocks })
}

/// Returns the names that a template uses.
///
/// # Errors
/// Returns the place and the reason of a syntax error.
pub fn names(source: &str) -> Result<Names, String> {
    let mut rewriter = Rewriter::default();
    rewriter.template(source)?;
    Ok(rewriter.names)
}

fn check_size(source: &str) -> Result<(), String> {
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
    Ok(())
}

/// Describes an error with its line, its column and the text there.
pub fn describe(error: &Error, source: &str) -> String {
    let place = match error.range() {
        Some(range) => place(source, range.start, range.end),
        None => error.line().map(|line| format!("line {line}: ")).unwrap_or_default(),
    };
    let message = match error.kind() {
        ErrorKind::OutOfFuel => "the template executes too many instructions".to_owned(),
        // The detail is a complete message.
        ErrorKind::InvalidOperation if error.detail().is_some() => String::new(),
        kind => kind.to_string(),
    };
    match error.detail() {
        Some(detail) if message.is_empty() => format!("{place}{detail}"),
        Some(detail) => format!("{place}{message}: {detail}"),
        None => format!("{place}{message}"),
    }
}

/// Returns `line L, column C, at `TEXT`: ` for a range of a template.
fn place(source: &str, start: usize, end: usize) -> String {
    let wrapper = [CONDITION, ITEMS]
        .into_iter()
        .find(|(before, after)| source.starts_with(before) && source.ends_with(after));
    let wrapped = wrapper.map_or(0, |(before, _)| before.len());
    let start = start.max(wrapped);
    let before = source.get(..start).unwrap_or(source);
    let line = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let outside = if line == 1 { wrapped } else { 0 };
    let column = before[line_start..].chars().count().saturating_sub(outside) + 1;
    let at = source.get(start..end.max(start)).unwrap_or_default();
    let at = if at.trim().is_empty() { source[line_start..].lines().next() } else { Some(at) };
    let at = at
        .unwrap_or_default()
        .trim_start_matches(['{', '%', '-'])
        .trim()
        .lines()
        .next()
        .unwrap_or_default();
    let shown: String = at.chars().take(SHOWN_CHARS).collect();
    let more = if shown.len() < at.len() { "…" } else { "" };
    match shown.is_empty() {
        true => format!("line {line}, column {column}: "),
        false => format!("line {line}, column {column}, at `{shown}{more}`: "),
    }
}

/// Rebuilds a syntax tree.
#[derive(Default)]
struct Rewriter<'a> {
    source: &'a str,
    /// The names that each enclosing block declares.
    scopes: Vec<HashSet<&'a str>>,
    names: Names,
}

impl<'a> Rewriter<'a> {
    fn template(&mut self, source: &'a str) -> Result<Stmt<'a>, String> {
        check_size(source)?;
        self.source = source;
        let tree =
            parse(source, "template", SYNTAX.clone()).map_err(|error| describe(&error, source))?;
        self.scopes.push(["self"].into());
        Ok(self.statement(&tree))
    }

    fn fault(&mut self, span: Span, message: &str) {
        let place = place(self.source, span.start_offset as usize, span.end_offset as usize);
        self.names.faults.push(format!("{place}{message}"));
    }

    fn declare(&mut self, name: &'a str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name);
        }
    }

    fn is_declared(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.contains(name))
    }

    fn is_global(&self, expr: &Expr<'a>, name: &str) -> bool {
        matches!(expr, Expr::Var(var) if var.id == name) && !self.is_declared(name)
    }

    /// Declares the names of a target: a name, or a list of names.
    fn assign(&mut self, target: &Expr<'a>) -> Expr<'a> {
        match target {
            Expr::Var(var) => {
                self.declare(var.id);
                Expr::Var(Spanned::new(ast::Var { id: var.id }, var.span()))
            }
            Expr::List(list) => {
                let items = list.items.iter().map(|item| self.assign(item)).collect();
                Expr::List(Spanned::new(ast::List { items }, list.span()))
            }
            Expr::Tuple(tuple) => {
                let items = tuple.items.iter().map(|item| self.assign(item)).collect();
                Expr::Tuple(Spanned::new(ast::Tuple { items }, tuple.span()))
            }
            // An attribute of a namespace.
            Expr::GetAttr(attr) => {
                let expr = self.expr(&attr.expr);
                Expr::GetAttr(Spanned::new(ast::GetAttr { expr, name: attr.name }, attr.span()))
            }
            other => self.expr(other),
        }
    }

    fn body(&mut self, body: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
        body.iter().map(|statement| self.statement(statement)).collect()
    }

    fn scoped_body(&mut self, body: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
        self.scopes.push(HashSet::new());
        let body = self.body(body);
        self.scopes.pop();
        body
    }

    fn statement(&mut self, statement: &Stmt<'a>) -> Stmt<'a> {
        match statement {
            Stmt::Template(it) => {
                let children = self.body(&it.children);
                Stmt::Template(Spanned::new(ast::Template { children }, it.span()))
            }
            Stmt::EmitExpr(it) => {
                let expr = self.expr(&it.expr);
                Stmt::EmitExpr(Spanned::new(EmitExpr { expr }, it.span()))
            }
            Stmt::EmitRaw(it) if it.raw.len() > COUNTED_TEXT_BYTES => {
                let expr = constant(Value::from(it.raw), it.span());
                Stmt::EmitExpr(Spanned::new(EmitExpr { expr }, it.span()))
            }
            Stmt::EmitRaw(it) => {
                Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: it.raw }, it.span()))
            }
            Stmt::ForLoop(it) => self.for_loop(it),
            Stmt::IfCond(it) => {
                let expr = self.expr(&it.expr);
                // Names that a branch sets are visible after it.
                let true_body = self.body(&it.true_body);
                let false_body = self.body(&it.false_body);
                Stmt::IfCond(Spanned::new(ast::IfCond { expr, true_body, false_body }, it.span()))
            }
            Stmt::WithBlock(it) => {
                self.scopes.push(HashSet::new());
                let assignments = it.assignments.iter().map(|(target, expr)| {
                    let expr = self.expr(expr);
                    (self.assign(target), expr)
                });
                let assignments = assignments.collect();
                let body = self.body(&it.body);
                self.scopes.pop();
                Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body }, it.span()))
            }
            Stmt::Set(it) => {
                let mut expr = self.expr(&it.expr);
                if sets_attribute(&it.target) {
                    expr = filter(COPY, expr, Vec::new(), it.span());
                }
                let target = self.assign(&it.target);
                Stmt::Set(Spanned::new(ast::Set { target, expr }, it.span()))
            }
            other => self.block(other),
        }
    }

    /// Rebuilds the statements that are seldom used.
    fn block(&mut self, statement: &Stmt<'a>) -> Stmt<'a> {
        match statement {
            Stmt::SetBlock(it) => {
                let filter = it.filter.as_ref().map(|filter| self.expr(filter));
                let body = self.scoped_body(&it.body);
                let target = self.assign(&it.target);
                Stmt::SetBlock(Spanned::new(ast::SetBlock { target, filter, body }, it.span()))
            }
            Stmt::AutoEscape(it) => {
                let enabled = self.expr(&it.enabled);
                let body = self.scoped_body(&it.body);
                Stmt::AutoEscape(Spanned::new(ast::AutoEscape { enabled, body }, it.span()))
            }
            Stmt::FilterBlock(it) => {
                let filter = self.expr(&it.filter);
                let body = self.scoped_body(&it.body);
                Stmt::FilterBlock(Spanned::new(ast::FilterBlock { filter, body }, it.span()))
            }
            Stmt::Block(it) => {
                self.scopes.push(["super"].into());
                let body = self.body(&it.body);
                self.scopes.pop();
                let block = ast::Block { name: it.name, required: it.required, body };
                Stmt::Block(Spanned::new(block, it.span()))
            }
            Stmt::Import(it) => self.other_template(it.span()),
            Stmt::FromImport(it) => self.other_template(it.span()),
            Stmt::Extends(it) => self.other_template(it.span()),
            Stmt::Include(it) => self.other_template(it.span()),
            Stmt::Macro(it) => {
                self.declare(it.name);
                let declared = self.macro_of(it);
                Stmt::Macro(Spanned::new(declared, it.span()))
            }
            Stmt::CallBlock(it) => {
                let call = Spanned::new(self.call_parts(&it.call), it.call.span());
                let macro_decl = Spanned::new(self.macro_of(&it.macro_decl), it.macro_decl.span());
                Stmt::CallBlock(Spanned::new(ast::CallBlock { call, macro_decl }, it.span()))
            }
            Stmt::Do(it) => {
                let call = Spanned::new(self.call_parts(&it.call), it.call.span());
                Stmt::Do(Spanned::new(ast::Do { call }, it.span()))
            }
            Stmt::Template(_)
            | Stmt::EmitExpr(_)
            | Stmt::EmitRaw(_)
            | Stmt::ForLoop(_)
            | Stmt::IfCond(_)
            | Stmt::WithBlock(_)
            | Stmt::Set(_) => self.statement(statement),
        }
    }

    fn other_template(&mut self, span: Span) -> Stmt<'a> {
        self.fault(span, "a template cannot use other templates");
        Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: "" }, span))
    }

    fn for_loop(&mut self, it: &Spanned<ast::ForLoop<'a>>) -> Stmt<'a> {
        let iter = self.expr(&it.iter);
        self.scopes.push(["loop"].into());
        let target = self.assign(&it.target);
        let filter_expr = it.filter_expr.as_ref().map(|filter| self.expr(filter));
        let body = self.body(&it.body);
        self.scopes.pop();
        let else_body = self.scoped_body(&it.else_body);
        let recursive = it.recursive;
        let rebuilt = ast::ForLoop { target, iter, filter_expr, recursive, body, else_body };
        Stmt::ForLoop(Spanned::new(rebuilt, it.span()))
    }

    fn macro_of(&mut self, it: &ast::Macro<'a>) -> ast::Macro<'a> {
        self.scopes.push(["caller"].into());
        let args = it.args.iter().map(|arg| self.assign(arg)).collect();
        let defaults = it.defaults.iter().map(|default| self.expr(default)).collect();
        let body = self.body(&it.body);
        self.scopes.pop();
        ast::Macro { name: it.name, args, defaults, body }
    }

    fn expr(&mut self, expr: &Expr<'a>) -> Expr<'a> {
        let span = expr.span();
        match expr {
            Expr::Var(var) => {
                self.use_name(var.id);
                if matches!(var.id, "nodes") && !self.is_declared("nodes") {
                    self.names.any_node = true;
                }
                Expr::Var(Spanned::new(ast::Var { id: var.id }, span))
            }
            Expr::Const(it) => constant(it.value.clone(), span),
            Expr::Slice(it) => {
                let expr = weighed(self.expr(&it.expr), span);
                let [start, stop, step] = [&it.start, &it.stop, &it.step]
                    .map(|part| part.as_ref().map(|part| self.expr(part)));
                kept(Expr::Slice(Spanned::new(ast::Slice { expr, start, stop, step }, span)), span)
            }
            Expr::UnaryOp(it) => {
                let op = if matches!(it.op, ast::UnaryOpKind::Neg) {
                    ast::UnaryOpKind::Neg
                } else {
                    ast::UnaryOpKind::Not
                };
                let expr = self.expr(&it.expr);
                Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr }, span))
            }
            Expr::BinOp(it) => {
                let (left, right) = (self.expr(&it.left), self.expr(&it.right));
                match operator(it.op) {
                    Some(name) => filter(name, left, vec![CallArg::Pos(right)], span),
                    None => Expr::BinOp(Spanned::new(ast::BinOp { op: it.op, left, right }, span)),
                }
            }
            Expr::Compare(it) => {
                let first = self.expr(&it.expr);
                let mut args = Vec::new();
                for op in &it.ops {
                    let name = constant(Value::from(comparison(op.op)), span);
                    args.push(CallArg::Pos(name));
                    args.push(CallArg::Pos(self.expr(&op.expr)));
                }
                filter(CHAIN, first, args, span)
            }
            Expr::IfExpr(it) => {
                let test_expr = self.expr(&it.test_expr);
                let true_expr = self.expr(&it.true_expr);
                let false_expr = it.false_expr.as_ref().map(|expr| self.expr(expr));
                let rebuilt = ast::IfExpr { test_expr, true_expr, false_expr };
                Expr::IfExpr(Spanned::new(rebuilt, span))
            }
            Expr::Filter(it) => self.filter_of(it),
            Expr::Test(it) => self.test(it.name, &it.expr, &it.args, span),
            Expr::GetAttr(it) => self.attribute(&it.expr, it.name, span),
            Expr::GetItem(it) => self.item(it),
            Expr::Call(it) => self.call(it),
            Expr::List(it) => {
                let items: Vec<Expr<'a>> = it.items.iter().map(|item| self.expr(item)).collect();
                kept(Expr::List(Spanned::new(ast::List { items }, span)), span)
            }
            Expr::Tuple(it) => {
                let items: Vec<Expr<'a>> = it.items.iter().map(|item| self.expr(item)).collect();
                kept(Expr::Tuple(Spanned::new(ast::Tuple { items }, span)), span)
            }
            Expr::Map(it) => {
                let keys = it.keys.iter().map(|key| self.expr(key)).collect();
                let values = it.values.iter().map(|value| self.expr(value)).collect();
                kept(Expr::Map(Spanned::new(ast::Map { keys, values }, span)), span)
            }
        }
    }

    /// Records the use of a name outside of the template.
    fn use_name(&mut self, name: &'a str) {
        if self.is_declared(name) {
            return;
        }
        self.names.roots.insert(name.to_owned());
        if !matches!(name, "nodes" | "input") && !FUNCTIONS.contains(&name) {
            self.names.unknown.insert(name.to_owned());
        }
    }

    fn filter_of(&mut self, it: &Spanned<Filter<'a>>) -> Expr<'a> {
        let span = it.span();
        self.check_filter(it.name, span);
        self.check_named(it, span);
        let expr = it.expr.as_ref().map(|expr| self.expr(expr));
        let args = self.args(&it.args);
        applied(it.name, expr, args, span)
    }

    fn check_filter(&mut self, name: &str, span: Span) {
        if !FILTERS.contains(&name) {
            let known = FILTERS.join("`, `");
            self.fault(span, &format!("unknown filter `{name}`; known: `{known}`"));
        }
    }

    fn check_test(&mut self, name: &str, span: Span) {
        if !TESTS.contains(&name) {
            let known = TESTS.join("`, `");
            self.fault(span, &format!("unknown test `{name}`; known: `{known}`"));
        }
    }

    /// Checks the filter or test that an argument names, as in `map('upper')` and
    /// `selectattr('price', 'lt', 5)`.
    fn check_named(&mut self, it: &Filter<'a>, span: Span) {
        let named = |at: usize| match it.args.get(at) {
            Some(CallArg::Pos(Expr::Const(value))) => value.value.as_str().map(str::to_owned),
            _ => None,
        };
        match it.name {
            "map" => named(0).iter().for_each(|name| self.check_filter(name, span)),
            "select" | "reject" => named(0).iter().for_each(|name| self.check_test(name, span)),
            "selectattr" | "rejectattr" => {
                named(1).iter().for_each(|name| self.check_test(name, span));
            }
            _ => {}
        }
    }

    fn test(
        &mut self,
        name: &'a str,
        expr: &Expr<'a>,
        args: &[CallArg<'a>],
        span: Span,
    ) -> Expr<'a> {
        self.check_test(name, span);
        let mut expr = self.expr(expr);
        if TEXT_TESTS.contains(&name) {
            expr = weighed(expr, span);
        }
        let args = self.args(args);
        Expr::Test(Spanned::new(ast::Test { name, expr, args }, span))
    }

    fn args(&mut self, args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
        let rebuilt = args.iter().map(|arg| match arg {
            CallArg::Pos(expr) => CallArg::Pos(self.expr(expr)),
            CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, self.expr(expr)),
            CallArg::PosSplat(expr) => CallArg::PosSplat(self.expr(expr)),
            CallArg::KwargSplat(expr) => CallArg::KwargSplat(self.expr(expr)),
        });
        rebuilt.collect()
    }

    /// Rebuilds `EXPR.NAME`.
    fn attribute(&mut self, expr: &Expr<'a>, name: &'a str, span: Span) -> Expr<'a> {
        let is_loop = matches!(expr, Expr::Var(var) if var.id == "loop");
        if is_loop && !LOOP_NAMES.contains(&name) {
            let known = LOOP_NAMES.join("`, `");
            self.fault(span, &format!("`loop` has no `{name}`; known: `{known}`"));
        }
        let rebuilt = match self.used_part(expr, Some(name), span) {
            Some(var) => var,
            None => self.expr(expr),
        };
        Expr::GetAttr(Spanned::new(ast::GetAttr { expr: rebuilt, name }, span))
    }

    /// Rebuilds `EXPR[KEY]`.
    fn item(&mut self, it: &Spanned<ast::GetItem<'a>>) -> Expr<'a> {
        let span = it.span();
        let key = match &it.subscript_expr {
            Expr::Const(key) => key.value.as_str(),
            _ => None,
        };
        let expr = match self.used_part(&it.expr, key, span) {
            Some(var) => var,
            None => self.expr(&it.expr),
        };
        let mut subscript_expr = self.expr(&it.subscript_expr);
        if !matches!(subscript_expr, Expr::Const(_)) {
            subscript_expr = weighed(subscript_expr, span);
        }
        Expr::GetItem(Spanned::new(ast::GetItem { expr, subscript_expr }, span))
    }

    /// Records the part of `nodes`, of one of its nodes or of `input` that is used. Returns the
    /// rebuilt variable if `expr` is `nodes` or `input`, and the part is constant.
    fn used_part(&mut self, expr: &Expr<'a>, key: Option<&str>, span: Span) -> Option<Expr<'a>> {
        if let (Some(id), Some(key)) = (self.node_of(expr), key)
            && key != "output"
        {
            let message = format!("node `{id}` has no `{key}`; the only known name is `output`");
            self.fault(span, &message);
        }
        let key = key?.to_owned();
        let Expr::Var(var) = expr else { return None };
        if self.is_global(expr, "nodes") {
            self.names.nodes.insert(key);
        } else if self.is_global(expr, "input") {
            self.names.inputs.insert(key);
        } else {
            return None;
        }
        self.names.roots.insert(var.id.to_owned());
        Some(Expr::Var(Spanned::new(ast::Var { id: var.id }, var.span())))
    }

    /// Returns the id in `nodes.ID` or `nodes["ID"]`.
    fn node_of(&self, expr: &Expr<'a>) -> Option<String> {
        match expr {
            Expr::GetAttr(it) if self.is_global(&it.expr, "nodes") => Some(it.name.to_owned()),
            Expr::GetItem(it) if self.is_global(&it.expr, "nodes") => match &it.subscript_expr {
                Expr::Const(key) => key.value.as_str().map(str::to_owned),
                _ => None,
            },
            _ => None,
        }
    }

    fn call(&mut self, it: &Spanned<Call<'a>>) -> Expr<'a> {
        let span = it.span();
        match it.identify_call() {
            CallType::Function(name) => {
                if FUNCTIONS.contains(&name) && !self.is_declared(name) {
                    self.names.any_node |= name == "debug";
                    let call = Expr::Call(Spanned::new(self.call_parts(it), span));
                    return kept(call, span);
                }
                if !self.is_declared(name) {
                    let known = FUNCTIONS.join("`, `");
                    let message = format!("unknown function `{name}`; known: `{known}`");
                    self.fault(span, &message);
                    // One fault is enough.
                    self.declare(name);
                }
                Expr::Call(Spanned::new(self.call_parts(it), span))
            }
            CallType::Method(object, name) => self.method(it, object, name),
            _ => Expr::Call(Spanned::new(self.call_parts(it), span)),
        }
    }

    /// Rebuilds `OBJECT.NAME(…)`. Values have no methods, but filters do the same.
    fn method(&mut self, it: &Spanned<Call<'a>>, object: &Expr<'a>, name: &'a str) -> Expr<'a> {
        let span = it.span();
        let of = |list: &[(&'static str, &'static str)]| {
            list.iter().find(|(method, _)| *method == name).map(|(_, other)| *other)
        };
        if let Some(test) = of(TEST_METHODS) {
            return self.test(test, object, &it.args, span);
        }
        if let Some(filter) = of(METHODS) {
            let expr = self.expr(object);
            let args = self.args(&it.args);
            return applied(filter, Some(expr), args, span);
        }
        if !matches!(object, Expr::Var(var) if self.is_declared(var.id)) {
            let known: Vec<&str> = METHODS.iter().chain(TEST_METHODS).map(|(it, _)| *it).collect();
            let known = known.join("`, `");
            let message = format!("unknown method `{name}`; known: `{known}`; or use a filter");
            self.fault(span, &message);
        }
        // A method of `loop` may compare its arguments.
        let Call { expr, args } = self.call_parts(it);
        let args = args.into_iter().map(|arg| match arg {
            CallArg::Pos(expr) => CallArg::Pos(weighed(expr, span)),
            other => other,
        });
        let args = args.collect();
        Expr::Call(Spanned::new(Call { expr, args }, span))
    }

    fn call_parts(&mut self, it: &Call<'a>) -> Call<'a> {
        Call { expr: self.expr(&it.expr), args: self.args(&it.args) }
    }
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(Const { value }, span))
}

fn filter<'a>(name: &'static str, expr: Expr<'a>, args: Vec<CallArg<'a>>, span: Span) -> Expr<'a> {
    Expr::Filter(Spanned::new(Filter { name, expr: Some(expr), args }, span))
}

/// Returns whether an assignment sets an attribute of a namespace.
fn sets_attribute(target: &Expr<'_>) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(list) => list.items.iter().any(sets_attribute),
        Expr::Tuple(tuple) => tuple.items.iter().any(sets_attribute),
        _ => false,
    }
}

/// Returns an expression that checks the size of the value.
fn kept(expr: Expr<'_>, span: Span) -> Expr<'_> {
    filter(KEEP, expr, Vec::new(), span)
}

/// Returns an expression that counts the value as work.
fn weighed(expr: Expr<'_>, span: Span) -> Expr<'_> {
    filter(WEIGH, expr, Vec::new(), span)
}

fn applied<'a>(
    name: &'a str,
    expr: Option<Expr<'a>>,
    args: Vec<CallArg<'a>>,
    span: Span,
) -> Expr<'a> {
    let name = CallArg::Pos(constant(Value::from(name), span));
    let args = std::iter::once(name).chain(args).collect();
    Expr::Filter(Spanned::new(Filter { name: APPLY, expr, args }, span))
}

/// Returns the filter that computes an operator; none for `and` and `or`.
fn operator(kind: BinOpKind) -> Option<&'static str> {
    Some(match kind {
        BinOpKind::Eq => "==",
        BinOpKind::Ne => "!=",
        BinOpKind::Lt => "<",
        BinOpKind::Lte => "<=",
        BinOpKind::Gt => ">",
        BinOpKind::Gte => ">=",
        BinOpKind::Add => "+",
        BinOpKind::Sub => "-",
        BinOpKind::Mul => "*",
        BinOpKind::Div => "/",
        BinOpKind::FloorDiv => "//",
        BinOpKind::Rem => "%",
        BinOpKind::Pow => "**",
        BinOpKind::Concat => "~",
        BinOpKind::In => "in",
        BinOpKind::ScAnd | BinOpKind::ScOr => return None,
    })
}

fn comparison(kind: CompareOpKind) -> &'static str {
    match kind {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "in",
        CompareOpKind::NotIn => "not in",
    }
}
