//! What lies about in the store and belongs to nothing any more: rests of removals, and records set aside long ago.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::collector::mounted;
use super::{Error, ImageStore};
use crate::sys::fs::{self, Dir};

/// How long what was set aside can be looked at.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// How long it is kept at least by a clock that nobody sets: until the machine's has been set right.
const KEEP_AT_LEAST: Duration = Duration::from_secs(3600);

/// Since when this process knows of what was set aside.
pub(super) type Aside = HashMap<PathBuf, Instant>;

impl ImageStore {
    /// Removes what was moved out of the way and could not be removed then.
    pub(super) fn remove_rests(&self) -> Result<(), Error> {
        let staging = self.staging_dir();
        let listed = Dir::open(&staging).and_then(|dir| dir.entries()).map_err(Error::io("list", &staging))?;
        let rests: Vec<PathBuf> = (listed.iter())
            .filter(|(name, _)| name.to_string_lossy().starts_with("removed-"))
            .map(|(name, _)| staging.join(name))
            .collect();
        if rests.is_empty() {
            return Ok(());
        }
        let mounted = mounted()?;
        for path in rests {
            let name = path.to_string_lossy();
            if !mounted.iter().any(|hex| name.ends_with(hex.as_str()))
                && let Err(error) = fs::remove_tree(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove leftover");
            }
        }
        Ok(())
    }

    /// Removes what was set aside so long ago that nobody will look at it any more; how much of it stays.
    pub(super) fn remove_aside(&self, known: &mut Aside) -> usize {
        let (mut left, now) = (0, SystemTime::now());
        let all = self.files_aside();
        known.retain(|path, _| all.contains(path));
        for path in all {
            let known_for = known.entry(path.clone()).or_insert_with(Instant::now).elapsed();
            let age = set_aside_for(&path, now);
            if age.is_none() {
                // By a clock that was wrong: from now on it ages.
                let touched = std::fs::metadata(&path).and_then(|found| {
                    std::fs::set_permissions(&path, PermissionsExt::from_mode(found.mode() & 0o7777))
                });
                if let Err(error) = touched {
                    tracing::warn!(path = %path.display(), %error, "cannot put right when this was set aside");
                }
            }
            if known_for < KEEP_AT_LEAST || age.is_none_or(|age| age <= KEEP) {
                left += 1;
                continue;
            }
            tracing::info!(path = %path.display(), "what was damaged is removed");
            if let Err(error) = fs::remove_tree(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was damaged");
            }
        }
        left
    }

    /// How many records are set aside.
    pub(super) fn set_aside_count(&self) -> usize {
        self.files_aside().len()
    }

    fn files_aside(&self) -> Vec<PathBuf> {
        let all = [self.images_dir(), self.layers_dir()].into_iter().flat_map(|dir| listed(&dir).unwrap_or_default());
        all.filter(|path| path.extension() == Some(OsStr::new("damaged"))).collect()
    }
}

/// How long ago something was set aside; `None`: by the clock it has not been yet. Setting aside is a rename, which the
/// file's own time does not tell, but that of its change does.
fn set_aside_for(path: &Path, now: SystemTime) -> Option<Duration> {
    let changed = std::fs::metadata(path).map_or(0, |found| found.ctime());
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(changed).unwrap_or(0)))?;
    now.duration_since(then).ok()
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = Dir::open(dir).and_then(|dir| dir.entries()).map_err(Error::io("list", dir))?;
    Ok(entries.into_iter().map(|(name, _)| dir.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn what_a_crash_left_halfway_goes_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("coracle-leftovers-{}", std::process::id()));
        let store = std::sync::Arc::new(ImageStore::open(&dir).unwrap());
        let image = store.ensure_builtin().unwrap();
        let files = || {
            let mut all = listed(&store.images_dir()).unwrap();
            all.extend(listed(&store.layers_dir()).unwrap());
            all.sort();
            all
        };
        let tidy = || {
            store.remove_rests().unwrap();
            store.clean_configurations();
            store.remove_layers(store.any_layers().into_iter().collect()).unwrap();
        };
        let before = files();
        assert!(before.len() >= 5, "{before:?}");
        let gone = Digest::of(b"gone");
        for path in
            [store.layer_file(&gone, "seal"), store.layer_file(&gone, "recipe"), store.configuration_path(&gone)]
        {
            std::fs::write(path, "x").unwrap();
        }
        // Of a layer that is on its way in, and of an image that may be healed.
        let (coming, damaged) = (Digest::of(b"coming"), Digest::of(b"damaged"));
        let mut claimed = Default::default();
        store.reserve(&mut claimed, &coming);
        let spared = [
            store.layer_file(&coming, "seal"),
            store.configuration_path(&damaged),
            store.image_record(&damaged).with_extension("json.damaged"),
        ];
        for path in &spared {
            std::fs::write(path, "x").unwrap();
        }
        tidy();
        let after: Vec<PathBuf> = files().into_iter().filter(|path| !before.contains(path)).collect();
        let mut expected = spared.to_vec();
        expected.sort();
        assert_eq!(after, expected);
        store.release(&claimed);
        tidy();
        assert!(!spared[0].exists() && spared[1].exists());
        assert!(store.check(&image).is_ok());

        // What was set aside stays to be looked at, whatever the clock says.
        let mut aside = Aside::new();
        assert_eq!((store.remove_aside(&mut aside), store.set_aside_count()), (1, 1));
        let path = &spared[2];
        assert!(set_aside_for(path, SystemTime::UNIX_EPOCH).is_none(), "the clock was set back since");
        assert!(set_aside_for(path, SystemTime::now() + 2 * KEEP).unwrap() > KEEP);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
