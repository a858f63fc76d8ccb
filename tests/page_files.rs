//! The page's files over HTTP: addresses of the shell, encodings, caching.

use std::io::Read;

use crate::harness::{Response, TestServer};

/// Returns the addresses of the files that the shell names.
fn named_files(shell: &str) -> Vec<String> {
    let names = shell.split('"').filter(|text| text.starts_with("/assets/"));
    names.map(str::to_owned).collect()
}

fn get(server: &TestServer, path: &str, headers: &[(&str, &str)]) -> Response {
    server.request("GET", path, headers, b"")
}

#[test]
fn each_view_returns_the_shell() {
    let server = TestServer::start();
    let shell = server.get("/").text();
    assert!(shell.starts_with("<!doctype html>"));
    for path in
        ["/flows", "/flows/7", "/runs", "/runs/x", "/savings", "/budgets", "/connect", "/settings"]
    {
        let response = server.get(path);
        assert_eq!((response.status, response.text() == shell), (200, true), "{path}");
    }
    for path in ["/flows/7/x", "/nothing", "/calls/1", "/settings/"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn files_of_a_build_are_kept_and_others_are_revalidated() {
    let server = TestServer::start();
    let shell = server.get("/");
    assert_eq!(shell.header("cache-control"), Some("no-cache"));
    let files = named_files(&shell.text());
    assert!(files.len() > 5);
    for file in files {
        let response = server.get(&file);
        assert_eq!(response.status, 200, "{file}");
        assert_eq!(response.header("cache-control"), Some("public, max-age=31536000, immutable"));
        let etag = response.header("etag").unwrap();
        let again = get(&server, &file, &[("if-none-match", etag)]);
        assert_eq!((again.status, again.body.len()), (304, 0), "{file}");
        assert_eq!(again.header("etag"), Some(etag));
    }
    let live = server.get("/assets/live.js");
    assert_eq!(live.header("cache-control"), Some("no-cache"));
    assert_eq!(live.header("access-control-allow-origin"), Some("*"));
    let etag = live.header("etag").unwrap();
    let known = format!("\"other\", W/{etag}");
    assert_eq!(get(&server, "/assets/live.js", &[("if-none-match", &known)]).status, 304);
    assert_eq!(get(&server, "/assets/live.js", &[("if-none-match", "\"other\"")]).status, 200);
    assert_eq!(server.get("/assets/000000000000/app.js").status, 404);
}

#[test]
fn files_are_compressed_for_clients_that_accept_it() {
    let server = TestServer::start();
    let plain = server.get("/assets/app.js");
    assert_eq!(plain.header("content-encoding"), None);
    let gzip = get(&server, "/assets/app.js", &[("accept-encoding", "gzip")]);
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert_eq!(gzip.header("vary"), Some("accept-encoding"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(gzip.body.as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.text());
    let brotli = get(&server, "/assets/app.js", &[("accept-encoding", "gzip, deflate, br")]);
    assert_eq!(brotli.header("content-encoding"), Some("br"));
    let mut bytes = Vec::new();
    brotli::BrotliDecompress(&mut brotli.body.as_slice(), &mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), plain.text());
    assert!(brotli.body.len() < gzip.body.len() && gzip.body.len() < plain.body.len());
    let refused = get(&server, "/assets/app.js", &[("accept-encoding", "br;q=0, gzip;q=0")]);
    assert_eq!(refused.header("content-encoding"), None);
}

#[test]
fn answers_of_the_api_are_compressed_for_browsers() {
    let server = TestServer::start();
    let plain = server.get("/api/flows");
    assert!(plain.body.len() > 1_400);
    assert_eq!(plain.header("content-encoding"), None);
    let accepts = [("accept-encoding", "gzip, br")];
    let gzip = get(&server, "/api/flows", &accepts);
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert_eq!(gzip.header("cache-control"), Some("no-store"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(gzip.body.as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.text());
    assert_eq!(get(&server, "/api/health", &accepts).header("content-encoding"), None);
    let posted = server.request("POST", "/api/flows/1/estimate", &accepts, b"");
    assert_eq!(posted.header("content-encoding"), None);
}

#[test]
fn head_of_a_file_has_its_headers_only() {
    let server = TestServer::start();
    let head = server.request("HEAD", "/assets/app.js", &[("accept-encoding", "br")], b"");
    let whole = get(&server, "/assets/app.js", &[("accept-encoding", "br")]);
    assert_eq!(head.body.len(), 0);
    assert_eq!(head.header("content-length"), whole.header("content-length"));
    assert_eq!(head.header("etag"), whole.header("etag"));
}
