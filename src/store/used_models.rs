//! The models that were called.

use rusqlite::params;

use super::days::{MS_PER_DAY, day_of};
use super::reader::Store;
use super::sql::all;
use crate::error::Result;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedModel {
    pub provider: String,
    /// The model that answered.
    pub model: String,
    pub calls: u64,
    /// The last call; on days that are summed up, the beginning of the day in UTC.
    pub last_seen: Timestamp,
}

from_row!(UsedModel; provider, model, calls, last_seen);

impl Store {
    /// Returns up to `limit` models with calls since the day of `from`, most calls first.
    pub fn used_models(&self, from: Timestamp, limit: usize) -> Result<Vec<UsedModel>> {
        let sql = format!(
            "WITH until (day) AS (SELECT coalesce((SELECT until_day FROM ledger_summed), ?1))
             SELECT provider, model_used, sum(calls), max(at) FROM (
                SELECT provider, model_used, calls, day * {MS_PER_DAY} AS at
                FROM ledger_days WHERE day >= ?1
                UNION ALL
                SELECT provider, model_used, 1, timestamp_ms FROM ledger
                WHERE timestamp_ms >= {MS_PER_DAY} * max(?1, (SELECT day FROM until)))
             GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT ?2"
        );
        self.read(|db| all(db, &sql, params![day_of(from), limit]))
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::store::Change;
    use crate::store::change::NewCall;
    use crate::store::testing::{apply, new_call, row, settlement};

    #[test]
    fn summed_and_later_days_count_alike() {
        let dir = TempDir::new().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let start = 100 * MS_PER_DAY;
        for (day, model) in [(0, "old"), (1, "a"), (1, "b"), (3, "a"), (3, "a")] {
            let at = start + day * MS_PER_DAY + 5;
            let call = Change::OpenCall(NewCall { model: model.into(), ..new_call(at) });
            let id = row(apply(&mut writer, call).unwrap()).id;
            apply(&mut writer, Change::SettleCall(settlement(id, at))).unwrap();
        }
        let from = Timestamp(start + MS_PER_DAY + 1);
        let used = || {
            let used = store.used_models(from, 10).unwrap();
            let used = used.into_iter().map(|it| (it.model, it.calls, it.last_seen.0 - start));
            used.collect::<Vec<_>>()
        };
        let expected = |b| vec![("a".into(), 3, 3 * MS_PER_DAY + 5), ("b".into(), 1, b)];
        assert_eq!(used(), expected(MS_PER_DAY + 5));
        let now = Timestamp(start + 3 * MS_PER_DAY + 10);
        while writer.roll_up_day(now).unwrap() {}
        assert_eq!(used(), expected(MS_PER_DAY));
        assert_eq!(store.used_models(from, 1).unwrap().len(), 1);
    }
}
