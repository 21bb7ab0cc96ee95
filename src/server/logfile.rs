//! Reading log files in the CRI format: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`.
//!
//! A [`Reader`] turns such a file into what `logs` prints, step by step, so that neither a long log nor a follower
//! holds a thread or much memory. It survives rotation by name: the old file is read to its end, then the new one.

use crate::pod::clock::later;
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest raw line kept, in bytes; writers split at 16 KiB, so a longer one is damage and is dropped.
const MAX_LINE: usize = 256 * 1024;
/// Bytes read from the file at once.
const CHUNK: usize = 32 * 1024;

/// One raw line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Time as written.
    pub time: &'a str,
    /// Whether the text goes on in the next line of the same stream.
    pub tag: Tag,
    /// The text, without a newline.
    pub text: &'a [u8],
}

/// Whether a raw line ends a line of the container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The next raw line continues this one.
    Partial,
    /// The line ends here.
    Full,
}

impl<'a> Line<'a> {
    /// Reads a raw line, without its newline. `None`: it is damaged.
    pub fn parse(raw: &'a [u8]) -> Option<Line<'a>> {
        let mut parts = raw.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        if !time.as_bytes().first()?.is_ascii_digit() {
            return None;
        }
        if !matches!(parts.next()?, b"stdout" | b"stderr") {
            return None;
        }
        // Tags may be joined with ':'; the first is the only one defined.
        let tag = match parts.next()?.split(|byte| *byte == b':').next()? {
            b"F" => Tag::Full,
            b"P" => Tag::Partial,
            _ => return None,
        };
        Some(Line { time, tag, text: parts.next().unwrap_or_default() })
    }
}

/// Which part of a log is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Only this many last lines.
    pub tail: Option<u64>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
    /// Set when the clock was set: lines from before have other times.
    pub moved: Option<Moved>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Stop after this many bytes.
    pub limit: Option<u64>,
}

/// That the clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    /// What it would say now.
    pub now: Timestamp,
    /// How much more it says.
    pub by: SignedDuration,
}

impl Moved {
    /// The instant of a line as the clock tells it now. Of the two clocks by which its time may have been read, it was
    /// the one that it is nearer to.
    fn put_right(self, time: Timestamp) -> Timestamp {
        let after = later(self.now, self.by);
        match time.duration_since(self.now).abs() < time.duration_since(after).abs() {
            true => later(time, self.by),
            false => time,
        }
    }
}

/// Turns raw lines into output. Pure.
#[derive(Debug)]
pub(super) struct Filter {
    options: Options,
    /// A raw line whose end has not been seen.
    rest: Vec<u8>,
    /// The rest of a raw line that is too long is being skipped.
    skipping: bool,
    /// A line was late enough: so are all that follow, whatever the clock said then.
    begun: bool,
    /// The last line put out was partial: no time before the next.
    within: bool,
    /// Bytes that may still be put out.
    left: u64,
}

impl Filter {
    pub(super) fn new(options: Options) -> Filter {
        let left = options.limit.unwrap_or(u64::MAX);
        Filter { options, rest: Vec::new(), skipping: false, begun: false, within: false, left }
    }

    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Takes bytes of the file, puts out what they complete.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.last() == Some(&b'\n');
            if !self.skipping && self.rest.len() + piece.len() <= MAX_LINE {
                self.rest.extend_from_slice(piece);
            } else {
                self.skipping = true;
                self.rest.clear();
            }
            if ends {
                if !self.skipping {
                    let raw = std::mem::take(&mut self.rest);
                    self.line(&raw[..raw.len() - 1], out);
                    // Keeps the allocation for the next line.
                    self.rest = raw;
                    self.rest.clear();
                }
                self.skipping = false;
            }
        }
    }

    /// Forgets a half-read line: another file begins.
    pub(super) fn restart(&mut self) {
        self.rest.clear();
        self.skipping = false;
        self.within = false;
    }

    fn line(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = Line::parse(raw) else { return };
        if let Some(since) = self.options.since.filter(|_| !self.begun)
            && let Ok(time) = line.time.parse::<Timestamp>()
        {
            if self.options.moved.map_or(time, |moved| moved.put_right(time)) < since {
                return;
            }
            self.begun = true;
        }
        if self.options.timestamps && !self.within {
            self.put(line.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        self.within = line.tag == Tag::Partial;
        if !self.within {
            self.put(b"\n", out);
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let take = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        out.extend_from_slice(&bytes[..take]);
        self.left -= take as u64;
    }
}

/// Offset of the last `count` lines of a log. Lines split into parts count once, unlike in the kubelet.
fn tail_offset(file: &mut impl Read, count: u64) -> io::Result<Option<u64>> {
    if count == 0 {
        return Ok(None);
    }
    let mut starts: VecDeque<u64> = VecDeque::new();
    let mut chunk = vec![0; CHUNK];
    // Of a raw line only the head matters: time, stream and tag.
    let mut head: Vec<u8> = Vec::with_capacity(96);
    let (mut offset, mut line_start, mut within) = (0u64, 0u64, false);
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for piece in chunk[..read].split_inclusive(|byte| *byte == b'\n') {
            let room = 96usize.saturating_sub(head.len());
            head.extend_from_slice(&piece[..piece.len().min(room)]);
            offset += piece.len() as u64;
            if piece.last() != Some(&b'\n') {
                continue;
            }
            if let Some(line) = Line::parse(head.strip_suffix(b"\n").unwrap_or(&head)) {
                if !within {
                    starts.push_back(line_start);
                    if starts.len() as u64 > count {
                        starts.pop_front();
                    }
                }
                within = line.tag == Tag::Partial;
            }
            head.clear();
            line_start = offset;
        }
    }
    Ok(Some(starts.front().copied().unwrap_or(offset)))
}

/// Reads one log file, and the ones that take its name by rotation.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    file: Option<File>,
    filter: Filter,
}

/// What a [`Reader::step`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to read now.
    More,
    /// Everything there is was read.
    End,
    /// The limit was reached: nothing more will come.
    Full,
}

impl Reader {
    /// Opens a log and goes to where the options say. A file that does not exist yet reads as empty.
    pub(super) fn open(path: &Path, options: Options) -> io::Result<Reader> {
        let tail = options.tail;
        let mut reader = Reader { path: path.to_owned(), file: None, filter: Filter::new(options) };
        reader.open_file()?;
        if let (Some(file), Some(count)) = (&mut reader.file, tail) {
            match tail_offset(file, count)? {
                Some(offset) => file.seek(SeekFrom::Start(offset))?,
                None => file.seek(SeekFrom::End(0))?,
            };
        }
        Ok(reader)
    }

    /// Reads another file from now on, from its beginning (the container's next run).
    pub(super) fn switch(&mut self, path: &Path) -> io::Result<()> {
        self.path = path.to_owned();
        self.file = None;
        self.open_file()
    }

    /// The path being read.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a piece, appends what it says to `out`.
    pub(super) fn step(&mut self, out: &mut Vec<u8>) -> io::Result<Step> {
        if self.filter.is_full() {
            return Ok(Step::Full);
        }
        if self.file.is_none() {
            self.open_file()?;
        }
        let Some(file) = &mut self.file else { return Ok(Step::End) };
        let mut chunk = vec![0; CHUNK];
        let read = loop {
            match file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if read > 0 {
            self.filter.push(&chunk[..read], out);
            return Ok(if self.filter.is_full() { Step::Full } else { Step::More });
        }
        if !self.was_replaced()? {
            return Ok(Step::End);
        }
        // The writer renames, opens the new file, and only then writes again: now that the new file is there, nothing
        // is added to the old one any more, but something may have been since the read above.
        let mut late = Vec::new();
        if let Some(file) = &mut self.file {
            file.take(64 << 20).read_to_end(&mut late)?;
        }
        self.filter.push(&late, out);
        self.file = None;
        self.open_file()?;
        Ok(Step::More)
    }

    fn open_file(&mut self) -> io::Result<()> {
        match File::open(&self.path) {
            Ok(file) => {
                self.filter.restart();
                self.file = Some(file);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether another file has taken the name of the one being read, or it was cut.
    fn was_replaced(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        let there = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            // Between the two steps of a rotation, or the pod is gone; the caller knows which.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let here = file.metadata()?;
        let cut = here.len() < file.stream_position()?;
        Ok(cut || (there.dev(), there.ino()) != (here.dev(), here.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use std::io::Write as _;

    const LOG: &str = "2026-11-21T10:00:00.000000001Z stdout F one
2026-11-21T10:00:01.000000001Z stderr P tw
2026-11-21T10:00:01.000000002Z stderr F o
damaged
2026-11-21T10:00:02.000000001Z stdout F:x three with  blanks
2026-11-21T10:00:03.000000001Z stdout F 
2026-11-21T10:00:04.000000001Z stdout F last
";

    fn read(log: &str, options: Options) -> String {
        let offset = match options.tail {
            Some(count) => tail_offset(&mut log.as_bytes(), count).unwrap().unwrap_or(log.len() as u64),
            None => 0,
        };
        let mut filter = Filter::new(options);
        let mut out = Vec::new();
        filter.push(&log.as_bytes()[offset as usize..], &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_and_stripped() {
        expect![[r#"
            one
            two
            three with  blanks

            last
        "#]]
        .assert_eq(&read(LOG, Options::default()));
    }

    #[test]
    fn a_split_line_has_one_time() {
        let out = read(LOG, Options { timestamps: true, ..Options::default() });
        assert!(out.contains("2026-11-21T10:00:01.000000001Z two\n"), "{out}");
    }

    #[test]
    fn the_tail_counts_whole_lines() {
        let tail = |count| read(LOG, Options { tail: Some(count), ..Options::default() });
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "last\n");
        assert_eq!(tail(4), "two\nthree with  blanks\n\nlast\n");
        assert_eq!(tail(99), read(LOG, Options::default()));
    }

    #[test]
    fn since_is_told_by_the_clock_as_it_was_when_a_line_was_written() {
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let log = "1970-01-01T00:00:10.000000000Z stdout F old\n\
            1970-01-01T00:04:00.000000000Z stdout F late\n\
            2026-11-22T10:00:00.000000000Z stdout F new\n";
        // The clock was set one minute ago, from 1970-01-01T00:04:10Z to 2026-11-22T10:00:00Z.
        let by = at("2026-11-22T10:00:00Z").duration_since(at("1970-01-01T00:04:10Z"));
        let set = Some(Moved { now: at("1970-01-01T00:05:10Z"), by });
        let since = |time: &str, moved| read(log, Options { since: Some(at(time)), moved, ..Options::default() });
        assert_eq!(since("2026-11-22T09:59:00Z", set), "late\nnew\n");
        assert_eq!(since("2026-11-22T09:59:59Z", set), "new\n");
        assert_eq!(since("2026-11-22T09:59:00Z", None), "new\n");
        // The other way round: lines from before it was set back.
        let log = "2026-11-22T10:00:00.000000000Z stdout F old\n\
            2026-11-22T10:04:00.000000000Z stdout F late\n\
            1970-01-01T00:00:00.000000000Z stdout F new\n";
        let by = at("1970-01-01T00:00:00Z").duration_since(at("2026-11-22T10:04:10Z"));
        let set = Some(Moved { now: at("2026-11-22T10:05:10Z"), by });
        let since = |time: &str, moved| read(log, Options { since: Some(at(time)), moved, ..Options::default() });
        assert_eq!(since("1969-12-31T23:59:00Z", set), "late\nnew\n");
        assert_eq!(since("1969-12-31T23:59:59Z", set), "new\n");
    }

    #[test]
    fn since_and_limit_cut() {
        let since = Some("2026-11-21T10:00:03Z".parse().unwrap());
        assert_eq!(read(LOG, Options { since, ..Options::default() }), "\nlast\n");
        assert_eq!(read(LOG, Options { limit: Some(6), ..Options::default() }), "one\ntw");
    }

    #[test]
    fn following_survives_rotation_and_truncation() {
        let folder = std::env::temp_dir().join(format!("coracle-logfile-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("0.log");
        let _ = std::fs::remove_file(&path);
        let line = |text: &str| format!("2026-11-21T10:00:00Z stdout F {text}\n");
        let drain = |reader: &mut Reader| {
            let mut out = Vec::new();
            while reader.step(&mut out).unwrap() == Step::More {}
            String::from_utf8(out).unwrap()
        };

        let mut reader = Reader::open(&path, Options::default()).unwrap();
        assert_eq!(drain(&mut reader), "");
        let mut file = File::create(&path).unwrap();
        write!(file, "{}{}", line("a"), &line("b")[..10]).unwrap();
        assert_eq!(drain(&mut reader), "a\n");
        write!(file, "{}", &line("b")[10..]).unwrap();
        assert_eq!(drain(&mut reader), "b\n");
        std::fs::rename(&path, folder.join("0.log.1")).unwrap();
        assert_eq!(drain(&mut reader), "");
        write!(file, "{}", line("late")).unwrap();
        std::fs::write(&path, line("new")).unwrap();
        assert_eq!(drain(&mut reader), "late\nnew\n");
        std::fs::write(&path, line("x")).unwrap();
        assert_eq!(drain(&mut reader), "x\n");
        std::fs::write(folder.join("1.log"), line("next run")).unwrap();
        reader.switch(&folder.join("1.log")).unwrap();
        assert_eq!(drain(&mut reader), "next run\n");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_line_without_end_is_dropped_and_the_next_one_read() {
        let mut filter = Filter::new(Options::default());
        let mut out = Vec::new();
        for _ in 0..20 {
            filter.push(&vec![b'x'; MAX_LINE / 4], &mut out);
        }
        assert!(filter.rest.len() <= MAX_LINE);
        filter.push(b"\n2026-11-21T10:00:00Z stdout F ok\n", &mut out);
        assert_eq!(out, b"ok\n");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400, tail in 0u64..5) {
            let _ = Line::parse(&bytes);
            let offset = tail_offset(&mut bytes.as_slice(), tail).unwrap();
            prop_assert!(offset.unwrap_or(0) <= bytes.len() as u64);
            let mut filter = Filter::new(Options { timestamps: true, limit: Some(100), ..Options::default() });
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut out = Vec::new();
            filter.push(a, &mut out);
            filter.push(b, &mut out);
            prop_assert!(out.len() <= 100);
        }

        #[test]
        fn however_it_is_cut_the_output_is_the_same(cuts in proptest::collection::vec(1usize..40, 1..20)) {
            let mut filter = Filter::new(Options::default());
            let (mut out, mut rest) = (Vec::new(), LOG.as_bytes());
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                filter.push(piece, &mut out);
                rest = left;
            }
            filter.push(rest, &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), read(LOG, Options::default()));
        }
    }
}
