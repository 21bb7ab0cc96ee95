//! Archives that can only be read from their beginning: what is unpacked of them, and what is not.

use crate::images::{Scratch, Tar, explain, gzip};
use crate::shapes::{self, GZIP, Members, PLAIN, ZSTD, dir, file, layer};
use coracle::image::unpack::Limits;
use coracle::image::{Error, ImageStore, architecture};
use serde_json::json;
use std::fs;
use std::path::Path;

/// A layer larger than what these tests allow: whoever unpacks it fails.
fn too_large() -> Vec<u8> {
    layer([file("large", vec![7; 3 << 20])])
}

fn small(scratch: &Scratch) -> ImageStore {
    ImageStore::open_with(&scratch.path("store"), Limits { bytes: 1 << 20, ..Limits::default() }).unwrap()
}

fn gzipped(members: &Members, order: impl IntoIterator<Item = String>) -> Vec<u8> {
    let tar = order.into_iter().fold(Tar::default(), |tar, name| tar.file(&name, &members[&name]));
    gzip(&tar.end())
}

/// An image for this machine and one for another, of which the layers are too large; and the members with layers.
fn for_two_machines() -> (Members, Vec<String>) {
    let mut members = Members::new();
    let here = [layer([file("here", "x")]), layer([dir("d/"), file("d/also", "x")])];
    let list = [
        shapes::manifest(&mut members, &[too_large()], &[GZIP], "s390x"),
        shapes::manifest(&mut members, &here, &[ZSTD, PLAIN], architecture()),
    ];
    let layers = members.iter().filter(|(_, content)| content[0] != b'{').map(|(name, _)| name.clone()).collect();
    let index = json!({ "schemaVersion": 2, "manifests": list }).to_string().into_bytes();
    let top = shapes::blob(&mut members, index, "application/vnd.oci.image.index.v1+json");
    (shapes::layout_of(members, top, "two:1"), layers)
}

#[test]
fn layers_for_other_machines_are_not_unpacked() {
    let (members, layers) = for_two_machines();
    let documents: Vec<String> = members.keys().filter(|name| !layers.contains(name)).cloned().collect();
    let large = layers.iter().position(|name| gzip(&too_large()) == members[name]).unwrap();
    let ours: Vec<String> = layers.iter().filter(|name| **name != layers[large]).cloned().collect();
    let orders: [Vec<&[String]>; 3] = [
        vec![&documents, &layers],
        // What came before anybody knew is not unpacked twice.
        vec![&ours[..1], &documents, &layers[large..=large], &ours[1..]],
        // One document is enough to know better.
        vec![
            &ours[..1],
            &documents[..documents.len() - 1],
            &layers[large..=large],
            &documents[documents.len() - 1..],
            &ours[1..],
        ],
    ];
    for (number, order) in orders.iter().enumerate() {
        let scratch = Scratch::new();
        let store = small(&scratch);
        let path = scratch.path("two.tar.gz");
        fs::write(&path, gzipped(&members, order.concat())).unwrap();
        let images = store.import(&path).unwrap_or_else(|error| panic!("{number}: {}", explain(&error)));
        assert_eq!(images.len(), 1, "{number}");
        assert_eq!(images[0].layers.len(), 2, "{number}");
        assert!(images[0].layers[0].join("here").is_file() && images[0].layers[1].join("d/also").is_file());
        assert_eq!(fs::read_dir(scratch.path("store/staging")).unwrap().count(), 0);
    }
    // Where nothing can be read twice, all of it is unpacked as it comes.
    let scratch = Scratch::new();
    let archive = gzipped(&members, [documents, layers].concat());
    let error = small(&scratch).import_stream(Path::new("-"), &archive[..]).unwrap_err();
    assert!(
        matches!(&error, Error::Member { source, .. } if matches!(**source, Error::Limit { .. })),
        "{}",
        explain(&error)
    );
}

#[test]
fn a_packed_archive_for_other_machines_only_says_for_which() {
    let scratch = Scratch::new();
    let mut members = Members::new();
    let top = shapes::manifest(&mut members, &[too_large()], &[GZIP], "s390x");
    let documents: Vec<String> = members.iter().filter(|(_, c)| c[0] == b'{').map(|(name, _)| name.clone()).collect();
    let members = shapes::layout_of(members, top, "foreign:1");
    let rest: Vec<String> = members.keys().filter(|name| !documents.contains(name)).cloned().collect();
    let path = scratch.path("foreign.tar.gz");
    fs::write(&path, gzipped(&members, [documents, rest].concat())).unwrap();
    let error = explain(&small(&scratch).import(&path).unwrap_err());
    assert!(error.contains("s390x"), "{error}");
}

#[test]
fn packed_blobs_that_are_here_are_not_unpacked_again() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let layers = [layer([file("a", "x")]), layer([file("b", "x")])];
    let path = scratch.path("archive.tar.gz");
    let members = shapes::oci_layout("one:1", &layers, &[GZIP, ZSTD]);
    fs::write(&path, gzip(&shapes::archive_of(&members))).unwrap();
    let first = store.import(&path).unwrap().remove(0);

    // The same blobs by name, but nobody could unpack them.
    let mut members = shapes::oci_layout("two:1", &layers, &[GZIP, ZSTD]);
    for content in members.values_mut().filter(|content| content[0] != b'{') {
        content.truncate(content.len() / 2);
    }
    fs::write(&path, gzip(&shapes::archive_of(&members))).unwrap();
    let second = store.import(&path).unwrap().remove(0);
    assert_eq!((second.id.as_str(), second.names.len()), (first.id.as_str(), 2));
    assert!(Scratch::new().store().import(&path).is_err());

    // A name is a claim: what the image says of the layer has to fit.
    let mut members = shapes::oci_layout("three:1", &[layers[0].clone()], &[GZIP]);
    let blob = members.iter().find(|(_, content)| content[0] != b'{').map(|(name, _)| name.clone()).unwrap();
    let own = shapes::oci_layout("four:1", &[too_large()], &[GZIP]);
    let config = own.iter().find(|(_, c)| c.windows(9).any(|w| w == b"\"diff_ids")).unwrap();
    let manifest = own.iter().find(|(_, c)| c.windows(8).any(|w| w == b"\"layers\"")).unwrap();
    let right =
        own.iter().find(|(_, c)| c[0] != b'{').map(|(name, _)| name.rsplit('/').next().unwrap().to_owned()).unwrap();
    let lie = String::from_utf8(manifest.1.clone()).unwrap().replace(&right, blob.rsplit('/').next().unwrap());
    members.insert(config.0.clone(), config.1.clone());
    let top = shapes::blob(&mut members, lie.into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let members = shapes::layout_of(members, top, "four:1");
    fs::write(&path, gzip(&shapes::archive_of(&members))).unwrap();
    let error = explain(&store.import(&path).unwrap_err());
    assert!(error.contains("layer, by its name,"), "{error}");
    assert!(store.lookup("four:1").is_none());
}
