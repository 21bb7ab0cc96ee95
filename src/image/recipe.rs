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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::{self, Limits};
    use crate::sys::fs::{effective_owner, remove_tree};
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder of its own, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static SERIAL: AtomicU32 = AtomicU32::new(0);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("coracle-recipe-{}-{serial}", std::process::id()));
            remove_tree(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            std::fs::create_dir(path.join("folder")).unwrap();
            Scratch(path)
        }

        /// Unpacks a stream and puts it together again.
        fn round(&self, tar: &[u8]) -> (bool, io::Result<Vec<u8>>) {
            let (folder, recipe) = (self.0.join("folder"), self.0.join("recipe"));
            let learnt = unpack::layer_recorded(&mut &tar[..], &folder, &Limits::default(), &recipe).unwrap();
            let mut again = Vec::new();
            let read = Tar::open(&folder, &recipe).and_then(|mut tar| tar.read_to_end(&mut again));
            (learnt.complete, read.map(|_| again))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = remove_tree(&self.0);
        }
    }

    #[derive(Debug, Clone)]
    enum Member {
        File(Vec<u8>),
        Directory,
        Symlink,
        Link,
        Long,
        Comment(Vec<u8>),
    }

    fn archive(members: &[(u8, Member)]) -> Vec<u8> {
        let (uid, gid) = effective_owner();
        let mut builder = tar::Builder::new(Vec::new());
        let mut files = Vec::new();
        for (name, member) in members {
            let mut path = format!("d{}/{name}", name % 3);
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_uid(uid.into());
            header.set_gid(gid.into());
            header.set_mtime(u64::from(*name));
            header.set_size(0);
            let mut put = |kind: tar::EntryType, path: &str, data: &[u8]| {
                header.set_entry_type(kind);
                header.set_size(data.len() as u64);
                builder.append_data(&mut header.clone(), path, data).unwrap();
            };
            match member {
                Member::File(data) => {
                    put(tar::EntryType::Regular, &path, data);
                    files.push(path);
                }
                Member::Directory => put(tar::EntryType::Directory, &format!("{path}-dir"), &[]),
                Member::Long => {
                    path.push_str(&"x".repeat(200));
                    put(tar::EntryType::Regular, &path, path.clone().as_bytes());
                }
                Member::Comment(data) => {
                    let records = [("comment", data.as_slice())];
                    builder.append_pax_extensions(records).unwrap();
                    let mut header = header.clone();
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(data.len() as u64);
                    builder.append_data(&mut header, format!("{path}-pax"), data.as_slice()).unwrap();
                }
                Member::Symlink => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, format!("{path}-symlink"), "d0/../nowhere").unwrap();
                }
                Member::Link => {
                    if let Some(target) = files.last() {
                        header.set_entry_type(tar::EntryType::Link);
                        builder.append_link(&mut header, format!("{path}-link"), target).unwrap();
                    }
                }
            }
        }
        builder.into_inner().unwrap()
    }

    fn members() -> impl Strategy<Value = Vec<(u8, Member)>> {
        let data = || proptest::collection::vec(any::<u8>(), 0..1500);
        let member = prop_oneof![
            4 => data().prop_map(Member::File),
            1 => Just(Member::Directory),
            1 => Just(Member::Symlink),
            1 => Just(Member::Link),
            1 => Just(Member::Long),
            1 => data().prop_map(Member::Comment),
        ];
        proptest::collection::vec((any::<u8>(), member), 0..12)
    }

    /// Two files, the second an old GNU sparse one, and what some tools leave after the end.
    fn sparse() -> Vec<u8> {
        let (uid, gid) = effective_owner();
        let mut header = tar::Header::new_gnu();
        header.set_path("sparse").unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_mode(0o600);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(7);
        header.set_size(700);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(100_000);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip([(512u64, 600u64), (90_000, 100)]) {
            slot.set_offset(offset);
            slot.set_length(length);
        }
        header.set_cksum();
        let mut tar = archive(&[(1, Member::File(vec![7; 3000]))]);
        tar.truncate(tar.len() - 1024);
        tar.extend_from_slice(header.as_bytes());
        tar.extend((0..700u32).map(|i| (i % 251) as u8));
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        tar.extend_from_slice(b"and something after the end");
        tar
    }

    #[test]
    fn sparse_files_and_what_follows_the_end_come_back() {
        let scratch = Scratch::new();
        let tar = sparse();
        let (complete, again) = scratch.round(&tar);
        assert!(complete);
        assert!(again.unwrap() == tar);
        // The sparse map was understood: the file has its holes.
        assert_eq!(std::fs::metadata(scratch.0.join("folder/sparse")).unwrap().len(), 100_000);
        // A changed file gives another stream, a shorter one none.
        let file = scratch.0.join("folder/d1/1");
        let read = || {
            let mut again = Vec::new();
            Tar::open(&scratch.0.join("folder"), &scratch.0.join("recipe"))?.read_to_end(&mut again)?;
            io::Result::Ok(again)
        };
        std::fs::write(&file, [8; 3000]).unwrap();
        assert!(read().unwrap() != tar);
        std::fs::write(&file, [7; 2999]).unwrap();
        assert!(read().unwrap_err().to_string().contains("d1/1"));
    }

    #[test]
    fn a_stream_whose_content_is_gone_says_so() {
        let twice = [(3, Member::File(b"first".to_vec())), (3, Member::File(b"second".to_vec()))];
        let (complete, again) = Scratch::new().round(&archive(&twice));
        assert!(!complete);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::Unsupported);
        let (complete, again) = Scratch::new().round(&archive(&twice[..1]));
        assert!(complete && again.is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn streams_come_back_byte_for_byte(members in members()) {
            let tar = archive(&members);
            let (complete, again) = Scratch::new().round(&tar);
            match again {
                Ok(again) => prop_assert!(complete && again == tar),
                // It may be noticed before the end, where the recipe says that it is incomplete.
                Err(error) => prop_assert!(!complete, "{}", error),
            }
        }

        #[test]
        fn no_recipe_makes_it_panic(steps in proptest::collection::vec(any::<u8>(), 0..200), packed in any::<bool>()) {
            let scratch = Scratch::new();
            std::fs::write(scratch.0.join("folder/a"), b"content").unwrap();
            let mut recipe = MAGIC.to_vec();
            // Mostly steps that mean something.
            let steps: Vec<u8> = steps.iter().map(|&b| if b < 128 { b % 5 } else { b }).collect();
            recipe.extend(if packed { zstd::encode_all(&steps[..], 1).unwrap() } else { steps });
            std::fs::write(scratch.0.join("recipe"), &recipe).unwrap();
            let read = Tar::open(&scratch.0.join("folder"), &scratch.0.join("recipe"))
                .and_then(|tar| io::copy(&mut tar.take(1 << 20), &mut io::sink()));
            if let Ok(length) = read {
                prop_assert!(length <= 1 << 20);
            }
        }

        #[test]
        fn a_cut_recipe_is_noticed(cut in 0usize..400) {
            let scratch = Scratch::new();
            let tar = sparse();
            prop_assert!(scratch.round(&tar).0);
            let recipe = std::fs::read(scratch.0.join("recipe")).unwrap();
            let cut = cut % recipe.len();
            std::fs::write(scratch.0.join("recipe"), &recipe[..cut]).unwrap();
            let read = Tar::open(&scratch.0.join("folder"), &scratch.0.join("recipe"))
                .and_then(|mut tar| io::copy(&mut tar, &mut io::sink()));
            prop_assert!(read.is_err());
        }
    }
}
