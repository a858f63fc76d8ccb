//! The program: flags, shutdown, output, crash recovery and a second start.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::binary::{Ended, Home, Running, Served};
use crate::harness::{DEADLINE, agent, chain, eventually, two_nodes};
use crate::upstream::{Upstream, completion, json_answer};

/// Time limit for the program's shutdown.
const END_MAX: Duration = Duration::from_secs(5);

/// A flow of one node that takes a minute.
fn slow() -> Value {
    chain("Slow", &[agent("slow", "echo", "echo-slow", &"word ".repeat(1_200))])
}

fn on(home: &Home, upstream: &Upstream, args: &[&str]) -> Command {
    let mut command = home.flowledger(args);
    command.env("OPENAI_API_KEY", "test-key").env("OPENAI_BASE_URL", upstream.url());
    command
}

fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` is not in: {}", ended.stderr);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_explains_every_flag_with_its_default() {
    let home = Home::new();
    let common = ["--data <DIR>", "--config <FILE>", "--prices <FILE>"];
    let serve = [
        "--listen <ADDRESS:PORT>",
        "--token <TOKEN>",
        "--allow-host <NAME>",
        "--allow-origin <ORIGIN>",
    ];
    let run = ["--input <NAME=TEXT>", "--input-json <JSON>", "--dry-run", "--json"];
    let ledger = [
        "--by <GROUP>",
        "--from <TIME>",
        "--to <TIME>",
        "--flow <ID>",
        "--model <NAME>",
        "--provider <NAME>",
        "--status <STATUS>",
        "--role <NAME>",
        "--key <NAME>",
        "--tag <TAG>",
        "--client <NAME>",
        "--session <ID>",
        "--end-user <NAME>",
        "--project <NAME>",
        "--limit <COUNT>",
        "--csv",
    ];
    for (args, flags) in [
        (&["--help"][..], [&common[..], &serve].concat()),
        (&["serve", "--help"], [&common[..], &serve].concat()),
        (&["run", "--help"], [&common[..], &run].concat()),
        (&["verify", "--help"], common.to_vec()),
        (&["ledger", "--help"], [&common[..], &ledger].concat()),
        (&["optimize", "--help"], [&common[..], &["--json"]].concat()),
    ] {
        let ended = home.run(args);
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
        let help = ended.stdout;
        let lines: Vec<&str> = help.lines().collect();
        let is_flag = |line: &&str| line.trim_start().starts_with('-');
        for flag in &flags {
            let at = lines
                .iter()
                .position(|line| line.trim_start().starts_with('-') && line.contains(flag));
            let at = at.unwrap_or_else(|| panic!("{flag} is not in: {help}"));
            let rest = &lines[at + 1..];
            let end = rest.iter().position(is_flag).unwrap_or(rest.len());
            let about = [&[lines[at]], &rest[..end]].concat().join(" ");
            assert!(about.contains("[default:"), "{flag} has no default: {about}");
            assert!(about.trim().len() > flag.len() + 30, "{flag} is not explained: {about}");
        }
        // The help has no option that this list lacks.
        let known = |line: &&str| {
            let others = ["--help", "--version"];
            flags.iter().any(|flag| line.contains(flag))
                || others.iter().any(|flag| line.contains(flag))
        };
        for line in lines.iter().filter(|line| is_flag(line)) {
            assert!(known(line), "{line}");
        }
    }
    let help = home.run(&["--help"]).stdout;
    for part in [
        "serve",
        "run",
        "127.0.0.1:7700",
        "FLOWLEDGER_LISTEN",
        "FLOWLEDGER_TOKEN",
        "FLOWLEDGER_DATA",
        "FLOWLEDGER_CONFIG",
        "FLOWLEDGER_ALLOW_HOSTS",
        "FLOWLEDGER_ALLOW_ORIGINS",
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "RUST_LOG",
    ] {
        assert!(help.contains(part), "{part} is not in: {help}");
    }
    let with_token =
        Running::start(home.flowledger(&["--help"]).env("FLOWLEDGER_TOKEN", "secret-token")).end();
    assert!(!with_token.stdout.contains("secret-token"));
    let version = home.run(&["--version"]).stdout;
    assert_eq!(version.trim(), format!("flowledger {}", env!("CARGO_PKG_VERSION")));
    assert!(!home.data().exists());
}

#[test]
fn invalid_arguments_are_refused() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    for (args, part) in [
        (&["--listn", "127.0.0.1:0"][..], "--listn"),
        (&["serve", "--listen", "localhost"], "`localhost` is not an address with a port"),
        (&["serve", "--listen", "127.0.0.1:99999"], "127.0.0.1:99999"),
        (&["serve", "--allow-origin", "example.org"], "https://example.org"),
        (&["serve", "flow.json"], "flow.json"),
        (&["walk"], "walk"),
        (&["run"], "FLOW.json"),
        (&["run", text(&flow), "--input", "topic"], "NAME=TEXT"),
        (&["run", text(&flow), "--input", "=x"], "NAME=TEXT"),
        (&["run", text(&flow), "--input-json", "[1]"], "--input-json"),
        (&["run", text(&flow), "--input-json", "{oops"], "line 1"),
        (&["run", "nowhere.json"], "cannot read the flow nowhere.json"),
        (&["--config", "nowhere.toml"], "cannot read the configuration nowhere.toml"),
    ] {
        let ended = home.run(args);
        assert_refused(&ended, &[part]);
    }
    assert!(!home.data().exists());
}

#[test]
fn a_configuration_error_names_file_and_line_and_no_secret() {
    let home = Home::new();
    for (toml, parts) in [
        ("listen = '127.0.0.1:0'\n\n[providers.x]\napi_key = 'sk-1\n", &["line 4"][..]),
        ("listen = 7700\n", &["line 1"]),
        ("# colours\ncolour = 'red'\n", &["line 2", "colour"]),
        ("[providers.mine]\nkind = 'smoke'\nbase_url = 'http://x'\n", &["line 2", "smoke"]),
        ("[providers.mine]\nkind = 'openai'\n", &["providers.mine.base_url"]),
        ("[providers.mine]\nkind = 'openai'\nbase_url = 'ftp://x'\n", &["providers.mine.base_url"]),
        (
            "[providers.openai]\napi_key = 'sk-1'\napi_key_env = 'X'\n",
            &["providers.openai.api_key"],
        ),
        (
            "[providers.openai]\napi_key_file = 'no-such-file'\n",
            &["providers.openai.api_key_file", "no-such-file"],
        ),
        ("[timeouts]\ntotal_s = -1\n", &["timeouts.total_s"]),
        ("token = 'sk-1 x'\n", &["token"]),
    ] {
        let config = home.write("settings.toml", toml);
        let ended = home.run(&["serve", "--config", text(&config)]);
        assert_refused(&ended, parts);
        if parts[0].starts_with("line") {
            assert!(ended.stderr.contains("settings.toml"), "{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("sk-1"), "{}", ended.stderr);
    }
    let config = home.write("settings.toml", "listen = '127.0.0.1:0'\ntoken = 'from-file'\n");
    let server = Served::start(&mut home.flowledger(&["--config", text(&config)]));
    assert_eq!(server.request("GET", "/api/flows", &[], b"").status, 401);
    let fields = [("authorization", "Bearer from-file")];
    assert_eq!(server.request("GET", "/api/flows", &fields, b"").status, 200);
}

#[test]
fn a_signal_stops_a_busy_server_cleanly() {
    for signal in ["TERM", "INT"] {
        let home = Home::new();
        let server = Served::start(&mut home.serve());
        assert_eq!(server.get("/api/health")["status"], "ok");
        let mut clients = [server.client(), server.client()];
        let idle = std::net::TcpStream::connect(server.address).unwrap();
        let run = server.execute(server.save(&slow()));
        for client in &mut clients {
            client.until_type("NODE_OUTPUT");
        }
        server.running.signal(signal);
        for client in &mut clients {
            let (_, code) = client.until_closed();
            assert_eq!(code, Some(1001));
        }
        let ended = server.running.end_within(END_MAX);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(
            !ended.stderr.contains("panic") && !ended.stderr.contains("ERROR"),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.stderr.matches("client connected").count(), 2, "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("client disconnected").count(), 2, "{}", ended.stderr);
        drop(idle);
        // The run survived, and its interrupted call has an explanation.
        let server = Served::start(&mut home.serve());
        assert_eq!(server.get(&format!("/api/runs/{run}"))["status"], "RUNNING");
        assert_eq!(server.get("/api/ledger?status=UNKNOWN")["items"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let home = Home::new();
    let flow = home.write("flow.json", slow().to_string());
    let mut running = Running::start(&mut home.flowledger(&["run", text(&flow)]));
    running.until_stderr("… SLOW");
    running.signal("INT");
    let ended = running.end_within(END_MAX);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("cancelled"), "{}", ended.stderr);
}

#[test]
fn after_a_power_cut_the_row_is_unknown_and_the_run_resumes() {
    let is_stuck = Arc::new(AtomicBool::new(true));
    let upstream = {
        let is_stuck = Arc::clone(&is_stuck);
        Upstream::start(move |body, stream| {
            if body.contains("second") && is_stuck.load(Ordering::SeqCst) {
                let _ = stream.read(&mut [0; 1]);
                return;
            }
            let _ = stream.write_all(completion("hi", 10, 5).as_bytes());
        })
    };
    let home = Home::new();
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let mut server = Served::start(&mut on(&home, &upstream, &serve));
    let flow = server.save(&chain(
        "Long",
        &[
            agent("a", "openai", "gpt-4o-mini", "first"),
            agent("b", "openai", "gpt-4o-mini", "second {{ nodes.a.output }}"),
        ],
    ));
    let run = server.execute(flow);
    for _ in 0..2 {
        upstream.requests().recv_timeout(DEADLINE).unwrap();
    }
    assert_eq!(server.get("/api/ledger")["items"][0]["status"], "PENDING");
    let seen = server.client().hello["payload"]["seq"].as_u64().unwrap();
    server.running.kill();
    is_stuck.store(false, Ordering::SeqCst);

    let server = Served::start(&mut on(&home, &upstream, &serve));
    eventually("the run continues", || {
        server.get(&format!("/api/runs/{run}"))["status"] == "COMPLETED"
    });
    let rows = server.get("/api/ledger");
    let rows: Vec<Value> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| json!([row["node_id"], row["attempt"], row["status"], row["total_cost_usd"]]))
        .collect();
    assert_eq!(
        json!(rows),
        json!([
            ["b", 2, "SUCCESS", 0.0000045],
            ["b", 1, "UNKNOWN", null],
            ["a", 1, "SUCCESS", 0.0000045]
        ])
    );
    // The finished node was not called again.
    assert_eq!(upstream.count(), 3);
    assert!(server.client().hello["payload"]["seq"].as_u64().unwrap() > seen);
}

#[test]
fn a_restart_keeps_all_data() {
    let home = Home::new();
    let paths = ["/api/flows", "/api/flows/3", "/api/runs", "/api/ledger", "/api/ledger/summary"];
    let everything = |server: &Served| paths.map(|path| server.get(path));
    let mut server = Served::start(&mut home.serve());
    let names: Vec<Value> = server.get("/api/flows")["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flow| flow["name"].clone())
        .collect();
    assert_eq!(names.len(), 2, "two examples are there on the first start");
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/execute?wait=true");
    assert_eq!(server.post(&path, &json!({"input": {"topic": "bees"}})).status, 200);
    assert_eq!(server.request("DELETE", "/api/flows/1", &[], b"").status, 204);
    let before = everything(&server);
    let seq = server.client().hello["payload"]["seq"].clone();
    for ends_well in [true, false] {
        if ends_well {
            server.running.signal("TERM");
            assert_eq!(server.running.end().code, Some(0));
        } else {
            server.running.kill();
        }
        server = Served::start(&mut home.serve());
        assert_eq!(everything(&server), before);
        assert_eq!(server.client().hello["payload"]["seq"], seq);
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(home.data()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "only the owner can read the data");
}

#[test]
fn run_prints_only_the_result_on_standard_output() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let ended = home.run(&["run", text(&flow), "--input", "topic=bees = insects"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "[echo of echo-1] Write [echo of echo-1] Plan bees = insects\n");
    for part in [
        "… PLAN",
        "✓ PLAN",
        "… DRAFT",
        "✓ DRAFT",
        "Tokens in",
        "Tokens out",
        "Cost",
        "Time",
        "echo/echo-1",
        "Total",
        "completed",
        "$0",
    ] {
        assert!(ended.stderr.contains(part), "`{part}` is not in: {}", ended.stderr);
    }
    let in_order = ["✓ PLAN", "✓ DRAFT", "Total"].map(|part| ended.stderr.find(part).unwrap());
    assert!(in_order.is_sorted(), "{}", ended.stderr);

    let json = home.run(&[
        "run",
        text(&flow),
        "--input-json",
        r#"{"topic": "ants", "x": 1}"#,
        "-i",
        "topic=wasps",
    ]);
    assert!(json.stdout.ends_with("Plan wasps\n"), "{}", json.stdout);
    // A manual run is in the same ledger, under the file's one flow.
    home.write("flow.json", two_nodes().to_string().replace("Two nodes", "Renamed"));
    assert_eq!(home.run(&["run", "flow.json", "-i", "topic=x"]).code, Some(0));
    let server = Served::start(&mut home.serve());
    let flows = server.get("/api/flows");
    let of_file: Vec<&Value> = flows["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|flow| flow["name"] == "Two nodes" || flow["name"] == "Renamed")
        .collect();
    assert_eq!((of_file.len(), &of_file[0]["name"]), (1, &json!("Renamed")));
    let runs = server.get("/api/runs");
    let triggers: Vec<&Value> =
        runs["items"].as_array().unwrap().iter().map(|run| &run["trigger"]).collect();
    assert_eq!(triggers, ["cli", "cli", "cli"]);
    assert_eq!(server.get("/api/ledger/summary")["total"]["calls"], 6);
}

#[test]
fn a_dry_run_prints_the_cost_and_makes_no_call() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let args = ["run", text(&flow), "--input", "topic=bees", "--dry-run"];
    let ended = home.run(&args);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["PLAN", "DRAFT", "echo/echo-1", "Expected", "Maximum", "Total", "$0"] {
        assert!(ended.stdout.contains(part), "`{part}` is not in: {}", ended.stdout);
    }
    assert!(ended.stderr.contains("has not run yet"), "{}", ended.stderr);
    assert_eq!(home.run(&args[..4]).code, Some(0));
    let ended = home.run(&args);
    assert!(ended.stderr.contains("as in the last run"), "{}", ended.stderr);
    let server = Served::start(&mut home.serve());
    assert_eq!(server.get("/api/ledger/summary")["total"]["calls"], 2);
}

#[test]
fn ledger_prints_rows_sums_and_csv_while_a_server_runs() {
    let home = Home::new();
    let missing = home.run(&["ledger"]);
    assert_refused(&missing, &["cannot open the database", "file not found"]);
    let flow = home.write("flow.json", two_nodes().to_string());
    let run = ["run", text(&flow), "--input", "topic=bees"];
    assert_eq!(home.run(&run).code, Some(0));
    let server = Served::start(&mut home.serve());
    let rows = home.run(&["ledger", "--limit", "1"]);
    assert_eq!((rows.code, &*rows.stderr), (Some(0), ""), "{rows:?}");
    assert!(rows.stdout.contains("echo-1") && rows.stdout.contains("SUCCESS"));
    assert_eq!(rows.stdout.matches("SUCCESS").count(), 1);
    let sums = home.run(&["ledger", "--by", "role"]).stdout;
    for part in ["role", "tester", "all", "Cost", "No price", "$0"] {
        assert!(sums.contains(part), "`{part}` is not in: {sums}");
    }
    let csv = home.run(&["ledger", "--csv", "--model", "echo-1"]).stdout;
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.starts_with("id,timestamp,flow_id"));
    let none = home.run(&["ledger", "--csv", "--from", "2999-01-01"]).stdout;
    assert_eq!(none.lines().count(), 1);
    let wrong = home.run(&["ledger", "--by", "mood"]);
    assert_refused(&wrong, &["group_by", "unknown group `mood`; expected one of"]);
    drop(server);
}

#[test]
fn a_write_error_fails_the_ledger_command() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let run = ["run", text(&flow), "--input", "topic=bees"];
    assert_eq!(home.run(&run).code, Some(0));
    for args in [&["ledger"][..], &["ledger", "--csv"], &["ledger", "--by", "tag"]] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let written = home.flowledger(args).stdout(full).output().unwrap();
        let why = String::from_utf8(written.stderr).unwrap();
        assert_eq!(written.status.code(), Some(2), "{args:?}: {why}");
        assert!(why.contains("cannot write the whole ledger"), "{why}");
    }
}

#[test]
fn clients_stay_connected_across_sigstop_and_sigcont() {
    let home = Home::new();
    let server = Served::start(&mut home.serve());
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    for _ in 0..3 {
        server.running.signal("STOP");
        server.running.signal("CONT");
        for client in &mut clients {
            client.send(r#"{"type":"PING"}"#);
            client.until_type("PONG");
        }
    }
}

#[test]
fn a_failed_run_prints_its_error_and_exits_with_1() {
    let error = r#"{"error":{"message":"out of order","type":"server_error"}}"#;
    let upstream = Upstream::saying(json_answer("500 Internal Server Error", error));
    let home = Home::new();
    let flow = chain(
        "Fails",
        &[
            agent("first", "openai", "gpt-4o-mini", "x"),
            agent("never", "echo", "echo-1", "{{ nodes.first.output }}"),
        ],
    );
    let flow = home.write("flow.json", flow.to_string());
    let ended = Running::start(&mut on(&home, &upstream, &["run", text(&flow)])).end();
    assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{ended:?}");
    for part in
        ["✗ FIRST", "status 500", "out of order", "The flow failed at node `first`", "not run"]
    {
        assert!(ended.stderr.contains(part), "`{part}` is not in: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("test-key"), "{}", ended.stderr);

    // A missing input, and a missing key.
    let needs = home.write("needs.json", two_nodes().to_string());
    let ended = home.run(&["run", text(&needs)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot render"), "{}", ended.stderr);
    let ended = home.run(&["run", text(&flow)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("set OPENAI_API_KEY"), "{}", ended.stderr);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn an_invalid_flow_file_lists_all_errors() {
    let home = Home::new();
    let odd = json!({"name": "", "data": {
        "nodes": [agent("a", "nobody", "m", "{{ nodes.ghost.output }}"), agent("a", "echo", "echo-1", "{{ oops ")],
        "edges": [{"source": "a", "target": "nowhere"}]}});
    let file = home.write("odd.json", odd.to_string());
    let parts = [
        "name: must be",
        "data.nodes[0].data.provider: unknown provider `nobody`",
        "data.nodes[0].data.prompt",
        "ghost",
        "data.nodes[1].id",
        "data.nodes[1].data.prompt: line 1",
        "data.edges[0].target",
    ];
    assert_refused(&home.run(&["run", text(&file)]), &parts);
    let file = home.write("broken.json", "{\n\"name\": oops}");
    assert_refused(&home.run(&["run", text(&file)]), &["broken.json is not valid JSON", "line 2"]);
    let file = home.write("latin.json", b"{\"name\": \"\xe9\"}");
    assert_refused(&home.run(&["run", text(&file)]), &["latin.json"]);
    // Nothing of it is stored.
    let server = Served::start(&mut home.serve());
    assert_eq!(server.get("/api/flows")["items"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/runs")["items"], json!([]));
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let home = Home::new();
    let server = Served::start(&mut home.serve());
    let flow = home.write("flow.json", two_nodes().to_string());
    for mut second in [home.serve(), home.flowledger(&["run", text(&flow), "-i", "topic=x"])] {
        let ended = Running::start(&mut second).end();
        assert_refused(&ended, &[text(&home.data()), "in use by another flowledger", "--data"]);
    }
    // The first server keeps running and serving its own pages.
    assert_eq!(server.get("/api/flows")["items"].as_array().unwrap().len(), 2);
    let run = server.request(
        "POST",
        "/api/flows/1/execute?wait=true",
        &[],
        br#"{"input":{"topic":"x"}}"#,
    );
    assert_eq!(run.status, 200, "{}", run.text());
}

#[test]
fn a_taken_port_is_named_and_no_data_is_changed() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = home.run(&["serve", "--listen", &address]);
    assert_refused(&ended, &["cannot listen on", &address]);
    assert!(!home.data().exists());
    let file = home.write("file", "");
    let ended = Running::start(home.serve().env("FLOWLEDGER_DATA", file)).end();
    assert_refused(&ended, &["file"]);
}

#[test]
fn a_closed_output_pipe_causes_no_panic() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let program = home.flowledger(&[]).get_program().to_owned();
    let mut shell = Command::new("/bin/sh");
    // The reader closes the pipe long before there is a result.
    shell.args(["-c", r#""$0" run "$1" -i topic=x | :"#]).arg(program).arg(flow);
    shell.env("FLOWLEDGER_DATA", home.data());
    let stderr_text = Running::start(&mut shell).end().stderr;
    assert!(!stderr_text.contains("panicked"), "{stderr_text}");
    assert!(stderr_text.contains("Total"), "{stderr_text}");
}

/// Runs a shell script with the program as `$0` and files as `$1` and so on.
fn shell(home: &Home, script: &str, files: &[&Path]) -> Ended {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).arg(home.flowledger(&[]).get_program()).args(files);
    shell.current_dir(home.path("")).env_clear().env("PATH", "/usr/bin:/bin");
    shell.env("HOME", home.path("")).env("FLOWLEDGER_DATA", home.data());
    Running::start(&mut shell).end()
}

#[test]
fn run_reads_flow_and_inputs_from_files_and_pipes() {
    let home = Home::new();
    let flow = home.write("flow.json", format!("\u{feff}{}", two_nodes()));
    let topic = home.write("topic.txt", "wasps");
    let inputs = home.write("inputs.json", r#"{"topic": "ants"}"#);
    for (script, result) in [
        (r#"cat "$1" | "$0" run /dev/stdin -i topic=bees"#, "bees"),
        (r#"cat "$1" | "$0" run - -i topic=bees"#, "bees"),
        (r#""$0" run /dev/fd/3 -i topic=bees 3<"$1""#, "bees"),
        (r#"mkfifo p; cat "$1" >p & "$0" run p -i topic=bees"#, "bees"),
        (r#""$0" run "$1" -i topic=@"$2""#, "wasps"),
        (r#""$0" run "$1" -i topic=@- <"$2""#, "wasps"),
        (r#""$0" run "$1" -i topic=@/dev/stdin <"$2""#, "wasps"),
        (r#""$0" run "$1" -i topic=@@home"#, "@home"),
        (r#""$0" run "$1" --input - <"$3""#, "ants"),
        (r#""$0" run "$1" --input-json - <"$3""#, "ants"),
        (r#""$0" run "$1" --input-json @"$3""#, "ants"),
        (r#""$0" run "$1" --input-json - -i topic=@"$2" <"$3""#, "wasps"),
    ] {
        let ended = shell(&home, script, &[&flow, &topic, &inputs]);
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        assert!(ended.stdout.ends_with(&format!("Plan {result}\n")), "{script}: {ended:?}");
    }
    for (script, part) in [
        (r#""$0" run - -i topic=@- <"$1""#, "standard input can be read only once"),
        (r#""$0" run "$1" -i topic=@nowhere.txt"#, "cannot read the input `topic` nowhere.txt"),
        (r#""$0" run "$1" --input - <"$2""#, "--input must be a JSON object"),
    ] {
        assert_refused(&shell(&home, script, &[&flow, &topic, &inputs]), &[part]);
    }
    // Flows from pipes belong together if they have the same name.
    let server = Served::start(&mut home.serve());
    let flows = server.get("/api/flows");
    let flows = flows["items"].as_array().unwrap();
    assert_eq!(flows.iter().filter(|flow| flow["name"] == "Two nodes").count(), 2);
}

#[test]
fn a_result_that_cannot_be_written_exits_with_1() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let run = ["run", text(&flow), "--input", "topic=bees"];
    for args in [
        &run[..],
        &[&run[..], &["--json"]].concat(),
        &[&run[..], &["--dry-run"]].concat(),
        &["optimize"],
        &["optimize", "--json"],
        &["verify"],
    ] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let written = home.flowledger(args).stdout(full).output().unwrap();
        let why = String::from_utf8(written.stderr).unwrap();
        assert_eq!(written.status.code(), Some(1), "{args:?}: {why}");
        assert!(why.contains("cannot write the result to standard output"), "{args:?}: {why}");
    }
}

#[test]
fn a_hangup_cancels_a_run_unless_it_is_ignored() {
    let home = Home::new();
    let flow = home.write("flow.json", slow().to_string());
    let mut running = Running::start(&mut home.flowledger(&["run", text(&flow)]));
    running.until_stderr("… SLOW");
    running.signal("HUP");
    let ended = running.end_within(END_MAX);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.stderr.contains("cancelled"), "{}", ended.stderr);

    let mut ignoring = Command::new("/bin/sh");
    ignoring.args(["-c", r#"trap '' HUP; exec "$0" run "$1""#]);
    ignoring.arg(home.flowledger(&[]).get_program()).arg(&flow);
    let mut running = Running::start(ignoring.env("FLOWLEDGER_DATA", home.data()));
    running.until_stderr("… SLOW");
    running.signal("HUP");
    running.signal("TERM");
    let ended = running.end_within(END_MAX);
    assert_eq!(ended.code, Some(130), "a second signal would end it at once: {ended:?}");
    assert!(ended.stderr.contains("cancelled"), "{}", ended.stderr);
    let server = Served::start(&mut home.serve());
    let runs = server.get("/api/runs");
    let statuses: Vec<_> =
        runs["items"].as_array().unwrap().iter().map(|it| &it["status"]).collect();
    assert_eq!(statuses, ["CANCELLED", "CANCELLED"]);
}

#[test]
fn run_prints_the_run_as_json() {
    let home = Home::new();
    let flow = home.write("flow.json", two_nodes().to_string());
    let ended = home.run(&["run", text(&flow), "-i", "topic=bees", "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&printed["status"], &printed["input"]),
        (&json!("COMPLETED"), &json!({"topic": "bees"}))
    );
    assert_eq!(printed["calls"].as_array().unwrap().len(), 2);
    let estimate = home.run(&["run", text(&flow), "-i", "topic=bees", "--json", "--dry-run"]);
    let estimate: Value = serde_json::from_str(&estimate.stdout).unwrap();
    assert_eq!(estimate["nodes"].as_array().unwrap().len(), 2);
    let fails = home.write("fails.json", chain("F", &[agent("a", "openai", "m", "x")]).to_string());
    let ended = home.run(&["run", text(&fails), "--json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()["status"], "FAILED");
    let server = Served::start(&mut home.serve());
    let id = printed["runId"].as_str().unwrap();
    assert_eq!(server.get(&format!("/api/runs/{id}")), printed);
}

#[test]
fn terminal_output_contains_no_control_characters_of_names() {
    let home = Home::new();
    let mut node = agent("a", "echo", "m\u{1b}]0;x\u{7}\u{202e}", "hello");
    node["data"]["label"] = json!("La\u{1b}[31mbel\u{202e}\n✓ forged");
    let flow = home.write("flow.json", chain("N", &[node]).to_string());
    let run = home.run(&["run", text(&flow)]);
    let estimate = home.run(&["run", text(&flow), "--dry-run"]);
    let ledger = home.run(&["ledger"]);
    let sums = home.run(&["ledger", "--by", "model"]);
    assert!(run.stderr.contains(r"La\u{1b}[31mbel\u{202e}\n✓ forged"), "{}", run.stderr);
    assert!(ledger.stdout.contains(r"m\u{1b}]0;x\u{7}\u{202e}"), "{}", ledger.stdout);
    for shown in [&run.stderr, &estimate.stdout, &ledger.stdout, &sums.stdout] {
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown:?}");
        assert!(!shown.contains("\n✓ forged"), "{shown}");
    }
}

#[test]
fn csv_guards_formulas_with_full_width_signs() {
    let home = Home::new();
    for model in ["＝cmd()", "\u{feff}=cmd()", "\t+cmd()"] {
        let flow =
            home.write("flow.json", chain("N", &[agent("a", "echo", model, "x")]).to_string());
        assert_eq!(home.run(&["run", text(&flow)]).code, Some(0));
    }
    let csv = home.run(&["ledger", "--csv"]).stdout;
    for guarded in [",'＝cmd(),", ",'\u{feff}=cmd(),", ",'\t+cmd(),"] {
        assert!(csv.contains(guarded), "{guarded:?}: {csv}");
    }
}

#[test]
fn a_missing_or_unwritable_home_is_explained() {
    let home = Home::new();
    let mut without = home.serve();
    without.env_remove("FLOWLEDGER_DATA").env_remove("HOME");
    let ended = Running::start(&mut without).end();
    assert_refused(&ended, &["HOME", "XDG_DATA_HOME", "--data"]);
    assert_eq!(std::fs::read_dir(home.path("")).unwrap().count(), 0);
    let file = home.write("file", "");
    let mut unusable = home.serve();
    unusable.env_remove("FLOWLEDGER_DATA").env("HOME", &file);
    assert_refused(&Running::start(&mut unusable).end(), &[text(&file), "--data"]);
}

#[test]
fn a_host_name_without_a_token_is_warned_about() {
    let home = Home::new();
    let warning = "everyone who can reach the proxy";
    let mut args = vec!["serve", "--listen", "127.0.0.1:0", "--allow-host", "example.org"];
    let mut server = Served::start(&mut home.flowledger(&args));
    eventually("it is ready", || server.running.has_logged("listening on"));
    assert!(server.running.stderr.contains(warning), "{}", server.running.stderr);
    drop(server);
    args.extend(["--token", "a-long-enough-token"]);
    let mut server = Served::start(&mut home.flowledger(&args));
    eventually("it is ready", || server.running.has_logged("listening on"));
    assert!(!server.running.stderr.contains(warning), "{}", server.running.stderr);
}

#[test]
fn declared_inputs_of_the_command_line_have_their_types() {
    let home = Home::new();
    let flow = json!({"name": "Typed", "data": {"nodes": [
        {"id": "in", "type": "input", "data": {"inputs": [
            {"name": "words", "type": "number"}, {"name": "list", "type": "list"}, {"name": "text"}
        ]}},
        {"id": "out", "type": "output", "data": {
            "template": "{{ input.words > 50 }} {{ input.list[1] }} {{ input.text ~ '!' }}"
        }},
    ]}});
    let file = home.write("flow.json", format!("\u{feff}{flow}"));
    let with = |words: &str| {
        let inputs = ["--input", words, "--input", "list=[1, 2]", "--input", "text=7"];
        home.run(&[&["run", text(&file)][..], &inputs[..]].concat())
    };
    let ended = with("words=20");
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "False 2 7!"), "{ended:?}");
    assert_eq!(with("words=100").stdout.trim(), "True 2 7!");
    let ended = with("words=many");
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("must be a number"), "{ended:?}");
}

#[test]
fn a_run_that_repeatedly_ends_the_server_fails() {
    let home = Home::new();
    let upstream = Upstream::start(|_, stream| {
        // Until the killed server's connection breaks.
        let _ = stream.set_read_timeout(Some(DEADLINE));
        let _ = stream.read(&mut [0]);
    });
    let config = home.write("config.toml", "[http]\nprivate = true\n");
    let serve = || {
        let mut command = home.serve();
        command.args(["--config", text(&config)]);
        command
    };
    let mut server = Served::start(&mut serve());
    let ask = json!({"id": "ask", "type": "http", "data": {"url": upstream.url()}});
    let flow = server.save(&json!({"name": "Stuck", "data": {"nodes": [ask]}}));
    let run_id = server.execute(flow);
    for life in 1..=20 {
        upstream.heads().recv_timeout(DEADLINE).unwrap();
        assert_eq!(upstream.count(), life);
        server.running.kill();
        drop(server.running.end());
        server = Served::start(&mut serve());
    }
    let path = format!("/api/runs/{run_id}");
    eventually("the run fails", || server.get(&path)["status"] == "FAILED");
    let run = server.get(&path);
    assert!(run["error"].as_str().unwrap().contains("repeatedly ended unexpectedly"), "{run:#}");
    assert_eq!(upstream.count(), 20);
    // A regular stop does not count.
    let run_id = server.execute(flow);
    for _ in 0..6 {
        upstream.heads().recv_timeout(DEADLINE).unwrap();
        server.running.signal("TERM");
        drop(server.running.end());
        server = Served::start(&mut serve());
    }
    assert_eq!(server.get(&format!("/api/runs/{run_id}"))["status"], "RUNNING");
}
