//! A tar reader for archives that nobody vouches for.
//!
//! Reads ustar, GNU and PAX archives strictly forward, one member at a time, with bounded memory. It is ours because
//! the `tar` crate buffers extension headers of any size, splits PAX records at newlines (a binary `security.capability`
//! may contain one), and does not know the sparse files that GNU tar writes in PAX archives.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use super::Error;
use crate::sys::fs::Time;

const BLOCK: u64 = 512;
/// Largest extension header (PAX records, long names), in bytes. Extended attributes make up most of the big ones.
const LARGEST_EXTENSION: u64 = 1 << 20;
/// Most pieces of one sparse file; the map is kept in memory.
const MOST_SEGMENTS: usize = 1 << 16;
/// Most extended attributes of one member. File systems have room for some hundred short ones.
const MOST_XATTRS: usize = 1024;

/// What a member is, by its type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
    Other(u8),
}

/// One member of an archive; its data follows in [`Reader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub kind: Kind,
    /// As in the archive: may be absolute, hold `..`, be anything.
    pub path: Vec<u8>,
    /// Target of a link; empty when there is none.
    pub link: Vec<u8>,
    /// Permission bits, setuid, setgid, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Time,
    pub major: u32,
    pub minor: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data that follow in the archive.
    pub stored: u64,
    /// Where the data starts in the archive.
    pub offset: u64,
    pub sparse: Option<Sparse>,
}

/// How the data of a sparse file is spread out: the rest is zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sparse {
    pub size: u64,
    /// Offset and length, ascending, not overlapping; the lengths add up to what is stored.
    pub segments: Vec<(u64, u64)>,
}

/// Where an archive comes from.
pub trait Source: BufRead {
    /// Moves `count` bytes forward.
    ///
    /// # Errors
    /// As reading; `UnexpectedEof` when there are fewer.
    fn advance(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let buffered = self.fill_buf()?.len() as u64;
            if buffered == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = buffered.min(count);
            self.consume(step as usize);
            count -= step;
        }
        Ok(())
    }
}

/// A source that can only be read on.
pub struct Forward<R>(pub R);

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: BufRead> BufRead for Forward<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.0.consume(amount);
    }
}

impl<R: BufRead> Source for Forward<R> {}

/// A source that seeks over what is not wanted. Its end is not noticed while skipping.
impl<R: Read + Seek> Source for BufReader<R> {
    fn advance(&mut self, count: u64) -> io::Result<()> {
        match i64::try_from(count) {
            Ok(count) => self.seek_relative(count),
            Err(_) => self.seek(SeekFrom::End(0)).map(drop),
        }
    }
}

/// What extension headers say about the next member.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: Option<(u64, u64)>,
    sparse_path: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_numbers: Vec<u64>,
    sparse: bool,
}

/// Reads an archive member by member; as [`BufRead`] it gives the data of the current one.
pub struct Reader<S> {
    source: S,
    position: u64,
    /// Data of the current member that was not read yet.
    remaining: u64,
    /// What fills its last block up.
    padding: u64,
}

impl<S: Source> Reader<S> {
    pub fn new(source: S) -> Reader<S> {
        Reader { source, position: 0, remaining: 0, padding: 0 }
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Tar { offset: self.position, reason: reason.into() }
    }

    /// Goes on to the next member; `None` at the end of the archive.
    ///
    /// # Errors
    /// [`Error::Stream`] or [`Error::Tar`].
    pub fn next_member(&mut self) -> Result<Option<Member>, Error> {
        let mut extension = Extension::default();
        let mut extended = 0;
        loop {
            let rest = self.remaining.saturating_add(self.padding);
            self.source.advance(rest).map_err(|source| Error::Stream { source })?;
            self.position = self.position.saturating_add(rest);
            (self.remaining, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return match extended {
                    0 => Ok(None),
                    _ => Err(self.malformed("ends after an extension header")),
                };
            };
            let size = self.number("size", &header[124..136])?;
            let flag = header[156];
            match flag {
                b'L' | b'K' | b'x' | b'g' => {
                    extended += 1;
                    if extended > 16 {
                        return Err(self.malformed("too many extension headers in a row"));
                    }
                    let content = self.extension(size)?;
                    match flag {
                        b'L' => extension.path = Some(until_nul(&content).to_vec()),
                        b'K' => extension.link = Some(until_nul(&content).to_vec()),
                        b'x' => self.pax(&content, &mut extension)?,
                        // Global records hold comments in practice; as docker, they do not apply to members.
                        _ => {}
                    }
                }
                _ => return self.member(&header, extension, size).map(Some),
            }
        }
    }

    /// One header block; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, Error> {
        let mut header = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < header.len() {
            match self.source.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.malformed("ends within a header")),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Stream { source }),
            }
        }
        if header.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum = |value: fn(u8) -> i128| -> i128 {
            header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { value(b) }).sum()
        };
        let expected = number(&header[148..156]).unwrap_or(-1);
        // Some old writers added the bytes up as signed ones.
        if expected != sum(i128::from) && expected != sum(|b| i128::from(b as i8)) {
            return Err(self.malformed("wrong header checksum (damaged, or not a tar archive)"));
        }
        self.position += BLOCK;
        Ok(Some(header))
    }

    fn number(&self, what: &str, field: &[u8]) -> Result<u64, Error> {
        number(field)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.malformed(format!("{what} is not a number")))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > LARGEST_EXTENSION {
            return Err(self.malformed(format!("extension header of {size} bytes")));
        }
        self.begin(size)?;
        let mut content = Vec::with_capacity(size as usize);
        self.read_to_end(&mut content).map_err(|source| Error::Stream { source })?;
        Ok(content)
    }

    /// Data of `size` bytes starts here.
    fn begin(&mut self, size: u64) -> Result<(), Error> {
        let end = self.position.checked_add(size).and_then(|end| end.checked_add(BLOCK));
        if end.is_none() {
            return Err(self.malformed(format!("member of {size} bytes")));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    /// Takes in PAX records: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
    fn pax(&self, mut content: &[u8], extension: &mut Extension) -> Result<(), Error> {
        let bad = || self.malformed("malformed PAX record");
        while !content.is_empty() && content[0] != 0 {
            let space = content.iter().take(20).position(|&b| b == b' ').ok_or_else(bad)?;
            let length = decimal(&content[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            let record = content.get(space + 1..length).ok_or_else(bad)?;
            content = &content[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let whole = || decimal(value).ok_or_else(bad);
            let id = || whole().and_then(|n| u32::try_from(n).map_err(|_| bad()));
            match key {
                // POSIX: an empty value takes back what was said before.
                b"path" if value.is_empty() => extension.path = None,
                b"linkpath" if value.is_empty() => extension.link = None,
                b"size" if value.is_empty() => extension.size = None,
                b"uid" if value.is_empty() => extension.uid = None,
                b"gid" if value.is_empty() => extension.gid = None,
                b"mtime" if value.is_empty() => extension.modified = None,
                b"path" => extension.path = Some(value.to_vec()),
                b"linkpath" => extension.link = Some(value.to_vec()),
                b"size" => extension.size = Some(whole()?),
                b"uid" => extension.uid = Some(id()?),
                b"gid" => extension.gid = Some(id()?),
                b"mtime" => extension.modified = Some(pax_time(value).ok_or_else(bad)?),
                b"GNU.sparse.major" => extension.sparse_version.get_or_insert_default().0 = whole()?,
                b"GNU.sparse.minor" => extension.sparse_version.get_or_insert_default().1 = whole()?,
                b"GNU.sparse.name" => extension.sparse_path = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                    extension.sparse = true;
                    extension.sparse_size = Some(whole()?);
                }
                b"GNU.sparse.map" => {
                    extension.sparse = true;
                    for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                        extension.sparse_numbers.push(decimal(part).ok_or_else(bad)?);
                    }
                }
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    extension.sparse = true;
                    extension.sparse_numbers.push(whole()?);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        extension.xattrs.retain(|(other, _)| other != name);
                        extension.xattrs.push((name.to_vec(), value.to_vec()));
                        if extension.xattrs.len() > MOST_XATTRS {
                            return Err(self.malformed(format!("more than {MOST_XATTRS} attributes of one member")));
                        }
                    }
                }
            }
            if extension.sparse_numbers.len() > 2 * MOST_SEGMENTS {
                return Err(self.malformed("sparse file of too many pieces"));
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        header: &[u8; BLOCK as usize],
        extension: Extension,
        header_size: u64,
    ) -> Result<Member, Error> {
        let mut path = match extension.path {
            Some(path) => path,
            None => {
                let name = until_nul(&header[..100]);
                // Only ustar has the prefix; GNU keeps other things there.
                match until_nul(&header[345..500]) {
                    prefix if &header[257..263] == b"ustar\0" && !prefix.is_empty() => [prefix, b"/", name].concat(),
                    _ => name.to_vec(),
                }
            }
        };
        let kind = match header[156] {
            // Before ustar, a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let id = |what, field| self.number(what, field).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let modified = match extension.modified {
            Some(modified) => modified,
            None => {
                let seconds = number(&header[136..148]).and_then(|n| i64::try_from(n).ok());
                Time { seconds: seconds.ok_or_else(|| self.malformed("mtime is not a number"))?, nanoseconds: 0 }
            }
        };
        let device = matches!(kind, Kind::Char | Kind::Block);
        let mut member = Member {
            kind,
            path: Vec::new(),
            link: extension.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            mode: (self.number("mode", &header[100..108])? & 0o7777) as u32,
            uid: extension.uid.map_or_else(|| id("uid", &header[108..116]), Ok)?,
            gid: extension.gid.map_or_else(|| id("gid", &header[116..124]), Ok)?,
            modified,
            major: if device { id("device number", &header[329..337])? } else { 0 },
            minor: if device { id("device number", &header[337..345])? } else { 0 },
            xattrs: extension.xattrs,
            stored: extension.size.unwrap_or(header_size),
            offset: 0,
            sparse: None,
        };
        let gnu_sparse = header[156] == b'S';
        let mut segments = Vec::new();
        if gnu_sparse {
            self.gnu_segments(header, &mut segments)?;
        }
        if matches!(kind, Kind::Link | Kind::Symlink | Kind::Char | Kind::Block | Kind::Directory | Kind::Fifo) {
            // Some writers record the target's size; nothing follows, as every reader has it.
            member.stored = 0;
        }
        self.begin(member.stored)?;
        let pax_sparse = extension.sparse || extension.sparse_version.is_some();
        if kind == Kind::File && gnu_sparse {
            let size = self.number("real size", &header[483..495])?;
            member.sparse = Some(Sparse { size, segments });
        } else if kind == Kind::File && pax_sparse {
            let numbers = match extension.sparse_version {
                Some((1, 0)) => self.sparse_map()?,
                None | Some((0, _)) => extension.sparse_numbers,
                Some((major, minor)) => return Err(self.malformed(format!("sparse format {major}.{minor}"))),
            };
            let size = extension.sparse_size.ok_or_else(|| self.malformed("sparse file without a size"))?;
            if numbers.len() % 2 != 0 {
                return Err(self.malformed("sparse map of odd length"));
            }
            let segments = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            member.sparse = Some(Sparse { size, segments });
            if let Some(name) = extension.sparse_path {
                path = name;
            }
        }
        // The map of format 1.0 was part of the data.
        member.stored = self.remaining;
        if let Some(sparse) = &member.sparse {
            self.check_sparse(sparse, member.stored)?;
        }
        member.offset = self.position;
        member.path = path;
        Ok(member)
    }

    /// The map in an old GNU header and the blocks that continue it.
    fn gnu_segments(&mut self, header: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<(), Error> {
        let mut take = |this: &Self, table: &[u8]| -> Result<(), Error> {
            for entry in table.chunks_exact(24).take_while(|entry| entry[12] != 0) {
                segments.push((this.number("sparse offset", &entry[..12])?, this.number("sparse size", &entry[12..])?));
            }
            match segments.len() {
                0..=MOST_SEGMENTS => Ok(()),
                _ => Err(this.malformed("sparse file of too many pieces")),
            }
        };
        take(self, &header[386..482])?;
        let mut continued = header[482] != 0;
        while continued {
            let mut block = [0; BLOCK as usize];
            self.source.read_exact(&mut block).map_err(|source| Error::Stream { source })?;
            self.position += BLOCK;
            take(self, &block[..504])?;
            continued = block[504] != 0;
        }
        Ok(())
    }

    /// The map at the start of the data in sparse format 1.0: decimal numbers, one a line, padded to a block.
    fn sparse_map(&mut self) -> Result<Vec<u64>, Error> {
        let before = self.remaining;
        let next = |this: &mut Self| -> Result<u64, Error> {
            let mut line = Vec::new();
            loop {
                let mut byte = [0];
                this.read_exact(&mut byte).map_err(|source| Error::Stream { source })?;
                match byte[0] {
                    b'\n' => return decimal(&line).ok_or_else(|| this.malformed("malformed sparse map")),
                    digit if line.len() < 20 => line.push(digit),
                    _ => return Err(this.malformed("malformed sparse map")),
                }
            }
        };
        let count = next(self)?;
        if count > MOST_SEGMENTS as u64 {
            return Err(self.malformed("sparse file of too many pieces"));
        }
        let numbers = (0..count * 2).map(|_| next(self)).collect::<Result<Vec<_>, _>>()?;
        let taken = before - self.remaining;
        let fill = taken.next_multiple_of(BLOCK) - taken;
        if fill > self.remaining {
            return Err(self.malformed("malformed sparse map"));
        }
        self.source.advance(fill).map_err(|source| Error::Stream { source })?;
        self.position += fill;
        self.remaining -= fill;
        Ok(numbers)
    }

    fn check_sparse(&self, sparse: &Sparse, stored: u64) -> Result<(), Error> {
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in &sparse.segments {
            let next = offset.checked_add(length).filter(|&next| offset >= end && next <= sparse.size);
            end = next.ok_or_else(|| self.malformed("sparse map out of order"))?;
            // Cannot overflow: the pieces do not overlap.
            sum += length;
        }
        if sum != stored || sparse.segments.len() > MOST_SEGMENTS || i64::try_from(sparse.size).is_err() {
            return Err(self.malformed("sparse map does not fit the data"));
        }
        Ok(())
    }

    /// The source, wherever reading has stopped.
    pub fn into_source(self) -> S {
        self.source
    }
}

impl<S: Source> Read for Reader<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut data = self.fill_buf()?;
        let count = data.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

impl<S: Source> BufRead for Reader<S> {
    /// Data of the current member; an archive that ends within it is an error, not an end.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let data = self.source.fill_buf()?;
        if data.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a member"));
        }
        let count = self.remaining.min(data.len() as u64) as usize;
        Ok(&data[..count])
    }

    fn consume(&mut self, amount: usize) {
        self.source.consume(amount);
        self.remaining -= amount as u64;
        self.position += amount as u64;
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number of a header: octal digits, or (GNU, high bit set) a big-endian two's complement. Blank is zero.
fn number(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        return rest.iter().try_fold(start, |n, &byte| n.checked_mul(256)?.checked_add(byte.into()));
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0i128, |n, &digit| match digit {
        b'0'..=b'7' => Some(n * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`
fn pax_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |n, i| n * 10 + fraction.get(i).map_or(0, |digit| u32::from(digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// A header for what this program writes itself: of root's, and of no time.
///
/// # Errors
/// When the name is too long for one.
pub(super) fn header(name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<[u8; BLOCK as usize]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(*header.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, Error> {
        let mut reader = Reader::new(Forward(bytes));
        let mut members = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data).map_err(|source| Error::Stream { source })?;
            members.push((member, data));
        }
        Ok(members)
    }

    fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(3);
        header.set_cksum();
        header
    }

    #[test]
    fn pax_values_are_binary() {
        let mut builder = tar::Builder::new(Vec::new());
        let capability = b"\x01\x00\x00\x02\x0a\n=\n\x00";
        let records = [
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("mtime", b"-1.25"),
            ("path", b"deep/\xff"),
            ("uid", b"4294967294"),
        ];
        builder.append_pax_extensions(records).unwrap();
        builder.append(&header("short", tar::EntryType::Regular, 2), &b"hi"[..]).unwrap();
        let members = read_all(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(members.len(), 1);
        let (member, data) = &members[0];
        assert_eq!(data, b"hi");
        assert_eq!(member.path, b"deep/\xff");
        assert_eq!(member.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
        assert_eq!(member.modified, Time { seconds: -2, nanoseconds: 750_000_000 });
        assert_eq!((member.uid, member.gid, member.mode), (4294967294, 2, 0o644));
    }

    #[test]
    fn long_names_of_gnu() {
        let long = "d/".repeat(150) + "file";
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o600);
        builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        builder.append_link(&mut link, "l", &long).unwrap();
        let members = read_all(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(members[0].0.path, long.as_bytes());
        assert_eq!(members[1].0.link, long.as_bytes());
        assert_eq!(members[1].0.kind, Kind::Symlink);
    }

    #[test]
    fn sparse_maps_of_pax() {
        // Format 1.0: the map is the first block of the data.
        let mut data = b"2\n0\n3\n1000\n2\n".to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abcde");
        let mut builder = tar::Builder::new(Vec::new());
        let records = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", b"5000"),
        ];
        builder.append_pax_extensions(records).unwrap();
        builder.append(&header("GNUSparseFile.0/real", tar::EntryType::Regular, 517), &data[..]).unwrap();
        // Format 0.1: the map is a record.
        let records = [("GNU.sparse.size", &b"9"[..]), ("GNU.sparse.map", b"4,2")];
        builder.append_pax_extensions(records).unwrap();
        builder.append(&header("other", tar::EntryType::Regular, 2), &b"xy"[..]).unwrap();
        let members = read_all(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(members[0].0.path, b"real");
        assert_eq!(members[0].0.sparse, Some(Sparse { size: 5000, segments: vec![(0, 3), (1000, 2)] }));
        assert_eq!(members[0].1, b"abcde");
        assert_eq!(members[1].0.sparse, Some(Sparse { size: 9, segments: vec![(4, 2)] }));
    }

    #[test]
    fn malformed_archives_are_errors() {
        let good = {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append(&header("f", tar::EntryType::Regular, 600), &[7; 600][..]).unwrap();
            builder.into_inner().unwrap()
        };
        assert_eq!(read_all(&good).unwrap().len(), 1);
        assert!(matches!(read_all(&good[..300]), Err(Error::Tar { offset: 0, .. })));
        assert!(matches!(read_all(&good[..900]), Err(Error::Stream { .. })));
        let mut flipped = good.clone();
        flipped[1] ^= 1;
        assert!(matches!(read_all(&flipped), Err(Error::Tar { .. })));
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header("x", tar::EntryType::XHeader, 2 << 20), &b""[..]).unwrap();
        let error = read_all(&builder.into_inner().unwrap()).unwrap_err().to_string();
        assert!(error.contains("extension header of 2097152 bytes"), "{error}");
        for records in [&b"5 a=b"[..], b"99 a=b\n", b"x a=b\n", b"6 a=b\n\n", b"7 a.b.\n", b"3 \n"] {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append(&header("x", tar::EntryType::XHeader, records.len() as u64), records).unwrap();
            builder.append(&header("f", tar::EntryType::Regular, 0), &b""[..]).unwrap();
            let result = read_all(&builder.into_inner().unwrap());
            assert!(matches!(result, Err(Error::Tar { .. })), "{records:?}: {result:?}");
        }
    }

    #[test]
    fn numbers_of_headers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_result(
            mut blocks in proptest::collection::vec(proptest::array::uniform32(any::<u8>()), 0..64),
            flag in prop::sample::select(b"0125xgLKS\0".to_vec()),
        ) {
            // Half of the time a header with a right checksum, so that what follows is reached.
            let mut bytes = Vec::new();
            if blocks.len() % 2 == 0 {
                let mut header = header("f", tar::EntryType::new(flag), blocks.len() as u64 * 16);
                header.as_mut_bytes()[386..400].copy_from_slice(&[b'1'; 14]);
                header.set_cksum();
                bytes.extend_from_slice(header.as_bytes());
            }
            for block in &mut blocks {
                bytes.extend_from_slice(block);
            }
            let _ = read_all(&bytes);
        }
    }
}
