//! Termination messages: what a container wrote about its end, or the end of its log.

use super::Runtime;
use crate::pod::{Instance, Spec};
use k8s_openapi::api::core::v1::Container;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a message file that are read: its last ones (as kubelet).
const FILE_MOST: u64 = 4096;
/// Lines of a log that may become a message (as kubelet).
const LOG_LINES: usize = 80;
/// Bytes of them, the last ones (as kubelet).
const LOG_MOST: usize = 2048;
/// Bytes of a log that are read: more than 80 lines without text, or the longest line there is.
const LOG_TAIL: u64 = 64 * 1024;
/// Bytes of all messages of a pod together (as kubelet).
const POD_MOST: usize = 12 * 1024;

/// Adds what the container wrote to the message of a run that ended.
pub(super) fn add_file(path: &Path, run: &mut Instance) {
    if let Some(end) = &mut run.terminated
        && let Ok(bytes) = tail(path, FILE_MOST)
    {
        append(&mut end.message, String::from_utf8_lossy(&bytes).into_owned());
    }
}

/// As kubelet: appended to the runtime's message.
fn append(message: &mut String, text: String) {
    if text.is_empty() {
        return;
    }
    if !message.is_empty() {
        message.push_str(": ");
    }
    message.push_str(&text);
}

impl Runtime {
    /// Adds the end of the log to runs that failed without a word, where the container asks for that
    /// (`FallbackToLogsOnError`), and cuts all messages to what a pod's status may hold.
    pub(super) fn complete_messages(&self, spec: &Spec, container: &Container, runs: &mut [Instance]) {
        let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let dir = self.layout.container(spec.uid(), &container.name);
        let most = POD_MOST / spec.all_containers().count().max(1);
        for run in runs {
            let Some(end) = &mut run.terminated else { continue };
            // Neither was run by anything whose words could be in the log.
            let silent = !matches!(end.reason.as_str(), "ContainerCannotRun" | "ContainerStatusUnknown");
            if fall_back && end.exit_code != 0 && silent {
                let file = std::fs::metadata(dir.join(format!("{}.message", run.attempt)));
                if file.map_or(true, |meta| meta.len() == 0)
                    && let Ok(bytes) = tail(&self.layout.log(spec.pod(), &container.name, run.attempt), LOG_TAIL)
                {
                    append(&mut end.message, of_log(&bytes));
                }
            }
            let cut = (0..=most.min(end.message.len())).rev().find(|at| end.message.is_char_boundary(*at));
            end.message.truncate(cut.unwrap_or(0));
        }
    }
}

/// The text of a log's last lines, without what the log's format adds.
fn of_log(bytes: &[u8]) -> String {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let first = lines.len().saturating_sub(LOG_LINES);
    let mut text = Vec::new();
    // Where the file was cut into, there is half a line: it has no head, and is no line of the format.
    for line in lines.drain(first..) {
        let mut parts = line.strip_suffix(b"\n").unwrap_or(line).splitn(4, |b| *b == b' ');
        let (time, stream, tag) = (parts.next(), parts.next(), parts.next());
        if !time.is_some_and(|t| t.first().is_some_and(u8::is_ascii_digit))
            || !matches!(stream, Some(b"stdout" | b"stderr"))
        {
            continue;
        }
        let full = match tag.and_then(|t| t.split(|b| *b == b':').next()) {
            Some(b"F") => true,
            Some(b"P") => false,
            _ => continue,
        };
        text.extend_from_slice(parts.next().unwrap_or_default());
        if full {
            text.push(b'\n');
        }
    }
    let mut start = text.len().saturating_sub(LOG_MOST);
    // Not in the middle of a character.
    while text.get(start).is_some_and(|b| b & 0xc0 == 0x80) && start + 4 > text.len().saturating_sub(LOG_MOST) {
        start += 1;
    }
    String::from_utf8_lossy(&text[start..]).into_owned()
}

fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(lines: &[(&str, &str)]) -> Vec<u8> {
        let line = |(tag, text): &(&str, &str)| format!("2026-01-01T00:00:00.000000000Z stdout {tag} {text}\n");
        lines.iter().map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn the_end_of_a_log_in_plain_words() {
        assert_eq!(of_log(b""), "");
        assert_eq!(of_log(&log(&[("F", "one"), ("P", "tw"), ("F", "o"), ("F", ""), ("P", "end")])), "one\ntwo\n\nend");
        assert_eq!(of_log(b"f a line that was cut\n2026 stderr F next\nno line\n2026 stdout X y\n"), "next\n");
        let many: Vec<(&str, &str)> = (0..100).map(|n| ("F", if n < 20 { "early" } else { "late" })).collect();
        assert_eq!(of_log(&log(&many)), "late\n".repeat(80));
        let long = "x".repeat(1100);
        let text = of_log(&log(&[("F", &long), ("F", &long), ("F", "last")]));
        assert!(text.len() == LOG_MOST && text.ends_with("x\nlast\n"));
        assert!(of_log(&log(&[("P", &"é".repeat(1500)), ("F", "!")])).starts_with('é'));
    }

    proptest! {
        #[test]
        fn any_log_gives_a_bounded_message(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            // Each byte that is no text becomes a character of three.
            prop_assert!(of_log(&bytes).len() <= 3 * LOG_MOST);
            let line = [b"2026 stdout F ", &bytes[..], b"\n"].concat();
            prop_assert!(of_log(&line).len() <= 3 * LOG_MOST);
        }
    }
}
