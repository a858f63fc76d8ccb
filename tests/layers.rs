//! Checks the layers of ARCHITECTURE.md with the paths in the source: `crate::…` between modules,
//! `super::…` between the files of one module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module may use the layers above its own. Modules of one layer may use each other, but not in a
/// cycle.
const LAYERS: &[&[&str]] = &[
    &["error", "event", "ids", "metrics", "money", "secret", "threads", "time"],
    &["budget", "flow", "prices", "schedule", "translation"],
    &["providers", "store"],
    &["hub", "journal", "verify"],
    &["calls"],
    &["engine", "event_stream", "optimizer", "websocket"],
    &["listener", "scheduler"],
    &["gateway"],
    &["http"],
    &["config", "server"],
    &["cli"],
    &["main"],
];

/// Crates that only one module may name.
const HOMES: &[(&str, &str)] = &[
    ("rusqlite", "store"),
    ("tiny_http", "http"),
    ("tungstenite", "websocket"),
    ("ureq", "providers"),
];

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn a_module_depends_only_on_layers_above_its_own() {
    let layer_of = |module: &str| {
        let layer = LAYERS.iter().position(|layer| layer.contains(&module));
        layer.unwrap_or_else(|| panic!("`{module}` has no layer in LAYERS"))
    };
    let uses = uses_of_crate();
    for (module, used) in &uses {
        for other in used {
            assert!(
                layer_of(other) <= layer_of(module),
                "`{module}` must not use `{other}`, which is in a layer below it"
            );
        }
    }
    assert_acyclic("src", &uses);
}

#[test]
fn files_of_a_module_have_no_dependency_cycle() {
    let mut directories: Vec<PathBuf> = sources()
        .iter()
        .filter_map(|path| path.parent().map(Path::to_owned))
        .filter(|path| !path.ends_with("src"))
        .collect();
    directories.dedup();
    assert!(directories.len() > 10, "{directories:?}");
    for directory in directories {
        let mut uses = Uses::new();
        for path in sources() {
            if path.parent() == Some(&directory) {
                let used = paths_after("super::", &code(&path));
                uses.insert(stem(&path), used);
            }
        }
        let names: BTreeSet<String> = uses.keys().cloned().collect();
        for used in uses.values_mut() {
            used.retain(|name| names.contains(name));
        }
        assert_acyclic(&directory.display().to_string(), &uses);
    }
}

#[test]
fn each_protocol_crate_is_used_in_one_module() {
    for path in sources() {
        let module = module_of(&path);
        let code = code(&path);
        for (name, home) in HOMES {
            let is_named = code.contains(&format!("{name}::"));
            assert!(
                !is_named || module == *home,
                "{}: `{name}` belongs to `{home}`",
                path.display()
            );
        }
    }
}

/// Returns the top-level modules that each top-level module uses.
fn uses_of_crate() -> Uses {
    let mut uses = Uses::new();
    for path in sources() {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let mut used = paths_after("crate::", &code(&path));
        used.extend(paths_after("flowledger::", &code(&path)));
        used.remove(&module);
        uses.entry(module).or_default().extend(used);
    }
    uses
}

/// Returns every source file that is not a test.
fn sources() -> Vec<PathBuf> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs")
                && !matches!(stem(&path).as_str(), "tests" | "testing")
            {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    assert!(found.len() > 50, "{found:?}");
    found
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// Returns the top-level module of a file.
fn module_of(path: &Path) -> String {
    let mut parts = path.iter().skip_while(|part| *part != "src").skip(1);
    let first = Path::new(parts.next().unwrap());
    stem(first)
}

/// Returns the lines of a file without comments and without unit tests, which may use anything.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = text.match_indices("#[cfg(test)]\nmod tests").map(|(at, _)| at).next();
    let lines = text[..end.unwrap_or(text.len())].lines();
    let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the names after `prefix`: `crate::a::B` and `crate::{a::B, c}` yield `a` and `c`.
fn paths_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || matches!(before, '_' | ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let parts = match rest.strip_prefix('{') {
            Some(list) => top_level_parts(list),
            None => vec![rest],
        };
        for part in parts {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let name: &str = &part[..part.find(|c| !is_name(c)).unwrap_or(part.len())];
            let after = &part[name.len()..];
            // A name before `::`, or an imported module; anything else is a function.
            if !name.is_empty()
                && (after.is_empty()
                    || after.starts_with("::")
                    || after.starts_with([';', ',', '}', ' ']))
            {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// Returns the parts of an import list up to its closing brace.
fn top_level_parts(list: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(list[begin..at].trim_start());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[begin..at].trim_start());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts
}

fn assert_acyclic(place: &str, uses: &Uses) {
    let mut left = uses.clone();
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        let free = |used: &BTreeSet<String>| used.is_disjoint(&names);
        let before = left.len();
        left.retain(|_, used| !free(used));
        if left.is_empty() {
            return;
        }
        let circle: Uses = left
            .iter()
            .map(|(name, used)| (name.clone(), used.intersection(&names).cloned().collect()))
            .collect();
        assert!(left.len() < before, "a circle in {place}: {circle:?}");
    }
}

#[test]
fn paths_resolve_as_in_the_compiler() {
    let code =
        "use crate::{a::{B, C}, d};\nuse crate::e::F;\nlet x = crate::g::h();\nother_crate::i::J";
    let found: Vec<String> = paths_after("crate::", code).into_iter().collect();
    assert_eq!(found, ["a", "d", "e", "g"]);
}
