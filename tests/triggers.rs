//! Webhooks with their secrets, and schedules.

use std::time::{SystemTime, UNIX_EPOCH};

use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::binary::{Home, Served, everything_below};
use crate::harness::{Response, TestServer, agent, chain, eventually, two_nodes, was_logged};

const TOKEN: &str = "correct-horse-battery-staple";
/// A schedule that is due only at the start of a year.
const YEARLY: &str = "0 0 1 1 *";
/// Long enough for a yearly schedule to have been due.
const TWO_YEARS_MS: i64 = 2 * 366 * 24 * 60 * 60 * 1000;
const A_DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// A webhook as `PUT` returned it.
struct Hook {
    slug: String,
    secret: String,
}

impl Hook {
    fn of(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = |key: &str| answer.json()[key].as_str().unwrap().to_owned();
        Self { slug: text("slug"), secret: text("secret") }
    }

    fn set(server: &TestServer, flow: i64) -> Self {
        Self::of(&server.request("PUT", &hook_path(flow), &[], b""))
    }

    fn path(&self) -> String {
        format!("/hooks/{}", self.slug)
    }

    /// Sends a valid delivery.
    fn deliver(&self, server: &TestServer, key: Option<&str>, body: &Value) -> Response {
        self.deliver_bytes(server, key, body.to_string().as_bytes())
    }

    fn deliver_bytes(&self, server: &TestServer, key: Option<&str>, body: &[u8]) -> Response {
        let mut fields = vec![("x-flowledger-secret", self.secret.as_str())];
        fields.extend(key.map(|key| ("Idempotency-Key", key)));
        server.request("POST", &self.path(), &fields, body)
    }
}

fn hook_path(flow: i64) -> String {
    format!("/api/flows/{flow}/hook")
}

fn schedule_path(flow: i64) -> String {
    format!("/api/flows/{flow}/schedule")
}

fn put(server: &TestServer, path: &str, body: &Value) -> Response {
    server.request("PUT", path, &[], body.to_string().as_bytes())
}

fn delete(server: &TestServer, path: &str) -> u16 {
    server.request("DELETE", path, &[], b"").status
}

fn run_id(answer: &Response) -> String {
    answer.json()["runId"].as_str().unwrap().to_owned()
}

/// Returns the runs of a flow, newest first.
fn runs(server: &TestServer, flow: i64) -> Vec<Value> {
    let runs = server.get(&format!("/api/runs?flow_id={flow}")).json();
    runs["items"].as_array().unwrap().clone()
}

/// Opens a second connection to the database.
fn database(data: &std::path::Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(data.join("flowledger.db")).unwrap();
    connection.busy_timeout(crate::harness::DEADLINE).unwrap();
    connection
}

/// Moves a schedule's last check back by two years.
fn make_overdue(data: &std::path::Path, flow: i64) {
    let sql = "UPDATE schedules SET last_ms = last_ms - ?2 WHERE flow_id = ?1";
    let changed = database(data).execute(sql, [flow, TWO_YEARS_MS]).unwrap();
    assert_eq!(changed, 1);
}

fn yearly(missed: &str) -> Value {
    json!({"cron": YEARLY, "missed": missed, "input": {"topic": "wasps"}})
}

#[test]
fn a_webhook_runs_its_flow_with_the_body_as_input() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let set = server.request("PUT", &hook_path(flow), &[], b"");
    let hook = Hook::of(&set);
    assert_eq!(set.header("cache-control"), Some("no-store"));
    let url = format!("http://{}/hooks/{}", server.address(), hook.slug);
    assert_eq!(set.json()["url"], url);
    let shown = server.get(&hook_path(flow));
    assert_eq!(shown.json()["slug"], hook.slug);
    assert_eq!(shown.json()["url"], url);
    assert!(!shown.text().contains(&hook.secret));

    let answer = hook.deliver(&server, None, &json!({"topic": "bees"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let path = format!("/api/runs/{}", run_id(&answer));
    assert_eq!(answer.header("location"), Some(path.as_str()));
    eventually("the run is over", || server.get(&path).json()["status"] == "COMPLETED");
    let run = server.get(&path).json();
    assert_eq!(run["trigger"], "hook");
    assert_eq!(run["flowId"], flow);
    assert_eq!(run["input"], json!({"topic": "bees"}));
    let bearer = format!("Bearer {}", hook.secret);
    let fields = [("authorization", bearer.as_str())];
    let answer = server.request("POST", &hook.path(), &fields, b"{\"topic\": 1}");
    assert_eq!(answer.status, 202);
    // A missing input counts as an empty one.
    let plain = server.save(&chain("Plain", &[agent("a", "echo", "echo-1", "x")]));
    let hook = Hook::set(&server, plain);
    for body in [b"" as &[u8], b" \n", b"{}"] {
        let answer = hook.deliver_bytes(&server, None, body);
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    for run in runs(&server, plain) {
        assert_eq!(run["input"], json!({}));
    }
}

#[test]
fn a_wrong_name_and_a_wrong_secret_get_equal_responses() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    let deliver = |path: &str, fields: &[(&str, &str)]| {
        // The answer reveals no other fault of the request.
        let mut fields = fields.to_vec();
        fields.push(("idempotency-key", "two words"));
        let answer = server.request("POST", path, &fields, b"[]");
        (answer.status, answer.text())
    };
    let path = hook.path();
    let unknown = deliver("/hooks/0123", &[("x-flowledger-secret", &hook.secret)]);
    assert_eq!(unknown.0, 401);
    let bearer = |secret: &str| format!("Bearer {secret}");
    for fields in [
        vec![],
        vec![("x-flowledger-secret", "")],
        vec![("x-flowledger-secret", "wrong")],
        vec![("x-flowledger-secret", &hook.secret[1..])],
        vec![("authorization", bearer("").as_str())],
        vec![("authorization", bearer("wrong").as_str())],
        vec![("authorization", hook.secret.as_str())],
        vec![("authorization", format!("Basic {}", hook.secret).as_str())],
        vec![("x-flowledger-secret", hook.slug.as_str())],
        // The stored hash is not the secret.
        vec![("x-flowledger-secret", Secret::new(hook.secret.as_str()).hash().as_str())],
    ] {
        assert_eq!(deliver(&path, &fields), unknown, "{fields:?}");
    }
    let in_the_query = format!("{path}?secret={}", hook.secret);
    assert_eq!(deliver(&in_the_query, &[]), unknown);
    let other = Hook::set(&server, server.save(&two_nodes()));
    assert_eq!(deliver(&path, &[("x-flowledger-secret", other.secret.as_str())]), unknown);
    assert_eq!(runs(&server, flow), [] as [Value; 0]);
    assert_eq!(server.get(&path).status, 405);
}

#[test]
fn a_delivery_without_the_secret_is_refused_unread() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    for (path, length, secret, status) in [
        (hook.path(), 900_000, "", 401),
        (hook.path(), 4 << 20, "wrong", 401),
        ("/hooks/unknown".into(), 900_000, hook.secret.as_str(), 401),
        (hook.path(), (1 << 20) + 1, hook.secret.as_str(), 413),
    ] {
        // The body never follows.
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-flowledger-secret: {secret}\r\n\
             content-length: {length}\r\n\r\n"
        );
        assert_eq!(server.raw(head.as_bytes()).status, status, "{path} {length} {secret}");
    }
    assert_eq!(runs(&server, flow), [] as [Value; 0]);
}

#[test]
fn a_webhook_secret_authorizes_only_its_deliveries() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new(TOKEN)));
    let whole = format!("Bearer {TOKEN}");
    let authorized = [("authorization", whole.as_str())];
    let body = two_nodes().to_string();
    let saved = server.request("POST", "/api/flows", &authorized, body.as_bytes());
    let flow = saved.json()["id"].as_i64().unwrap();
    for method in ["PUT", "GET", "DELETE"] {
        for path in [hook_path(flow), schedule_path(flow)] {
            assert_eq!(server.request(method, &path, &[], b"{}").status, 401);
        }
    }
    let hook = Hook::of(&server.request("PUT", &hook_path(flow), &authorized, b""));
    let answer = hook.deliver(&server, None, &json!({"topic": "bees"}));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let bearer = format!("Bearer {}", hook.secret);
    let with_secret = [("authorization", bearer.as_str())];
    let answer = server.request("POST", &hook.path(), &with_secret, b"{\"topic\": 1}");
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(server.request("GET", "/api/flows", &with_secret, b"").status, 401);
    // The server's token is not the webhook's secret.
    let answer = server.request("POST", &hook.path(), &authorized, b"{}");
    assert_eq!(answer.status, 401);
    assert_eq!(server.post("/hooks/unknown", &json!({})).status, 401);
    for path in ["/hooks/../api/flows", "/hooks/a/b", "/hooks/", "/hooks"] {
        assert_eq!(server.post(path, &json!({})).status, 401, "{path}");
    }
    assert_eq!(server.get(&hook.path()).status, 401);
    // Host names and origins are still checked.
    let secret = ("x-flowledger-secret", hook.secret.as_str());
    let foreign = [secret, ("origin", "https://evil.example")];
    let answer = server.request("POST", &hook.path(), &foreign, b"{}");
    assert_eq!(answer.status, 403);
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: evil.example\r\nx-flowledger-secret: {}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}",
        hook.path(),
        hook.secret
    );
    assert_eq!(server.raw(head.as_bytes()).status, 421);
}

#[test]
fn a_non_object_body_starts_no_run() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    for (body, status) in [
        ("{", 400),
        ("topic=bees", 400),
        ("{} {}", 400),
        ("\u{0}", 400),
        ("null", 422),
        ("[]", 422),
        ("\"bees\"", 422),
        ("7", 422),
    ] {
        let answer = hook.deliver_bytes(&server, Some("k"), body.as_bytes());
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    let large = json!({"topic": "x".repeat(1 << 20)});
    let answer = hook.deliver(&server, Some("k"), &large);
    assert_eq!((answer.status, answer.error_code().as_str()), (413, "body_too_large"));
    assert_eq!(runs(&server, flow), [] as [Value; 0]);
    // None of these consumed the idempotency key.
    let answer = hook.deliver(&server, Some("k"), &json!({"topic": "bees"}));
    assert_eq!(answer.status, 202);
}

#[test]
fn a_repeated_delivery_runs_once_also_after_a_restart() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    let input = json!({"topic": "bees"});
    let first = hook.deliver(&server, Some("order-1"), &input);
    assert_eq!(first.status, 202);
    let again = hook.deliver(&server, Some("order-1"), &input);
    assert_eq!((again.status, run_id(&again)), (200, run_id(&first)));
    assert_eq!(again.header("location"), first.header("location"));
    let other = hook.deliver(&server, Some("order-2"), &input);
    assert_eq!(other.status, 202);
    // A key belongs to one webhook and survives a new secret.
    let second = Hook::set(&server, server.save(&two_nodes()));
    assert_eq!(second.deliver(&server, Some("order-1"), &input).status, 202);
    let hook = Hook::set(&server, flow);
    server.start_again();
    let again = hook.deliver(&server, Some("order-1"), &input);
    assert_eq!((again.status, run_id(&again)), (200, run_id(&first)));
    for _ in 0..2 {
        assert_eq!(hook.deliver(&server, None, &input).status, 202);
    }
    assert_eq!(runs(&server, flow).len(), 4);
}

#[test]
fn concurrent_deliveries_with_one_key_start_one_run() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    const SENDERS: usize = 16;
    let barrier = std::sync::Barrier::new(SENDERS);
    for round in 0..5 {
        let key = format!("round-{round}");
        let deliver = || {
            barrier.wait();
            hook.deliver(&server, Some(&key), &json!({"topic": round}))
        };
        let answers: Vec<Response> = std::thread::scope(|scope| {
            let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(deliver)).collect();
            senders.into_iter().map(|s| s.join().unwrap()).collect()
        });
        let count = |status| answers.iter().filter(|a| a.status == status).count();
        assert_eq!((count(202), count(200)), (1, SENDERS - 1));
        assert!(answers.iter().all(|a| run_id(a) == run_id(&answers[0])));
        assert_eq!(runs(&server, flow).len(), round + 1);
    }
}

#[test]
fn an_idempotency_key_expires_after_a_day() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    let input = json!({"topic": "bees"});
    let first = hook.deliver(&server, Some("daily"), &input);
    let database = database(server.data());
    let age = |ms: i64| {
        let sql = "UPDATE hook_keys SET created_ms = ?1";
        database.execute(sql, [now_ms() - ms]).unwrap();
    };
    age(A_DAY_MS - 60_000);
    assert_eq!(run_id(&hook.deliver(&server, Some("daily"), &input)), run_id(&first));
    age(A_DAY_MS);
    let next = hook.deliver(&server, Some("daily"), &input);
    assert_eq!(next.status, 202);
    assert_ne!(run_id(&next), run_id(&first));
    age(A_DAY_MS);
    let count = "SELECT count(*) FROM hook_keys";
    eventually("the key is removed", || {
        database.query_row(count, [], |row| row.get::<_, i64>(0)) == Ok(0)
    });
}

#[test]
fn an_idempotency_key_is_short_and_printable() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    let longest = "k".repeat(200);
    let input = json!({"topic": "bees"});
    for wrong in ["", "two words", "tab\there", &format!("{longest}k")] {
        let answer = hook.deliver(&server, Some(wrong), &input);
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (400, "bad_idempotency_key"),
            "{wrong}"
        );
    }
    let secret = ("x-flowledger-secret", hook.secret.as_str());
    let twice = [secret, ("idempotency-key", "a"), ("idempotency-key", "b")];
    let answer = server.request("POST", &hook.path(), &twice, b"{}");
    assert_eq!(answer.status, 400);
    assert_eq!(runs(&server, flow), [] as [Value; 0]);
    for right in ["~", "!\"#{}", &longest] {
        assert_eq!(hook.deliver(&server, Some(right), &input).status, 202);
    }
}

#[test]
fn a_secret_is_only_hashed_and_removed_with_its_flow() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    assert_eq!(server.get(&hook_path(flow)).status, 404);
    assert_eq!(delete(&server, &hook_path(flow)), 404);
    assert_eq!(server.request("PUT", &hook_path(999), &[], b"").status, 404);
    let old = Hook::set(&server, flow);
    let new = Hook::set(&server, flow);
    assert_eq!(old.slug, new.slug);
    assert_ne!(old.secret, new.secret);
    let input = json!({"topic": "bees"});
    assert_eq!(old.deliver(&server, None, &input).status, 401);
    assert_eq!(new.deliver(&server, Some("k"), &input).status, 202);
    for (path, bytes) in everything_below(server.data()) {
        let secret = new.secret.as_bytes();
        let is_there = bytes.windows(secret.len()).any(|part| part == secret);
        assert!(!is_there, "the secret is in {}", path.display());
    }
    assert!(!was_logged(&[&new.secret]));
    assert_eq!(delete(&server, &hook_path(flow)), 204);
    assert_eq!(new.deliver(&server, Some("k"), &input).status, 401);
    assert_eq!(server.get(&hook_path(flow)).status, 404);
    // A new webhook has a new name and none of the old deliveries.
    let next = Hook::set(&server, flow);
    assert_ne!(next.slug, new.slug);
    assert_eq!(next.deliver(&server, Some("k"), &input).status, 202);
    put(&server, &schedule_path(flow), &yearly("skip"));
    eventually("the flow has no open run", || {
        delete(&server, &format!("/api/flows/{flow}")) == 204
    });
    assert_eq!(next.deliver(&server, None, &input).status, 401);
    assert_eq!(server.get(&hook_path(flow)).status, 404);
    assert_eq!(server.get(&schedule_path(flow)).status, 404);
    let database = database(server.data());
    for table in ["hooks", "hook_keys", "schedules"] {
        let count = format!("SELECT count(*) FROM {table}");
        let left: i64 = database.query_row(&count, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{table}");
    }
}

#[test]
fn a_schedule_can_be_set_read_and_removed() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = schedule_path(flow);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(delete(&server, &path), 404);
    assert_eq!(put(&server, &schedule_path(999), &yearly("skip")).status, 404);
    let schedule = json!({
        "cron": "0 12 1 7 *", "timezone": "America/New_York", "missed": "once",
        "input": {"topic": "bees"}, "enabled": true,
    });
    let set = put(&server, &path, &schedule);
    assert_eq!(set.status, 200, "{}", set.text());
    let shown = server.get(&path).json();
    assert_eq!(shown, set.json());
    for (key, value) in schedule.as_object().unwrap() {
        assert_eq!(shown[key], *value, "{key}");
    }
    // Noon in New York in summer.
    let next = shown["next"].as_str().unwrap();
    assert!(next.ends_with("-07-01T16:00:00.000Z"), "{next}");
    let local = shown["nextLocal"].as_str().unwrap();
    assert!(local.ends_with("-07-01T12:00:00-04:00"), "{local}");
    // Also in the following years.
    let upcoming: Vec<&str> =
        shown["upcoming"].as_array().unwrap().iter().map(|time| time.as_str().unwrap()).collect();
    assert_eq!((upcoming.len(), upcoming[0]), (5, local));
    let years: Vec<i32> = upcoming.iter().map(|time| time[..4].parse().unwrap()).collect();
    assert!(years.windows(2).all(|pair| pair[0] + 1 == pair[1]));

    // Omitted fields have defaults.
    let set = put(&server, &path, &json!({"cron": "*/5 * * * *"})).json();
    assert_eq!(
        (&set["timezone"], &set["missed"], &set["input"]),
        (&json!("UTC"), &json!("skip"), &json!({}))
    );
    assert_eq!(set["enabled"], true);
    let off = put(&server, &path, &json!({"cron": YEARLY, "enabled": false})).json();
    assert_eq!(
        (&off["enabled"], &off["next"], &off["nextLocal"]),
        (&json!(false), &Value::Null, &Value::Null)
    );
    assert_eq!(off["upcoming"], json!([]));
    assert_eq!(delete(&server, &path), 204);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.post(&path, &json!({})).status, 405);
}

#[test]
fn all_errors_of_a_schedule_are_listed_with_their_fields() {
    let server = TestServer::start();
    let path = schedule_path(server.save(&two_nodes()));
    let fields = |body: &Value| -> Vec<String> {
        let answer = put(&server, &path, body);
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        let details = answer.json()["error"]["details"].clone();
        let details = details.as_array().unwrap().iter();
        details.map(|fault| fault["field"].as_str().unwrap().to_owned()).collect()
    };
    let all = json!({
        "cron": "61 * * * *", "timezone": "Europe/Atlantis", "missed": "often",
        "input": [], "enabled": "yes", "when": 1,
    });
    assert_eq!(fields(&all), ["cron", "timezone", "missed", "input", "enabled", "when"]);
    assert_eq!(fields(&json!({})), ["cron"]);
    let no_texts = json!({"cron": 5, "timezone": {}, "missed": true});
    assert_eq!(fields(&no_texts), ["cron", "timezone", "missed"]);
    assert_eq!(fields(&json!([])), [""]);
    assert_eq!(fields(&json!({"cron": "0 0 30 2 *"})), ["cron"]);
    assert_eq!(fields(&json!({"cron": "* * * * * *"})), ["cron"]);
    let large = json!({"cron": YEARLY, "input": {"topic": "x".repeat(1 << 20)}});
    assert_eq!(fields(&large), ["input"]);
    assert_eq!(server.request("PUT", &path, &[], b"{").status, 400);
    assert_eq!(server.get(&path).status, 404);
}

#[test]
fn a_missed_time_runs_once_across_restarts() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    assert_eq!(put(&server, &schedule_path(flow), &yearly("once")).status, 200);
    server.stop();
    make_overdue(server.data(), flow);
    server.start_again();
    eventually("the flow runs", || {
        runs(&server, flow).first().is_some_and(|run| run["status"] == "COMPLETED")
    });
    let run = runs(&server, flow)[0].clone();
    assert_eq!(run["trigger"], "schedule");
    assert_eq!(run["input"], json!({"topic": "wasps"}));
    // Once for two years, and not again: schedules run in the order of their flows, so when the
    // later one has run, the earlier one was checked.
    let later = server.save(&two_nodes());
    put(&server, &schedule_path(later), &yearly("once"));
    for count in 1..=2 {
        server.stop();
        make_overdue(server.data(), later);
        server.start_again();
        eventually("the later flow runs", || runs(&server, later).len() == count);
        assert_eq!(runs(&server, flow).len(), 1);
    }
}

#[test]
fn a_missed_time_is_skipped_by_default() {
    let mut server = TestServer::start();
    let flows = [(); 3].map(|()| server.save(&two_nodes()));
    let [left_out, switched_off, made_up_for] = flows;
    put(&server, &schedule_path(left_out), &yearly("skip"));
    let mut off = yearly("once");
    off["enabled"] = json!(false);
    put(&server, &schedule_path(switched_off), &off);
    put(&server, &schedule_path(made_up_for), &yearly("once"));
    server.stop();
    for flow in flows {
        make_overdue(server.data(), flow);
    }
    server.start_again();
    eventually("the last of them runs", || runs(&server, made_up_for).len() == 1);
    assert_eq!(runs(&server, left_out), [] as [Value; 0]);
    assert_eq!(runs(&server, switched_off), [] as [Value; 0]);
    // Times missed while it was switched off are not made up for.
    put(&server, &schedule_path(switched_off), &yearly("once"));
    make_overdue(server.data(), made_up_for);
    put(&server, &schedule_path(left_out), &yearly("skip"));
    eventually("the last of them runs again", || runs(&server, made_up_for).len() == 2);
    assert_eq!(runs(&server, switched_off), [] as [Value; 0]);
}

#[test]
fn a_completed_time_is_not_repeated_after_a_kill() {
    let home = Home::new();
    let start = || Served::start(&mut home.serve());
    let mut server = start();
    let flows = [(); 2].map(|()| server.save(&two_nodes()));
    for flow in flows {
        let body = yearly("once").to_string();
        let answer = server.request("PUT", &schedule_path(flow), &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let count = |server: &Served, flow: i64| {
        let runs = server.get(&format!("/api/runs?flow_id={flow}"));
        runs["items"].as_array().unwrap().len()
    };
    server.running.kill();
    make_overdue(&home.data(), flows[0]);
    for round in 1..=3 {
        make_overdue(&home.data(), flows[1]);
        let mut server = start();
        eventually("the second flow runs", || count(&server, flows[1]) == round);
        assert_eq!(count(&server, flows[0]), 1);
        server.running.kill();
    }
}

#[test]
fn a_flow_that_cannot_run_is_skipped_with_a_reason() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let hook = Hook::set(&server, flow);
    put(&server, &schedule_path(flow), &yearly("once"));
    server.stop();
    make_overdue(server.data(), flow);
    let sql = "UPDATE flows SET document = replace(document, '\"echo\"', '\"gone\"') WHERE id = ?1";
    database(server.data()).execute(sql, [flow]).unwrap();
    server.start_again();
    eventually("it is logged", || {
        was_logged(&[
            &format!("cannot start the scheduled run of flow {flow} at"),
            "unknown provider `gone`",
        ])
    });
    let answer = hook.deliver(&server, Some("k"), &json!({"topic": "bees"}));
    assert_eq!((answer.status, answer.error_code().as_str()), (422, "invalid"));
    assert_eq!(runs(&server, flow), [] as [Value; 0]);
}
