//! Names of images, as people write them and as the store keeps them.

use oci_spec::distribution::Reference;

use super::Error;

/// Longest reference that is looked at. A name has at most 255 characters, a tag 128, a digest 71.
const LONGEST: usize = 512;

/// Parses a reference and completes it as docker and kubelet do: `nginx` is `docker.io/library/nginx:latest`. A digest
/// takes the place of the default tag.
///
/// # Errors
/// [`Error::InvalidImageName`].
pub fn parse(name: &str) -> Result<Reference, Error> {
    let invalid = |reason: String| Error::InvalidImageName { name: name.chars().take(LONGEST).collect(), reason };
    if name.len() > LONGEST {
        return Err(invalid(format!("longer than {LONGEST} characters")));
    }
    if let Some(odd) = name.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(invalid(format!("contains {odd:?}")));
    }
    // As docker: 64 hexadecimal digits are the ID of an image; taking them for a name would fetch what nobody meant.
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid("64 hexadecimal digits are an image ID, not a name".into()));
    }
    let reference = match Parts::of(name) {
        Some(parts) => parts.complete(),
        // The domain may have upper case, the path may not: say so instead of "invalid format".
        None if Parts::of(&name.to_ascii_lowercase()).is_some() => {
            return Err(invalid("the repository must be lower case".into()));
        }
        None if name.is_empty() => return Err(invalid("a name must have at least one component".into())),
        None => return Err(invalid("invalid reference format".into())),
    };
    if reference.whole().len() > LONGEST {
        return Err(invalid(format!("longer than {LONGEST} characters")));
    }
    Ok(reference)
}

/// The parts of a reference as written. Taken apart by hand: the regular expression of [`Reference`]'s own parser keeps
/// some 6 MB of memory for good, half of what the agent may have.
struct Parts<'a> {
    /// Before completion.
    domain: Option<&'a str>,
    path: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// `None`: not in the grammar of the distribution project.
    fn of(name: &'a str) -> Option<Parts<'a>> {
        let (name, digest) = match name.split_once('@') {
            Some((name, digest)) if is_digest(digest) => (name, Some(digest)),
            Some(_) => return None,
            None => (name, None),
        };
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].find(':') {
            Some(colon) if is_tag(&name[last + colon + 1..]) => {
                (&name[..last + colon], Some(&name[last + colon + 1..]))
            }
            Some(_) => return None,
            None => (name, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                if !is_domain(first) {
                    return None;
                }
                (Some(first), rest)
            }
            _ => (None, name),
        };
        let valid = path.split('/').all(is_component) && path.len() + domain.map_or(0, |d| d.len() + 1) <= 255;
        valid.then_some(Parts { domain, path, tag, digest })
    }

    /// As docker: `docker.io`, `library/`, `latest`.
    fn complete(self) -> Reference {
        let domain = match self.domain {
            None | Some("index.docker.io") => "docker.io",
            Some(domain) => domain,
        };
        let library = if domain == "docker.io" && !self.path.contains('/') { "library/" } else { "" };
        let (domain, path) = (domain.to_owned(), format!("{library}{}", self.path));
        match (self.tag.map(str::to_owned), self.digest.map(str::to_owned)) {
            (Some(tag), Some(digest)) => Reference::with_tag_and_digest(domain, path, tag, digest),
            (None, Some(digest)) => Reference::with_digest(domain, path, digest),
            (tag, None) => Reference::with_tag(domain, path, tag.unwrap_or_else(|| "latest".to_owned())),
        }
    }
}

/// Labels of letters, digits and inner hyphens, joined by dots; a port may follow.
fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, joined by one dot, one or two underscores, or hyphens.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(word) && text.bytes().last().is_some_and(word);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let joined = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    ends && separators.into_iter().all(joined)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// The algorithms that have a fixed length.
fn is_digest(text: &str) -> bool {
    let length = match text.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha384", _)) => 96,
        Some(("sha512", _)) => 128,
        _ => return false,
    };
    text.split_once(':').is_some_and(|(_, hex)| hex.len() == length && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The full form of a reference, [`parse`]d: what the store keeps and compares.
///
/// # Errors
/// [`Error::InvalidImageName`].
pub fn normalise(name: &str) -> Result<String, Error> {
    Ok(parse(name)?.whole())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.29", "docker.io/library/nginx:1.29"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("host.example:5000/a/b:c", "host.example:5000/a/b:c"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ] {
            assert_eq!(normalise(short).unwrap(), full);
            assert_eq!(normalise(full).unwrap(), full);
        }
        assert_eq!(normalise(&format!("app@sha256:{HEX}")).unwrap(), format!("docker.io/library/app@sha256:{HEX}"));
        assert_eq!(normalise(&format!("app:1@sha256:{HEX}")).unwrap(), format!("docker.io/library/app:1@sha256:{HEX}"));
    }

    #[test]
    fn bad_names_say_why() {
        let long = "a".repeat(600);
        for (bad, why) in [
            ("", "at least one component"),
            ("Nginx", "lower case"),
            ("host.example/App:1", "lower case"),
            ("Team/app", "lower case"),
            ("ng inx", "contains ' '"),
            ("nginx\n", "contains '\\n'"),
            ("nginx:", "invalid reference format"),
            (":tag", "invalid reference format"),
            ("a_a.0/b", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("../etc", "invalid reference format"),
            ("app@sha256:abcd", "invalid reference format"),
            (HEX, "image ID"),
            (&long, "longer than"),
        ] {
            let error = normalise(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    proptest! {
        /// What oci-spec's own parser says, but for what [`parse`] refuses on purpose.
        #[test]
        fn agrees_with_the_regular_expression(
            name in "[a-zA-Z0-9.:/@_-]{0,40}|([a-z0-9.-]{1,12}(:[0-9]{1,5})?/)?([a-z0-9_.-]{1,8}/){0,2}[a-z0-9_.-]{1,8}(:[a-zA-Z0-9_.-]{1,8})?",
        ) {
            let oracle = name.parse::<Reference>().ok().filter(|r| !r.repository().bytes().any(|b| b.is_ascii_uppercase()));
            match (parse(&name), oracle) {
                (Ok(ours), theirs) => prop_assert_eq!(Some(ours.whole()), theirs.map(|t| t.whole())),
                // As docker: what has a dot before the first slash is a host, and hosts have no underscores. The
                // expression alone would take it for a path.
                (Err(_), Some(_)) => {
                    let host = name.split_once('/').map_or("", |(host, _)| host);
                    prop_assert!(host.contains('.') && host.contains('_'), "refused {:?}", name);
                }
                (Err(_), None) => {}
            }
        }

        #[test]
        fn never_panics_and_is_idempotent(name in "\\PC{0,80}|[a-zA-Z0-9.:/@_-]{0,60}") {
            if let Ok(full) = normalise(&name) {
                prop_assert_eq!(normalise(&full).unwrap(), full);
            }
        }
    }
}
