//! One TCP stream for two threads: the reader's half, and the outbox's sink.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::limits::{Bucket, BucketRate};
use crate::hub::{Outbox, Sink};

/// Limits a write that makes no progress …
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// … and the whole write, except for its last step: 256 KiB at 8 KiB a second.
const WRITE_TIME_MAX: Duration = Duration::from_secs(32);

/// The reader's half: reads from the stream, and collects tungstenite's own replies for the outbox.
/// Replies are collected while input is available, so that a flood of pings causes few writes. They
/// are passed on before a read that may block, or when [`Half::flush_replies`] is called.
pub struct Half<'a> {
    stream: &'a TcpStream,
    outbox: &'a Outbox,
    answer: Vec<u8>,
    bytes: Bucket,
}

impl<'a> Half<'a> {
    /// Creates a half over a stream that another thread writes to. Input over `bytes` is an error.
    pub fn new(stream: &'a TcpStream, outbox: &'a Outbox, bytes: BucketRate) -> Self {
        Self { stream, outbox, answer: Vec::new(), bytes: Bucket::new(bytes) }
    }

    /// Returns the stream that this half reads from.
    pub fn stream(&self) -> &'a TcpStream {
        self.stream
    }

    pub fn flush_replies(&mut self) {
        if !self.answer.is_empty() {
            self.outbox.push_controls(&self.answer);
            self.answer.clear();
        }
    }
}

impl Read for Half<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.flush_replies();
        let mut stream = self.stream;
        // Reads are interrupted when a stopped process continues (`fg`, a debugger, a frozen
        // machine).
        let count = loop {
            match stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.bytes.take(count, "bytes")?;
        Ok(count)
    }
}

impl Write for Half<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the outbox's frames to the client.
pub struct StreamSink {
    stream: Arc<TcpStream>,
}

impl StreamSink {
    /// Creates a sink over a stream that another thread reads from.
    pub fn new(stream: Arc<TcpStream>) -> Self {
        if let Err(error) = stream.set_write_timeout(Some(WRITE_TIMEOUT)) {
            log::warn!("cannot set the write timeout: {error}");
        }
        Self { stream }
    }
}

impl Sink for StreamSink {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        // The flag applies to this call alone; the writer thread still blocks on the stream.
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        SockRef::from(&*self.stream).send_with_flags(bytes, flags)
    }

    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + WRITE_TIME_MAX;
        while !bytes.is_empty() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
            }
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client does not read",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn shutdown(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
