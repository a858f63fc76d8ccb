//! Providers behind a proxy, and providers whose certificates have their own authority.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::binary::{Home, Served, everything_below};
use crate::harness::eventually;
use crate::upstream::{Upstream, completion};

const USER: &str = "employee";
const PASSWORD: &str = "proxy-p@ss/word";
/// The password as it is written in a URL.
const ENCODED: &str = "proxy-p%40ss%2Fword";
/// USER:PASSWORD in base64, as the header has it.
const CREDENTIALS: &str = "ZW1wbG95ZWU6cHJveHktcEBzcy93b3Jk";
/// A name that only the proxy can resolve.
const NAME: &str = "llm.example.test";

/// Accepts connections on a free port, each on its own thread, for the rest of the process.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Copies bytes in both directions until either side closes.
fn tunnel(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let (mut client, mut server) = (client, server);
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

/// Starts a proxy that tunnels every CONNECT to `target` and requires the password. Returns its
/// address and the heads that it received.
fn connect_proxy(target: SocketAddr) -> (SocketAddr, Receiver<String>) {
    let (seen, heads) = unbounded();
    let address = listen(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let is_known = head.contains(&format!("Proxy-Authorization: Basic {CREDENTIALS}\r\n"));
        seen.send(head).unwrap();
        if !is_known {
            let echo = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(echo.as_bytes());
            return;
        }
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        tunnel(stream, TcpStream::connect(target).unwrap());
    });
    (address, heads)
}

/// Starts a SOCKS5 proxy (RFC 1928, RFC 1929) that tunnels to `target`. Returns its address, and
/// the name, user and password that it received.
fn socks_proxy(target: SocketAddr) -> (SocketAddr, Receiver<[String; 3]>) {
    let (seen, asked) = unbounded();
    let address = listen(move |stream| drop(socks(stream, target, &seen)));
    (address, asked)
}

fn socks(
    mut stream: TcpStream,
    target: SocketAddr,
    seen: &Sender<[String; 3]>,
) -> std::io::Result<()> {
    let methods = take(&stream, 2)?[1];
    take(&stream, methods)?;
    stream.write_all(&[5, 2])?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let length = take(&stream, 2)?[1];
    let user = text(take(&stream, length)?);
    let length = take(&stream, 1)?[0];
    let password = text(take(&stream, length)?);
    stream.write_all(&[1, 0])?;
    let length = take(&stream, 5)?[4];
    let name = text(take(&stream, length)?);
    take(&stream, 2)?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    seen.send([name, user, password]).unwrap();
    tunnel(stream, TcpStream::connect(target)?);
    Ok(())
}

fn take(mut stream: &TcpStream, length: u8) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Starts a provider over TLS whose certificate, for `NAME` and 127.0.0.1, is signed by a new
/// authority called `name`. Returns its address and the authority's certificate as PEM.
fn tls_upstream(name: &str) -> (SocketAddr, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![NAME.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let address = listen(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        // The body ends the request.
        while !request.ends_with(b"}") {
            match stream.read(&mut buffer) {
                Ok(length @ 1..) => request.extend_from_slice(&buffer[..length]),
                _ => return,
            }
        }
        let _ = stream.write_all(completion("through TLS", 5, 2).as_bytes());
        stream.conn.send_close_notify();
        let _ = stream.flush();
    });
    (address, ca.pem())
}

fn provider(base_url: &str, settings: &str) -> String {
    format!("[providers.far]\nkind = 'openai'\nbase_url = '{base_url}'\n{settings}\n")
}

fn serve(home: &Home, config: &str) -> Served {
    let config = home.write("config.toml", config);
    let mut command = home.serve();
    command.args(["--config", config.to_str().unwrap()]).env("RUST_LOG", "trace");
    Served::start(&mut command)
}

fn ask(server: &Served) -> (u16, Value) {
    let response = server.post(
        "/v1/chat/completions",
        &json!({"model": "far/gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}),
    );
    (response.status, response.json())
}

/// Checks that the password of the proxy is not in `text`, in the data, or in the log.
fn assert_hidden(home: &Home, server: Served, text: &str) {
    server.running.signal("TERM");
    let mut places = vec![text.to_owned()];
    let ended = server.running.end();
    assert!(ended.stderr.len() > 100, "no log: {}", ended.stderr);
    places.extend([ended.stdout, ended.stderr]);
    let files = everything_below(&home.data());
    places.extend(files.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()));
    for place in places {
        for secret in [PASSWORD, ENCODED, CREDENTIALS] {
            assert!(!place.contains(secret), "{place}");
        }
    }
}

#[test]
fn a_call_goes_through_the_proxy_of_its_provider() {
    let upstream = Upstream::saying(completion("far away", 5, 2));
    let target = upstream.url().trim_start_matches("http://").trim_end_matches("/v1");
    let (proxy, heads) = connect_proxy(target.parse().unwrap());
    let home = Home::new();
    let proxy = format!("proxy = 'http://{USER}:{ENCODED}@{proxy}'");
    let server = serve(&home, &provider(&format!("http://{NAME}:8080/v1"), &proxy));
    let (status, body) = ask(&server);
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "far away");
    let head = heads.recv().unwrap();
    assert!(head.starts_with(&format!("CONNECT {NAME}:8080 HTTP/1.1\r\n")), "{head}");
    let row = || server.get("/api/ledger")["items"][0].take();
    eventually("the settlement", || row()["status"] != "PENDING");
    let row = row();
    assert_eq!((&row["status"], &row["input_tokens"]), (&json!("SUCCESS"), &json!(5)), "{row}");
    let seen = format!("{row}{body}{}", server.get("/api/health"));
    assert_hidden(&home, server, &seen);
}

#[test]
fn a_refusal_by_the_proxy_names_it_without_the_password() {
    let upstream = Upstream::saying(completion("far away", 5, 2));
    let target = upstream.url().trim_start_matches("http://").trim_end_matches("/v1");
    let (proxy, _heads) = connect_proxy(target.parse().unwrap());
    let home = Home::new();
    let setting = format!("proxy = 'http://intruder:{ENCODED}@{proxy}'");
    let server = serve(&home, &provider(&format!("http://{NAME}/v1"), &setting));
    let (status, body) = ask(&server);
    let message = body["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(status, 502, "{body}");
    assert!(message.contains(&format!("through the proxy {proxy}")), "{message}");
    assert!(message.contains("407") && message.contains("check the proxy"), "{message}");
    let rows = server.get("/api/ledger").to_string();
    assert_hidden(&home, server, &(message + &rows));
}

#[test]
fn a_socks_proxy_resolves_the_name_of_the_provider() {
    let upstream = Upstream::saying(completion("far away", 5, 2));
    let target = upstream.url().trim_start_matches("http://").trim_end_matches("/v1");
    let (proxy, asked) = socks_proxy(target.parse().unwrap());
    let home = Home::new();
    let setting = format!("proxy = 'socks5h://{USER}:{ENCODED}@{proxy}'");
    let server = serve(&home, &provider(&format!("http://{NAME}/v1"), &setting));
    let (status, body) = ask(&server);
    assert_eq!(status, 200, "{body}");
    assert_eq!(asked.recv().unwrap(), [NAME, USER, PASSWORD]);
    assert_hidden(&home, server, &body.to_string());
}

#[test]
fn the_default_proxy_serves_all_but_excluded_providers() {
    let upstream = Upstream::saying(completion("near or far", 5, 2));
    let near = upstream.url().trim_end_matches("/v1");
    let target = near.trim_start_matches("http://");
    let (proxy, heads) = connect_proxy(target.parse().unwrap());
    let proxy = format!("proxy = 'http://{USER}:{ENCODED}@{proxy}'\n");
    for (base_url, setting, no_proxy, status, is_proxied) in [
        ("http://llm.example.test/v1", "", "", 200, true),
        // The name cannot be resolved without the proxy.
        ("http://llm.example.test/v1", "", "x, .example.test", 502, false),
        ("http://llm.example.test/v1", "proxy = 'none'", "", 502, false),
        (near, "", "", 200, false),
    ] {
        let home = Home::new();
        let config = home.write("config.toml", proxy.clone() + &provider(base_url, setting));
        let mut command = home.serve();
        command.args(["--config", config.to_str().unwrap()]).env("NO_PROXY", no_proxy);
        let server = Served::start(&mut command);
        let answer = ask(&server);
        assert_eq!(answer.0, status, "{base_url} {setting} {no_proxy}: {}", answer.1);
        assert_eq!(heads.try_recv().is_ok(), is_proxied, "{base_url} {setting} {no_proxy}");
    }
}

#[test]
fn the_environment_names_a_proxy_if_no_setting_does() {
    let upstream = Upstream::saying(completion("far away", 5, 2));
    let target = upstream.url().trim_start_matches("http://").trim_end_matches("/v1");
    let (proxy, heads) = connect_proxy(target.parse().unwrap());
    let home = Home::new();
    let config = home.write("config.toml", provider(&format!("http://{NAME}/v1"), ""));
    let mut command = home.serve();
    let proxy = format!("http://{USER}:{ENCODED}@{proxy}");
    command.args(["--config", config.to_str().unwrap()]).env("HTTPS_PROXY", proxy);
    let server = Served::start(&mut command);
    let (status, body) = ask(&server);
    assert_eq!(status, 200, "{body}");
    assert_eq!(heads.len(), 1);
}

#[test]
fn an_own_certificate_authority_is_trusted_by_its_provider() {
    let (address, pem) = tls_upstream("company");
    let home = Home::new();
    let (_, other) = tls_upstream("other");
    home.write("company.pem", format!("# comment\n{other}\n{pem}"));
    let url = format!("https://{address}/v1");
    let server = serve(&home, &provider(&url, "ca_file = 'company.pem'"));
    let (status, body) = ask(&server);
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "through TLS");
    drop(server);
    // As a default.
    let server = serve(&home, &format!("ca_file = 'company.pem'\n{}", provider(&url, "")));
    assert_eq!(ask(&server).0, 200);
    drop(server);
    // A provider's own file replaces the default.
    home.write("other.pem", other);
    let config = provider(&url, "ca_file = 'other.pem'");
    for config in [format!("ca_file = 'company.pem'\n{config}"), provider(&url, "")] {
        let server = serve(&home, &config);
        let (status, body) = ask(&server);
        assert_eq!(status, 502, "{body}");
        assert!(body.to_string().contains("set ca_file for provider far"), "{body}");
    }
}

#[test]
fn a_proxy_leads_to_a_provider_with_its_own_authority() {
    let (address, pem) = tls_upstream("company");
    let (proxy, heads) = connect_proxy(address);
    let home = Home::new();
    home.write("company.pem", pem);
    let config = format!("proxy = 'http://{USER}:{ENCODED}@{proxy}'\nca_file = 'company.pem'\n");
    let server = serve(&home, &(config + &provider(&format!("https://{NAME}/v1"), "")));
    let (status, body) = ask(&server);
    assert_eq!(status, 200, "{body}");
    assert!(heads.recv().unwrap().starts_with(&format!("CONNECT {NAME}:443 ")));
    assert_hidden(&home, server, &body.to_string());
}

#[test]
fn wrong_network_settings_are_errors_at_the_start() {
    let home = Home::new();
    home.write("empty.pem", "nothing");
    home.write("bad.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let far = |setting: &str| provider("https://far.example.com/v1", setting);
    for (config, expected) in [
        ("proxy = 'http://u:hunter2@proxy:x'".to_owned(), "proxy: must be a URL"),
        (far("proxy = 'ftp://u:hunter2@proxy'"), "providers.far.proxy: must be a URL"),
        (far("ca_file = 'missing.pem'"), "providers.far.ca_file: cannot read"),
        ("ca_file = 'empty.pem'".to_owned(), "contains no certificate"),
        (far("ca_file = 'bad.pem'"), "contains no usable certificate"),
    ] {
        let path = home.write("config.toml", &config);
        let ended = home.run(&["serve", "--config", path.to_str().unwrap()]);
        assert_eq!(ended.code, Some(2), "{config}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{config}: {}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}
