//! `flowledger serve`: serves the page, the API and the WebSocket.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded, select};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use super::FAILED;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::server::Server;

/// Serves until SIGINT, SIGTERM or SIGHUP. A second signal ends the process at once.
pub fn run(config: &Config) -> Result<ExitCode> {
    // Installed first, so that no signal triggers the default action.
    let signals = signals()?;
    raise_descriptor_limit();
    // Otherwise a write beyond `ulimit -f` would end the process; now it fails like on a full disk.
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .map_err(Error::io("cannot listen for signals"))?;
    if config.token.is_none() && !config.allow_hosts.is_empty() {
        log::warn!(
            "--allow-host is set without a token: everyone who can reach the proxy in front has \
             full access; set a token (FLOWLEDGER_TOKEN or --token)"
        );
    }
    let server = Server::start(config)?;
    // Ignores a closed pipe.
    let _ = writeln!(io::stdout(), "flowledger is at http://{}/", server.address());
    log::info!("listening on {}; data directory {}", server.address(), config.data.display());
    let code = select! {
        recv(signals) -> _ => {
            log::info!("shutting down");
            ExitCode::SUCCESS
        }
        recv(server.fatal()) -> name => {
            log::error!("shutting down, because the {} thread stopped unexpectedly", name.unwrap_or_default());
            ExitCode::from(FAILED)
        }
    };
    server.shutdown();
    Ok(code)
}

/// Raises the soft limit of descriptors to the hard limit. The usual 1,024 protects programs that
/// use `select`, and this one does not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        let current = limit.current.unwrap_or(u64::MAX);
        log::warn!("cannot raise the limit of {current} open files: {error}");
    }
}

/// Returns a channel that receives the first SIGINT, SIGTERM or SIGHUP; the second ends the
/// process.
pub(super) fn signals() -> Result<Receiver<()>> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(Error::io("cannot listen for signals"))?;
    // A process under `nohup` must outlive its terminal.
    if fs::read_to_string("/proc/self/status").is_ok_and(|status| !ignores(&status, SIGHUP)) {
        signals.add_signal(SIGHUP).map_err(Error::io("cannot listen for signals"))?;
    }
    let (sender, receiver) = bounded(1);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for (count, signal) in signals.forever().enumerate() {
                if count > 0 {
                    // The exit status that shells report for a process that a signal ended.
                    std::process::exit(128 + signal);
                }
                let _ = sender.send(());
            }
        })
        .map_err(Error::io("cannot start the signals thread"))?;
    Ok(receiver)
}

/// Returns whether a process with this `/proc/PID/status` ignores a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_process_status() {
        let status = "Name:\tflowledger\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SIGHUP));
        assert!(!ignores(status, SIGTERM));
        assert!(ignores("", SIGHUP));
    }
}
