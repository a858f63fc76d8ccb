//! Reads the flow and the inputs of `flowledger run`, also from pipes and standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::flow::parse_json;

/// Limits the bytes of a flow or an input, so that an endless stream ends with an error.
const BYTES_MAX: u64 = 64 << 20;
const STDIN: &str = "-";

/// The flags `--input` and `--input-json`.
pub struct Inputs {
    pub inputs: Vec<String>,
    pub json: Option<String>,
}

/// Reads files, and standard input at most once.
#[derive(Default)]
pub struct Source {
    /// The purpose for which standard input was read.
    stdin: Option<String>,
}

impl Source {
    /// Returns the text of a file, or of standard input for `-`. `purpose` names it in errors, such
    /// as "the flow".
    ///
    /// # Errors
    /// [`Error::Io`] for an unreadable file, and [`Error::Config`] for the second use of standard
    /// input or for too many bytes.
    pub fn read(&mut self, path: &Path, purpose: &str) -> Result<String> {
        let is_stdin = path == Path::new(STDIN);
        let name = if is_stdin { "standard input".into() } else { path.display().to_string() };
        if is_stdin && let Some(earlier) = self.stdin.replace(purpose.to_owned()) {
            return Err(Error::Config(format!(
                "standard input can be read only once, but it is {earlier} and {purpose}"
            )));
        }
        let mut text = String::new();
        let read = match is_stdin {
            true => read_to_limit(io::stdin().lock(), &mut text),
            false => File::open(path).and_then(|file| read_to_limit(file, &mut text)),
        };
        read.map_err(Error::io(format!("cannot read {purpose} {name}")))?;
        if text.len() as u64 > BYTES_MAX {
            let message = format!("{name} has over {BYTES_MAX} bytes, too many for {purpose}");
            return Err(Error::Config(message));
        }
        // Editors of some systems write a byte order mark.
        Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
    }

    /// Returns all inputs as one object. Single inputs override those of a JSON object.
    ///
    /// # Errors
    /// [`Error::Config`] for wrong flags, and the errors of [`Source::read`].
    pub fn inputs(&mut self, flags: &Inputs) -> Result<Value> {
        let mut all = match &flags.json {
            None => Map::new(),
            Some(text) => self.object("--input-json", text)?,
        };
        for flag in flags.inputs.iter().filter(|flag| *flag == STDIN) {
            all.extend(self.object("--input", flag)?);
        }
        for pair in flags.inputs.iter().filter(|flag| *flag != STDIN) {
            let (name, text) =
                pair.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Error::Config(format!("--input `{pair}` must have the form NAME=TEXT"))
                })?;
            let text = match text.strip_prefix('@') {
                None => text.to_owned(),
                Some(literal) if literal.starts_with('@') => literal.to_owned(),
                Some(path) => self.read(Path::new(path), &format!("the input `{name}`"))?,
            };
            all.insert(name.to_owned(), Value::from(text));
        }
        Ok(Value::Object(all))
    }

    fn object(&mut self, flag: &str, text: &str) -> Result<Map<String, Value>> {
        let path = if text == STDIN { Some(STDIN) } else { text.strip_prefix('@') };
        let read = path.map(|path| self.read(Path::new(path), &format!("the JSON of {flag}")));
        let read = read.transpose()?;
        match parse_json(read.as_deref().unwrap_or(text)) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(Error::Config(format!("{flag} must be a JSON object"))),
            Err(error) => Err(Error::Config(format!("{flag} must be a JSON object: {error}"))),
        }
    }
}

fn read_to_limit(from: impl Read, text: &mut String) -> io::Result<usize> {
    from.take(BYTES_MAX + 1).read_to_string(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Option<&str>, inputs: &[&str]) -> Result<Value> {
        let inputs = inputs.iter().map(|it| (*it).to_owned()).collect();
        Source::default().inputs(&Inputs { inputs, json: json.map(str::to_owned) })
    }

    #[test]
    fn inputs_are_texts_files_or_escaped_texts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("topic.txt");
        std::fs::write(&file, "\u{feff}bees\n").unwrap();
        let from_file = format!("topic=@{}", file.display());
        let read_all = read(Some(r#"{"a": 1, "b": 2}"#), &[&from_file, "b=x=y", "at=@@home"]);
        let expected = serde_json::json!({"a": 1, "b": "x=y", "topic": "bees\n", "at": "@home"});
        assert_eq!(read_all.unwrap(), expected);
        let missing = read(None, &["topic=@/no/such/file"]).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read the input `topic` /no/such/file: "), "{missing}");
    }

    #[test]
    fn standard_input_is_read_only_once() {
        let mut source = Source { stdin: Some("the flow".into()) };
        let error = source.read(Path::new("-"), "the input `a`").unwrap_err().to_string();
        assert!(error.ends_with("but it is the flow and the input `a`"), "{error}");
    }

    #[test]
    fn an_endless_file_is_refused() {
        let error = Source::default().read(Path::new("/dev/zero"), "the flow").unwrap_err();
        assert!(error.to_string().contains("over 67108864 bytes"), "{error}");
    }
}
