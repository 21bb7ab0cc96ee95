//! CRI log files: `<RFC 3339 time> stdout|stderr F|P <text>`, one line each, rotated by size.

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest text of one log line in bytes; longer output lines are cut into `P` (partial) lines and a last `F` (full).
pub(super) const MAX_TEXT: usize = 16 * 1024;

/// Which of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Cuts one output stream into log lines.
#[derive(Debug)]
pub(super) struct Encoder {
    stream: Stream,
    /// Text whose end of line has not been seen; at most [`MAX_TEXT`] bytes.
    pending: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(stream: Stream) -> Encoder {
        Encoder { stream, pending: Vec::new() }
    }

    /// Appends to `out` the lines that `data` completes.
    pub(super) fn feed(&mut self, mut data: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        let head = format!("{now:.9} {} ", self.stream.name());
        while let Some(end) = data.iter().position(|&byte| byte == b'\n') {
            let text = self.split(&data[..end], &head, out);
            line(out, &head, b'F', &[&self.pending, text]);
            self.pending.clear();
            data = &data[end + 1..];
        }
        let rest = self.split(data, &head, out);
        self.pending.extend_from_slice(rest);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// Appends what has no end of line, as a partial line (as containerd).
    pub(super) fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            line(out, &format!("{now:.9} {} ", self.stream.name()), b'P', &[&self.pending]);
            self.pending = Vec::new();
        }
    }

    /// Writes partial lines until what is pending and the rest that is returned fit in one line.
    fn split<'a>(&mut self, mut text: &'a [u8], head: &str, out: &mut Vec<u8>) -> &'a [u8] {
        while self.pending.len() + text.len() > MAX_TEXT {
            let (now, later) = text.split_at(MAX_TEXT - self.pending.len());
            line(out, head, b'P', &[&self.pending, now]);
            self.pending.clear();
            text = later;
        }
        text
    }
}

fn line(out: &mut Vec<u8>, head: &str, tag: u8, text: &[&[u8]]) {
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// A container's log file. Its errors never reach the container: what cannot be written is counted and dropped.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// 0: never rotated.
    max: u64,
    /// Rotated files that are kept beside the live one; at least 1.
    rotated: usize,
    /// Bytes that could not be written since the last write that succeeded.
    dropped: u64,
    /// The file ends in the middle of a line.
    torn: bool,
}

impl Log {
    /// Opens the file for appending, making its folders.
    pub(super) fn open(path: PathBuf, max: u64, files: u32) -> io::Result<Log> {
        let rotated = usize::try_from(files.max(2) - 1).unwrap_or(usize::MAX);
        let mut log = Log { path, file: None, size: 0, max, rotated, dropped: 0, torn: false };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file by its name again: after someone renamed it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
                options.open(&self.path)?
            }
            other => other?,
        };
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Appends whole lines, rotating when they would make the file too big.
    pub(super) fn append(&mut self, mut lines: &[u8], now: Timestamp) {
        while !lines.is_empty() {
            let (fits, later) = lines.split_at(self.fitting(lines));
            if fits.is_empty() {
                if self.rotate(now).is_err() {
                    // Better a file that is too big than lost output; the next call tries again.
                    return self.append_here(lines, now);
                }
                self.torn = false;
            }
            self.append_here(fits, now);
            lines = later;
        }
    }

    /// How many bytes of `lines`, in whole lines, the file has room for; an empty file has room for any line.
    fn fitting(&self, lines: &[u8]) -> usize {
        let room = usize::try_from(self.max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if self.max == 0 || lines.len() <= room {
            return lines.len();
        }
        match lines[..room].iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None if self.size == 0 => lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |end| end + 1),
            None => 0,
        }
    }

    fn append_here(&mut self, lines: &[u8], now: Timestamp) {
        if lines.is_empty() {
            return;
        }
        if self.file.is_none() && self.reopen().is_err() {
            self.dropped += lines.len() as u64;
            return;
        }
        if self.dropped > 0 {
            let end = if self.torn { "\n" } else { "" };
            let note = format!("{end}{now:.9} stderr F coracle: {} bytes of log could not be written\n", self.dropped);
            let (written, result) = self.write(note.as_bytes());
            if result.is_err() {
                self.torn |= written > 0;
                self.dropped += lines.len() as u64;
                return;
            }
            self.dropped = 0;
            self.torn = false;
        }
        let (written, result) = self.write(lines);
        if result.is_err() {
            self.dropped += (lines.len() - written) as u64;
            self.torn = written > 0 && lines[written - 1] != b'\n';
        }
    }

    /// Writes until done or refused; tells how much went in.
    fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let Some(file) = &mut self.file else { return (0, Err(io::ErrorKind::NotFound.into())) };
        let mut written = 0;
        let result = loop {
            match file.write(&bytes[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => break Err(e),
            }
            if written == bytes.len() {
                break Ok(());
            }
        };
        self.size += written as u64;
        (written, result)
    }

    /// Renames the file to `<name>.YYYYMMDD-HHMMSS` (as kubelet, but in UTC), starts a new one, and deletes all but
    /// the newest rotated ones.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut rotated: Vec<(DateTime, String)> = fs::read_dir(&dir)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|file| Some((rotated_at(&file, &name)?, file)))
            .collect();
        rotated.sort_unstable();
        // The names must sort by age, also with two rotations in a second or a clock that was set back.
        let mut stamp = jiff::tz::TimeZone::UTC.to_datetime(now);
        if let Some((newest, _)) = rotated.last()
            && stamp.strftime(STAMP).to_string() <= newest.strftime(STAMP).to_string()
        {
            stamp = newest.checked_add(SignedDuration::from_secs(1)).map_err(io::Error::other)?;
        }
        fs::rename(&self.path, dir.join(format!("{name}.{}", stamp.strftime(STAMP))))?;
        self.file = None;
        self.size = 0;
        let reopened = self.reopen();
        for (_, old) in rotated.iter().rev().skip(self.rotated - 1) {
            let _ = fs::remove_file(dir.join(old));
        }
        reopened
    }
}

const STAMP: &str = "%Y%m%d-%H%M%S";

/// When `file` was rotated, if it is a rotated one of `name`.
fn rotated_at(file: &str, name: &str) -> Option<DateTime> {
    let stamp = file.strip_prefix(name)?.strip_prefix('.')?;
    DateTime::strptime(STAMP, stamp.strip_suffix(".gz").unwrap_or(stamp)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(log: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        for line in log.split_inclusive(|&b| b == b'\n') {
            let mut fields = line.splitn(4, |&b| b == b' ');
            let time = std::str::from_utf8(fields.next().unwrap()).unwrap();
            time.parse::<Timestamp>().unwrap();
            assert_eq!(fields.next().unwrap(), b"stdout");
            let tag = fields.next().unwrap();
            let text = fields.next().unwrap();
            assert!(text.len() <= MAX_TEXT + 1 && text.ends_with(b"\n"));
            output.extend_from_slice(if tag == b"P" { &text[..text.len() - 1] } else { text });
        }
        output
    }

    proptest! {
        #[test]
        fn logs_hold_what_was_written(
            pieces in proptest::collection::vec((0usize..20_000, prop::sample::select(vec![b'\n', b'x', b' ', 0xff])), 0..12),
            cut in 1usize..5000,
        ) {
            let mut data = Vec::new();
            for (length, last) in pieces {
                data.extend(std::iter::repeat_n(b'a', length));
                data.push(last);
            }
            let mut encoder = Encoder::new(Stream::Stdout);
            let mut log = Vec::new();
            for chunk in data.chunks(cut) {
                encoder.feed(chunk, Timestamp::UNIX_EPOCH, &mut log);
            }
            encoder.finish(Timestamp::UNIX_EPOCH, &mut log);
            prop_assert_eq!(decode(&log), data.clone());
            // How output was cut into reads is not seen.
            let mut whole = Vec::new();
            let mut encoder = Encoder::new(Stream::Stdout);
            encoder.feed(&data, Timestamp::UNIX_EPOCH, &mut whole);
            encoder.finish(Timestamp::UNIX_EPOCH, &mut whole);
            prop_assert_eq!(log, whole);
        }
    }

    #[test]
    fn format_is_as_the_kubelet_reads_it() {
        let mut log = Vec::new();
        let mut encoder = Encoder::new(Stream::Stderr);
        encoder.feed(b"one\n\ntw", Timestamp::UNIX_EPOCH, &mut log);
        encoder.finish(Timestamp::UNIX_EPOCH, &mut log);
        expect_test::expect![[r#"
            1970-01-01T00:00:00.000000000Z stderr F one
            1970-01-01T00:00:00.000000000Z stderr F 
            1970-01-01T00:00:00.000000000Z stderr P tw
        "#]]
        .assert_eq(std::str::from_utf8(&log).unwrap());
    }

    #[test]
    fn full_lines_of_just_the_limit_are_not_cut() {
        for (length, lines) in [(MAX_TEXT, 1), (MAX_TEXT + 1, 2), (2 * MAX_TEXT, 2), (2 * MAX_TEXT + 1, 3)] {
            let mut data = vec![b'x'; length];
            data.push(b'\n');
            let mut log = Vec::new();
            Encoder::new(Stream::Stdout).feed(&data, Timestamp::UNIX_EPOCH, &mut log);
            assert_eq!(log.split(|&b| b == b'\n').count() - 1, lines);
        }
    }

    #[test]
    fn rotation_keeps_the_newest() {
        let dir = std::env::temp_dir().join(format!("coracle-log-{}", std::process::id()));
        let mut log = Log::open(dir.join("c/0.log"), 100, 5).unwrap();
        let line = [vec![b'x'; 59], b"\n".to_vec()].concat();
        for _ in 0..8 {
            log.append(&line, Timestamp::UNIX_EPOCH);
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.join("c")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        expect_test::expect![[r#"
            [
                "0.log",
                "0.log.19700101-000003",
                "0.log.19700101-000004",
                "0.log.19700101-000005",
                "0.log.19700101-000006",
            ]
        "#]]
        .assert_debug_eq(&names);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_disk_drops_and_says_so_later() {
        let dir = std::env::temp_dir().join(format!("coracle-full-{}", std::process::id()));
        let mut log = Log::open(dir.join("0.log"), 0, 5).unwrap();
        log.append(b"before\n", Timestamp::UNIX_EPOCH);
        let good = log.file.replace(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.append(b"lost\n", Timestamp::UNIX_EPOCH);
        log.append(b"lost too\n", Timestamp::UNIX_EPOCH);
        log.file = good;
        log.append(b"after\n", Timestamp::UNIX_EPOCH);
        expect_test::expect![[r#"
            before
            1970-01-01T00:00:00.000000000Z stderr F coracle: 14 bytes of log could not be written
            after
        "#]]
        .assert_eq(&fs::read_to_string(dir.join("0.log")).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }
}
