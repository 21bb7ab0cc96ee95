//! Folders that a layer puts files in and does not list have the attributes they have in the layers below: against what
//! `umoci` makes, which unpacks all layers into one folder.

use crate::harness::{output, secs};
use crate::images::Scratch;
use crate::shapes::{self, GZIP, Item, Overlay, Tree, dir, file, layer, same, symlink};
use coracle::image::blob::Compression;
use coracle::image::{Error, Image, ImageStore};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn import(scratch: &Scratch, store: &ImageStore, name: &str, layers: &[Vec<u8>]) -> Arc<Image> {
    let path = scratch.path("archive.tar");
    fs::write(&path, shapes::docker_archive(name, layers)).unwrap();
    store.import(&path).unwrap().remove(0)
}

fn seen(scratch: &Scratch, image: &Image) -> Tree {
    Overlay::mount(&image.layers, &scratch.dir("empty")).tree()
}

fn umoci(scratch: &Scratch, layers: &[Vec<u8>]) -> Tree {
    let (layout, bundle) = (scratch.path("layout"), scratch.path("bundle"));
    shapes::write_members(&layout, &shapes::oci_layout("it", layers, &[GZIP]));
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--keep-dirlinks", "--image"]).arg(format!("{}:it", layout.display())).arg(&bundle);
    output(&mut umoci, b"", secs(60)).ok();
    let tree = shapes::tree(&bundle.join("rootfs"));
    fs::remove_dir_all(layout).unwrap();
    fs::remove_dir_all(bundle).unwrap();
    tree
}

/// Compares all but the times of `made`, folders that nobody lists: they were made just now.
#[track_caller]
fn same_but(what: &str, made: &[&str], mut ours: Tree, mut theirs: Tree) {
    for tree in [&mut ours, &mut theirs] {
        for path in made {
            tree.get_mut(*path).unwrap_or_else(|| panic!("{what}: no {path}")).modified = (0, 0);
        }
    }
    same(what, &ours, &theirs);
}

#[test]
fn folders_that_a_layer_does_not_list_are_as_in_the_layers_below() {
    let scratch = Scratch::new();
    let store = scratch.store();
    // As builders do: what tools make of a root that nobody lists differs.
    let with_root = |items: Vec<Item>| layer([vec![dir("./").mode(0o751)], items].concat());
    let one = with_root(vec![
        dir("tmp/").mode(0o1777),
        dir("var/").mode(0o750).modified(5),
        dir("var/lib/").mode(0o711).owner(3, 4).xattr("user.note", "line\nline=\0end"),
        dir("var/lib/app/").mode(0o700).owner(5, 6).pax("mtime", "1234567890.123456789"),
        file("var/lib/app/old", "x"),
        dir("opaque/").mode(0o700),
        file("opaque/hidden", "x"),
        dir("anew/").mode(0o700),
        dir("file/").mode(0o700),
        symlink("link", "tmp"),
        dir(b"latin-\xe9/").mode(0o2770).modified(-7),
    ]);
    let two = with_root(vec![
        dir("tmp/").mode(0o700).owner(1, 1),
        dir("var/"),
        dir("var/lib/"),
        dir("var/lib/app/").mode(0o2755).pax("mtime", "-1.25"),
    ]);
    let shared = with_root(vec![
        file("tmp/x", "x"),
        file("var/lib/app/new", "x"),
        file("var/lib/other/new", "x"),
        file(b"latin-\xe9/x", "x"),
    ]);
    let twice = with_root(vec![file("tmp/y", "x"), file("var/lib/app/.wh.new", "")]);
    let hides = with_root(vec![
        file("opaque/.wh..wh..opq", ""),
        file("opaque/x", "x"),
        file(".wh.anew", ""),
        file("anew/x", "x"),
        file("file", "x"),
    ]);
    // Where umoci makes a folder that nobody lists, or makes one anew, the folder above has the time of then.
    let other = ["./var/lib", "./var/lib/other"];
    let cases = [
        ("one", vec![&one, &shared], other.to_vec()),
        // The same layer on top of another one.
        ("two", vec![&two, &shared], [&other[..], &[".", "./latin-\\xe9"]].concat()),
        (
            "alone",
            vec![&shared],
            [".", "./tmp", "./var", "./var/lib", "./var/lib/app", "./latin-\\xe9", other[1]].to_vec(),
        ),
        // Several that do not list it; one below that does, between two that do not.
        ("often", vec![&one, &shared, &twice], other.to_vec()),
        ("between", vec![&shared, &two, &twice], [&other[..], &[".", "./latin-\\xe9"]].concat()),
        // One above that lists it.
        ("above", vec![&one, &shared, &two], other.to_vec()),
        ("hides", vec![&one, &hides], vec![".", "./anew"]),
    ];
    for (name, layers, made) in &cases {
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| (*layer).clone()).collect();
        let image = import(&scratch, &store, &format!("{name}:1"), &layers);
        same_but(name, made, seen(&scratch, &image), umoci(&scratch, &layers));
        // It is the same image when it comes again, and with what is here already.
        assert_eq!(import(&scratch, &store, &format!("{name}:1"), &layers).layers, image.layers, "{name}");
    }
    let layers = |name: &str| store.resolve(name).unwrap().layers.clone();
    // The layer they share is one; so is the one on top where nothing needs it.
    assert_eq!(layers("one:1")[1], layers("two:1")[1]);
    assert_eq!(["one:1", "two:1", "alone:1", "often:1", "hides:1"].map(|name| layers(name).len()), [3, 3, 1, 4, 3]);

    // Nothing of it leaves with an image, and elsewhere it is made again.
    let mut archive = Vec::new();
    let export = store.export(&["one:1".into()]).unwrap();
    store.write_export(&export, &mut archive, Compression::None).unwrap();
    let elsewhere = Scratch::new();
    let copy = elsewhere.store().import_stream(Path::new("copy"), &archive[..]).unwrap().remove(0);
    let hexes = |layers: &[std::path::PathBuf]| -> Vec<_> {
        layers.iter().map(|l| l.file_name().unwrap().to_owned()).collect()
    };
    assert_eq!(hexes(&copy.layers), hexes(&layers("one:1")));
    assert_eq!(copy.config.rootfs().diff_ids().len(), 2);
    store.remove("one:1", &[]).unwrap();
    assert!(layers("often:1").iter().chain(&layers("two:1")).all(|layer| layer.is_dir()));
}

#[test]
fn a_root_that_is_not_listed_is_that_of_the_layer_below() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let image = |name: &str, root: Option<Item>| {
        let below = layer(root.into_iter().chain([file("a", "x")]));
        import(&scratch, &store, name, &[below, layer([file("b", "x")])])
    };
    use std::os::unix::fs::MetadataExt;
    let top = |image: &Image| {
        let facts = fs::metadata(image.layers.last().unwrap()).unwrap();
        (image.layers.len(), facts.mode() & 0o7777, (facts.uid(), facts.gid()))
    };
    assert_eq!(top(&image("special:1", Some(dir("./").mode(0o711).owner(1, 2)))), (3, 0o711, (1, 2)));
    // Nothing to be put right: no layer for it.
    assert_eq!(top(&image("usual:1", Some(dir("./").mode(0o755)))), (2, 0o755, (0, 0)));
    assert_eq!(top(&image("none:1", None)), (2, 0o755, (0, 0)));
}

#[test]
fn the_layer_of_attributes_is_made_again_when_it_is_lost() {
    let scratch = Scratch::new();
    let store = Arc::new(scratch.store());
    let layers = [layer([dir("d/").mode(0o700).owner(5, 6), file("d/a", "x")]), layer([file("d/b", "x")])];
    let image = import(&scratch, &store, "app:1", &layers);
    let whole = seen(&scratch, &image);
    assert_eq!(image.layers.len(), 3);
    let refetch = |_: &ImageStore, _: &Image, _: &coracle::image::Origin| Err("not asked".to_owned());
    // With its archive and without, alone and with a layer it is made of.
    for (archive, lost) in [(true, vec![2]), (true, vec![1, 2]), (false, vec![2])] {
        if !archive {
            fs::remove_file(scratch.path("archive.tar")).unwrap();
        }
        for layer in &lost {
            fs::remove_dir_all(&image.layers[*layer]).unwrap();
        }
        assert!(matches!(store.check(&image), Err(Error::Damaged(_))), "{lost:?}");
        let healed = store.heal(&image.id, &refetch).unwrap();
        assert_eq!(healed.layers, image.layers);
        assert!(store.check(&healed).is_ok());
        same("healed", &seen(&scratch, &healed), &whole);
    }
}
