use super::*;
use proptest::prelude::*;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("coracle-copy-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn write(&self, path: &str, content: &[u8], mode: u32) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), content).unwrap();
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.at(path)).unwrap().mode() & 0o7777
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const NEAR: Belief = Belief { links: false, owners: false };
const INSIDE: Belief = Belief { links: true, owners: true };

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(path, &mut bytes, &mut |_| {}).unwrap();
    bytes
}

fn unpacked(bytes: &[u8], to: &Path, belief: Belief) -> (Result<(), String>, Vec<String>) {
    let mut warnings = Vec::new();
    let result = unpack(bytes, to, belief, &mut |text| warnings.push(text));
    (result.map_err(|error| crate::causes::chain(&error)), warnings)
}

#[test]
fn trees_come_out_as_they_went_in() {
    let place = Place::new("tree");
    let long = format!("src/{}/{}", "d".repeat(120), "f".repeat(120));
    place.write("src/run", b"#!", 0o4755);
    place.write("src/sub/secret", b"x", 0o600);
    place.write(&long, b"long", 0o644);
    symlink("run", place.at("src/link")).unwrap();
    fs::create_dir(place.at("there")).unwrap();
    let bytes = packed(&place.at("src"));
    assert_eq!(unpacked(&bytes, &place.at("copy"), INSIDE), (Ok(()), vec![]));
    assert_eq!((place.mode("copy/run"), place.mode("copy/sub/secret")), (0o4755, 0o600));
    assert_eq!(fs::read_link(place.at("copy/link")).unwrap(), Path::new("run"));
    assert_eq!(fs::read(place.at(&long.replacen("src", "copy", 1))).unwrap(), b"long");
    // Into a folder that is there, and over what is there.
    for _ in 0..2 {
        let (result, warnings) = unpacked(&bytes, &place.at("there"), NEAR);
        assert_eq!((result, warnings.len()), (Ok(()), 1), "{warnings:?}");
        assert_eq!(place.mode("there/src/run"), 0o755, "no archive gives rights");
    }
    assert!(!place.at("there/src/link").exists());
}

#[test]
fn one_file_is_renamed_or_goes_into_a_folder() {
    let place = Place::new("one");
    place.write("a", b"new", 0o640);
    place.write("b", b"old", 0o600);
    symlink("a", place.at("alias")).unwrap();
    let bytes = packed(&place.at("alias"));
    assert_eq!(unpacked(&bytes, &place.at("b"), NEAR).0, Ok(()));
    assert_eq!(fs::read(place.at("b")).unwrap(), b"new");
    fs::create_dir(place.at("d")).unwrap();
    assert_eq!(unpacked(&bytes, &place.at("d"), NEAR).0, Ok(()));
    assert_eq!(fs::read(place.at("d/alias")).unwrap(), b"new");
    assert!(unpacked(&bytes, &place.at("no/such"), NEAR).0.is_err());
    assert!(unpacked(&bytes, &place.at("none/"), NEAR).0.unwrap_err().contains("not a folder"));
    assert!(pack(&place.at("absent"), io::sink(), &mut |_| {}).is_err());
}

/// An archive of entries as nobody's `pack` writes them.
fn hostile(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o6777);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        if is_link {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if !is_link {
            bytes.extend_from_slice(content.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn no_archive_leads_out_of_its_place() {
    use EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let place = Place::new("hostile");
    fs::create_dir(place.at("out")).unwrap();
    place.write("victim", b"safe", 0o600);
    let try_it = |entries: &[(&str, EntryType, &str)]| unpacked(&hostile(entries), &place.at("out"), NEAR);
    for entries in [
        &[("../victim", Regular, "x")][..],
        &[("/tmp/coracle-never", Regular, "x")],
        &[("a/../../victim", Regular, "x")],
        &[("a", Directory, ""), ("b", Regular, "x")],
        &[(".", Directory, "")],
        &[],
    ] {
        assert!(try_it(entries).0.is_err(), "{entries:?}");
    }
    // What stands for a way out is left out, and what would go through it has no place then.
    let victim = place.at("victim");
    let victim = victim.to_str().unwrap();
    let links = [("l", Directory, ""), ("l/s", Symlink, ".."), ("l/h", Link, victim), ("l/f", Fifo, "")];
    let (result, warnings) = try_it(&links);
    assert_eq!((result, warnings.len()), (Ok(()), 3));
    assert!(try_it(&[("l", Directory, ""), ("l/s", Symlink, ".."), ("l/s/victim", Regular, "x")]).0.is_err());
    // Nor through a link that was there before.
    symlink("..", place.at("out/there")).unwrap();
    for entries in [&[("there/victim", Regular, "x")][..], &[("there", Directory, ""), ("there/victim", Regular, "x")]]
    {
        assert!(try_it(entries).0.is_err(), "{entries:?}");
    }
    assert_eq!(fs::read(place.at("victim")).unwrap(), b"safe");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_does_not_shift_what_follows() {
    let place = Place::new("shrinks");
    place.write("f", b"12345", 0o600);
    let mut short = Exactly { file: File::open(place.at("f")).unwrap(), left: 8, short: false };
    let mut all = Vec::new();
    short.read_to_end(&mut all).unwrap();
    assert_eq!((all.as_slice(), short.short), (&b"12345\0\0\0"[..], true));
    let mut long = Exactly { file: File::open(place.at("f")).unwrap(), left: 2, short: false };
    all.clear();
    long.read_to_end(&mut all).unwrap();
    assert_eq!((all.as_slice(), long.short), (&b"12"[..], false));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let place = Place::new("noise");
        fs::create_dir_all(place.at("out")).unwrap();
        let _ = unpack(bytes.as_slice(), &place.at("out"), NEAR, &mut |_| {});
    }
}
