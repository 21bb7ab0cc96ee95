//! The keys of credentials, and which images they are for.

/// Whether the credentials under a key (`host[:port][/path]`) are for an image: as kubelet, the host's labels match one
/// by one, as many as there are, the port is the same and the path begins with the key's.
pub(super) fn is_for(key: &str, image: &str) -> bool {
    let (key_host, key_path) = split(key);
    let (image_host, image_path) = split(image);
    let (key_labels, key_port) = labels(key_host);
    let (image_labels, image_port) = labels(image_host);
    key_port == image_port
        && key_labels.len() == image_labels.len()
        && image_path.starts_with(key_path)
        && key_labels.iter().zip(&image_labels).all(|(pattern, label)| matches(pattern, label))
}

/// Host and path, which begins with a slash if there is one.
fn split(url: &str) -> (&str, &str) {
    url.find('/').map_or((url, ""), |slash| url.split_at(slash))
}

fn labels(host: &str) -> (Vec<&str>, &str) {
    match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host.split('.').collect(), port),
        _ => (host.split('.').collect(), ""),
    }
}

/// A shell pattern (`*`, `?`, `[a-z]`, `[^a]`, `\x`) against a label. A malformed pattern matches nothing.
fn matches(pattern: &str, label: &str) -> bool {
    let (pattern, label): (Vec<char>, Vec<char>) = (pattern.chars().collect(), label.chars().collect());
    let (mut p, mut l) = (0, 0);
    // Where the last star is, and how much of the label it takes so far.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, l));
            p += 1;
            continue;
        }
        let step = match (p < pattern.len(), label.get(l)) {
            (false, None) => return true,
            (true, Some(c)) => match one(&pattern[p..], *c) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                None => return false,
            },
            _ => None,
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                l += 1;
            }
            (None, Some((after, taken))) if taken < label.len() => {
                star = Some((after, taken + 1));
                (p, l) = (after, taken + 1);
            }
            (None, _) => return false,
        }
    }
}

/// Whether the first element of a pattern is for a character, and how long the element is; `None`: malformed.
fn one(pattern: &[char], c: char) -> Option<(bool, usize)> {
    match pattern.first()? {
        '?' => Some((true, 1)),
        '\\' => Some((*pattern.get(1)? == c, 2)),
        '[' => {
            let negated = pattern.get(1) == Some(&'^');
            let (mut at, mut found) = (1 + usize::from(negated), false);
            let first = at;
            let character = |at: &mut usize| -> Option<char> {
                let escaped = *pattern.get(*at)? == '\\';
                let c = *pattern.get(*at + usize::from(escaped))?;
                *at += 1 + usize::from(escaped);
                Some(c)
            };
            while *pattern.get(at)? != ']' || at == first {
                let low = character(&mut at)?;
                let mut high = low;
                if *pattern.get(at)? == '-' {
                    at += 1;
                    high = character(&mut at)?;
                }
                found |= (low..=high).contains(&c);
            }
            Some((found != negated, at + 1))
        }
        other => Some((*other == c, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_match_as_kubelet_matches_them() {
        for (key, image) in [
            ("gcr.io", "gcr.io/team/app"),
            ("*.io", "gcr.io/team/app"),
            ("g?r.io", "gcr.io/app"),
            ("[a-h]cr.io", "gcr.io/app"),
            ("[^a]cr.io", "gcr.io/app"),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com/app"),
            ("us-*.pkg.dev", "us-east1.pkg.dev/p/app"),
            ("*-*-b*.dev", "a-c-bd.dev/app"),
            ("host.example:5000", "host.example:5000/app"),
            ("host.example/team", "host.example/team/app"),
            // As kubelet: the path is a plain prefix.
            ("host.example/team", "host.example/teams/app"),
            ("[::1]:5000", "[::1]:5000/app"),
        ] {
            // The brackets of an address are a pattern too: as in kubelet, it stands for one character.
            assert_eq!(is_for(key, image), key != "[::1]:5000", "{key} {image}");
        }
        for (key, image) in [
            ("*.io", "a.gcr.io/app"),
            ("*", "gcr.io/app"),
            ("*.*.*", "gcr.io/app"),
            ("gcr.io", "gcr.io:443/app"),
            ("gcr.io:443", "gcr.io/app"),
            ("gcr.io/team", "gcr.io/app"),
            ("gcr.io", "gcr.iox/app"),
            ("gc?.io", "gc.io/app"),
            ("[a-", "a/app"),
            ("[]", "]/app"),
            ("\\", "\\/app"),
            ("a*b", "ac/app"),
        ] {
            assert!(!is_for(key, image), "{key} {image}");
        }
    }

    proptest! {
        #[test]
        fn every_pattern_ends(pattern in "[ab*?\\[\\]^\\\\-]{0,12}|\\PC{0,12}", label in "[ab-]{0,12}|\\PC{0,12}") {
            matches(&pattern, &label);
            is_for(&pattern, &label);
        }

        #[test]
        fn a_plain_label_is_for_itself_and_a_star_for_all(label in "[a-z0-9-]{1,12}", other in "[a-z0-9-]{1,12}") {
            prop_assert!(matches(&label, &label));
            prop_assert!(matches("*", &label));
            let around = format!("*{label}*");
            prop_assert_eq!(matches(&around, &other), other.contains(&label));
        }
    }
}
