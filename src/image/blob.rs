//! Blobs as streams: bytes → digest → decompression → digest, on a thread of their own.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::{Digest, Error};

/// Size of the pieces a stream is handed on in, and how many may wait: small enough for several at once, large enough that
/// their exchange costs nothing.
const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// How a stream is packed, recognised by its first bytes: names and media types lie too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// # Errors
    /// [`Error::Document`] for what is recognised but not supported.
    pub fn detect(start: &[u8]) -> Result<Compression, Error> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            // A skippable frame, as pzstd and seekable zstd write first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(Error::Document("bzip2 compression is not supported".into())),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(Error::Document("xz compression is not supported".into())),
            _ => Ok(Compression::None),
        }
    }
}

/// `reader` decompressed, whatever it is packed with.
///
/// # Errors
/// [`Error::Stream`], and as [`Compression::detect`].
pub fn decompress<'a>(mut reader: impl Read + Send + 'a) -> Result<(Compression, Box<dyn Read + Send + 'a>), Error> {
    let mut start = [0; 6];
    let mut filled = 0;
    while filled < start.len() {
        match reader.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Stream { source }),
        }
    }
    let compression = Compression::detect(&start[..filled])?;
    let whole = Cursor::new(start).take(filled as u64).chain(reader);
    let buffered = |reader| BufReader::with_capacity(PIECE / 2, reader);
    Ok((
        compression,
        match compression {
            Compression::None => Box::new(whole),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(whole))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(buffered(whole));
                Box::new(decoder.map_err(|source| Error::Stream { source })?)
            }
        },
    ))
}

/// Hashes what is read through it.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: Sha256::new() }
    }

    /// Reads what is left and gives the digest of everything.
    ///
    /// # Errors
    /// As reading.
    pub fn finish(mut self) -> io::Result<Digest> {
        let mut rest = vec![0; PIECE];
        while read_some(&mut self, &mut rest)? > 0 {}
        Ok(Digest::finish(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hash.update(&buf[..count]);
        Ok(count)
    }
}

/// As `read`, not interrupted.
fn read_some(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The two digests of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of the bytes as they came.
    pub blob: Digest,
    /// Of the tar stream inside.
    pub diff_id: Digest,
    /// Bytes of the tar stream.
    pub size: u64,
}

/// Decompresses and hashes `source` on another thread while `consume` uses the content on this one. When `consume` is done
/// the rest is read (and counted) too, so that the digests cover the whole blob.
///
/// # Errors
/// Those of `consume`, or else of reading; [`Error::Limit`] when the content has more than `limit` bytes. Reading stops
/// soon after `cancelled` is set.
pub fn stream<T>(
    source: impl Read + Send,
    limit: u64,
    cancelled: &AtomicBool,
    consume: impl FnOnce(&mut Pieces) -> Result<T, Error>,
) -> Result<(T, Digests), Error> {
    let produce = |full: &SyncSender<Piece>, empty: &Receiver<Vec<u8>>| produce(source, limit, cancelled, full, empty);
    beside("image-stream", produce, |pieces| {
        let value = consume(pieces)?;
        pieces.drain().map_err(|source| Error::Stream { source })?;
        Ok(value)
    })
}

/// Reads `source` on another thread, ahead of `consume`, which uses the content on this one.
///
/// # Errors
/// Those of `consume`, or else of reading.
pub fn ahead<T>(
    mut source: impl Read + Send,
    consume: impl FnOnce(&mut Pieces) -> Result<T, Error>,
) -> Result<T, Error> {
    let produce = |full: &SyncSender<Piece>, empty: &Receiver<Vec<u8>>| -> Result<(), Error> {
        loop {
            let piece = fill(&mut source, empty)?;
            // A consumer that is gone has all it wants, or an error that counts more.
            if piece.is_empty() || full.send(Some(piece)).is_err() {
                return Ok(());
            }
        }
    };
    beside("image-read", produce, consume).map(|(value, ())| value)
}

/// Runs `produce` on another thread and `consume` on this one, with a stream of pieces from one to the other.
fn beside<T, D: Send>(
    name: &str,
    produce: impl FnOnce(&SyncSender<Piece>, &Receiver<Vec<u8>>) -> Result<D, Error> + Send,
    consume: impl FnOnce(&mut Pieces) -> Result<T, Error>,
) -> Result<(T, D), Error> {
    let (full, pieces) = sync_channel(WAITING);
    let (recycle, empty) = sync_channel(WAITING + 2);
    let work = move || {
        let result = produce(&full, &empty);
        if result.is_err() {
            // A consumer that is gone needs no notice.
            let _ = full.send(None);
        }
        result
    };
    thread::scope(|scope| {
        let producer = thread::Builder::new()
            .name(name.into())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Stream { source })?;
        let mut pieces = Pieces { pieces, recycle, current: Vec::new(), at: 0, failed: false };
        let consumed = consume(&mut pieces);
        // Lets the producer see that nobody listens any more.
        let broken = pieces.failed;
        drop(pieces);
        let produced = match producer.join() {
            Ok(produced) => produced,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (consumed, produced) {
            // What the consumer saw of a broken stream is only its end: the producer knows why.
            (Err(_), Err(error)) if broken => Err(error),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            (Ok(value), Ok(produced)) => Ok((value, produced)),
        }
    })
}

/// A piece of a stream, or its failure.
type Piece = Option<Vec<u8>>;

/// The next piece of a stream, in a buffer that was used before if there is one; empty at the end.
fn fill(content: &mut impl Read, empty: &Receiver<Vec<u8>>) -> Result<Vec<u8>, Error> {
    let mut piece = empty.try_recv().unwrap_or_default();
    piece.resize(PIECE, 0);
    let mut filled = 0;
    while filled < PIECE {
        match read_some(content, &mut piece[filled..]).map_err(|source| Error::Stream { source })? {
            0 => break,
            count => filled += count,
        }
    }
    piece.truncate(filled);
    Ok(piece)
}

fn produce(
    source: impl Read + Send,
    limit: u64,
    cancelled: &AtomicBool,
    full: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Digests, Error> {
    let mut blob = Hashing::new(source);
    let mut inner = Sha256::new();
    let mut size = 0u64;
    let (compression, mut content) = decompress(&mut blob)?;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::Stream { source: io::Error::other("cancelled") });
        }
        let piece = fill(&mut content, empty)?;
        size += piece.len() as u64;
        if size > limit {
            return Err(Error::Limit { what: "bytes in a layer's tar stream", limit });
        }
        if compression != Compression::None {
            inner.update(&piece);
        }
        if piece.is_empty() {
            break;
        }
        if full.send(Some(piece)).is_err() {
            // The consumer failed: its error is the one that counts.
            return Err(Error::Stream { source: io::ErrorKind::BrokenPipe.into() });
        }
    }
    drop(content);
    let blob = blob.finish().map_err(|source| Error::Stream { source })?;
    let diff_id = match compression {
        Compression::None => blob.clone(),
        _ => Digest::finish(inner),
    };
    Ok(Digests { blob, diff_id, size })
}

/// The content of a blob, as it arrives from the other thread.
pub struct Pieces {
    pieces: Receiver<Piece>,
    recycle: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    failed: bool,
}

impl Pieces {
    fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                count => self.consume(count),
            }
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.failed {
            match self.pieces.recv() {
                Ok(Some(piece)) => {
                    let used = std::mem::replace(&mut self.current, piece);
                    self.at = 0;
                    // Full only if the producer has buffers enough.
                    let _ = self.recycle.try_send(used);
                }
                Ok(None) => self.failed = true,
                // The end; said once more each time it is asked.
                Err(_) => {}
            }
        }
        if self.failed {
            return Err(io::Error::other("the stream broke off"));
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn content() -> Vec<u8> {
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn run(packed: &[u8], limit: u64) -> Result<(Vec<u8>, Digests), Error> {
        stream(packed, limit, &AtomicBool::new(false), |pieces| {
            let mut all = Vec::new();
            pieces.read_to_end(&mut all).map_err(|source| Error::Stream { source })?;
            Ok(all)
        })
    }

    #[test]
    fn content_and_digests_of_each_compression() {
        let content = content();
        let two_members = [gzip(&content[..1000]), gzip(&content[1000..])].concat();
        for packed in [content.clone(), gzip(&content), two_members, zstd::encode_all(&content[..], 1).unwrap()] {
            let (all, digests) = run(&packed, u64::MAX).unwrap();
            assert!(all == content);
            assert_eq!(digests.blob, Digest::of(&packed));
            assert_eq!(digests.diff_id, Digest::of(&content));
            assert_eq!(digests.size, content.len() as u64);
        }
        assert_eq!(run(b"", 10).unwrap().1.diff_id, Digest::of(b""));
    }

    #[test]
    fn digests_cover_what_the_consumer_leaves() {
        let packed = gzip(&content());
        let (first, digests) = stream(&packed[..], u64::MAX, &AtomicBool::new(false), |pieces| {
            let mut first = [0; 10];
            pieces.read_exact(&mut first).map_err(|source| Error::Stream { source })?;
            Ok(first)
        })
        .unwrap();
        assert_eq!(first, content()[..10]);
        assert_eq!(digests.blob, Digest::of(&packed));
    }

    #[test]
    fn broken_streams_say_why() {
        let packed = gzip(&content());
        assert!(matches!(run(&packed[..packed.len() / 2], u64::MAX), Err(Error::Stream { .. })));
        assert!(matches!(run(&packed, 1000), Err(Error::Limit { limit: 1000, .. })));
        assert!(run(b"BZh91AY", 1000).unwrap_err().to_string().contains("bzip2"));
        let consumer = stream(&packed[..], u64::MAX, &AtomicBool::new(false), |_| Err::<(), _>(Error::Missing));
        assert!(matches!(consumer, Err(Error::Missing)));
        let cancelled = stream(&packed[..], u64::MAX, &AtomicBool::new(true), |pieces| {
            pieces.fill_buf().map(drop).map_err(|source| Error::Stream { source })
        });
        assert!(matches!(cancelled, Err(Error::Stream { .. })));
    }

    #[test]
    fn what_is_read_ahead_is_whole_or_an_error() {
        let content = content();
        let all = |pieces: &mut Pieces| {
            let mut all = Vec::new();
            pieces.read_to_end(&mut all).map(|_| all).map_err(|source| Error::Stream { source })
        };
        assert!(ahead(&content[..], all).unwrap() == content);
        let packed = gzip(&content);
        let broken = flate2::read::GzDecoder::new(&packed[..packed.len() / 2]);
        let error = ahead(broken, all).unwrap_err();
        // The reason, not only that it broke off.
        assert!(
            matches!(&error, Error::Stream { source } if source.kind() == io::ErrorKind::UnexpectedEof),
            "{error:?}"
        );
        // Who has enough leaves the rest.
        assert_eq!(ahead(&content[..], |pieces| Ok(pieces.fill_buf().unwrap()[..9].to_vec())).unwrap(), content[..9]);
    }

    #[test]
    fn magic_numbers() {
        assert_eq!(Compression::detect(b"").unwrap(), Compression::None);
        assert_eq!(Compression::detect(&[0x1f, 0x8b, 8]).unwrap(), Compression::Gzip);
        assert_eq!(Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd]).unwrap(), Compression::Zstd);
        assert_eq!(Compression::detect(&[0x52, 0x2a, 0x4d, 0x18]).unwrap(), Compression::Zstd);
        assert_eq!(Compression::detect(b"etc/passwd").unwrap(), Compression::None);
        assert!(Compression::detect(b"\xfd7zXZ\0").is_err());
    }
}
