//! Pages of the ledger: orders, cursors, and the rows that are examined for a page.
//!
//! A page examines a limited number of rows, so that a filter that no index serves never takes
//! seconds; its cursor continues behind the last examined row. Rows are examined in the order of
//! the list, or, if an index finds few candidates, all of these are sorted.

use std::fmt;
use std::str::FromStr;

use rusqlite::types::Value;
use rusqlite::{Connection, StatementStatus, params_from_iter};

use super::block_index;
use super::ledger::ENTRY_COLUMNS;
use super::ledger_filter::LedgerFilter;
use super::reader::Store;
use super::sql::{all, one, single};
use crate::error::{Error, Result};
use crate::event::{CallStatus, LedgerEntry, text_enum};

/// Limits the rows that a page examines.
const EXAMINED_MAX: usize = 50_000;
/// Rows that may be examined for each row of a page, because the index of blocks finds a rare row
/// only with its block.
const EXAMINED_FOR_EACH: usize = 128;
/// Limits the rows that are sorted for a page.
const SORTED_MAX: usize = 5_000;

text_enum! {
    #[derive(Default)]
    pub enum LedgerSort {
        /// The order in which the calls were made.
        #[default]
        Time = "time",
        Cost = "cost",
        Latency = "latency",
        InputTokens = "input_tokens",
        OutputTokens = "output_tokens",
    }
}

text_enum! {
    #[derive(Default)]
    pub enum Order {
        #[default]
        Desc = "desc",
        Asc = "asc",
    }
}

impl Order {
    fn comparison(self) -> &'static str {
        if self == Self::Desc { "<" } else { ">" }
    }
}

/// The column of an order. Its index has the rows with a value.
struct Key {
    column: &'static str,
    has_value: &'static str,
    has_none: &'static str,
    index: &'static str,
}

impl LedgerSort {
    fn key(self) -> Option<&'static Key> {
        match self {
            Self::Time => None,
            Self::Cost => Some(&Key {
                column: "cost_nanousd",
                has_value: "cost_nanousd IS NOT NULL",
                has_none: "cost_nanousd IS NULL",
                index: "ledger_by_cost",
            }),
            Self::Latency => Some(&Key {
                column: "latency_ms",
                has_value: "latency_ms IS NOT NULL",
                has_none: "latency_ms IS NULL",
                index: "ledger_by_latency",
            }),
            Self::InputTokens => Some(&Key {
                column: "input_tokens",
                has_value: "usage_source != 'none'",
                has_none: "usage_source = 'none'",
                index: "ledger_by_input",
            }),
            Self::OutputTokens => Some(&Key {
                column: "output_tokens",
                has_value: "usage_source != 'none'",
                has_none: "usage_source = 'none'",
                index: "ledger_by_output",
            }),
        }
    }
}

/// A position in a list: after this row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerCursor {
    /// In the order of time.
    Id(i64),
    /// In another order: the row's value and id.
    Value(i64, i64),
    /// Among the rows without a value, which come last.
    NoValue(i64),
}

impl fmt::Display for LedgerCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Value(value, id) => write!(f, "{value}:{id}"),
            Self::NoValue(id) => write!(f, "none:{id}"),
        }
    }
}

impl FromStr for LedgerCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<i64, String> {
            text.parse()
                .map_err(|_| format!("invalid cursor `{text}`; use `next` of the page before"))
        };
        match text.split_once(':') {
            None => number(text).map(Self::Id),
            Some(("none", id)) => number(id).map(Self::NoValue),
            Some((value, id)) => Ok(Self::Value(number(value)?, number(id)?)),
        }
    }
}

/// Ids are numbers in JSON; the other cursors are texts.
impl serde::Serialize for LedgerCursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Id(id) => serializer.serialize_i64(*id),
            _ => serializer.collect_str(self),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct LedgerQuery {
    pub filter: LedgerFilter,
    pub sort: LedgerSort,
    pub order: Order,
    pub before: Option<LedgerCursor>,
}

/// Limits the work for a page.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub examined: usize,
    pub sorted: usize,
}

pub struct LedgerPage {
    pub rows: Vec<LedgerEntry>,
    /// Continues the list; none at its end. A page can be short, or empty, and have one.
    pub next: Option<LedgerCursor>,
}

impl Store {
    /// Returns up to `limit` rows with ids below `before`, newest first, however many are examined.
    pub fn ledger(
        &self,
        filter: &LedgerFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>> {
        let before = before.map(LedgerCursor::Id);
        let query = LedgerQuery { filter: filter.clone(), before, ..LedgerQuery::default() };
        let limits = Limits { examined: usize::MAX, sorted: SORTED_MAX };
        Ok(self.page(&query, limit, limits)?.rows)
    }

    /// Returns up to `limit` rows in the order of the query; examines a limited number.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor of another order.
    pub fn ledger_page(&self, query: &LedgerQuery, limit: usize) -> Result<LedgerPage> {
        let examined = limit.saturating_mul(EXAMINED_FOR_EACH).max(EXAMINED_MAX);
        self.page(query, limit, Limits { examined, sorted: SORTED_MAX })
    }

    pub(super) fn page(
        &self,
        query: &LedgerQuery,
        limit: usize,
        limits: Limits,
    ) -> Result<LedgerPage> {
        let is_by_time = query.sort == LedgerSort::Time;
        if query.before.is_some_and(|at| matches!(at, LedgerCursor::Id(_)) != is_by_time) {
            let message = "is a cursor of another order; use `next` of a page with this `sort`";
            return Err(Error::invalid("cannot read the query", "before", message));
        }
        self.read(|db| {
            // One read transaction, so that the index of blocks and the rows are of the
            // same snapshot.
            let snapshot = db.unchecked_transaction()?;
            let filter = query.filter.resolved(&snapshot)?;
            let mut scan = Scan {
                db: &snapshot,
                filter: &filter,
                sort: query.sort,
                order: query.order,
                limit,
                left: limits.examined,
                sorted_max: limits.sorted,
                is_sorted: false,
                found: Vec::new(),
                last: None,
                is_cut: false,
            };
            scan.run(query.before)?;
            scan.page()
        })
    }
}

impl LedgerFilter {
    /// Returns the filter with the flows whose name contains its text.
    pub(super) fn resolved(&self, db: &Connection) -> Result<Self> {
        let Some(text) = &self.text else {
            return Ok(self.clone());
        };
        // A deleted flow has the name of its runs.
        let sql = "SELECT id FROM flows WHERE instr(lower(name), ?1) > 0
             UNION SELECT flow_id FROM runs
             WHERE instr(lower(flow_name), ?1) > 0 AND flow_id NOT IN (SELECT id FROM flows)";
        let text_flows = all(db, sql, [text.to_ascii_lowercase()])?;
        Ok(Self { text_flows, ..self.clone() })
    }
}

/// Rows that an index finds.
struct Access {
    index: &'static str,
    condition: String,
    values: Vec<Value>,
}

impl Access {
    fn new(index: &'static str, condition: &str, values: Vec<Value>) -> Self {
        Self { index, condition: condition.to_owned(), values }
    }

    fn is_small(&self, db: &Connection, rows_max: usize) -> Result<bool> {
        let Self { index, condition, values } = self;
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM ledger INDEXED BY {index} WHERE {condition}
             LIMIT {})",
            rows_max + 1
        );
        let count: usize = single(db, &sql, params_from_iter(values))?;
        Ok(count <= rows_max)
    }
}

/// Returns the rows of a filter that an index finds in the order of their ids, if any does.
fn by_name(filter: &LedgerFilter) -> Option<Access> {
    let named = [
        ("ledger_by_run", "run_id = ?", &filter.run_id),
        ("ledger_by_session", "session = ?", &filter.session),
        ("ledger_by_end_user", "end_user = ?", &filter.end_user),
        ("ledger_by_key", "key_name = ?", &filter.key),
    ];
    if filter.statuses == [CallStatus::Pending] {
        return Some(Access::new("ledger_pending", "status = 'PENDING'", Vec::new()));
    }
    named.into_iter().find_map(|(index, condition, name)| {
        let name = name.clone()?;
        Some(Access::new(index, condition, vec![Value::from(name)]))
    })
}

/// Returns the bounds of a column as a condition, if it has any.
fn bounds(
    index: &'static str,
    column: &str,
    min: Option<i64>,
    (comparison, max): (&str, Option<i64>),
) -> Option<Access> {
    let mut conditions = Vec::new();
    let mut values = Vec::new();
    for (comparison, bound) in [(">=", min), (comparison, max)] {
        if let Some(bound) = bound {
            conditions.push(format!("{column} {comparison} ?"));
            values.push(Value::from(bound));
        }
    }
    let condition = conditions.join(" AND ");
    (!values.is_empty()).then_some(Access { index, condition, values })
}

fn by_time(filter: &LedgerFilter) -> Option<Access> {
    let (from, to) = (filter.from.map(|from| from.0), filter.to.map(|to| to.0));
    bounds("ledger_by_time", "timestamp_ms", from, ("<", to))
}

/// Returns the rows that have a value within the filter's bounds for it, if there are any bounds.
fn by_value(filter: &LedgerFilter, sort: LedgerSort) -> Option<Access> {
    let key = sort.key()?;
    let (min, max) = match sort {
        LedgerSort::Cost => (filter.cost_min, filter.cost_max),
        LedgerSort::Latency => {
            return bounds(key.index, key.column, filter.ms_min, ("<=", filter.ms_max));
        }
        _ => return None,
    };
    let nanousd = |usd: Option<crate::money::Usd>| usd.map(|usd| usd.nanousd);
    bounds(key.index, key.column, nanousd(min), ("<=", nanousd(max)))
}

/// Examines rows in the order of a list.
struct Scan<'a> {
    db: &'a Connection,
    filter: &'a LedgerFilter,
    sort: LedgerSort,
    order: Order,
    limit: usize,
    /// How many more rows may be examined.
    left: usize,
    sorted_max: usize,
    /// True if few candidates are sorted.
    is_sorted: bool,
    /// Up to one more than the limit.
    found: Vec<LedgerCursor>,
    /// The last examined row.
    last: Option<LedgerCursor>,
    /// True if rows were not examined.
    is_cut: bool,
}

impl LedgerCursor {
    fn id(self) -> i64 {
        match self {
            Self::Id(id) | Self::Value(_, id) | Self::NoValue(id) => id,
        }
    }
}

impl Scan<'_> {
    fn page(self) -> Result<LedgerPage> {
        let next = if self.found.len() > self.limit {
            self.limit.checked_sub(1).map(|last| self.found[last])
        } else {
            self.last.filter(|_| self.is_cut)
        };
        let sql = format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1");
        let mut rows = Vec::new();
        for cursor in self.found.iter().take(self.limit) {
            rows.extend(one::<LedgerEntry>(self.db, &sql, [cursor.id()])?);
        }
        Ok(LedgerPage { rows, next })
    }

    fn run(&mut self, before: Option<LedgerCursor>) -> Result<()> {
        let small = self.small_access()?;
        self.is_sorted = small.is_some();
        let Some(key) = self.sort.key() else {
            return self.by_id(small.as_ref(), before.map(LedgerCursor::id), None);
        };
        let after = match before {
            Some(LedgerCursor::NoValue(id)) => {
                return self.by_id(small.as_ref(), Some(id), Some(key));
            }
            Some(LedgerCursor::Value(value, id)) => Some((value, id)),
            _ => None,
        };
        if self.by_value(small.as_ref(), key, after)? {
            return Ok(());
        }
        self.by_id(small.as_ref(), None, Some(key))
    }

    /// Returns an access that finds few rows, if there is one.
    fn small_access(&self) -> Result<Option<Access>> {
        let is_by_time = self.sort == LedgerSort::Time;
        let named = by_name(self.filter);
        if is_by_time && named.is_some() {
            return Ok(None);
        }
        let others = [
            by_time(self.filter),
            by_value(self.filter, LedgerSort::Cost),
            by_value(self.filter, LedgerSort::Latency),
        ];
        for access in named.into_iter().chain(others.into_iter().flatten()) {
            if access.is_small(self.db, self.sorted_max)? {
                return Ok(Some(access));
            }
        }
        Ok(None)
    }

    /// Examines the rows with a value. Returns true once the page is complete.
    fn by_value(
        &mut self,
        small: Option<&Access>,
        key: &Key,
        after: Option<(i64, i64)>,
    ) -> Result<bool> {
        let Key { column, has_value, .. } = key;
        let (order, comparison) = (self.order, self.order.comparison());
        // Equal values are a part of their own, because SQLite would read all of them again for
        // each page.
        let parts = match after {
            None => vec![(String::from("1"), Vec::new())],
            Some((value, id)) => vec![
                (format!("{column} = ? AND id {comparison} ?"), vec![value, id]),
                (format!("{column} {comparison} ?"), vec![value]),
            ],
        };
        let own_bounds = by_value(self.filter, self.sort);
        for (part, values) in parts {
            let mut condition = format!("{has_value} AND {part}");
            let mut values: Vec<Value> = values.into_iter().map(Value::from).collect();
            let index = small.map_or(key.index, |access| access.index);
            for access in own_bounds.iter().chain(small) {
                condition.push_str(&format!(" AND {}", access.condition));
                values.extend(access.values.iter().cloned());
            }
            let source = format!(
                "ledger INDEXED BY {index} WHERE {condition} ORDER BY {column} {order}, id {order}"
            );
            if self.examine(&source, values, None)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Examines rows in the order of their ids. With a key, only those without a value match.
    fn by_id(
        &mut self,
        small: Option<&Access>,
        after: Option<i64>,
        key: Option<&Key>,
    ) -> Result<()> {
        if key.is_some() && by_value(self.filter, self.sort).is_some() {
            // All matching rows have a value.
            return Ok(());
        }
        let order = self.order;
        let start = after.unwrap_or(if order == Order::Desc { i64::MAX } else { 0 });
        let named = by_name(self.filter);
        if let Some(Access { index, condition, values }) = small.or(named.as_ref()) {
            let mut values = values.clone();
            values.push(Value::from(start));
            let comparison = order.comparison();
            let source = format!(
                "ledger INDEXED BY {index} WHERE {condition} AND id {comparison} ? ORDER BY id {order}"
            );
            return self.examine(&source, values, key).map(drop);
        }
        let source = format!("ledger WHERE id >= ? AND id < ? ORDER BY id {order}");
        if !self.filter.uses_block_index() {
            let (from, end) = match order {
                Order::Desc => (0, start),
                Order::Asc => (start.saturating_add(1), i64::MAX),
            };
            let span = vec![Value::from(from), Value::from(end)];
            return self.examine(&source, span, key).map(drop);
        }
        let (db, filter) = (self.db, self.filter);
        block_index::spans(db, filter, order, start, |from, end| {
            self.examine(&source, vec![Value::from(from), Value::from(end)], key)
        })
    }

    /// Examines rows of a source. Returns true once the page is complete. With a key, only rows
    /// without a value match.
    fn examine(&mut self, source: &str, values: Vec<Value>, none: Option<&Key>) -> Result<bool> {
        let (mut condition, mut all_values) = self.filter.sql();
        all_values.extend(values);
        if let Some(key) = none {
            condition.push_str(&format!(" AND {}", key.has_none));
        }
        let value = self.sort.key().map_or("NULL", |key| key.column);
        let sql = format!("SELECT id, {value}, {condition} FROM {source}");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(all_values))?;
        while let Some(row) = rows.next()? {
            if self.left == 0 {
                self.is_cut = true;
                return Ok(true);
            }
            self.left -= 1;
            let id = row.get(0)?;
            let at = match (self.sort, none) {
                (LedgerSort::Time, _) => LedgerCursor::Id(id),
                (_, Some(_)) => LedgerCursor::NoValue(id),
                (_, None) => LedgerCursor::Value(row.get(1)?, id),
            };
            self.last = Some(at);
            if row.get::<_, Option<bool>>(2)? == Some(true) {
                self.found.push(at);
                if self.found.len() > self.limit {
                    return Ok(true);
                }
            }
        }
        drop(rows);
        debug_assert!(
            self.is_sorted || statement.get_status(StatementStatus::Sort) == 0,
            "sorts all rows: {sql}"
        );
        Ok(false)
    }
}
