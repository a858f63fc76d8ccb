//! Behaviour on a full disk: a limit on the size of the program's files makes the system refuse
//! writes as a full disk does.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crossbeam_channel::bounded;
use serde_json::{Value, json};

use crate::binary::{Home, Served, verify};
use crate::harness::{DEADLINE, agent, eventually};
use crate::upstream::{Upstream, completion};

/// The command of a server whose provider `openai` is the upstream.
fn serve(home: &Home, upstream: &Upstream) -> Command {
    let config = format!(
        "[providers.openai]\nkind = \"openai\"\nbase_url = \"{}\"\napi_key = \"k\"\n",
        upstream.url()
    );
    let config = home.write("flowledger.toml", config);
    let mut command = home.serve();
    command.args(["--config", config.to_str().unwrap()]);
    command
}

fn served(home: &Home, upstream: &Upstream) -> Served {
    Served::start(&mut serve(home, upstream))
}

/// The command with a limit on the size of its files, in KiB.
fn limited(command: &Command, kib: u64) -> Command {
    let mut limited = Command::new("/bin/sh");
    // In blocks of 512 bytes.
    let script = format!("ulimit -S -f {}; exec \"$0\" \"$@\"", 2 * kib);
    limited.args(["-c", &script]).arg(command.get_program());
    limited.args(command.get_args()).env_clear();
    limited.current_dir(command.get_current_dir().unwrap());
    let variables = command.get_envs();
    limited.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    limited
}

fn flow_of(prompt: &str) -> Value {
    let mut node = agent("n", "openai", "gpt-4o-mini", prompt);
    node["data"]["stream"] = json!(false);
    json!({"name": prompt, "data": {"nodes": [node], "edges": []}})
}

fn chat() -> Value {
    json!({"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "held"}]})
}

/// Returns the rows, oldest first.
fn rows(served: &Served) -> Vec<Value> {
    let mut rows = served.get("/api/ledger")["items"].as_array().unwrap().clone();
    rows.reverse();
    rows
}

#[test]
fn a_full_disk_refuses_new_calls_and_settles_open_ones_later() {
    let (release, held) = bounded::<()>(0);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("held") {
            let _ = held.recv_timeout(DEADLINE);
        }
        let _ = stream.write_all(completion("well", 10, 2).as_bytes());
    });
    let home = Home::new();
    let mut served = served(&home, &upstream);
    let (quick, slow) = (served.save(&flow_of("quick")), served.save(&flow_of("held")));
    let flows = served.get("/api/flows");
    let wait = |flow| format!("/api/flows/{flow}/execute?wait=true");
    let run = served.post(&wait(quick), &json!({}));
    assert_eq!(run.json()["status"], "COMPLETED", "{}", run.text());
    let in_flight = served.execute(slow);
    let client = std::thread::scope(|scope| {
        // Two calls in flight, one of a flow and one of a client.
        let client = scope.spawn(|| served.post("/v1/chat/completions", &chat()));
        eventually("both calls are made", || upstream.count() == 3);

        served.running.limit_files(Some(0));
        // Every write is refused with the reason, and no provider is called.
        for (path, body, code) in [
            (wait(quick), json!({}), "disk"),
            ("/api/flows".into(), flow_of("another"), "disk"),
            ("/v1/chat/completions".into(), chat(), "ledger"),
        ] {
            let refused = served.post(&path, &body);
            assert_eq!(refused.status, 503, "{path}: {}", refused.text());
            let error = &refused.json()["error"];
            assert_eq!(error["code"], code, "{error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("disk error: "), "{message}");
        }
        assert_eq!(upstream.count(), 3);
        // Committed data stays readable and unchanged.
        let seen = rows(&served);
        let statuses: Vec<&Value> = seen.iter().map(|row| &row["status"]).collect();
        assert_eq!(statuses, ["SUCCESS", "PENDING", "PENDING"]);
        assert_eq!(served.get("/api/flows"), flows);

        // Both calls end meanwhile. The client has its answer; the rows cannot be written.
        drop(release);
        client.join().unwrap()
    });
    assert_eq!(client.status, 200, "{}", client.text());
    let both_refused = "2 changes wait for disk space";
    if !served.running.stderr.contains(both_refused) {
        served.running.until_stderr(both_refused);
    }
    assert_eq!(rows(&served)[2]["status"], "PENDING");

    // There is room again: the server recovers by itself.
    served.running.limit_files(None);
    eventually("what was held up is written", || {
        rows(&served).iter().all(|row| row["status"] == "SUCCESS")
            && served.get(&format!("/api/runs/{in_flight}"))["status"] == "COMPLETED"
    });
    assert!(rows(&served).iter().all(|row| row["total_cost_usd"] == 2.7e-6), "{:?}", rows(&served));
    let run = served.post(&wait(quick), &json!({}));
    assert_eq!(run.json()["status"], "COMPLETED", "{}", run.text());
    assert_eq!(rows(&served).len(), 4);
    served.running.signal("TERM");
    assert_eq!(served.running.end().code, Some(0));
    verify(&home.data());
}

#[test]
fn a_server_on_a_full_disk_starts_and_recovers_later() {
    let (release, held) = bounded::<()>(0);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("held") {
            let _ = held.recv_timeout(DEADLINE);
        }
        let _ = stream.write_all(completion("well", 10, 2).as_bytes());
    });
    let home = Home::new();
    let mut served = served(&home, &upstream);
    let (quick, slow) = (served.save(&flow_of("quick")), served.save(&flow_of("held")));
    let wait = |flow| format!("/api/flows/{flow}/execute?wait=true");
    let run = served.post(&wait(quick), &json!({}));
    assert_eq!(run.json()["status"], "COMPLETED", "{}", run.text());
    let in_flight = served.execute(slow);
    eventually("the call is made", || upstream.count() == 2);
    let before = rows(&served);
    served.running.kill();
    drop(release);

    // The size of the WAL index. The WAL is already larger.
    let mut command = limited(&serve(&home, &upstream), 32);
    let mut served = Served::start(&mut command);
    if !served.running.stderr.contains("cannot write these statuses") {
        served.running.until_stderr("cannot write these statuses");
    }
    assert_eq!(rows(&served), before);
    for (path, body, code) in
        [(wait(quick), json!({}), "disk"), ("/v1/chat/completions".into(), chat(), "ledger")]
    {
        let refused = served.post(&path, &body);
        assert_eq!(refused.status, 503, "{path}: {}", refused.text());
        assert_eq!(refused.json()["error"]["code"], code);
    }
    let path = format!("/api/runs/{in_flight}");
    assert_eq!(served.get(&path)["status"], "RUNNING");
    assert_eq!(upstream.count(), 2);

    served.running.limit_files(None);
    eventually("the run has continued", || served.get(&path)["status"] == "COMPLETED");
    let rows = rows(&served);
    let statuses: Vec<&Value> = rows.iter().map(|row| &row["status"]).collect();
    assert_eq!(statuses, ["SUCCESS", "UNKNOWN", "SUCCESS"]);
    served.running.signal("TERM");
    assert_eq!(served.running.end().code, Some(0));
    verify(&home.data());
}

#[test]
fn after_a_clean_stop_one_file_contains_everything() {
    let upstream = Upstream::saying(completion("well", 10, 2));
    let home = Home::new();
    let served = served(&home, &upstream);
    let flow = served.save(&flow_of("bees"));
    let ended = served.post(&format!("/api/flows/{flow}/execute?wait=true"), &json!({}));
    assert_eq!(ended.status, 200, "{}", ended.text());
    // These keep read connections and sockets open until the end.
    let _client = served.client();
    let before = rows(&served);
    assert_eq!(before.len(), 1);
    served.running.signal("TERM");
    assert_eq!(served.running.end().code, Some(0));
    let copy = Home::new();
    std::fs::create_dir(copy.data()).unwrap();
    std::fs::copy(home.data().join("flowledger.db"), copy.data().join("flowledger.db")).unwrap();
    verify(&copy.data());
    let served = Served::start(&mut copy.serve());
    assert_eq!(rows(&served), before);
    assert_eq!(served.get(&format!("/api/flows/{flow}"))["name"], "bees");
}

#[test]
fn a_lost_database_file_stops_the_server() {
    let upstream = Upstream::saying(completion("well", 10, 2));
    let delete = |data: &Path| std::fs::remove_file(data.join("flowledger.db")).unwrap();
    let delete_log = |data: &Path| std::fs::remove_file(data.join("flowledger.db-wal")).unwrap();
    let replace = |data: &Path| {
        std::fs::copy(data.join("flowledger.db"), data.join("other.db")).unwrap();
        std::fs::rename(data.join("other.db"), data.join("flowledger.db")).unwrap();
    };
    let move_all = |data: &Path| std::fs::rename(data, data.with_extension("moved")).unwrap();
    let lose: [&dyn Fn(&Path); 4] = [&delete, &delete_log, &replace, &move_all];
    for (at, lose) in lose.into_iter().enumerate() {
        let home = Home::new();
        let served = served(&home, &upstream);
        let flow = served.save(&flow_of("bees"));
        let run = served.post(&format!("/api/flows/{flow}/execute?wait=true"), &json!({}));
        assert_eq!(run.json()["status"], "COMPLETED", "{}", run.text());
        lose(&home.data());
        let replaced = std::fs::read(home.data().join("flowledger.db")).ok();
        let ended = served.running.end();
        assert_eq!(ended.code, Some(1), "{at}: {}", ended.stderr);
        let part = "was deleted or replaced while it was in use";
        assert!(ended.stderr.contains(part), "{at}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{at}: {}", ended.stderr);
        if at == 1 {
            continue;
        }
        // Nothing is written to the file that is there now, and its log is not replayed into it.
        assert_eq!(std::fs::read(home.data().join("flowledger.db")).ok(), replaced, "{at}");
        assert!(!home.data().join("flowledger.db-wal").exists(), "{at}");
    }
}

#[test]
fn a_database_of_another_program_is_refused_unchanged() {
    let home = Home::new();
    std::fs::create_dir(home.data()).unwrap();
    let path = home.data().join("flowledger.db");
    for sql in [
        "CREATE TABLE notes (text); INSERT INTO notes VALUES ('mine')",
        "CREATE TABLE ledger (id); PRAGMA user_version = 3",
        "PRAGMA application_id = 1234",
        "PRAGMA journal_mode = DELETE; CREATE TABLE flows (id); PRAGMA user_version = 99",
    ] {
        let _ = std::fs::remove_file(&path);
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        for args in [&["serve", "--listen", "127.0.0.1:0"][..], &["verify"], &["ledger"]] {
            let ended = home.run(args);
            assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{sql}: {ended:?}");
            for part in [path.to_str().unwrap(), "database of another program"] {
                assert!(ended.stderr.contains(part), "{sql}: {ended:?}");
            }
        }
        assert!(std::fs::read(&path).unwrap() == before, "{sql}");
        assert!(!home.data().join("flowledger.db-wal").exists(), "{sql}");
    }
}

#[test]
fn a_pending_log_of_another_program_is_left_alone() {
    let home = Home::new();
    std::fs::create_dir(home.data()).unwrap();
    let path = home.data().join("flowledger.db");
    let log = home.data().join("flowledger.db-wal");
    // Copied while it is open, so that its log is not applied.
    let source = home.path("other.db");
    let connection = rusqlite::Connection::open(&source).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE notes (text)").unwrap();
    std::fs::copy(&source, &path).unwrap();
    std::fs::copy(home.path("other.db-wal"), &log).unwrap();
    let before = (std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap());
    let ended = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("database of another program"), "{ended:?}");
    assert!((std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap()) == before);
}

#[test]
fn a_damaged_database_is_named_with_the_remedy() {
    let home = Home::new();
    drop(Served::start(&mut home.serve()));
    let path = home.data().join("flowledger.db");
    for log in ["flowledger.db-wal", "flowledger.db-shm"] {
        let _ = std::fs::remove_file(home.data().join(log));
    }
    std::fs::write(&path, "this is no database, but it is long enough for one".repeat(99)).unwrap();
    let ended = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
    for part in [path.to_str().unwrap(), "is damaged", "restore a copy", "flowledger verify"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
}
