//! Who could change manifests besides root and the agent's user: whoever can, runs what they like as root.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bits of a mode: who may write besides the owner.
const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;
/// In a folder with this bit, names can only be changed by their owners and the folder's.
const STICKY: u32 = 0o1000;

/// What comes of manifests that others could have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permissions {
    /// Nobody looks.
    Ignore,
    /// They are taken, and told of.
    #[default]
    Warn,
    /// They are refused; what ran goes on.
    Refuse,
}

impl Permissions {
    /// As `strictManifestPermissions` says.
    #[must_use]
    pub fn of(strict: bool) -> Permissions {
        if strict { Permissions::Refuse } else { Permissions::Warn }
    }
}

/// Why somebody else could change this file or folder, with what to do about it; `None`: nobody could.
#[must_use]
pub fn objection(path: &Path, metadata: &Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    judge(path, metadata.uid(), metadata.mode() & 0o7777, own)
}

fn judge(path: &Path, owner: u32, mode: u32, own: u32) -> Option<String> {
    let path = quoted(path);
    if owner != 0 && owner != own {
        let name = if own == 0 { "root".to_owned() } else { own.to_string() };
        return Some(format!(
            "belongs to user {owner}, who decides by it what runs as root here: chown {name} {path}, and chmod go-w {path}"
        ));
    }
    let who = match mode & (GROUP | OTHERS) {
        0 => return None,
        GROUP => "its group",
        _ => "everybody",
    };
    Some(format!(
        "can be written by {who} (mode {mode:04o}), who decides by it what runs as root here: chmod go-w {path}"
    ))
}

/// As [`objection`], of a folder, together with those that it is in: who can rename one of them can put another in its
/// place.
#[must_use]
pub fn folder_objection(folder: &Path) -> Option<String> {
    let real: PathBuf = fs::canonicalize(folder).ok()?;
    let metadata = fs::metadata(&real).ok()?;
    if let Some(objection) = objection(&real, &metadata) {
        return Some(objection);
    }
    // Where the name itself is a link, who can change the link decides as well.
    let linked = fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_symlink());
    let around = linked.then(|| folder.parent().and_then(|parent| fs::canonicalize(parent).ok())).flatten();
    let above = real.ancestors().skip(1).chain(around.iter().flat_map(|around| around.ancestors()));
    for parent in above {
        let Ok(metadata) = fs::metadata(parent) else { continue };
        // Names in it that belong to root stay.
        if metadata.mode() & STICKY != 0 && metadata.uid() == 0 {
            continue;
        }
        if let Some(objection) = objection(parent, &metadata) {
            return Some(format!("is in {}, which {objection}", parent.display()));
        }
    }
    None
}

/// As [`objection`], of a file, together with where it is when its name is a link: who can write there can put another in
/// its place.
#[must_use]
pub fn file_objection(path: &Path, metadata: &Metadata) -> Option<String> {
    objection(path, metadata).or_else(|| {
        let target = fs::read_link(path).ok()?;
        let folder = path.parent()?.join(target);
        let folder = folder.parent()?;
        Some(format!("is a link into {}, which {}", folder.display(), folder_objection(folder)?))
    })
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte));
    if plain { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_link_is_as_good_as_the_folder_that_it_leads_into() {
        let dir = std::env::temp_dir().join(format!("coracle-links-{}", std::process::id()));
        fs::create_dir_all(dir.join("share")).unwrap();
        let mode = |name: &str, mode| fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(dir.join("share/a.yaml"), "").unwrap();
        mode("", 0o755);
        mode("share/a.yaml", 0o644);
        symlink("share/a.yaml", dir.join("a.yaml")).unwrap();
        let said = || file_objection(&dir.join("a.yaml"), &fs::metadata(dir.join("a.yaml")).unwrap());
        mode("share", 0o755);
        assert_eq!(said(), None);
        mode("share", 0o777);
        let why = said().unwrap();
        assert!(why.contains("is a link into") && why.contains("by everybody (mode 0777)"), "{why}");
        mode("share/a.yaml", 0o666);
        assert!(said().is_some_and(|why| why.starts_with("can be written by everybody (mode 0666)")));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn objections_say_who_and_what_to_do() {
        let path = Path::new("/etc/m");
        let judge = |owner, mode| judge(path, owner, mode, 0);
        assert_eq!(judge(0, 0o755), None);
        assert_eq!(judge(0, 0o600), None);
        assert_eq!(
            judge(0, 0o775).as_deref(),
            Some(
                "can be written by its group (mode 0775), who decides by it what runs as root here: chmod go-w /etc/m"
            )
        );
        assert!(judge(0, 0o1777).is_some_and(|said| said.contains("by everybody (mode 1777)")));
        assert!(
            judge(1000, 0o700).is_some_and(|said| said.contains("user 1000") && said.contains("chown root /etc/m"))
        );
        assert_eq!(super::judge(path, 1000, 0o700, 1000), None, "the agent's own user");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
