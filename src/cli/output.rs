//! Terminal output of all commands. Names and errors come from clients and providers, so control
//! and bidirectional characters in them are escaped.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::Table;

use super::FAILED;

/// Escapes the characters of a text that would control a terminal or reorder its text, such as
/// `\u{1b}` and `\u{202e}`. Keeps line breaks and tabs.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && c != '\t' && is_unsafe(c))
}

/// Like [`printable`], but escapes line breaks and tabs too, so that a name cannot add lines.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Control characters, the bidirectional marks, embeddings, overrides and isolates of Unicode
/// (UAX #9), and its separators of lines and paragraphs.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Adds a row whose cells have one line each.
pub fn add_row<const N: usize>(table: &mut Table, cells: [String; N]) {
    table.add_row(cells.map(|cell| one_line(&cell).into_owned()));
}

/// Prints a line to standard error. Unlike `eprintln!`, ignores a closed pipe.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
}

/// Writes a result to standard output. A file or pipe receives it unchanged. A closed pipe is no
/// error, because its reader needs no more.
///
/// # Errors
/// Other write errors, such as a full disk.
pub fn write_result(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = if out.is_terminal() {
        let mut out = Escaped { out, line: Vec::new() };
        write(&mut out).and_then(|()| out.flush())
    } else {
        write(&mut out).and_then(|()| out.flush())
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints a result like [`write_result`], and returns the exit status.
pub fn print_result(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> ExitCode {
    match write_result(write) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("flowledger: cannot write the result to standard output: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Escapes the output to a terminal, line by line.
struct Escaped<W: Write> {
    out: W,
    /// The beginning of a line whose end is not written yet.
    line: Vec<u8>,
}

impl<W: Write> Escaped<W> {
    fn write_lines(&mut self, end: usize) -> io::Result<()> {
        let rest = self.line.split_off(end);
        let lines = std::mem::replace(&mut self.line, rest);
        self.out.write_all(printable(&String::from_utf8_lossy(&lines)).as_bytes())
    }
}

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if let Some(end) = self.line.iter().rposition(|byte| *byte == b'\n') {
            self.write_lines(end + 1)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_lines(self.line.len())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidirectional_characters_are_escaped() {
        let title = "gpt\u{1b}]0;owned\u{7}\u{9b}31m\r\u{7f}";
        assert_eq!(printable(title), r"gpt\u{1b}]0;owned\u{7}\u{9b}31m\r\u{7f}");
        for bidi in
            "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}"
                .chars()
        {
            let shown = printable(&format!("a{bidi}b")).into_owned();
            assert!(shown.is_ascii() && shown.starts_with(r"a\u{"), "{shown}");
        }
        let usual = "Übersicht 東京 👩‍🔬\n\tשלום";
        assert!(matches!(printable(usual), Cow::Borrowed(text) if text == usual));
    }

    #[test]
    fn a_name_cannot_add_lines() {
        assert_eq!(one_line("a\n✓ b\t\u{2028}c"), r"a\n✓ b\t\u{2028}c");
    }

    #[test]
    fn a_split_character_reaches_the_terminal_whole() {
        let mut escaped = Escaped { out: Vec::new(), line: Vec::new() };
        for byte in "é\u{202e}\nü\u{1b}".as_bytes() {
            escaped.write_all(&[*byte]).unwrap();
        }
        escaped.flush().unwrap();
        assert_eq!(String::from_utf8(escaped.out).unwrap(), "é\\u{202e}\nü\\u{1b}");
    }
}
