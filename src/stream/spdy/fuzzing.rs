//! What the fuzz target does with a peer's bytes: only fuzzing and tests see this, so that each seed is a unit test too.

use super::frame::{Decoder, Encoder, Event, MAX_ID};
use super::headers::MAX_BLOCK;

/// What one has said, cut in two ways: the same events, no more bytes than came, and what can be said again is understood
/// again. The first byte says how it is cut.
pub fn spdy_frames(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let (whole, cut) = (read(bytes, bytes.len().max(1)), read(bytes, usize::from(*cut) + 1));
    assert_eq!(whole, cut, "how bytes are cut makes a difference");
}

/// All events in short, and whether there was a fault.
fn read(bytes: &[u8], cut: usize) -> (Vec<String>, bool) {
    let (mut decoder, mut encoder) = (Decoder::new(), Encoder::default());
    let (mut seen, mut data): (Vec<String>, usize) = (Vec::new(), 0);
    let mut last = None;
    for mut input in bytes.chunks(cut) {
        loop {
            let event = match decoder.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => return (seen, true),
            };
            // Pieces of one frame are one.
            if let Event::Data { id, bytes } = &event {
                data += bytes.len();
                if last != Some(*id) {
                    seen.push(format!("data {id}"));
                    last = Some(*id);
                }
                continue;
            }
            last = None;
            if let Event::Open { id, headers, .. } = &event {
                let mut again = Vec::new();
                encoder.open(&mut again, id & MAX_ID, headers);
                assert!(again.len() <= MAX_BLOCK + 64, "headers larger than they may be");
                let mut once = Decoder::new();
                // Only the first block of an encoder stands for itself.
                if seen.iter().all(|event| !event.starts_with("Open")) {
                    let told = once.next(&mut again.as_slice());
                    assert!(matches!(told, Ok(Some(Event::Open { headers: told, .. })) if told == *headers));
                }
            }
            seen.push(format!("{event:?}"));
        }
        assert!(input.is_empty(), "input is left over");
    }
    assert!(data <= bytes.len(), "more data than came");
    (seen, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn seeds_of_spdy_frames() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/spdy_frames");
        let mut count = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            spdy_frames(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{}: no seeds", dir.display());
    }
}
