//! The page's own files, embedded in the program.
//!
//! All addresses of the page return the same shell, `index.html`. It names all other files by an
//! address that contains the build, so browsers keep them without asking again, and an update
//! never mixes versions.

use std::borrow::Cow;
use std::path::Path;

use super::reply::{self, Answer, With};
use crate::error::Error;
use crate::listener::RequestHead;

/// Restricts the page to its own files and this server's API. `connect-src` names `ws:` because
/// older browsers do not count a WebSocket to the same host as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";
/// A year, as RFC 9111 expects it at most.
const FOREVER: &str = "public, max-age=31536000, immutable";
/// Revalidated each time, so that an update of the program never mixes versions.
const REVALIDATED: &str = "no-cache";
const SHELL: &str = "index.html";
/// The place of a view's content in the shell.
const CONTENT_MARK: &str = "<!--content-->";

pub struct PageFile {
    name: &'static str,
    etag: &'static str,
    plain: &'static [u8],
    gzip: Option<&'static [u8]>,
    brotli: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/page_files.rs"));

/// Returns the shell of the page, which loads the view of its address.
pub fn shell(head: &RequestHead) -> Answer {
    Ok(send(find(SHELL)?, head, REVALIDATED))
}

/// Returns the shell with `content` (HTML) in its main part, for readers without JavaScript.
pub fn shell_with(content: &str) -> Answer {
    let shell = find(SHELL)?;
    let html = String::from_utf8_lossy(&shell.plain).replacen(CONTENT_MARK, content, 1);
    Ok(reply::text("text/html; charset=utf-8", html)
        .with("content-security-policy", CONTENT_SECURITY_POLICY))
}

/// Returns a file below `/assets/`: `BUILD/NAME`, or the newest version of `NAME`.
pub fn file(path: &str, head: &RequestHead) -> Answer {
    let of_build = path.strip_prefix(BUILD).and_then(|rest| rest.strip_prefix('/'));
    let (name, caching) = match of_build {
        Some(name) => (name, FOREVER),
        None => (path, REVALIDATED),
    };
    let answer = send(find(name)?, head, caching);
    // Pages of other sites may import the connection module; it contains no secrets.
    Ok(if name == "live.js" { answer.with("access-control-allow-origin", "*") } else { answer })
}

/// A file in the forms in which it can be sent.
struct Found {
    name: String,
    /// Empty for a file on the disk.
    etag: &'static str,
    plain: Cow<'static, [u8]>,
    gzip: Option<&'static [u8]>,
    brotli: Option<&'static [u8]>,
}

fn find(name: &str) -> Result<Found, Error> {
    if let Some(plain) = development_file(name) {
        let plain = Cow::Owned(plain);
        return Ok(Found { name: name.into(), etag: "", plain, gzip: None, brotli: None });
    }
    let found = FILES.iter().find(|file| file.name == name);
    let file = found.ok_or_else(|| Error::NotFound(format!("file {name}")))?;
    let &PageFile { etag, plain, gzip, brotli, .. } = file;
    Ok(Found { name: name.into(), etag, plain: Cow::Borrowed(plain), gzip, brotli })
}

/// Returns a file of the directory that `FLOWLEDGER_PAGE` names. Debug builds read the page from
/// there at each request, so that an edit of the page needs no build.
fn development_file(name: &str) -> Option<Vec<u8>> {
    let directory = std::env::var_os("FLOWLEDGER_PAGE").filter(|_| cfg!(debug_assertions))?;
    let is_inside = name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    let bytes = std::fs::read(Path::new(&directory).join(name)).ok().filter(|_| is_inside)?;
    Some(match name {
        SHELL => String::from_utf8_lossy(&bytes).replace("{build}/", "").into_bytes(),
        _ => bytes,
    })
}

fn send(file: Found, head: &RequestHead, caching: &'static str) -> tiny_http::ResponseBox {
    let content_type = match file.name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let etag = format!("\"{}\"", file.etag);
    let is_known = head.header("if-none-match").is_some_and(|known| {
        !file.etag.is_empty()
            && known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)
    });
    let answer = if is_known {
        reply::not_modified()
    } else {
        let (encoding, bytes) = encoded(file, head.header("accept-encoding").unwrap_or_default());
        let answer = reply::file(content_type, bytes);
        match encoding {
            Some(encoding) => answer.with("content-encoding", encoding),
            None => answer,
        }
    };
    answer
        .with("cache-control", caching)
        .with("etag", etag)
        .with("vary", "accept-encoding")
        .with("content-security-policy", CONTENT_SECURITY_POLICY)
}

/// Returns the smallest form that the client accepts, and its encoding.
fn encoded(file: Found, accepted: &str) -> (Option<&'static str>, Cow<'static, [u8]>) {
    for (name, bytes) in [("br", file.brotli), ("gzip", file.gzip)] {
        if let Some(bytes) = bytes.filter(|_| reply::accepts(accepted, name)) {
            return (Some(name), Cow::Borrowed(bytes));
        }
    }
    (None, file.plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_names_existing_files_of_the_build() {
        let shell = String::from_utf8(find(SHELL).unwrap().plain.into_owned()).unwrap();
        let prefix = format!("/assets/{BUILD}/");
        let mut count = 0;
        for address in shell.split('"').filter(|text| text.starts_with("/assets/")) {
            let name = address.strip_prefix(&prefix).unwrap();
            assert!(find(name).is_ok(), "{address}");
            count += 1;
        }
        assert!(count >= 3);
        assert!(!shell.contains("{build}"));
    }
}
