//! Names of images, as people write them and as the store keeps them.

use oci_spec::distribution::{ParseError, Reference};

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
    let lower_case = || invalid("the repository must be lower case".into());
    let reference = name.parse::<Reference>().map_err(|error| {
        let repository = name.split('@').next().unwrap_or(name);
        let last = repository.rfind('/').map_or(0, |slash| slash + 1);
        let colon = repository[last..].find(':').map_or(repository.len(), |colon| last + colon);
        // The domain may have upper case, the path may not: say so instead of "invalid format".
        let path = &repository[repository.find('/').map_or(0, |slash| slash + 1).min(colon)..colon];
        match error {
            ParseError::ReferenceInvalidFormat if path.bytes().any(|b| b.is_ascii_uppercase()) => lower_case(),
            other => invalid(other.to_string()),
        }
    })?;
    // `A/b`: the grammar takes A for a domain, the completion then for part of the path.
    if reference.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(lower_case());
    }
    if reference.whole().len() > LONGEST {
        return Err(invalid(format!("longer than {LONGEST} characters")));
    }
    Ok(reference)
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
        #[test]
        fn never_panics_and_is_idempotent(name in "\\PC{0,80}|[a-zA-Z0-9.:/@_-]{0,60}") {
            if let Ok(full) = normalise(&name) {
                prop_assert_eq!(normalise(&full).unwrap(), full);
            }
        }
    }
}
