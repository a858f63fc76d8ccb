//! The command line.

mod input;
mod ledger;
mod optimize;
mod output;
mod reprice;
mod run;
mod serve;
mod verify;

use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};

use crate::config::{Config, LISTEN_DEFAULT, Overrides};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// The exit status of a failed flow, and of any failure at run time.
const FAILED: u8 = 1;
/// The exit status for invalid flags, settings or files; clap uses it for flags.
const UNUSABLE: u8 = 2;

/// Runs flows of LLM calls, shows them live, and keeps an exact ledger of every call.
///
/// Without a command, it serves the page, the API and the WebSocket on one port.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Flags override environment variables, which override the file of --config.
Set the API key of each provider that you use: OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY,
OPENROUTER_API_KEY, GROQ_API_KEY, MISTRAL_API_KEY, DEEPSEEK_API_KEY, XAI_API_KEY, TOGETHER_API_KEY.
RUST_LOG sets the log level: error, warn, info, debug, trace, or for example flowledger::hub=debug
[default: info for serve, else warn]";

#[derive(Subcommand)]
enum Command {
    /// Serve the page, the API and the WebSocket (the default).
    Serve(ServeArgs),
    /// Run a flow from a file, without a server, on the same database.
    Run(RunArgs),
    /// Check that the database is consistent, also while a server is running.
    ///
    /// The exit status is 0 if it is, 1 if it is not, and 2 if the database cannot be opened.
    Verify(CommonArgs),
    /// Show ledger rows or totals, also while a server is running.
    Ledger(Box<LedgerArgs>),
    /// Show possible savings in the calls of the last 30 days, also while a server is running.
    ///
    /// This changes nothing. To apply a suggestion, use its ID on the page or in the API.
    Optimize(OptimizeArgs),
    /// Compute the cost of past calls whose price was unknown, at the prices known now.
    ///
    /// The costs are written as corrections; the ledger rows stay as they are, and so do budgets.
    /// Stop the server first, or use --dry-run.
    Reprice(RepriceArgs),
}

#[derive(Args, Clone)]
struct CommonArgs {
    /// Directory of the database; created if it is missing [default: $XDG_DATA_HOME/flowledger or
    /// ~/.local/share/flowledger]
    #[arg(long, value_name = "DIR", env = "FLOWLEDGER_DATA")]
    data: Option<PathBuf>,
    /// TOML file with settings and providers [default: none]
    #[arg(long, value_name = "FILE", env = "FLOWLEDGER_CONFIG")]
    config: Option<PathBuf>,
    /// TOML file with your own prices, which override the built-in ones [default: none]
    #[arg(long, value_name = "FILE", env = "FLOWLEDGER_PRICES")]
    prices: Option<PathBuf>,
}

#[derive(Args, Clone)]
struct ServeArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[arg(long, value_name = "ADDRESS:PORT", env = "FLOWLEDGER_LISTEN", help = format!("Address to listen on [default: {LISTEN_DEFAULT}]. Other than loopback addresses need a token"))]
    listen: Option<String>,
    /// Token that every request must send (`Authorization: Bearer …`); prefer the variable, because
    /// other users of the machine can see flags [default: none]
    #[arg(long, env = "FLOWLEDGER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Accepted `Host` name, in addition to localhost and IP addresses; repeatable [default: none]
    #[arg(
        long = "allow-host",
        value_name = "NAME",
        env = "FLOWLEDGER_ALLOW_HOSTS",
        value_delimiter = ','
    )]
    allow_hosts: Vec<String>,
    /// Origin of another site that may use the API, such as https://example.org; repeatable
    /// [default: none]
    #[arg(
        long = "allow-origin",
        value_name = "ORIGIN",
        env = "FLOWLEDGER_ALLOW_ORIGINS",
        value_delimiter = ','
    )]
    allow_origins: Vec<String>,
}

#[derive(Args, Clone)]
struct RunArgs {
    /// File with the flow, in the JSON format of POST /api/flows; - for standard input
    #[arg(value_name = "FLOW.json")]
    file: PathBuf,
    /// Input of the flow; repeatable, and overrides --input-json. NAME=@FILE reads the text from a
    /// file, NAME=@- from standard input, and NAME=@@TEXT is a text that starts with @. A single -
    /// reads all inputs as one JSON object from standard input [default: none]
    #[arg(long = "input", short = 'i', value_name = "NAME=TEXT")]
    inputs: Vec<String>,
    /// Inputs of the flow as one JSON object; @FILE reads it from a file, - from standard input
    /// [default: {}]
    #[arg(long, value_name = "JSON")]
    input_json: Option<String>,
    /// Estimate the expected and maximum cost without running the flow [default: off]
    #[arg(long)]
    dry_run: bool,
    /// Print the whole run as JSON, like GET /api/runs/{id}; with --dry-run, the estimate
    /// [default: only the result]
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args, Clone)]
struct LedgerArgs {
    #[command(flatten)]
    query: ledger::Query,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args, Clone)]
struct OptimizeArgs {
    /// Print the suggestions as JSON, including their evidence [default: a table]
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args, Clone)]
struct RepriceArgs {
    /// Only calls at or after this time (2026-11-24T10:00:00Z) or day
    #[arg(long, value_name = "TIME")]
    from: Timestamp,
    /// Show the costs without writing them, also while a server is running [default: off]
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: CommonArgs,
}

impl CommonArgs {
    fn config(self) -> Result<Config> {
        Config::load(self.overrides())
    }

    fn overrides(self) -> Overrides {
        Overrides {
            data: self.data,
            config: self.config,
            prices: self.prices,
            ..Overrides::default()
        }
    }
}

impl ServeArgs {
    fn config(self) -> Result<Config> {
        Config::load(Overrides {
            listen: self.listen,
            token: self.token,
            allow_hosts: self.allow_hosts,
            allow_origins: self.allow_origins,
            ..self.common.overrides()
        })
    }
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    log_from(if matches!(command, Command::Serve(_)) { "info" } else { "warn" });
    run(command).unwrap_or_else(|error| {
        output::say(format_args!("flowledger: {error}"));
        let unusable = matches!(error, Error::Config(_) | Error::Invalid { .. } | Error::Io { .. });
        ExitCode::from(if unusable { UNUSABLE } else { FAILED })
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(&args.config()?),
        Command::Run(RunArgs { file, inputs, input_json, dry_run, json, common }) => {
            let input = input::Inputs { inputs, json: input_json };
            run::run(&common.config()?, &file, &input, run::Mode { dry_run, json })
        }
        Command::Verify(common) => verify::run(&common.config()?),
        Command::Ledger(args) => ledger::run(&args.common.config()?, args.query),
        Command::Reprice(args) => reprice::run(&args.common.config()?, args.from, args.dry_run),
        Command::Optimize(args) => optimize::run(&args.common.config()?, args.json),
    }
}

/// Makes a table with the columns `numbers` right-aligned.
fn table(head: &[&str], numbers: Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(head);
    for column in table.column_iter_mut().skip(numbers.start).take(numbers.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn log_from(level: &str) {
    let environment = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(environment)
        .format(|out, record| {
            let (level, time) = (record.level(), Timestamp::now());
            let style = out.default_level_style(level);
            let text = record.args().to_string();
            // Later lines are indented, so that a text cannot forge a line of the log.
            let text = output::printable(&text).replace('\n', "\n    ");
            writeln!(out, "[{time} {style}{level:<5}{style:#} {}] {text}", record.target())
        })
        // Finer levels log response heads, and a provider may repeat its key there.
        .filter_module("ureq", log::LevelFilter::Info)
        .init();
}
