//! A layer's tar stream, without the content of its files: what it takes to put the exact stream together again.
//!
//! The digest of a layer is that of its tar stream, and no two programs write the same headers for the same folder. So
//! whatever is not the content of a file (headers, extension headers, padding, the end) is kept as it came, with marks
//! where the content of which file goes. [`Tar`] reads the stream from both, byte for byte: to export a layer, and to
//! prove that its folder is what its digest says. (The idea is tar-split's.)
//!
//! A recipe is the mark [`MAGIC`] and one zstd frame, with its checksum, of these steps; numbers are LEB128:
//!
//! | Step | What |
//! |---|---|
//! | `1` length bytes | bytes as they came |
//! | `2` length path | from here on, content is that of this file |
//! | `3` offset length | content of the file |
//! | `0` complete total | the end: whether the stream can be had again, and its length in bytes |

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use crate::sys::fs::Dir;

const MAGIC: &[u8; 8] = b"recipe1\n";
/// Raw bytes are gathered up to this many before they are handed to the compressor.
const GATHER: usize = 32 << 10;
/// As in the tar reader.
const LONGEST_PATH: u64 = 4095;
/// Headers compress to next to nothing at any level; this one costs next to nothing too.
const LEVEL: i32 = 1;

const END: u8 = 0;
const RAW: u8 = 1;
const FILE: u8 = 2;
const DATA: u8 = 3;

/// Writes a recipe while the stream passes by.
pub struct Recorder {
    out: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    gathered: Vec<u8>,
    total: u64,
    complete: bool,
    /// While content passes by, which is in a file.
    content: bool,
    /// The first failure; the rest is not written then.
    failed: Option<io::Error>,
}

/// A recorder, for the source that feeds it and the unpacker that tells it what is content.
pub type Shared = Rc<RefCell<Recorder>>;

impl Recorder {
    /// # Errors
    /// As writing `file`.
    pub fn new(mut file: File) -> io::Result<Recorder> {
        file.write_all(MAGIC)?;
        let mut out = zstd::stream::write::Encoder::new(BufWriter::new(file), LEVEL)?;
        out.include_checksum(true)?;
        Ok(Recorder {
            out,
            gathered: Vec::with_capacity(GATHER),
            total: 0,
            complete: true,
            content: false,
            failed: None,
        })
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.content {
            return;
        }
        if self.gathered.len() + bytes.len() > GATHER {
            self.flush();
        }
        if bytes.len() > GATHER {
            self.raw(bytes);
        } else {
            self.gathered.extend_from_slice(bytes);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(bytes).err();
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        let mut head = vec![RAW];
        put_number(&mut head, bytes.len() as u64);
        self.put(&head);
        self.put(bytes);
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let gathered = std::mem::take(&mut self.gathered);
            self.raw(&gathered);
            self.gathered = gathered;
            self.gathered.clear();
        }
    }

    /// What passes by until [`Recorder::content_ends`] is the content of the file `path`, relative to the folder and free
    /// of symlinks: `pieces` of it, each an offset and a length.
    pub fn content_begins(&mut self, path: &[u8], pieces: impl Iterator<Item = (u64, u64)>) {
        self.flush();
        let mut step = vec![FILE];
        put_number(&mut step, path.len() as u64);
        step.extend_from_slice(path);
        for (offset, length) in pieces {
            step.push(DATA);
            put_number(&mut step, offset);
            put_number(&mut step, length);
        }
        self.put(&step);
        self.content = true;
    }

    pub fn content_ends(&mut self) {
        self.content = false;
    }

    /// Content that passed by is not in the folder any more.
    pub fn lost(&mut self) {
        self.complete = false;
    }

    /// Ends the recipe; says whether the stream can be had again. Nothing is synced.
    ///
    /// # Errors
    /// The first failure of writing it.
    pub fn finish(mut self) -> io::Result<bool> {
        self.flush();
        let mut end = vec![END, u8::from(self.complete)];
        put_number(&mut end, self.total);
        self.put(&end);
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.out.finish()?.flush()?;
        Ok(self.complete)
    }
}

/// Shows what is read through it to a recorder.
pub struct Tap<R> {
    inner: R,
    recorder: Option<Shared>,
}

impl<R> Tap<R> {
    pub fn new(inner: R, recorder: Option<Shared>) -> Tap<R> {
        Tap { inner, recorder }
    }
}

impl<R: BufRead> Read for Tap<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Tap<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if amount > 0
            && let Some(recorder) = &self.recorder
        {
            // What is consumed is buffered: this reads nothing.
            match self.inner.fill_buf() {
                Ok(buffered) => recorder.borrow_mut().passed(&buffered[..amount]),
                Err(error) => recorder.borrow_mut().failed = Some(error),
            }
        }
        self.inner.consume(amount);
    }
}

/// The tar stream of a layer, from its folder and its recipe.
pub struct Tar {
    steps: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
    folder: Dir,
    file: Option<File>,
    path: Vec<u8>,
    state: State,
    total: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Raw(u64),
    Data(u64),
    Over,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged recipe: {what}"))
}

impl Tar {
    /// # Errors
    /// As opening either; `InvalidData` for what is no recipe.
    pub fn open(folder: &Path, recipe: &Path) -> io::Result<Tar> {
        let mut file = BufReader::new(File::open(recipe)?);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(|_| damaged("too short"))?;
        if magic != *MAGIC {
            return Err(damaged("unknown format"));
        }
        let mut steps = zstd::stream::read::Decoder::with_buffer(file)?;
        // More than what it was written with is not ours.
        steps.window_log_max(24)?;
        Ok(Tar {
            steps: BufReader::new(steps),
            folder: Dir::open(folder)?,
            file: None,
            path: Vec::new(),
            state: State::Between,
            total: 0,
        })
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.steps.read_exact(&mut byte).map_err(ended)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged("number too large"))
    }

    fn step(&mut self) -> io::Result<()> {
        self.state = match self.byte()? {
            RAW => State::Raw(self.number()?),
            FILE => {
                let length = self.number()?;
                if length > LONGEST_PATH {
                    return Err(damaged("path too long"));
                }
                let mut path = vec![0; length as usize];
                self.steps.read_exact(&mut path).map_err(ended)?;
                self.file = Some(self.open_content(&path).map_err(|e| of_file(&path, e))?);
                self.path = path;
                State::Between
            }
            DATA => {
                let (offset, length) = (self.number()?, self.number()?);
                let file = self.file.as_mut().ok_or_else(|| damaged("content of no file"))?;
                file.seek(SeekFrom::Start(offset))?;
                State::Data(length)
            }
            END => {
                let complete = self.byte()?;
                let total = self.number()?;
                // Reads the frame's checksum too.
                if !self.steps.fill_buf().map_err(ended)?.is_empty() {
                    return Err(damaged("goes on after its end"));
                }
                if complete != 1 {
                    let what = "content is not there any more: a later entry of the same layer replaced it";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
                if total != self.total {
                    return Err(damaged("wrong length"));
                }
                State::Over
            }
            _ => return Err(damaged("unknown step")),
        };
        Ok(())
    }

    fn open_content(&self, path: &[u8]) -> io::Result<File> {
        let (above, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        self.folder.in_root(OsStr::from_bytes(above))?.open_file(OsStr::from_bytes(name))
    }
}

fn ended(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("too short"),
        _ => damaged(&error.to_string()),
    }
}

fn of_file(path: &[u8], error: io::Error) -> io::Error {
    let path = String::from_utf8_lossy(&path[..path.len().min(300)]);
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

impl Read for Tar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let (count, left) = match self.state {
                State::Over => return Ok(0),
                State::Between | State::Raw(0) | State::Data(0) => {
                    self.step()?;
                    continue;
                }
                State::Raw(left) => {
                    let most = left.min(buf.len() as u64) as usize;
                    (self.steps.read(&mut buf[..most]).map_err(ended)?, left)
                }
                State::Data(left) => {
                    let most = left.min(buf.len() as u64) as usize;
                    let file = self.file.as_mut().ok_or_else(|| damaged("content of no file"))?;
                    (file.read(&mut buf[..most]).map_err(|e| of_file(&self.path, e))?, left)
                }
            };
            if count == 0 {
                return Err(match self.state {
                    State::Raw(_) => damaged("too short"),
                    _ => of_file(&self.path, io::Error::new(io::ErrorKind::UnexpectedEof, "shorter than it was")),
                });
            }
            let left = left - count as u64;
            self.state = if matches!(self.state, State::Raw(_)) { State::Raw(left) } else { State::Data(left) };
            self.total = self.total.saturating_add(count as u64);
            return Ok(count);
        }
    }
}

/// Appends a number as LEB128.
pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
