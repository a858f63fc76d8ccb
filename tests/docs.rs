//! Documents: their links resolve, and the program accepts their examples.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flowledger::config::{Config, Overrides};
use flowledger::providers::Kind;
use rcgen::{CertificateParams, KeyPair};
use regex::Regex;
use serde_json::Value;

use crate::harness::{TestServer, add_provider};

/// Providers that the examples use. No example is run, so no address is ever called.
const PROVIDERS: &[(&str, Kind)] =
    &[("openai", Kind::OpenAi), ("anthropic", Kind::Anthropic), ("groq", Kind::OpenAi)];

struct Document {
    /// Relative to the root of the project.
    path: PathBuf,
    text: String,
}

/// A fenced block, with the line of its opening fence.
struct Block<'a> {
    info: &'a str,
    text: String,
    line: usize,
}

impl Document {
    fn read(path: &Path) -> Self {
        Self { path: path.to_owned(), text: fs::read_to_string(root().join(path)).unwrap() }
    }

    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut open: Option<Block<'_>> = None;
        for (at, line) in self.text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(info)) => {
                    open = Some(Block { info, text: String::new(), line: at + 1 });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a fenced block has no end", self.path.display());
        blocks
    }

    /// The text without fenced blocks and code spans, which contain no links.
    fn prose(&self) -> String {
        let mut is_open = false;
        let lines = self.text.lines().filter(|line| {
            let is_fence = line.starts_with("```");
            is_open ^= is_fence;
            !is_open && !is_fence
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        prose.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
    }

    fn at(&self, block: &Block<'_>) -> String {
        format!("{}:{}", self.path.display(), block.line)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<Document> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
            .map(PathBuf::from)
            .into();
    let mut directories = vec![PathBuf::from("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    paths.iter().map(|path| Document::read(path)).collect()
}

/// Returns the anchor of a heading as GitHub forms it.
fn anchor(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Returns the fault of a link, if any.
fn broken(from: &Document, link: &str) -> Option<String> {
    if link.contains("://") {
        return None;
    }
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let directory = from.path.parent().unwrap();
    let target = if path.is_empty() { from.path.clone() } else { directory.join(path) };
    if !root().join(&target).exists() {
        return Some(format!("{}: {link} does not exist", from.path.display()));
    }
    let leads = fragment.is_empty() || Document::read(&target).anchors().contains(fragment);
    (!leads).then(|| format!("{}: {link} has no such heading", from.path.display()))
}

#[test]
fn links_between_documents_resolve() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let (mut count, mut faults) = (0, Vec::new());
    for document in documents() {
        for found in link.captures_iter(&document.prose()) {
            count += 1;
            faults.extend(broken(&document, &found[1]));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 50, "only {count} links were found");
}

#[test]
fn flows_and_budgets_in_documents_are_accepted() {
    let server = TestServer::start_with(|config| {
        for (name, kind) in PROVIDERS {
            add_provider(config, name, *kind, "http://127.0.0.1:9");
        }
    });
    let (mut flows, mut budgets) = (0, 0);
    for document in documents() {
        for block in document.blocks().iter().filter(|block| block.info == "json") {
            let place = document.at(block);
            let json: Value = serde_json::from_str(&block.text)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            let response = if json["data"]["nodes"].is_array() {
                flows += 1;
                server.post("/api/flows", &json)
            } else if json["budgets"].is_array() {
                budgets += 1;
                server.request("PUT", "/api/budget", &[], json.to_string().as_bytes())
            } else {
                continue;
            };
            assert!(matches!(response.status, 200 | 201), "{place}: {}", response.text());
        }
    }
    assert!(flows >= 4 && budgets >= 1, "{flows} flows, {budgets} lists of budgets");
}

/// `toml` marks a configuration file, `toml prices` a file of prices.
#[test]
fn settings_and_prices_in_documents_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("example.toml");
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    for name in ["company-ca.pem", "mine-ca.pem"] {
        fs::write(directory.path().join(name), certificate.pem()).unwrap();
    }
    let (mut settings, mut prices) = (0, 0);
    for document in documents() {
        for block in document.blocks() {
            let place = document.at(&block);
            fs::write(&file, &block.text).unwrap();
            match block.info {
                "toml" => {
                    settings += 1;
                    let overrides =
                        Overrides { config: Some(file.clone()), ..Overrides::default() };
                    Config::load(overrides).unwrap_or_else(|error| panic!("{place}: {error}"));
                }
                "toml prices" => {
                    prices += 1;
                    let server = TestServer::start_with(|config| {
                        add_provider(config, "openai", Kind::OpenAi, "");
                        config.prices = Some(file.clone());
                    });
                    let price = server.get("/api/prices?provider=openai&model=gpt-4o");
                    assert_eq!(price.status, 200, "{place}: {}", price.text());
                }
                _ => {}
            }
        }
    }
    assert!(settings >= 1 && prices >= 1, "{settings} settings, {prices} files of prices");
}

#[test]
fn a_broken_link_is_detected() {
    assert_eq!(anchor("## `http` nodes"), "http-nodes");
    assert_eq!(anchor("# What's new, 2026?"), "whats-new-2026");
    let text = "# A b\n\n```sh\n# c\n```\n".to_owned();
    let document = Document { path: "README.md".into(), text };
    assert_eq!(document.anchors().into_iter().collect::<Vec<_>>(), ["a-b"]);
    for link in ["docs/api.md", "docs/api.md#messages", "https://example.org/none"] {
        assert_eq!(broken(&document, link), None);
    }
    for link in ["docs/none.md", "docs/api.md#none", "#none"] {
        assert!(broken(&document, link).is_some(), "{link}");
    }
}
