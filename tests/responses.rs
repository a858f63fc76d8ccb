//! The end of a response, and the body of a request that no route reads.

use std::io::{Read, Write};
use std::net::TcpStream;

use rusqlite::Connection;

use crate::harness::{Response, TestServer, eventually};

/// Sends a request and reads the response until the connection ends.
fn ask(server: &TestServer, request: &str) -> String {
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).unwrap();
    to_the_end(&mut stream)
}

fn to_the_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset also ends the connection.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_broken_csv_response_is_not_terminated() {
    let mut server = TestServer::start();
    // The server did not write these rows itself.
    server.leave_unverified();
    let connection = Connection::open(server.data().join("flowledger.db")).unwrap();
    let insert = |first: u32, last: u32, status: &str| {
        let sql = "WITH RECURSIVE numbers (n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?2)
            INSERT INTO ledger (timestamp_ms, attempt, operation_id, provider, model_used, prompt_hash, status)
            SELECT 1790000000000 + n, 1, 'operation-' || n, 'echo', 'echo-1', 'hash', ?3 FROM numbers";
        connection.execute(sql, (first, last, status)).unwrap();
    };
    insert(1, 1, "UNREADABLE");
    insert(2, 1_200, "SUCCESS");
    let csv = |server: &TestServer| {
        ask(server, "GET /api/ledger.csv HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    };
    let broken = csv(&server);
    assert!(broken.starts_with("HTTP/1.1 200 "), "{broken}");
    assert!(broken.contains("operation-1200"), "{broken}");
    assert!(!broken.ends_with("\r\n0\r\n\r\n"), "it looks complete");
    let mend = "UPDATE ledger SET status = 'SUCCESS' WHERE status = 'UNREADABLE'";
    connection.execute(mend, []).unwrap();
    let whole = csv(&server);
    assert!(whole.ends_with("\r\n0\r\n\r\n"));
    let whole = Response::parse(whole.as_bytes()).unwrap();
    assert_eq!(whole.text().lines().count(), 1_201);
}

#[test]
fn an_unread_request_body_ends_the_connection() {
    let server = TestServer::start();
    for line in ["POST /api/runs/x/cancel", "GET /api/flows", "POST /nothing"] {
        // The bytes after the head would form another request.
        let hidden = "DELETE /api/flows/1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let length = hidden.len();
        let answer = ask(
            &server,
            &format!(
                "{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{hidden}"
            ),
        );
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(server.get("/api/flows/1").status, 200);
}

#[test]
fn only_routes_with_a_body_send_100_continue() {
    let server = TestServer::start();
    for (line, continues) in [
        ("POST /api/flows", true),
        ("POST /api/flows/999", false),
        ("POST /api/runs/x/cancel", false),
        ("POST /hooks/0123", false),
    ] {
        let mut stream = server.connect();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first == b"HTTP/1.1 100", continues, "{line}");
    }
}

#[test]
fn an_http_1_0_client_gets_no_100_continue() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let head = "POST /api/flows HTTP/1.0\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(head.as_bytes()).unwrap();
    let answer = to_the_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
}

#[test]
fn a_client_that_leaves_within_its_body_gets_no_response() {
    let server = TestServer::start();
    let mut stream = server.connect();
    let head = "POST /api/flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{}";
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(to_the_end(&mut stream), "");
    eventually("the server continues", || server.get("/api/health").status == 200);
}

#[test]
fn a_head_request_gets_no_body_and_keeps_its_connection() {
    let server = TestServer::start();
    let mut stream = server.connect();
    for path in ["/api/ledger.csv", "/api/flows", "/"] {
        let head = format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
    }
    let last = "GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(last.as_bytes()).unwrap();
    let answers = to_the_end(&mut stream);
    let heads: Vec<&str> = answers.split("\r\n\r\n").collect();
    assert_eq!(heads.len(), 5, "{answers}");
    for head in &heads[..3] {
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
    }
    assert!(heads[3].starts_with("HTTP/1.1 404 "), "{answers}");
}
