//! Takes the pictures of the documents from a seeded server.

use std::path::Path;
use std::time::Duration;

use flowledger::time::Timestamp;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::client::Client;
use crate::processes::{Server, Upstream};
use crate::{ROWS, fill};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures");
/// The provider needs a moment for each answer, so that the bars of a run have lengths.
const ANSWER_TIME: Duration = Duration::from_millis(120);

/// Name, address, width, height, theme.
const PICTURES: [(&str, &str, u32, u32, &str); 6] = [
    ("overview", "/", 1280, 800, "light"),
    ("flow", "/flows/3", 1280, 800, "light"),
    ("run", "/runs/NEWEST", 1280, 800, "dark"),
    ("calls", "/calls?period=all", 1280, 800, "light"),
    ("connect", "/connect", 1280, 800, "light"),
    ("phone", "/", 390, 844, "dark"),
];

/// Of the provider that answers the seeded runs.
const PRICES: &str = r#"
[[price]]
provider = "bench"
model = "gpt-4o-mini*"
input_per_mtok = "0.15"
output_per_mtok = "0.60"
"#;

pub fn take() {
    let upstream = Upstream::start(ANSWER_TIME);
    let dir = tempfile::tempdir().unwrap();
    // Creates the database.
    Server::start(dir.path(), &upstream.url).stop();
    std::fs::write(dir.path().join("prices.toml"), PRICES).unwrap();
    fill::fill(dir.path(), ROWS, Timestamp::now().0);
    let server = Server::start(dir.path(), &upstream.url);
    let mut client = Client::connect(server.address);
    seed(&mut client);
    client.get("/api/runs?limit=1");
    let runs: Value = serde_json::from_slice(client.answer("200")).unwrap();
    let newest = runs["items"][0]["runId"].as_str().unwrap();
    std::fs::create_dir_all(DIRECTORY).unwrap();
    for (name, address, width, height, theme) in PICTURES {
        let browser = Browser::launch();
        browser.resize(width, height, width < 600);
        browser.open(&format!("http://{}/settings", server.address));
        let theme = json!({ "theme": theme, "zone": "UTC", "period": { "name": "30d" } });
        browser.eval(&format!(
            "localStorage.setItem('flowledger.settings', {})",
            json!(theme.to_string())
        ));
        let address = address.replace("NEWEST", newest);
        browser.open(&format!("http://{}{address}", server.address));
        browser.wait_for("document.querySelector('main h1') && document.querySelector('[data-state=connected]') && !document.querySelector('.loading')");
        browser
            .eval("document.fonts.ready.then(() => new Promise((done) => setTimeout(done, 1500)))");
        let picture = browser.take_picture(&format!("{name}.png")).unwrap();
        let to = Path::new(DIRECTORY).join(format!("{name}.png"));
        std::fs::copy(picture, &to).unwrap();
        println!("{}", to.display());
    }
}

/// Flows, runs, keys and budgets as of a small team.
fn seed(client: &mut Client) {
    for flow in flows() {
        let id = client.save(&flow);
        for _ in 0..3 {
            client.execute(id, true);
        }
    }
    for name in ["editor", "ci", "assistant"] {
        client.send("/api/keys", &json!({ "name": name }).to_string());
        client.answer("201");
    }
    let budgets = json!({"budgets": [
        {"name": "Team, monthly", "per": "month", "limitUsd": "20", "hard": true, "allowUnpriced": true},
        {"name": "Articles, daily", "per": "day", "flowId": 3, "limitUsd": "1", "hard": false},
    ]});
    client.put("/api/budget", &budgets.to_string());
    client.answer("200");
    client.execute(3, true);
}

fn agent(id: &str, label: &str, prompt: &str) -> Value {
    json!({"id": id, "type": "agent", "data": {
        "label": label, "provider": "bench", "model": "gpt-4o-mini", "prompt": prompt}})
}

fn edge(source: &str, target: &str) -> Value {
    json!({"id": format!("{source}-{target}"), "source": source, "target": target})
}

fn flow(name: &str, description: &str, nodes: &[Value], edges: &[Value]) -> Value {
    json!({"name": name, "description": description, "data": {"nodes": nodes, "edges": edges}})
}

fn flows() -> Vec<Value> {
    let branch = |target: &str, handle: &str| json!({"id": target, "source": "urgent", "target": target, "sourceHandle": handle});
    vec![
        flow(
            "Article with sources",
            "Plans, researches, writes and checks an article.",
            &[
                agent("plan", "Plan", "Plan an article about bees."),
                agent("facts", "Find facts", "Facts for: {{ nodes.plan.output }}"),
                agent("quotes", "Find quotes", "Quotes for: {{ nodes.plan.output }}"),
                agent("draft", "Write", "{{ nodes.facts.output }} {{ nodes.quotes.output }}"),
                agent(
                    "check",
                    "Check the facts",
                    "{{ nodes.draft.output }} {{ nodes.facts.output }}",
                ),
                agent("style", "Improve the style", "{{ nodes.draft.output }}"),
                json!({"id": "article", "type": "output", "data": {"label": "Article",
                    "template": "{{ nodes.check.output }} {{ nodes.style.output }}"}}),
            ],
            &[
                edge("plan", "facts"),
                edge("plan", "quotes"),
                edge("facts", "draft"),
                edge("quotes", "draft"),
                edge("draft", "check"),
                edge("facts", "check"),
                edge("draft", "style"),
                edge("check", "article"),
                edge("style", "article"),
            ],
        ),
        flow(
            "Triage of support messages",
            "Answers simple questions, and escalates urgent ones.",
            &[
                agent("classify", "Classify", "How urgent is it?"),
                json!({"id": "urgent", "type": "condition", "data": {"label": "Is it urgent?",
                    "expression": "'urgent' in nodes.classify.output"}}),
                agent("escalate", "Escalate", "Write to the team."),
                agent("reply", "Reply", "Answer politely."),
            ],
            &[edge("classify", "urgent"), branch("escalate", "true"), branch("reply", "false")],
        ),
        flow(
            "Weekly report",
            "Sums up the week.",
            &[agent("report", "Report", "Sum up the week.")],
            &[],
        ),
        flow(
            "Translate release notes",
            "Into four languages.",
            &[agent("de", "German", "Translate."), agent("fr", "French", "Translate.")],
            &[],
        ),
    ]
}
