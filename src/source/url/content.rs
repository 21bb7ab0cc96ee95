//! What is in a document: one manifest, or an archive of some; compressed or not.

use std::collections::BTreeMap;
use std::io::Read;

use super::answer::{Content, Failure, Kind, content};
use crate::http;
use crate::image::tarball::{self, Forward, Reader};
use crate::manifest;

/// Most manifests of an archive.
const MOST_MANIFESTS: usize = 1024;
/// Longest name of one that people are shown, in characters.
const LONGEST_NAME: usize = 200;
const BLOCK: usize = 512;

/// The manifests of a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// By their names in the archive; one that is no archive has one manifest without a name.
    pub(super) manifests: BTreeMap<String, Vec<u8>>,
    /// Names in the archive that look like manifests, and why they are none.
    pub(super) ignored: Vec<(String, &'static str)>,
}

/// What is in a document.
///
/// # Errors
/// When it holds no manifest, not even a broken one.
pub(super) fn contents(bytes: &[u8]) -> Result<Contents, Failure> {
    let unpacked;
    let bytes = match content(bytes) {
        Content::Gzip => {
            unpacked = http::unpack(bytes, manifest::MAX_BYTES).map_err(|e| {
                let reason = match e.kind() {
                    std::io::ErrorKind::FileTooLarge => {
                        format!("unpacked it is longer than the limit of {} bytes", manifest::MAX_BYTES - 1)
                    }
                    _ => format!("is no whole gzip stream: {e}"),
                };
                Failure::new(Kind::Archive, reason)
            })?;
            &unpacked[..]
        }
        _ => bytes,
    };
    match content(bytes) {
        Content::Tar => archive(bytes),
        Content::Gzip => Err(Failure::new(Kind::Archive, "is compressed twice")),
        Content::Empty => Err(Failure::new(Kind::Empty, "unpacked it is empty")),
        Content::Html => Err(Failure::new(Kind::Html, "is a page of HTML or XML, not a manifest")),
        Content::Text => {
            Ok(Contents { manifests: BTreeMap::from([(String::new(), bytes.to_vec())]), ignored: Vec::new() })
        }
    }
}

/// The manifests of an archive: regular files, in whatever folders, as they are named in a manifest directory.
fn archive(bytes: &[u8]) -> Result<Contents, Failure> {
    let malformed = |e: crate::image::Error| Failure::new(Kind::Archive, crate::causes::chain(&e));
    let mut rest = bytes;
    let mut reader = Reader::new(Forward(&mut rest));
    let mut contents = Contents::default();
    while let Some(member) = reader.next_member().map_err(malformed)? {
        let path = String::from_utf8_lossy(&member.path);
        let name = path.trim_start_matches("./").trim_start_matches('/');
        let last = name.rsplit('/').next().unwrap_or_default();
        if last.starts_with('.') || !super::super::directory::is_manifest(last) {
            continue;
        }
        let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).take(LONGEST_NAME).collect();
        let reason = match member.kind {
            tarball::Kind::File if member.sparse.is_none() => None,
            tarball::Kind::File => Some("ignored: is a sparse file"),
            tarball::Kind::Directory => continue,
            tarball::Kind::Link | tarball::Kind::Symlink => Some("ignored: is a link"),
            _ => Some("ignored: is not a regular file"),
        };
        if let Some(reason) = reason {
            contents.ignored.push((name, reason));
        } else {
            // No longer than the archive, which is in memory.
            let mut manifest = Vec::new();
            reader.read_to_end(&mut manifest).map_err(|source| malformed(crate::image::Error::Stream { source }))?;
            // As tar does: what comes later replaces what came before.
            contents.manifests.insert(name, manifest);
        }
        if contents.manifests.len() + contents.ignored.len() > MOST_MANIFESTS {
            let reason = format!("the archive holds more than {MOST_MANIFESTS} manifests");
            return Err(Failure::new(Kind::Archive, reason));
        }
    }
    // Two blocks of zeros are its end, of which the reader took the first: without them, members may be missing.
    if rest.get(..BLOCK).is_none_or(|block| block.iter().any(|&byte| byte != 0)) {
        return Err(Failure::new(Kind::Archive, "the archive broke off: its end is missing"));
    }
    if contents.manifests.is_empty() {
        let reason = "the archive holds no file named .yaml, .yml or .json; to remove all pods of it, put a list without \
                      items into it (kind: PodList, items: [])";
        return Err(Failure::new(Kind::Archive, reason));
    }
    Ok(contents)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use tar::{Builder, EntryType, Header};

    pub(in super::super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(in super::super) fn tar(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, bytes) in members {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            if kind.is_symlink() {
                header.set_link_name("/etc/shadow").unwrap();
            }
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(contents: &Contents) -> Vec<&str> {
        contents.manifests.keys().map(String::as_str).collect()
    }

    #[test]
    fn archives_give_their_manifests_and_nothing_else() {
        let bytes = tar(&[
            ("./", EntryType::Directory, b""),
            ("./b.yaml", EntryType::Regular, b"b: 1"),
            ("sub/a.json", EntryType::Regular, b"{}"),
            ("c.yml", EntryType::Regular, b"old"),
            ("c.yml", EntryType::Regular, b"new"),
            ("README.md", EntryType::Regular, b"# text"),
            ("sub/._a.yaml", EntryType::Regular, b"from a mac"),
            (".hidden.yaml", EntryType::Regular, b"x"),
            ("link.yaml", EntryType::Symlink, b""),
            ("pipe.yaml", EntryType::Fifo, b""),
        ]);
        for bytes in [bytes.clone(), gzip(&bytes)] {
            let found = contents(&bytes).unwrap();
            assert_eq!(names(&found), ["b.yaml", "c.yml", "sub/a.json"]);
            assert_eq!(found.manifests["c.yml"], b"new");
            assert_eq!(
                found.ignored,
                [("link.yaml".into(), "ignored: is a link"), ("pipe.yaml".into(), "ignored: is not a regular file")]
            );
        }
        assert_eq!(names(&contents(&gzip(b"kind: Pod")).unwrap()), [""]);
    }

    #[test]
    fn what_holds_no_manifest_is_no_document() {
        let told = |bytes: Vec<u8>| contents(&bytes).unwrap_err().reason;
        assert!(told(tar(&[])).starts_with("the archive holds no file named"), "{}", told(tar(&[])));
        assert!(told(tar(&[("a.txt", EntryType::Regular, b"x")])).starts_with("the archive holds no file named"));
        assert_eq!(told(gzip(b" \n")), "unpacked it is empty");
        assert_eq!(told(gzip(&gzip(b"kind: Pod"))), "is compressed twice");
        assert_eq!(told(gzip(b"<html>")), "is a page of HTML or XML, not a manifest");
        assert_eq!(told(gzip(&vec![b' '; 11 << 20])), "unpacked it is longer than the limit of 10485759 bytes");
        assert!(told(b"\x1f\x8bnonsense".to_vec()).starts_with("is no whole gzip stream: "));
        let many: Vec<String> = (0..=MOST_MANIFESTS).map(|n| format!("{n}.yaml")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), EntryType::Regular, &b"a: b"[..])).collect();
        assert_eq!(told(tar(&many)), "the archive holds more than 1024 manifests");
    }

    #[test]
    fn an_archive_that_was_cut_off_is_none() {
        let whole = tar(&[("a.yaml", EntryType::Regular, b"a: 1"), ("b.yaml", EntryType::Regular, b"b: 2")]);
        assert_eq!(whole.len(), 3072);
        for cut in 263..whole.len() {
            assert!(contents(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let packed = gzip(&whole);
        for cut in 2..packed.len() {
            assert!(contents(&packed[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut archive = bytes.clone();
            archive.resize(archive.len().max(262), 0);
            archive[257..262].copy_from_slice(b"ustar");
            for bytes in [bytes.clone(), gzip(&bytes), archive.clone(), gzip(&archive)] {
                if let Ok(found) = contents(&bytes) {
                    prop_assert!(!found.manifests.is_empty());
                }
            }
        }

        #[test]
        fn a_damaged_archive_never_has_more_than_it_had(at in 0_usize..3072, byte in any::<u8>()) {
            let mut bytes = tar(&[("a.yaml", EntryType::Regular, b"a: 1"), ("b.yaml", EntryType::Regular, b"b: 2")]);
            bytes[at] = byte;
            if let Ok(found) = contents(&bytes) {
                prop_assert!(found.manifests.len() <= 2);
            }
        }
    }
}
