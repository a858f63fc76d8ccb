//! Lists of flows and runs: summaries, filters, orders and cursors.

use serde_json::{Value, json};

use crate::harness::{TestServer, agent, chain, two_nodes};

fn names(list: &Value, field: &str) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn flows_are_summed_up_without_their_documents() {
    let server = TestServer::start();
    let mut flow = two_nodes();
    flow["description"] = json!("Plans and writes.");
    let flow = server.save(&flow);
    let other = server.save(&chain("Other", &[agent("a", "echo", "echo-1", "hi")]));
    for _ in 0..2 {
        server.run(flow, &json!({"topic": "ants"}));
    }
    server.request("PUT", &format!("/api/flows/{flow}/hook"), &[], b"");
    let cron = json!({"cron": "0 7 * * *", "timezone": "Europe/Berlin"}).to_string();
    server.request("PUT", &format!("/api/flows/{flow}/schedule"), &[], cron.as_bytes());
    let list = server.get("/api/flows?summary=true").json();
    assert_eq!(list["items"][0]["id"], other);
    assert_eq!(list["items"][0]["latest_run"], Value::Null);
    assert_eq!(list["items"][0]["cost_30d"], json!(0));
    let found = &list["items"][1];
    assert_eq!(found["name"], "Two nodes");
    assert_eq!(found["description"], "Plans and writes.");
    assert_eq!(found["node_count"], 2);
    assert_eq!(found["inputs"], json!(["topic"]));
    assert_eq!(found["latest_run"]["status"], "COMPLETED");
    assert_eq!(found["recent_runs"].as_array().unwrap().len(), 2);
    assert_eq!(found["recent_runs"][0]["runId"], found["latest_run"]["runId"]);
    assert_eq!((&found["runs_30d"], &found["calls_30d"]), (&json!(2), &json!(4)));
    assert_eq!(found["hook"], true);
    assert_eq!(found["schedule"]["cron"], "0 7 * * *");
    assert!(found["schedule"]["nextAt"].as_str().unwrap().ends_with('Z'));
    assert_eq!(found.get("data"), None);

    // A changed document is read again.
    let mut changed = two_nodes();
    changed["description"] = json!("Something else.");
    let path = format!("/api/flows/{flow}");
    server.request("PUT", &path, &[], changed.to_string().as_bytes());
    for (text, expected) in [("ELSE", "Two nodes"), ("oth", "Other")] {
        let list = server.get(&format!("/api/flows?summary=true&q={text}")).json();
        assert_eq!(names(&list, "name"), [expected]);
    }
    let first = server.get("/api/flows?summary=true&limit=1").json();
    assert_eq!((names(&first, "name"), &first["next"]), (vec!["Other".into()], &json!(other)));
    let second = server.get(&format!("/api/flows?summary=true&limit=1&before={other}")).json();
    assert_eq!(names(&second, "name"), ["Two nodes"]);
    assert_eq!(server.get("/api/flows?summary=maybe").status, 422);
}

#[test]
fn runs_are_filtered_ordered_and_continued() {
    let server = TestServer::start();
    let cheap = server.save(&chain("Cheap", &[agent("a", "echo", "echo-1", "{{ input.x }}")]));
    let bad = server.save(&chain("Bad", &[agent("a", "echo", "echo-1", "{{ 1 / input.zero }}")]));
    let mut ids = Vec::new();
    for (flow, input) in
        [(cheap, json!({"x": "1"})), (bad, json!({"zero": 0})), (cheap, json!({"x": "2"}))]
    {
        ids.push(server.run(flow, &input)["runId"].as_str().unwrap().to_owned());
    }
    let list = |query: &str| names(&server.get(&format!("/api/runs?{query}")).json(), "runId");
    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(list(""), newest_first);
    assert_eq!(list("status=FAILED,CANCELLED"), [ids[1].clone()]);
    assert_eq!(list(&format!("flow_id={cheap}&status=COMPLETED&trigger=api")).len(), 2);
    assert_eq!(list("trigger=schedule,hook"), Vec::<String>::new());
    assert_eq!(list("q=CHEA").len(), 2);
    assert_eq!(list(&format!("q={}", ids[0])), [ids[0].clone()]);
    assert_eq!(list("max_cost=0&min_ms=0&max_ms=600000").len(), 3);
    assert_eq!(list("min_cost=0.01"), Vec::<String>::new());
    assert_eq!(list("to=2020-01-01T00:00:00Z"), Vec::<String>::new());
    for sort in ["time", "cost", "duration"] {
        let mut found = Vec::new();
        let mut before = String::new();
        loop {
            let page = server.get(&format!("/api/runs?sort={sort}&limit=1{before}")).json();
            found.extend(names(&page, "runId"));
            let Some(next) = page["next"].as_str() else { break };
            before = format!("&before={next}");
        }
        found.sort();
        assert_eq!(found, ids, "{sort}");
    }
    for query in ["sort=name", "status=BROKEN", "before=x", "min_cost=much", "min_ms=1.5"] {
        assert_eq!(server.get(&format!("/api/runs?{query}")).status, 422, "{query}");
    }
    let graph = server.get(&format!("/api/runs/{}/graph", ids[1])).json();
    assert_eq!(graph["nodes"][0]["data"]["prompt"], "{{ 1 / input.zero }}");
    assert_eq!(server.get("/api/runs/nothing/graph").status, 404);
}

#[test]
fn calls_are_filtered_sorted_and_named() {
    let server = TestServer::start();
    let mut first = agent("a", "echo", "echo-1", "one");
    first["data"]["label"] = json!("The first");
    let nodes = [first, agent("b", "echo", "echo-1", "{{ nodes.a.output }} and two or three")];
    let flow = server.save(&chain("Both, \"named\"", &nodes));
    let bad = server.save(&chain("Bad", &[agent("a", "echo", "echo-1", "x")]));
    let run = server.run(flow, &json!({}))["runId"].as_str().unwrap().to_owned();
    server.run(bad, &json!({}));
    server.run(bad, &json!({}));
    let list = |query: &str| server.get(&format!("/api/ledger?names=true&{query}")).json();
    let labels = |query: &str| names(&list(query), "node_label");
    let all = list("");
    let rows = all["items"].as_array().unwrap();
    assert_eq!(
        names(&all, "flow_name"),
        rows.iter()
            .map(|row| {
                if row["flow_id"] == json!(flow) { "Both, \"named\"" } else { "Bad" }.to_owned()
            })
            .collect::<Vec<_>>()
    );
    assert_eq!(labels(&format!("flow_id={flow}&sort=input_tokens")), ["B", "The first"]);
    assert_eq!(labels(&format!("flow_id={flow}&sort=input_tokens&order=asc")), ["The first", "B"]);
    assert_eq!(labels(&format!("run_id={run}&order=asc")), ["The first", "B"]);
    assert_eq!(labels("node=b"), ["B"]);
    assert_eq!(labels("q=NAMED").len(), 2);
    assert_eq!(labels(&format!("q={run}")).len(), 2);
    assert_eq!(labels("status=SUCCESS,TIMEOUT&max_cost=1&min_ms=0").len(), 4);
    assert_eq!(labels("status=TIMEOUT,UNKNOWN"), Vec::<String>::new());
    assert_eq!(server.get("/api/ledger?limit=1").json()["items"][0].get("flow_name"), None);

    for sort in ["time", "cost", "latency", "input_tokens", "output_tokens"] {
        for order in ["desc", "asc"] {
            let (mut found, mut before) = (Vec::new(), String::new());
            let query = format!("sort={sort}&order={order}");
            loop {
                let page = list(&format!("{query}&limit=1{before}"));
                found.extend(
                    page["items"].as_array().unwrap().iter().map(|row| row["id"].to_string()),
                );
                match &page["next"] {
                    Value::Null => break,
                    Value::String(next) => before = format!("&before={next}"),
                    next => before = format!("&before={next}"),
                }
            }
            let csv = server.get(&format!("/api/ledger.csv?{query}"));
            let csv = String::from_utf8(csv.body).unwrap();
            let ids: Vec<&str> =
                csv.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
            assert_eq!(found, ids, "{query}");
            found.sort();
            found.dedup();
            assert_eq!(found.len(), rows.len(), "{query}");
        }
    }
    let csv = server.get(&format!("/api/ledger.csv?flow_id={flow}&order=asc"));
    let csv = String::from_utf8(csv.body).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].ends_with(",billing,flow_name,node_label"), "{csv}");
    assert!(lines[1].ends_with(",\"Both, \"\"named\"\"\",The first"), "{csv}");

    let id = rows[0]["id"].to_string();
    let row = server.get(&format!("/api/ledger/{id}")).json();
    assert_eq!((&row["id"], &row["flow_name"]), (&rows[0]["id"], &json!("Bad")));
    for path in ["/api/ledger/99999", "/api/ledger/x"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    for query in
        ["sort=name", "order=up", "status=BROKEN", "before=x", "before=1:1", "cost=0", "q2=x"]
    {
        assert_eq!(server.get(&format!("/api/ledger?{query}")).status, 422, "{query}");
    }

    // A deleted flow has the name of its newest run, and its nodes have their ids.
    server.request("DELETE", &format!("/api/flows/{flow}"), &[], b"");
    assert_eq!(labels(&format!("run_id={run}&order=asc")), ["a", "b"]);
    assert_eq!(labels("q=named").len(), 2);
    let sums = server.get("/api/ledger/summary?group_by=node&q=named").json();
    assert_eq!((&sums["total"]["calls"], sums["items"].as_array().unwrap().len()), (&json!(2), 2));
}
