//! Sizes of terminals, as clients send them: `{"Width":80,"Height":24}`.

use super::Size;
use serde::Deserialize;

/// Longest text of one size; anything longer is none.
const LONGEST: usize = 1024;

impl Size {
    /// Reads one size; `None`: it is none.
    pub(super) fn parse(json: &[u8]) -> Option<Size> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(alias = "width", rename = "Width")]
            width: u16,
            #[serde(alias = "height", rename = "Height")]
            height: u16,
        }
        let told: Told = serde_json::from_slice(json).ok()?;
        Some(Size { width: told.width, height: told.height })
    }
}

/// Sizes back to back in a stream of bytes, cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    rest: Vec<u8>,
}

impl Sizes {
    /// Takes more of the stream; returns the last size that is whole now.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Size> {
        let mut last = None;
        for &byte in bytes {
            self.rest.push(byte);
            if byte == b'}' {
                last = Size::parse(&self.rest).or(last);
                self.rest.clear();
            } else if self.rest.len() > LONGEST {
                self.rest.clear();
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_between_sizes_is_skipped() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(br#"{"Width":80,"Hei"#), None);
        assert_eq!(sizes.feed(br#"ght":24}"#), Some(Size { width: 80, height: 24 }));
        assert_eq!(sizes.feed(br#"{"Width":70000,"Height":1} {"Width":"x"}nonsense}"#), None);
        assert_eq!(sizes.feed(br#"{"width":1,"height":2}"#), Some(Size { width: 1, height: 2 }));
    }

    proptest! {
        #[test]
        fn sizes_survive_any_cut(width: u16, height: u16, cut in 1usize..30, noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut sizes = Sizes::default();
            sizes.feed(&noise);
            sizes.feed(b"}");
            let text = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
            let mut last = None;
            for piece in text.as_bytes().chunks(cut) {
                last = sizes.feed(piece).or(last);
            }
            prop_assert_eq!(last, Some(Size { width, height }));
            prop_assert!(sizes.rest.len() <= LONGEST);
        }
    }
}
