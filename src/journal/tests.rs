use std::path::Path;
use std::sync::Mutex;

use crossbeam_channel::unbounded;
use tempfile::TempDir;

use super::retries::Retries;
use super::*;
use crate::event::RunStatus;
use crate::hub::Message;
use crate::ids::Seq;
use crate::store::{Batch, NewFlow, NewRun, RunEnd, RunStart, Store, alter, testing};
use crate::time::Timestamp;

#[derive(Clone, Default)]
struct Published(Arc<Mutex<Vec<Message>>>);

impl Publish for Published {
    fn publish(&self, messages: Vec<Message>, _oldest: Option<Seq>) {
        self.0.lock().unwrap().extend(messages);
    }
}

/// A journal over a new database in `dir`.
fn started(dir: &Path) -> (Store, Journal, JoinHandle<()>, Published) {
    let (store, writer) = Store::open(dir).unwrap();
    let published = Published::default();
    let publisher = Box::new(published.clone());
    let (journal, thread) =
        Journal::start(writer, publisher, Retention::default(), Arc::new(|_: &str| {})).unwrap();
    (store, journal, thread, published)
}

fn queue(id: &str) -> Change {
    Change::QueueRun(NewRun {
        id: id.into(),
        flow_id: 1,
        flow_name: "f".into(),
        trigger: "api".into(),
        input: "{}".into(),
        graph: "{}".into(),
        at: Timestamp(1),
    })
}

fn start(run_id: &str) -> Change {
    Change::StartRun(RunStart {
        flow_id: 1,
        run_id: run_id.into(),
        flow_name: "f".into(),
        node_count: 1,
        trigger: "api".into(),
        at: Timestamp(2),
    })
}

fn finish(run_id: &str) -> Change {
    Change::FinishRun(RunEnd {
        flow_id: 1,
        run_id: run_id.into(),
        status: RunStatus::Completed,
        error: None,
        error_node: None,
        at: Timestamp(3),
    })
}

/// A change that the database accepts whatever else it refuses.
fn accepted() -> Change {
    Change::CreateFlow(NewFlow {
        name: "f".into(),
        document: "{}".into(),
        origin: None,
        at: Timestamp(1),
    })
}

/// Makes the database refuse changes of a table as a full disk would, until [`REFUSED_NO_MORE`].
fn refuse(dir: &Path, changes: &str) {
    alter(
        dir,
        &format!("CREATE TRIGGER full BEFORE {changes} BEGIN SELECT RAISE(FAIL, 'full'); END"),
    );
}

const KEPT: usize = 200;
const REFUSED_NO_MORE: &str = "DROP TRIGGER full";

#[test]
fn a_refused_entry_is_rolled_back_within_its_batch() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, published) = started(dir.path());
    // Requests that arrive while the journal is blocked form one batch.
    let (release, held) = bounded::<()>(0);
    let hold = move |_| assert!(held.recv().is_err());
    journal.submit(vec![queue("0")], Box::new(hold)).unwrap();
    let (answer, answered) = unbounded();
    for entry in [
        vec![queue("a"), start("a")],
        // Refused after a part was written and its events were numbered.
        vec![queue("b"), start("b"), start("nobody")],
        vec![queue("a")],
        vec![queue("c"), start("c")],
    ] {
        let answer = answer.clone();
        let done = move |result: Result<_>| answer.send(result.is_ok()).unwrap();
        journal.submit(entry, Box::new(done)).unwrap();
    }
    drop(release);
    journal.shutdown();
    thread.join().unwrap();
    let results: Vec<bool> = answered.try_iter().collect();
    assert_eq!(results, [true, false, false, true]);
    assert!(store.run("a").is_ok() && store.run("c").is_ok());
    assert!(store.run("b").is_err());
    let logged = store.events(0, Seq::MAX >> 1, 100, usize::MAX).unwrap();
    let seqs: Vec<Seq> = logged.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    let published = published.0.lock().unwrap();
    let seqs: Vec<Option<Seq>> = published.iter().map(|message| message.seq).collect();
    assert_eq!(seqs, [Some(1), Some(2), Some(3), Some(4)]);
    assert!(published.iter().all(|message| !message.text.contains(r#""b""#)));
}

/// Has `count` calls settled that the database refuses to settle, and returns once all are queued.
fn refused_settlements(dir: &Path, store: &Store, journal: &Journal, count: usize) {
    let call = testing::new_call(1);
    journal.commit(vec![Change::OpenCall(call); count]).unwrap();
    refuse(dir, "UPDATE ON ledger");
    for row in store.pending_calls().unwrap() {
        let settle = Change::SettleCall(testing::settlement(row.id, 2));
        let done = Box::new(|result: Result<_>| assert!(result.is_ok()));
        journal.submit_retried(vec![settle], done).unwrap();
    }
    // Written after all of them were tried.
    journal.commit_one(accepted()).unwrap();
    assert_eq!(store.pending_calls().unwrap().len(), count);
    alter(dir, REFUSED_NO_MORE);
}

#[test]
fn deferred_changes_are_written_before_the_next_commit() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refused_settlements(dir.path(), &store, &journal, KEPT);
    journal.commit_one(accepted()).unwrap();
    assert!(store.pending_calls().unwrap().is_empty());
    journal.shutdown();
    thread.join().unwrap();
}

#[test]
fn deferred_changes_are_written_without_another_commit() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refused_settlements(dir.path(), &store, &journal, 3);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !store.pending_calls().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "they are still kept");
        std::thread::yield_now();
    }
    journal.shutdown();
    thread.join().unwrap();
}

#[test]
fn deferred_changes_are_retried_at_shutdown() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refused_settlements(dir.path(), &store, &journal, KEPT);
    journal.shutdown();
    thread.join().unwrap();
    assert!(store.pending_calls().unwrap().is_empty());
}

#[test]
fn retried_changes_do_not_overtake_each_other() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refuse(dir.path(), "INSERT ON runs");
    let (answer, answered) = unbounded();
    for (at, change) in [queue("a"), start("a"), finish("a")].into_iter().enumerate() {
        let answer = answer.clone();
        let done = move |result: Result<_>| answer.send((at, result.is_ok())).unwrap();
        let done = Box::new(done);
        journal.submit_retried(vec![change], done).unwrap();
        // In the first call's batch, and in separate batches.
        if at == 1 {
            journal.commit_one(accepted()).unwrap();
        }
    }
    journal.commit_one(accepted()).unwrap();
    assert!(answered.is_empty() && store.run("a").is_err());
    alter(dir.path(), REFUSED_NO_MORE);
    journal.commit_one(accepted()).unwrap();
    let answers: Vec<_> = answered.try_iter().collect();
    assert_eq!(answers, [(0, true), (1, true), (2, true)]);
    assert_eq!(store.run("a").unwrap().0.status, RunStatus::Completed);
    journal.shutdown();
    thread.join().unwrap();
}

#[test]
fn an_invalid_change_is_dropped_without_blocking_others() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refuse(dir.path(), "INSERT ON runs WHEN NEW.id = 'bad'");
    let (answer, answered) = unbounded();
    for id in ["bad", "good"] {
        let answer = answer.clone();
        let done = move |result: Result<_>| answer.send((id, result.is_ok())).unwrap();
        let done = Box::new(done);
        journal.submit_retried(vec![queue(id)], done).unwrap();
    }
    for _ in 0..FAILURES_MAX {
        journal.commit_one(accepted()).unwrap();
    }
    let answers: Vec<_> = answered.try_iter().collect();
    assert_eq!(answers, [("bad", false), ("good", true)]);
    assert!(store.run("good").is_ok());
    journal.shutdown();
    thread.join().unwrap();
}

#[test]
fn a_retried_commit_returns_when_the_disk_has_space() {
    let dir = TempDir::new().unwrap();
    let (store, journal, thread, _) = started(dir.path());
    refuse(dir.path(), "INSERT ON runs");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.commit_retried(vec![queue("a"), start("a")]));
        let refused = journal.commit_one(queue("b"));
        assert!(refused.unwrap_err().is_transient());
        alter(dir.path(), REFUSED_NO_MORE);
        assert_eq!(waiting.join().unwrap().unwrap().len(), 2);
    });
    assert_eq!(store.run("a").unwrap().0.status, RunStatus::Running);
    assert!(store.run("b").is_err());
    journal.shutdown();
    thread.join().unwrap();
}

#[test]
fn a_commit_waiting_for_disk_space_ends_at_shutdown() {
    let dir = TempDir::new().unwrap();
    let (_store, journal, thread, _) = started(dir.path());
    refuse(dir.path(), "INSERT ON runs");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.commit_retried(vec![queue("a")]));
        // The call ends, whether it is handed over before or after this.
        journal.shutdown();
        let result = waiting.join().unwrap();
        assert!(matches!(result, Err(Error::Stopping)), "{result:?}");
    });
    thread.join().unwrap();
}

#[test]
fn changes_beyond_the_deferred_limit_are_refused() {
    let (answer, answered) = unbounded();
    let entry = || {
        let answer = answer.clone();
        Entry {
            changes: Vec::new(),
            done: Box::new(move |result| answer.send(result).unwrap()),
            is_retried: true,
            failures: 0,
        }
    };
    let mut retries = Retries::default();
    while answered.is_empty() {
        retries.push(entry());
    }
    assert!(matches!(answered.recv().unwrap(), Err(Error::Busy(_))));
    let kept = retries.len();
    retries.end();
    let ended: Vec<_> = answered.try_iter().collect();
    assert_eq!(ended.len(), kept);
    assert!(ended.iter().all(|result| matches!(result, Err(Error::Stopping))));
}

#[test]
fn a_long_stop_removes_only_rows_over_the_count_limit() {
    let dir = TempDir::new().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    // So old that the retention period is over for all of them.
    for id in ["a", "b", "c"] {
        let write = |batch: &mut Batch<'_>| {
            batch.append_event(Timestamp(1), None, "T", "{}")?;
            batch.apply(&queue(id))?;
            batch.apply(&finish(id))
        };
        writer.transaction(write).unwrap();
    }
    let retention = Retention { runs: 2, ..Retention::default() };
    let publisher = Box::new(Published::default());
    let on_fatal = Arc::new(|_: &str| {});
    let (journal, thread) = Journal::start(writer, publisher, retention, on_fatal).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.run("a").is_ok() {
        assert!(Instant::now() < deadline, "nothing was removed");
        std::thread::yield_now();
    }
    assert!(store.run("b").is_ok() && store.run("c").is_ok());
    assert_eq!(store.events(0, 100, 100, 100).unwrap().len(), 3);
    journal.shutdown();
    thread.join().unwrap();
}
