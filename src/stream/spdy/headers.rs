//! Header blocks: names and values, through one zlib stream a direction that lasts as long as the connection.
//!
//! Inbound blocks are inflated with the dictionary of SPDY/3. Outbound ones are stored, not deflated: what we have to say is
//! a few dozen bytes, and a compressor would cost every connection a quarter of a megabyte.

use flate2::{Decompress, FlushDecompress, Status};

/// The dictionary of SPDY/3: what header blocks are compressed with knowledge of.
static DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// First bytes of a zlib stream that wants a dictionary: deflate, window of 32 KiB, the dictionary's Adler-32.
const ZLIB_HEAD: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block, which ends what a reader may have at once ("sync flush").
const SYNC: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// Most bytes of a block, inflated. Kubernetes needs a hundred.
pub(super) const MAX_BLOCK: usize = 32 * 1024;
/// Most headers in a block.
const MAX_HEADERS: usize = 128;

/// Headers of a stream, in the order they came. Names are lower-case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Makes headers; names are lowered.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Headers {
        Headers(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    /// The first value of a header; the name in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }
}

/// What is wrong with a header block. The connection cannot go on: the zlib stream is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not inflate.
    #[error("the header block is no zlib stream with the dictionary of SPDY/3")]
    Zlib,
    /// It inflates to too much, or has too many headers.
    #[error("the header block is larger than {MAX_BLOCK} bytes or has more than {MAX_HEADERS} headers")]
    TooLarge,
    /// Lengths do not fit.
    #[error("the lengths in the header block do not fit")]
    Lengths,
    /// A name is empty, not lower-case, or there twice.
    #[error("a header's name is empty, not lower-case, or there twice")]
    Name,
    /// Not UTF-8.
    #[error("a header is not UTF-8")]
    Text,
}

/// Inflates the blocks of one direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// Reads one block, which is all of `block`.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Fault> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        let mut piece = [0; 1024];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut piece, FlushDecompress::Sync);
            let count = |before, after| usize::try_from(u64::wrapping_sub(after, before)).unwrap_or(usize::MAX);
            let read = count(before_in, self.0.total_in());
            let written = count(before_out, self.0.total_out());
            block = block.get(read..).ok_or(Fault::Zlib)?;
            out.extend_from_slice(piece.get(..written).ok_or(Fault::Zlib)?);
            if out.len() > MAX_BLOCK {
                return Err(Fault::TooLarge);
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| Fault::Zlib)?;
                }
                // The stream lasts as long as the connection: its end is as wrong as an error.
                Err(_) | Ok(Status::StreamEnd) => return Err(Fault::Zlib),
                // All input is used and all output was fetched.
                Ok(Status::Ok | Status::BufError) if block.is_empty() && written < piece.len() => return Ok(out),
                Ok(_) if read == 0 && written == 0 => return Err(Fault::Zlib),
                Ok(_) => {}
            }
        }
    }
}

/// Reads the inflated form: a count, then lengths and texts.
fn parse(block: &[u8]) -> Result<Headers, Fault> {
    fn number(rest: &mut &[u8]) -> Result<usize, Fault> {
        let (bytes, tail) = rest.split_first_chunk::<4>().ok_or(Fault::Lengths)?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| Fault::Lengths)
    }
    fn text(rest: &mut &[u8]) -> Result<String, Fault> {
        let length = number(rest)?;
        let (bytes, tail) = rest.split_at_checked(length).ok_or(Fault::Lengths)?;
        *rest = tail;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Fault::Text)
    }
    let mut rest = block;
    let count = number(&mut rest)?;
    if count > MAX_HEADERS {
        return Err(Fault::TooLarge);
    }
    let mut headers: Vec<(String, String)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        let known = headers.iter().any(|(other, _)| *other == name);
        if name.is_empty() || known || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Fault::Name);
        }
        headers.push((name, value));
    }
    if rest.is_empty() { Ok(Headers(headers)) } else { Err(Fault::Lengths) }
}

/// Writes the blocks of one direction.
#[derive(Debug, Default)]
pub(super) struct Storer {
    began: bool,
}

impl Storer {
    /// The block of these headers.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        let number = |out: &mut Vec<u8>, length: usize| {
            out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        };
        number(&mut plain, headers.0.len());
        for (name, value) in &headers.0 {
            for text in [name, value] {
                number(&mut plain, text.len());
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 16);
        if !self.began {
            self.began = true;
            out.extend_from_slice(&ZLIB_HEAD);
        }
        for stored in plain.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(stored.len()).unwrap_or(u16::MAX);
            out.push(0);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(stored);
        }
        out.extend_from_slice(&SYNC);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_dictionary_is_that_of_spdy_3() {
        let sum: String = Sha256::digest(DICTIONARY).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02");
    }

    /// What a peer that deflates sends, as moby/spdystream does.
    fn deflate(deflater: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        deflater.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn deflater() -> Compress {
        let mut deflater = Compress::new(Compression::best(), true);
        assert_eq!(deflater.set_dictionary(DICTIONARY).unwrap(), 0xe3c6_a7c2);
        deflater
    }

    fn plain(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut out = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            out.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    #[test]
    fn deflated_blocks_are_read_one_after_the_other() {
        let (mut theirs, mut ours) = (deflater(), Inflater::new());
        for port in ["80", "8080", "80"] {
            let pairs = [("streamtype", "data"), ("port", port), ("requestid", "0")];
            let headers = ours.read(&deflate(&mut theirs, &plain(&pairs))).unwrap();
            assert_eq!(headers, Headers::new(pairs));
            assert_eq!(headers.get("streamType"), Some("data"));
            assert_eq!(headers.get("absent"), None);
        }
    }

    #[test]
    fn wrong_blocks_are_told_apart() {
        let read = |bytes: &[u8]| Inflater::new().read(&deflate(&mut deflater(), bytes)).unwrap_err();
        assert_eq!(read(&plain(&[("Port", "1")])), Fault::Name);
        assert_eq!(read(&plain(&[("", "1")])), Fault::Name);
        assert_eq!(read(&plain(&[("a", "1"), ("a", "2")])), Fault::Name);
        assert_eq!(read(&[0, 0, 0, 1, 0, 0, 0, 9, b'a']), Fault::Lengths);
        assert_eq!(read(&[0, 0, 0, 0, 0]), Fault::Lengths);
        assert_eq!(read(&[]), Fault::Lengths);
        assert_eq!(read(&[255, 255, 255, 255]), Fault::TooLarge);
        assert_eq!(read(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]), Fault::Text);
        // A bomb: a megabyte of zeros in a kilobyte.
        assert_eq!(read(&vec![0; 1 << 20]), Fault::TooLarge);
        assert_eq!(Inflater::new().read(b"no zlib at all"), Err(Fault::Zlib));
        // Without the dictionary, or with another one.
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"another").unwrap();
        assert_eq!(Inflater::new().read(&deflate(&mut other, &plain(&[]))), Err(Fault::Zlib));
    }

    fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
        let map = proptest::collection::btree_map("[a-z0-9_-]{1,20}", "\\PC{0,200}", 0..8);
        map.prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read_again(blocks in proptest::collection::vec(pairs(), 1..5)) {
            let (mut storer, mut inflater) = (Storer::default(), Inflater::new());
            for pairs in blocks {
                let headers = Headers(pairs);
                prop_assert_eq!(inflater.read(&storer.block(&headers)), Ok(headers));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), zlib in any::<bool>()) {
            let bytes = if zlib { deflate(&mut deflater(), &bytes) } else { bytes };
            let mut inflater = Inflater::new();
            let _ = inflater.read(&bytes);
            let _ = inflater.read(&bytes);
        }
    }
}
