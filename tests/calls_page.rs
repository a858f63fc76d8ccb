//! `/calls` without JavaScript: the ledger as a table of plain HTML.

use flowledger::secret::Secret;
use serde_json::json;

use crate::harness::{TestServer, agent, chain};

const TOKEN: &str = "correct-horse-battery-staple";

fn with_calls(server: &TestServer, flow: &str, count: usize) {
    let nodes: Vec<_> =
        (0..count).map(|at| agent(&format!("n{at}"), "echo", "echo-1", "Hello")).collect();
    let id = server.save(&chain(flow, &nodes));
    server.run(id, &json!({}));
}

fn text(server: &TestServer, path: &str, headers: &[(&str, &str)]) -> String {
    let response = server.request("GET", path, headers, b"");
    assert_eq!(response.status, 200, "{path}");
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(response.header("content-security-policy").is_some());
    response.text()
}

#[test]
fn calls_are_a_table_without_javascript() {
    let server = TestServer::start();
    with_calls(&server, "Two steps", 2);
    let page = text(&server, "/calls?period=7d&call=1", &[]);
    assert!(page.contains("<script type=\"module\""), "the page is loaded as well");
    for part in
        ["<th scope=\"col\">Latency</th>", "<bdi>Two steps</bdi>", "<bdi>N1</bdi>", "SUCCESS"]
    {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert_eq!(page.matches("<tr>").count(), 3);
    let filtered = text(&server, "/calls?node=n0", &[]);
    assert!(filtered.contains("<bdi>N0</bdi>") && !filtered.contains("<bdi>N1</bdi>"));
    assert!(filtered.contains("href=\"/api/ledger.csv?node=n0\""));
    assert!(text(&server, "/calls?from=2001-01-01&to=2001-01-31", &[]).contains("No calls match."));
}

#[test]
fn a_plain_list_of_calls_links_to_older_ones() {
    let server = TestServer::start();
    with_calls(&server, "Many", 60);
    with_calls(&server, "Many", 60);
    let newest = text(&server, "/calls?model=echo-1", &[]);
    assert_eq!(newest.matches("<tr>").count(), 101);
    let (_, rest) = newest.split_once("href=\"/calls?").unwrap();
    let (query, _) = rest.split_once('"').unwrap();
    let older = text(&server, &format!("/calls?{}", query.replace("&amp;", "&")), &[]);
    assert_eq!(older.matches("<tr>").count(), 21);
    assert!(!older.contains("Older calls"));
}

#[test]
fn names_in_the_plain_table_are_escaped() {
    let server = TestServer::start();
    with_calls(&server, "<script>alert(\"1\")</script> & 'co'", 1);
    let page = text(&server, "/calls?tag=%22%3E%3Cscript%3E", &[]);
    assert!(!page.contains("\"><script>"), "{page}");
    let page = text(&server, "/calls", &[]);
    let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;co&#39;";
    assert!(page.contains(escaped), "{page}");
    assert!(!page.contains("<script>alert"), "{page}");
}

#[test]
fn invalid_filters_are_named_in_the_plain_page() {
    let server = TestServer::start();
    let page = text(&server, "/calls?status=GOOD&sort=%3Cb%3E", &[]);
    assert!(page.contains("<li>status: "), "{page}");
    assert!(!page.contains("<b>"), "{page}");
}

#[test]
fn the_plain_table_requires_the_token() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new(TOKEN)));
    let page = text(&server, "/calls", &[]);
    assert!(page.contains("server's token") && !page.contains("calls match"), "{page}");
    let bearer = format!("Bearer {TOKEN}");
    let page = text(&server, "/calls", &[("authorization", &bearer)]);
    assert!(page.contains("No calls match."), "{page}");
    let page = text(&server, "/calls", &[("authorization", "Bearer wrong")]);
    assert!(!page.contains("No calls match."), "{page}");
}

#[test]
fn pages_of_other_sites_cause_no_search_of_calls() {
    let server = TestServer::start();
    with_calls(&server, "Known flow", 1);
    let path = "/calls?status=FINE";
    assert!(text(&server, path, &[("sec-fetch-site", "same-origin")]).contains("FINE"));
    let other = text(&server, path, &[("sec-fetch-site", "cross-site")]);
    assert_eq!(other, server.get("/").text());
}
