//! Threads with names and limits; all of them are joined at the end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const JOIN_POLL: Duration = Duration::from_millis(2);

/// A set of threads of one kind, joined together at the end.
#[derive(Default)]
pub struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts a thread. A panic in it is logged and ends that thread alone.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        stack_bytes: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let name = name.into();
        let handle = Builder::new()
            .name(name.clone())
            .stack_size(stack_bytes)
            .spawn(move || guarded(work))
            .map_err(Error::io(format!(
                "cannot start the thread `{name}` (raise the limit of threads: ulimit -u, TasksMax)"
            )))?;
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        // Drop handles of ended threads before the list grows, so that its length is bounded by the
        // largest number of threads at once.
        if handles.len() == handles.capacity() {
            handles.retain(|handle| !handle.is_finished());
        }
        handles.push(handle);
        Ok(())
    }

    /// Waits until all have ended or `deadline` has passed. Returns the number still running.
    pub fn join(&self, deadline: Instant) -> usize {
        loop {
            let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            let (ended, left): (Vec<_>, Vec<_>) =
                handles.drain(..).partition(JoinHandle::is_finished);
            *handles = left;
            let left = handles.len();
            drop(handles);
            for handle in ended {
                // `guarded` has logged the panic, if any.
                let _ = handle.join();
            }
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(JOIN_POLL);
        }
    }
}

fn guarded(work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        log::error!("a thread panicked: {}", panic_message(panic.as_ref()));
    }
}

/// Runs `work` on each item, up to `threads_max` at a time, and returns the results in order. The
/// caller is one of the threads, so that it works even if no other can be started. A panic
/// continues in the caller.
pub fn map_parallel<T: Sync, R: Send>(
    name: &str,
    threads_max: usize,
    stack_bytes: usize,
    items: &[T],
    work: impl Fn(usize, &T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let run_items = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return done;
            };
            done.push((at, work(at, item)));
        }
    };
    let mut done = thread::scope(|scope| {
        let start = |number| {
            let thread = Builder::new().name(format!("{name}-{number}"));
            let thread = thread.stack_size(stack_bytes);
            thread.spawn_scoped(scope, run_items).ok()
        };
        let helpers: Vec<_> = (1..threads_max.min(items.len())).map_while(start).collect();
        let mut done = run_items();
        for helper in helpers {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Called with a thread's name after a vital thread has ended.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Starts a thread that the server cannot run without: a panic in it calls `on_fatal`.
pub fn vital(
    name: &'static str,
    on_fatal: OnFatal,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                // First, because logging may fail for the same reason.
                on_fatal(name);
                log::error!("the {name} thread panicked: {}", panic_message(panic.as_ref()));
            }
        })
        .map_err(Error::io(format!("cannot start the {name} thread")))
}

/// Idle time after which a worker of a [`Pool`] ends.
const WORKER_IDLE_MAX: Duration = Duration::from_secs(10);
/// Limits a job's wait for a worker of a full pool. A caller may learn that a job is done a moment
/// before its worker is idle again.
const WORKER_WAIT_MAX: Duration = Duration::from_secs(1);

pub type Job = Box<dyn FnOnce() + Send>;

/// Starts workers on demand; idle ones end.
pub struct Pool {
    name: &'static str,
    max: usize,
    stack_bytes: usize,
    workers: Arc<Workers>,
    threads: Threads,
}

/// State shared by a pool and its workers.
#[derive(Default)]
struct Workers {
    state: Mutex<WorkersState>,
    /// Signals a new job, or the end of the pool.
    changed: Condvar,
    /// Signals that a worker is idle or has ended while a job waits.
    freed: Condvar,
}

#[derive(Default)]
struct WorkersState {
    /// Jobs for idle workers; never more than `idle`.
    jobs: VecDeque<Job>,
    /// Workers that wait for a job.
    idle: usize,
    count: usize,
    /// Jobs that wait for a worker to become idle.
    waiting: usize,
    is_over: bool,
}

impl Workers {
    fn state(&self) -> MutexGuard<'_, WorkersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify_freed(&self, state: MutexGuard<'_, WorkersState>) {
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.freed.notify_one();
        }
    }

    /// Returns the next job for a worker, or none if the worker must end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        state.idle += 1;
        self.notify_freed(state);
        let has_none = |state: &mut WorkersState| state.jobs.is_empty() && !state.is_over;
        state = self
            .changed
            .wait_timeout_while(self.state(), WORKER_IDLE_MAX, has_none)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        state.idle -= 1;
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.count -= 1;
            self.notify_freed(state);
        }
        job
    }
}

impl Pool {
    /// Creates a pool of at most `max` workers.
    pub fn new(name: &'static str, max: usize, stack_bytes: usize) -> Self {
        Self { name, max, stack_bytes, workers: Arc::default(), threads: Threads::default() }
    }

    /// Runs `job` on an idle or new worker. If all are busy, waits up to `WORKER_WAIT_MAX` for one,
    /// then fails with [`Error::Busy`] and drops the job.
    pub fn run(&self, job: Job) -> Result<()> {
        let is_full =
            |state: &mut WorkersState| state.idle <= state.jobs.len() && state.count >= self.max;
        let mut state = self.workers.state();
        if is_full(&mut state) {
            state.waiting += 1;
            state = self
                .workers
                .freed
                .wait_timeout_while(state, WORKER_WAIT_MAX, is_full)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.waiting -= 1;
        }
        if state.idle > state.jobs.len() {
            state.jobs.push_back(job);
            drop(state);
            self.workers.changed.notify_one();
            return Ok(());
        }
        if state.count >= self.max {
            return Err(Error::Busy(format!(
                "all {} {} threads are busy; try again later",
                self.max, self.name
            )));
        }
        state.count += 1;
        drop(state);
        self.start(job)
    }

    /// Starts a worker that `count` already includes.
    fn start(&self, job: Job) -> Result<()> {
        let workers = Arc::clone(&self.workers);
        let started = self.threads.spawn(self.name, self.stack_bytes, move || {
            let mut next = Some(job);
            while let Some(job) = next {
                guarded(job);
                next = workers.next();
            }
        });
        started.map_err(|error| {
            self.workers.state().count -= 1;
            log::error!("{error}");
            Error::Busy("cannot start a thread; try again later".into())
        })
    }

    /// Ends the workers after their current jobs. Returns the number still running at `deadline`.
    pub fn join(self, deadline: Instant) -> usize {
        // Wake idle workers instead of waiting for their idle time.
        self.workers.state().is_over = true;
        self.workers.changed.notify_all();
        self.threads.join(deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};

    #[test]
    fn a_finished_job_frees_its_slot_at_once() {
        let pool = Pool::new("test", 2, 64 << 10);
        let (done_in, done) = unbounded();
        let start = || {
            let done = done_in.clone();
            pool.run(Box::new(move || {
                let _ = done.send(());
            }))
        };
        start().unwrap();
        for _ in 0..10_000 {
            start().unwrap();
            done.recv().unwrap();
        }
        assert_eq!(pool.join(Instant::now() + Duration::from_secs(5)), 0);
    }

    #[test]
    fn each_item_is_processed_by_the_given_number_of_threads() {
        // The barrier waits for three workers; the assertion rejects a fourth.
        let (met, at_work) = (std::sync::Barrier::new(3), AtomicUsize::new(0));
        let items: Vec<usize> = (0..9).collect();
        let result = map_parallel("test", 3, 64 << 10, &items, |at, item| {
            assert!(at_work.fetch_add(1, Ordering::SeqCst) < 3);
            met.wait();
            at_work.fetch_sub(1, Ordering::SeqCst);
            met.wait();
            at + item
        });
        assert_eq!(result, [0, 2, 4, 6, 8, 10, 12, 14, 16]);
        assert!(map_parallel("test", 3, 64 << 10, &[0; 0], |_, _| ()).is_empty());
    }

    #[test]
    fn a_busy_pool_refuses_jobs() {
        let pool = Pool::new("test", 1, 64 << 10);
        let (release, held) = bounded::<()>(0);
        pool.run(Box::new(move || {
            let _ = held.recv();
        }))
        .unwrap();
        assert!(matches!(pool.run(Box::new(|| {})), Err(Error::Busy(_))));
        drop(release);
        pool.run(Box::new(|| {})).unwrap();
    }
}
