//! Compresses the page's files and lists them for `src/http/assets.rs`.
//!
//! All files below `assets/page` are embedded as they are, and once for each encoding that makes
//! them smaller. Their address contains the build: a hash over all names and contents.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

const PAGE: &str = "assets/page";
/// Replaced in the shell by the name of the build.
const BUILD: &[u8] = b"{build}";
const SHELL: &str = "index.html";
/// Hexadecimal digits of the hash in the name of the build.
const BUILD_DIGITS: usize = 12;
const BROTLI_WINDOW_BITS: i32 = 22;
const BROTLI_QUALITY_MAX: i32 = 11;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PAGE}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let mut names = Vec::new();
    find_files(Path::new(PAGE), &mut names)?;
    names.sort();
    let contents = names.iter().map(|name| fs::read(Path::new(PAGE).join(name)));
    let mut contents = contents.collect::<io::Result<Vec<_>>>()?;
    let build = build_name(&names, &contents);
    let mut list =
        format!("pub const BUILD: &str = {build:?};\npub static FILES: &[PageFile] = &[\n");
    for (at, (name, bytes)) in names.iter().zip(&mut contents).enumerate() {
        if name == SHELL {
            *bytes = replace(bytes, BUILD, build.as_bytes());
        }
        let plain = out.join(format!("{at}"));
        fs::write(&plain, &*bytes)?;
        let gzip = smaller(bytes, gzip(bytes)?, &out.join(format!("{at}.gz")))?;
        let brotli = smaller(bytes, brotli(bytes)?, &out.join(format!("{at}.br")))?;
        let etag = hex(&Sha256::digest(&*bytes), BUILD_DIGITS);
        let _ = writeln!(
            list,
            "PageFile {{ name: {name:?}, etag: {etag:?}, plain: include_bytes!({plain:?}), gzip: {gzip}, brotli: {brotli} }},"
        );
    }
    list.push_str("];\n");
    fs::write(out.join("page_files.rs"), list)
}

/// Adds the paths of all files below `directory`, relative to it.
fn find_files(directory: &Path, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find_files(&path, names)?;
        } else if let Ok(name) = path.strip_prefix(PAGE) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn build_name(names: &[String], contents: &[Vec<u8>]) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in names.iter().zip(contents) {
        hash.update(format!("{name}\0{}\0", bytes.len()));
        hash.update(bytes);
    }
    hex(&hash.finalize(), BUILD_DIGITS)
}

fn hex(bytes: &[u8], digits: usize) -> String {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text[..digits].to_owned()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn brotli(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let params = brotli::enc::BrotliEncoderParams {
        quality: BROTLI_QUALITY_MAX,
        lgwin: BROTLI_WINDOW_BITS,
        ..Default::default()
    };
    let mut compressed = Vec::new();
    brotli::BrotliCompress(&mut &*bytes, &mut compressed, &params)?;
    Ok(compressed)
}

/// Writes `compressed` to `file` and returns the Rust expression for it; `None` if it is not
/// smaller.
fn smaller(bytes: &[u8], compressed: Vec<u8>, file: &Path) -> io::Result<String> {
    if compressed.len() >= bytes.len() {
        return Ok("None".into());
    }
    fs::write(file, compressed)?;
    Ok(format!("Some(include_bytes!({file:?}))"))
}
