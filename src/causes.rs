//! Errors and their causes in one line, for events, status and logs.

use std::error::Error;

/// Most bytes of a line: what manifests and servers say may be of any length.
const LONGEST: usize = 4096;

/// An error and its causes.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    shortened(text)
}

/// An error and its causes without saying anything twice: for errors of others, some of which repeat their source.
#[must_use]
pub fn distinct(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    shortened(text)
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: String,
        source: Option<Box<Told>>,
    }

    fn told(texts: &[&str]) -> Told {
        let (first, rest) = texts.split_first().unwrap();
        let source = (!rest.is_empty()).then(|| Box::new(told(rest)));
        Told { text: (*first).to_owned(), source }
    }

    #[test]
    fn causes_follow_and_are_bounded() {
        assert_eq!(chain(&told(&["a", "b", "b"])), "a: b: b");
        assert_eq!(distinct(&told(&["a: b", "b", "c"])), "a: b: c");
        let long = chain(&told(&["ä".repeat(5000).as_str(), "b"]));
        assert!(long.len() <= LONGEST + '…'.len_utf8() && long.ends_with('…'));
    }
}
