//! Decodes compressed bodies (RFC 9110, section 8.4): those of clients, and responses that a server
//! compressed although the request asked for no compression. Some proxies ignore
//! `Accept-Encoding`. Pure.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use ureq::http::HeaderMap;
use ureq::http::header::CONTENT_ENCODING;

use super::excerpt::one_line;

const CODINGS_MAX: usize = 2;
/// The first byte of every gzip stream (RFC 1952, section 2.3.1).
const GZIP_FIRST_BYTE: u8 = 0x1f;
/// The method in the first byte of every zlib stream (RFC 1950, section 2.2).
const ZLIB_METHOD: u8 = 8;
/// The first bytes of every zstd frame (RFC 8878, section 3.1.1).
const ZSTD_FIRST_BYTE: u8 = 0x28;
/// Limits the memory of a zstd decoder, in bytes: decoders should support at least this window
/// (RFC 8878, section 3.1.1.1.2).
pub const ZSTD_WINDOW_BYTES_MAX: usize = 8 << 20;
const NAME_CHARS_MAX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

impl Coding {
    /// Parses values of `Content-Encoding`. Returns the codings in the order in which they were
    /// applied.
    ///
    /// # Errors
    /// Returns the name of a coding that is not supported.
    pub fn parse_all<'a>(values: impl Iterator<Item = &'a str>) -> Result<Vec<Self>, String> {
        let mut codings = Vec::new();
        for name in values.flat_map(|value| value.split(',')) {
            let name = name.trim().to_ascii_lowercase();
            match &*name {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => codings.push(Self::Gzip),
                "deflate" => codings.push(Self::Deflate),
                "zstd" => codings.push(Self::Zstd),
                _ => return Err(one_line(&name, NAME_CHARS_MAX)),
            }
        }
        match codings.len() {
            0..=CODINGS_MAX => Ok(codings),
            _ => Err("more than two codings".into()),
        }
    }
}

/// Returns the codings of a response, in the order in which they were applied.
///
/// # Errors
/// Names a coding that is not supported.
pub(super) fn of(headers: &HeaderMap) -> Result<Vec<Coding>, String> {
    let values = headers.get_all(CONTENT_ENCODING).iter();
    let values: Vec<_> = values.map(|it| String::from_utf8_lossy(it.as_bytes())).collect();
    Coding::parse_all(values.iter().map(|it| &**it)).map_err(|name| unsupported(&name))
}

fn unsupported(name: &str) -> String {
    format!(
        "the response is compressed with {name}, which is not supported and was not requested; \
         switch compression off at the provider or its proxy"
    )
}

/// A body without its codings. It decodes as it reads, so the limits of its reader apply to the
/// decoded bytes.
pub struct Decoder<'a>(Box<dyn Read + 'a>);

impl<'a> Decoder<'a> {
    pub fn new(body: impl Read + 'a, codings: &[Coding]) -> Self {
        let mut body: Box<dyn Read + 'a> = Box::new(body);
        for coding in codings.iter().rev() {
            body = Box::new(Coded::New(BufReader::new(body), *coding));
        }
        Self(body)
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// One coding. Its first byte shows whether the body has it: some proxies decode a body and leave
/// the header. It is read with the first piece, when the reader's deadline is set.
enum Coded<'a> {
    New(BufReader<Box<dyn Read + 'a>>, Coding),
    Open(Box<dyn Read + 'a>),
}

impl Read for Coded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Self::New(body, coding) = self {
            let (first, coding) = (body.fill_buf()?.first().copied(), *coding);
            let Self::New(body, _) = std::mem::replace(self, Self::Open(Box::new(io::empty())))
            else {
                return Ok(0);
            };
            *self = Self::Open(match (coding, first) {
                (_, None) => Box::new(body),
                (Coding::Gzip, Some(GZIP_FIRST_BYTE)) => Box::new(MultiGzDecoder::new(body)),
                (Coding::Gzip, Some(_)) => Box::new(body),
                // The standard requires a zlib stream; some servers send a bare deflate stream.
                (Coding::Deflate, Some(first)) if first & 0xf == ZLIB_METHOD => {
                    Box::new(ZlibDecoder::new(body))
                }
                (Coding::Deflate, Some(_)) => Box::new(DeflateDecoder::new(body)),
                (Coding::Zstd, Some(ZSTD_FIRST_BYTE)) => zstd(body)?,
                (Coding::Zstd, Some(_)) => Box::new(body),
            });
        }
        match self {
            Self::Open(body) => body.read(buffer),
            Self::New(..) => Ok(0),
        }
    }
}

fn zstd<'a>(body: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_BYTES_MAX as u64);
    let body = StreamingDecoder::new_with_decoder(body, decoder);
    let body = body.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
    Ok(Box::new(body?))
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::read::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const TEXT: &[u8] = b"data: {\"choices\":[]}\n\n";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, value.parse().unwrap());
        }
        headers
    }

    fn all(mut body: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Returns a byte in each read, as a slow connection does.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    #[test]
    fn gzip_deflate_and_zstd_are_decoded() {
        let zstd = compress_to_vec(TEXT, CompressionLevel::Fastest);
        let level = Compression::default();
        let gzip = all(GzEncoder::new(TEXT, level));
        let zlib = all(ZlibEncoder::new(TEXT, level));
        let twice = all(GzEncoder::new(&*zlib, level));
        for (value, body) in [
            ("gzip", gzip.clone()),
            ("X-GZIP", gzip.clone()),
            (" identity , gzip", gzip),
            ("deflate", zlib),
            ("deflate", all(DeflateEncoder::new(TEXT, level))),
            ("deflate, gzip", twice),
            ("zstd", zstd),
            ("zstd", TEXT.to_vec()),
            ("identity", TEXT.to_vec()),
            ("", TEXT.to_vec()),
            // A proxy has decoded the body.
            ("gzip", TEXT.to_vec()),
        ] {
            let codings = of(&headers(&[value])).unwrap();
            assert_eq!(all(Decoder::new(&*body, &codings)), TEXT, "{value}");
            assert_eq!(all(Decoder::new(Slow(&body), &codings)), TEXT, "{value}");
        }
        assert_eq!(all(Decoder::new(&b""[..], &[Coding::Gzip])), b"");
    }

    #[test]
    fn unsupported_codings_are_named() {
        for (values, name) in [
            (&["br"][..], "br"),
            (&["gzip, compress"], "compress"),
            (&["gzip", "br"], "br"),
            (&["gzip, gzip, gzip"], "more than two codings"),
        ] {
            let message = of(&headers(values)).unwrap_err();
            assert!(message.contains(&format!("with {name},")), "{message}");
        }
    }

    #[test]
    fn a_damaged_body_is_an_error() {
        let mut gzip = all(GzEncoder::new(TEXT, Compression::default()));
        gzip.truncate(15);
        let mut decoder = Decoder::new(&*gzip, &[Coding::Gzip]);
        assert!(decoder.read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn a_zstd_frame_with_a_large_window_is_refused() {
        // Descriptor 0 (no single segment), then a window of 2^(10 + 20) bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 0x01, 0x00, 0x00];
        let mut decoder = Decoder::new(&frame[..], &[Coding::Zstd]);
        assert!(decoder.read_to_end(&mut Vec::new()).is_err());
    }
}
