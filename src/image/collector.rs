//! Removes what nobody needs: unused images, layers that no image has, what was set aside.
//!
//! What is used is asked anew for every removal, who has taken an image since then is known ([`holds`](super::holds)), and
//! nothing is removed when it cannot be told what is used. Below that lies a second net that needs no record to be right: a
//! layer is first moved out of the way, so that nothing new can mount it, and put back when a mount of any process still
//! shows it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::gc::{self, Candidate, Choice, Policy};
use super::holds::Holds;
use super::leftovers::Aside;
use super::space::{Space, no_space};
use super::store::LayerRecord;
use super::{BUILTIN, Digest, Error, Image, ImageStore, Origin, record, reference};
use crate::store;
use crate::sys::clock;
use crate::sys::fs::{self, Dir};

/// How often the disk is measured and more is removed: sizes in records are of content, not of blocks.
const ROUNDS: usize = 3;
/// At most this often the times of use are written, unless something was removed: flash wears out.
const WRITE_EVERY: Duration = Duration::from_secs(3600);
/// How long layers of a pull that failed wait for the next attempt, unless their space is needed.
const UNOWNED: Duration = Duration::from_secs(24 * 3600);
/// What lies beside the folder of a layer.
pub(super) const COMPANIONS: [&str; 2] = ["seal", "recipe"];
/// So much of an ID must be given at least: shorter ones are misspelt names.
const SHORTEST_ID: usize = 4;

/// Image IDs (`sha256:…`) and full names, each with the pods (`namespace/name`) that use it.
pub type Users = BTreeMap<String, BTreeSet<String>>;

/// Why an image was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing used it for long.
    Age,
    /// The disk was full.
    Space,
    /// A person said so.
    Asked,
}

/// An image that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    pub id: String,
    pub names: Vec<String>,
    /// Bytes of content in all its layers.
    pub size: u64,
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub image: Removed,
    pub reason: Reason,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    pub removed: Vec<Removed>,
    /// Bytes in layers that are gone.
    pub freed: u64,
    /// Bytes that should have become free.
    pub needed: u64,
    /// Capacity of the file system; zero: it does not tell.
    pub capacity: u64,
}

/// What a person's word has removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub id: String,
    /// The names that are gone.
    pub names: Vec<String>,
    /// The names that the image still has; none: it is gone.
    pub left: Vec<String>,
    /// Bytes in layers that are gone.
    pub freed: u64,
}

/// What is used, and what would become free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub users: Users,
    /// By image ID, bytes in layers that no other image has.
    pub unique: HashMap<String, u64>,
}

/// When images were last used, seconds since 1970 by ID.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Used {
    #[serde(default)]
    images: BTreeMap<String, i64>,
    /// When this was written, by the clock of then.
    #[serde(default)]
    at: i64,
    #[serde(skip)]
    changed: bool,
    #[serde(skip)]
    written: Option<Instant>,
    /// The last look: by the clock, and by one that nobody sets.
    #[serde(skip)]
    looked: Option<(i64, Instant)>,
    #[serde(skip)]
    aside: Aside,
}

impl Used {
    /// What is noted is as long ago as it was, whatever has become of the clock; gives the time.
    fn follow_clock(&mut self) -> i64 {
        let now = clock::wall().as_second();
        let jump = match self.looked {
            Some((earlier, at)) => gc::jump(earlier, now, at.elapsed()),
            // How long nobody looked cannot be known, but time has not gone back.
            None => now.saturating_sub(self.at).min(0),
        };
        if jump != 0 {
            tracing::info!(seconds = jump, "the clock has jumped; when images were used is put right");
        }
        gc::follow(self.images.values_mut(), jump, now);
        self.changed |= jump != 0;
        self.looked = Some((now, Instant::now()));
        now
    }
}

type Ask = dyn Fn() -> Result<Users, String> + Send + Sync;
type Tell = dyn Fn(Notice) + Send + Sync;

/// Removes images. Blocking; shared between threads, one of which works at a time.
pub struct Collector {
    store: Arc<ImageStore>,
    policy: Policy,
    users: Box<Ask>,
    tell: Box<Tell>,
    /// As kubelet: before the node was up for the greatest age, nothing is removed for its age. By a clock that no one sets.
    began: Instant,
    used: Mutex<Used>,
}

impl Collector {
    /// Of `store`, which from now on asks it for room. `users` says what is in use, or why nobody knows; `tell` hears of
    /// every removal.
    pub fn new(
        store: Arc<ImageStore>,
        policy: Policy,
        users: impl Fn() -> Result<Users, String> + Send + Sync + 'static,
        tell: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Arc<Collector> {
        // A damaged record only means that images go in the order they came.
        let used = store::read(&record(&store)).unwrap_or_else(|error| {
            tracing::warn!(%error, "it is forgotten when images were used");
            None
        });
        let (users, tell, used) = (Box::new(users), Box::new(tell), Mutex::new(used.unwrap_or_default()));
        let collector = Arc::new(Collector { store, policy, users, tell, began: Instant::now(), used });
        // The first one stays, if there is one.
        let _ = collector.store.collector.set(Arc::downgrade(&collector));
        collector
    }

    /// Which images are used, by whom.
    ///
    /// # Errors
    /// [`Error::Users`].
    pub fn users(&self) -> Result<Users, Error> {
        (self.users)().map_err(Error::Users)
    }

    /// The regular collection: images unused for too long go, then as many as the thresholds want, and what lies about.
    ///
    /// # Errors
    /// [`Error::Users`], then nothing was removed; the first failure of a removal, after all others were tried.
    pub fn collect(&self) -> Result<Collected, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (users, now) = self.look(&mut used)?;
        self.tidy(UNOWNED, &users, &mut used);
        let mut done = Collected::default();
        if !self.policy.maximum_age.is_zero() && self.began.elapsed() >= self.policy.maximum_age {
            let choice = gc::for_age(&self.candidates(&users, &used, false), &self.sizes()?, &self.policy, now);
            self.remove_all(&choice, Reason::Age, &mut used, &mut done)?;
        }
        let space = Space::of(self.store.root())?;
        done.capacity = space.capacity;
        done.needed = self.policy.needed(space.capacity, space.available);
        if done.needed > 0 {
            done.freed = self.tidy(Duration::ZERO, &users, &mut used);
        }
        self.free(done.needed.saturating_sub(done.freed), &users, now, &mut used, &mut done)?;
        self.save(&mut used);
        Ok(done)
    }

    /// Removes all unused images that the policy's least age lets go, as kubelet under disk pressure.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub fn reclaim(&self) -> Result<Collected, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (users, now) = self.look(&mut used)?;
        // Layers that no image has are room, too: whoever waits for some tries again.
        let mut done = Collected { freed: self.tidy(Duration::ZERO, &users, &mut used), ..Collected::default() };
        self.free(u64::MAX, &users, now, &mut used, &mut done)?;
        self.save(&mut used);
        Ok(done)
    }

    /// Makes sure that `bytes` more fit on the disk beside its reserve; unused images go if they must, no more than that.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when there is too little that may go; [`Error::Users`].
    pub fn make_room(&self, bytes: u64) -> Result<(), Error> {
        let root = self.store.root();
        if Space::of(root)?.short_of(bytes) == 0 {
            return Ok(());
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have made room meanwhile.
        let short = Space::of(root)?.short_of(bytes);
        if short > 0 {
            let (users, now) = self.look(&mut used)?;
            self.tidy(Duration::ZERO, &users, &mut used);
            let short = Space::of(root)?.short_of(bytes);
            let images = self.candidates(&users, &used, false);
            // Images are not given up for something that would not fit without them either.
            if gc::for_space(&images, &self.sizes()?, &self.policy, now, short).freed < short {
                return Err(no_space(root, bytes));
            }
            self.free(short, &users, now, &mut used, &mut Collected::default())?;
            self.save(&mut used);
        }
        match Space::of(root)?.short_of(bytes) {
            0 => Ok(()),
            _ => Err(no_space(root, bytes)),
        }
    }

    /// Removes all images that nothing uses: those that are not pinned, or, with `all`, the pinned ones too. With
    /// `dry_run` it only says which.
    ///
    /// # Errors
    /// As [`Collector::collect`].
    pub fn prune(&self, all: bool, dry_run: bool) -> Result<Collected, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (users, _) = self.look(&mut used)?;
        let sizes = self.sizes()?;
        let choice = gc::unused(&self.candidates(&users, &used, all), &sizes);
        let mut done = Collected::default();
        if dry_run {
            let known = self.store.contents();
            let find = |id: &Digest| known.iter().find(|(other, ..)| other == id).map(|(_, image, _)| removed(image));
            done.removed = choice.images.iter().filter_map(find).collect();
            let in_use: Vec<String> = users.keys().filter(|id| id.starts_with("sha256:")).cloned().collect();
            let orphans = match self.spares_orphans(self.store.set_aside_count(), &in_use) {
                true => 0,
                false => self.orphans(Duration::ZERO).iter().filter_map(|layer| sizes.get(layer)).sum(),
            };
            done.freed = choice.freed.saturating_add(orphans);
            return Ok(done);
        }
        done.freed = self.tidy(Duration::ZERO, &users, &mut used);
        self.remove_all(&choice, Reason::Asked, &mut used, &mut done)?;
        self.save(&mut used);
        Ok(done)
    }

    /// Removes a name; with its last name, or when asked by ID or digest, the image. A pinned image only goes by `force`;
    /// one in use never, nor does a name that a pod has for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::UsedBy`], [`Error::Pinned`], [`Error::Users`], and those of the
    /// disk.
    pub fn remove(&self, reference: &str, force: bool) -> Result<Removal, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.store.pick(reference)?;
        let id: Digest = image.id.parse()?;
        let (users, _) = self.look(&mut used)?;
        let used_by = |what: &str, shown: &str| match users.get(what) {
            Some(pods) => Err(Error::UsedBy { id: shown.to_owned(), pods: pods.iter().cloned().collect() }),
            None => Ok(()),
        };
        if let Some(name) = reference::normalise(reference).ok().filter(|name| image.names.contains(name)) {
            let left: Vec<String> = image.names.iter().filter(|other| **other != name).cloned().collect();
            if !left.is_empty() {
                used_by(&name, &name)?;
                // Nothing: somebody has taken its other names from it meanwhile.
                if self.store.untag(&id, &name)? {
                    return Ok(Removal { id: image.id.clone(), names: vec![name], left, freed: 0 });
                }
            }
        }
        used_by(&image.id, image.names.first().unwrap_or(&image.id))?;
        if image.pinned && !force {
            return Err(Error::Pinned { id: image.names.first().unwrap_or(&image.id).clone() });
        }
        let freed = self.store.remove_for_good(&id, Holds::had_since_look)?;
        used.changed |= used.images.remove(&image.id).is_some();
        self.save(&mut used);
        (self.tell)(Notice { image: removed(&image), reason: Reason::Asked });
        Ok(Removal { id: image.id.clone(), names: image.names.clone(), left: Vec::new(), freed })
    }

    /// What is used by whom, and what each image has to itself.
    ///
    /// # Errors
    /// [`Error::Users`], and those of the disk.
    pub fn account(&self) -> Result<Account, Error> {
        let (users, sizes) = (self.users()?, self.sizes()?);
        let all = self.store.contents();
        let mut owners: HashMap<&Digest, usize> = HashMap::new();
        for layer in all.iter().flat_map(|(_, _, layers)| layers) {
            *owners.entry(layer).or_default() += 1;
        }
        let own = |layers: &[Digest]| -> u64 {
            let alone = layers.iter().filter(|layer| owners.get(layer) == Some(&1));
            alone.filter_map(|layer| sizes.get(layer)).sum()
        };
        let unique = all.iter().map(|(id, _, layers)| (id.to_string(), own(layers))).collect();
        Ok(Account { users, unique })
    }

    /// Notes what is used now, at the time it gives.
    fn look(&self, used: &mut Used) -> Result<(Users, i64), Error> {
        // Before it is asked: who takes an image from here on is remembered.
        self.store.holds.look();
        let users = self.users()?;
        let now = used.follow_clock();
        let present: HashSet<String> = self.store.contents().into_iter().map(|(id, ..)| id.to_string()).collect();
        for id in users.keys().filter(|id| present.contains(*id)) {
            used.changed |= used.images.insert(id.clone(), now) != Some(now);
        }
        let before = used.images.len();
        used.images.retain(|id, _| present.contains(id));
        used.changed |= used.images.len() != before;
        if used.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.save(used);
        }
        Ok((users, now))
    }

    fn save(&self, used: &mut Used) {
        if !std::mem::take(&mut used.changed) {
            return;
        }
        used.written = Some(Instant::now());
        used.at = used.looked.map_or(used.at, |(at, _)| at);
        if let Err(error) = store::write(&record(&self.store), used, 0o600) {
            // Then images go in the order they came, after a restart.
            tracing::warn!(%error, "cannot remember when images were used");
        }
    }

    /// The images of the store as the decision sees them; `all`: pinned ones may go, too.
    fn candidates(&self, users: &Users, used: &Used, all: bool) -> Vec<Candidate> {
        let candidate = |(id, image, layers): (Digest, Arc<Image>, Vec<Digest>)| Candidate {
            known_for: self.store.holds.since_arrival(&id).unwrap_or_else(|| self.began.elapsed()),
            id,
            layers,
            added: image.added,
            last_used: used.images.get(&image.id).copied(),
            exempt: users.contains_key(&image.id) || (!all && is_kept(&image)),
        };
        self.store.contents().into_iter().map(candidate).collect()
    }

    /// Bytes of all layers.
    fn sizes(&self) -> Result<HashMap<Digest, u64>, Error> {
        Ok(self.store.layer_records()?.into_iter().map(|record| (record.diff_id, record.size)).collect())
    }

    /// Removes unused images until `needed` bytes are free, by the disk's own account.
    fn free(&self, needed: u64, users: &Users, now: i64, used: &mut Used, done: &mut Collected) -> Result<(), Error> {
        let goal = Space::of(self.store.root())?.available.saturating_add(needed);
        for _ in 0..ROUNDS {
            let left = goal.saturating_sub(Space::of(self.store.root())?.available);
            if left == 0 {
                break;
            }
            let images = self.candidates(users, used, false);
            let choice = gc::for_space(&images, &self.sizes()?, &self.policy, now, left);
            if choice.images.is_empty() {
                break;
            }
            self.remove_all(&choice, Reason::Space, used, done)?;
        }
        Ok(())
    }

    fn remove_all(&self, choice: &Choice, reason: Reason, used: &mut Used, done: &mut Collected) -> Result<(), Error> {
        let mut first = Ok(());
        for id in &choice.images {
            let Some(image) = self.store.known(id.as_str()) else { continue };
            // A large image takes seconds to remove, in which the next one may have been wanted.
            self.store.holds.look();
            if self.users()?.contains_key(id.as_str()) {
                continue;
            }
            match self.store.remove_image(id, Holds::had_since_look) {
                Err(Error::InUse { .. }) => tracing::info!(image = %id, "an image was taken just now; it stays"),
                Ok(freed) => {
                    used.changed |= used.images.remove(id.as_str()).is_some();
                    done.freed = done.freed.saturating_add(freed);
                    done.removed.push(removed(&image));
                    (self.tell)(Notice { image: removed(&image), reason });
                }
                Err(error) => {
                    tracing::warn!(image = %id, %error, "cannot remove an image");
                    first = first.and(Err(error));
                }
            }
        }
        first
    }

    /// Removes what belongs to no image, layers only when they came that long ago; how many bytes that freed. What fails is
    /// tried again the next time.
    fn tidy(&self, age: Duration, users: &Users, used: &mut Used) -> u64 {
        let left = self.store.remove_aside(&mut used.aside);
        let in_use: Vec<String> = users.keys().filter(|id| id.starts_with("sha256:")).cloned().collect();
        if let Err(error) = self.store.purge_quarantine(&in_use) {
            tracing::warn!(%error, "cannot remove damaged layers");
        }
        self.store.clean_configurations();
        let orphans = || -> Result<u64, Error> {
            self.store.remove_rests()?;
            match self.spares_orphans(left, &in_use) {
                true => Ok(0),
                false => self.store.remove_layers(self.orphans(age)),
            }
        };
        orphans().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot remove layers that no image has");
            0
        })
    }

    /// Whether layers that no image has must stay: those of a damaged image (`aside` of them are set aside) are what it can
    /// be healed with, and a run of an image that is not known may be on any of them.
    fn spares_orphans(&self, aside: usize, in_use: &[String]) -> bool {
        aside > 0 || in_use.iter().any(|id| self.store.known(id).is_none())
    }

    /// Layers that no image has and that came so long ago.
    fn orphans(&self, age: Duration) -> Vec<Digest> {
        let layers = self.store.any_layers().into_iter();
        layers.filter(|diff_id| !self.store.has_owner(diff_id) && self.store.is_older(diff_id, age)).collect()
    }
}

/// Whether an image stays though nothing uses it. Built-in images of other versions than this do not, whatever their
/// record says.
fn is_kept(image: &Image) -> bool {
    match image.origins.contains(&Origin::BuiltIn) {
        true => image.names.iter().any(|name| name == BUILTIN),
        false => image.pinned || image.names.iter().any(|name| name == BUILTIN),
    }
}

fn removed(image: &Image) -> Removed {
    Removed { id: image.id.clone(), names: image.names.clone(), size: image.size }
}

fn record(store: &ImageStore) -> PathBuf {
    store.root().join("used.json")
}

impl ImageStore {
    /// As [`ImageStore::lookup`], of a damaged image too.
    pub fn known_as(&self, reference: &str) -> Option<Arc<Image>> {
        if let Some(image) = self.lookup(reference).or_else(|| self.known(self.find_broken(reference)?.as_str())) {
            return Some(image);
        }
        let digest = reference::parse(reference).ok()?.digest()?.to_string();
        self.broken().into_iter().find(|image| image.digests.contains(&digest))
    }

    /// The image a person means: by name, digest, ID, or the beginning of an ID, as lists show it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn pick(&self, reference: &str) -> Result<Arc<Image>, Error> {
        if let Some(image) = self.known_as(reference) {
            return Ok(image);
        }
        let begin = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_id = begin.len() >= SHORTEST_ID && begin.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut found = self.contents();
        found.retain(|(id, ..)| is_id && id.hex().starts_with(begin));
        match &found[..] {
            [] => Err(Error::NotFound { reference: reference.into() }),
            [(_, image, _)] => Ok(Arc::clone(image)),
            several => Err(Error::Ambiguous {
                reference: reference.into(),
                ids: several.iter().map(|(id, ..)| id.to_string()).collect(),
            }),
        }
    }

    /// Does `job`; when the disk is too full for it, unused images go and it is done once more.
    ///
    /// # Errors
    /// Those of `job`.
    pub fn with_room<T>(&self, job: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let error = match job() {
            // What was known to be too much has been tried to make room for.
            Err(error) if error.space_needed() == Some(0) => error.or_no_space(self.root()),
            done => return done.map_err(|error| error.or_no_space(self.root())),
        };
        let Some(collector) = self.collector.get().and_then(std::sync::Weak::upgrade) else { return Err(error) };
        match collector.reclaim() {
            Ok(collected) if collected.freed > 0 => {
                tracing::warn!(%error, freed = collected.freed, "unused images made room; trying again");
                job().map_err(|error| error.or_no_space(self.root()))
            }
            Ok(_) => Err(error),
            Err(why) => {
                tracing::warn!(error = %why, "cannot make room for an image");
                Err(error)
            }
        }
    }

    /// Makes sure that `bytes` more fit, before they are written; see [`Collector::make_room`].
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn expect_room(&self, bytes: u64) -> Result<(), Error> {
        match self.collector.get().and_then(std::sync::Weak::upgrade) {
            Some(collector) => match collector.make_room(bytes) {
                // It may fit all the same.
                Err(error @ Error::Users(_)) => {
                    tracing::warn!(%error, "cannot make room for an image");
                    Ok(())
                }
                made => made,
            },
            None => match Space::of(self.root())?.short_of(bytes) {
                0 => Ok(()),
                _ => Err(no_space(self.root(), bytes)),
            },
        }
    }

    /// The layer, if it is there; it then stays until it is released.
    pub(super) fn claim(&self, claimed: &mut BTreeSet<Digest>, diff_id: &Digest) -> Option<LayerRecord> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.layer(diff_id)?;
        if claimed.insert(diff_id.clone()) {
            *claims.entry(diff_id.clone()).or_default() += 1;
        }
        Some(record)
    }

    /// The layer will be there soon, and then stays until it is released.
    pub(super) fn reserve(&self, claimed: &mut BTreeSet<Digest>, diff_id: &Digest) {
        if claimed.insert(diff_id.clone()) {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            *claims.entry(diff_id.clone()).or_default() += 1;
        }
    }

    pub(super) fn release(&self, claimed: &BTreeSet<Digest>) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        for diff_id in claimed {
            if let Some(count) = claims.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    claims.remove(diff_id);
                }
            }
        }
    }

    /// Bytes of content in all layers, shared ones counted once.
    ///
    /// # Errors
    /// [`Error::Record`].
    pub fn bytes(&self) -> Result<u64, Error> {
        Ok(self.layer_records()?.iter().map(|record| record.size).sum())
    }

    /// The records of all layers; a damaged one is left out.
    pub(super) fn layer_records(&self) -> Result<Vec<LayerRecord>, Error> {
        let paths = store::list(&self.layers_dir())?;
        let read = |path: &PathBuf| record::read::<LayerRecord>(path).ok().flatten();
        Ok(paths.iter().filter_map(read).collect())
    }

    /// Whether the layer came in at least so long ago, or cannot be used. In the future is now: a machine without a clock
    /// of its own boots in the past.
    fn is_older(&self, diff_id: &Digest, age: Duration) -> bool {
        let written = std::fs::metadata(self.layer_record(diff_id)).and_then(|found| found.modified());
        written.map_or(true, |at| at.elapsed().unwrap_or_default() >= age)
    }

    /// Removes those of the layers that no image has, none that comes in relies on, and none of the machine's mounts
    /// shows; how many bytes that freed.
    pub(super) fn remove_layers(&self, layers: Vec<Digest>) -> Result<u64, Error> {
        if layers.is_empty() {
            return Ok(0);
        }
        let mounted = mounted()?;
        let mut moved: Vec<(Digest, Option<LayerRecord>, PathBuf)> = Vec::new();
        {
            // Held, so that none of them is claimed or gets into an image meanwhile.
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            for diff_id in layers {
                if claims.contains_key(&diff_id) || self.has_owner(&diff_id) {
                    continue;
                }
                if mounted.contains(diff_id.hex()) {
                    tracing::warn!(layer = %diff_id, "a layer without an image is mounted; it stays");
                    continue;
                }
                let record = self.layer(&diff_id);
                store::delete(&self.layer_record(&diff_id))?;
                if let Some(path) = self.discard(&self.layers_dir().join(diff_id.hex()))? {
                    for kind in COMPANIONS {
                        move_file(&self.layer_file(&diff_id, kind), &path.with_extension(kind))?;
                    }
                    moved.push((diff_id, record, path));
                } else {
                    for kind in COMPANIONS {
                        let companion = self.layer_file(&diff_id, kind);
                        fs::remove_tree(&companion).map_err(Error::io("remove", &companion))?;
                    }
                }
            }
        }
        // What was mounted before the move shows now at the latest; after it nobody finds it.
        let mounted = self::mounted()?;
        let mut freed = 0_u64;
        for (diff_id, record, path) in moved {
            if mounted.contains(diff_id.hex()) {
                tracing::warn!(layer = %diff_id, "a layer was mounted just now; it is put back");
                self.put_back(&diff_id, record.as_ref(), &path)?;
                continue;
            }
            for kind in COMPANIONS {
                let companion = path.with_extension(kind);
                fs::remove_tree(&companion).map_err(Error::io("remove", &companion))?;
            }
            match fs::remove_tree(&path) {
                Ok(()) => freed = freed.saturating_add(record.map_or(0, |record| record.size)),
                // It is out of the way, and found again.
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a layer"),
            }
        }
        Ok(freed)
    }

    fn put_back(&self, diff_id: &Digest, record: Option<&LayerRecord>, path: &Path) -> Result<(), Error> {
        let moved = || {
            let (from, to) = (Dir::open(&self.staging_dir())?, Dir::open(&self.layers_dir())?);
            from.rename_new(path.file_name().unwrap_or_default(), &to, diff_id.hex().as_ref())
        };
        moved().map_err(Error::io("put back", path))?;
        for kind in COMPANIONS {
            move_file(&path.with_extension(kind), &self.layer_file(diff_id, kind))?;
        }
        match record {
            Some(record) => self.write_layer(diff_id, record),
            None => Ok(()),
        }
    }
}

/// The names of layers (64 hexadecimal digits) that mounts of any process on this machine show.
pub(super) fn mounted() -> Result<HashSet<String>, Error> {
    let failed = |source| Error::Io { action: "list", path: "/proc".into(), source };
    let (mut seen, mut names) = (HashSet::new(), HashSet::new());
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // Processes end while they are looked at, and their mounts with them.
        let Ok(namespace) = std::fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(mounts) = std::fs::read(entry.path().join("mountinfo")) else { continue };
        seen.insert(namespace);
        names.extend(digests_in(&mounts));
    }
    Ok(names)
}

/// All runs of exactly 64 lower-case hexadecimal digits.
fn digests_in(text: &[u8]) -> impl Iterator<Item = String> {
    let words = text.split(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    words.filter(|word| word.len() == 64).map(|word| String::from_utf8_lossy(word).into_owned())
}

/// Renames a file that may not be there.
fn move_file(from: &Path, to: &Path) -> Result<(), Error> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("move", from)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    /// Of a layer, in bytes.
    const SIZE: usize = 5;

    #[test]
    fn layers_without_an_image_wait_a_day_or_until_their_space_is_needed() {
        let root = std::env::temp_dir().join(format!("coracle-unowned-{}", std::process::id()));
        let store = Arc::new(ImageStore::open(&root).unwrap());
        let policy = Policy {
            high_percent: 100,
            low_percent: 80,
            minimum_age: Duration::ZERO,
            maximum_age: Duration::from_secs(1),
        };
        let collector = Collector::new(store.clone(), policy, || Ok(Users::new()), |_| {});
        let bring = |name: &str| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(SIZE as u64);
            header.set_uid(rustix::process::geteuid().as_raw().into());
            header.set_gid(rustix::process::getegid().as_raw().into());
            tar.append_data(&mut header, name, &[b'x'; SIZE][..]).unwrap();
            let content = tar.into_inner().unwrap();
            let ingest = store.ingest().unwrap();
            let layer = ingest.layer(&content[..], None, None, &Default::default()).unwrap();
            ingest.keep_layers().unwrap();
            layer.diff_id
        };
        let (young, old) = (bring("young"), bring("old"));
        let aged = std::fs::File::options().write(true).open(store.layer_record(&old)).unwrap();
        aged.set_modified(SystemTime::now() - UNOWNED).unwrap();
        collector.collect().unwrap();
        assert!(store.layer(&young).is_some() && store.layer(&old).is_none());
        // The clock was ahead when it came.
        let ahead = std::fs::File::options().write(true).open(store.layer_record(&young)).unwrap();
        ahead.set_modified(SystemTime::now() + UNOWNED * 1000).unwrap();
        collector.collect().unwrap();
        assert!(store.layer(&young).is_some());
        let reclaimed = collector.reclaim().unwrap();
        assert!(store.layer(&young).is_none());
        assert_eq!((reclaimed.freed, &reclaimed.removed[..]), (SIZE as u64, &[][..]), "there is room now");
        drop((collector, store));
        fs::remove_tree(&root).unwrap();
    }

    #[test]
    fn an_image_that_is_taken_while_it_is_decided_stays() {
        let dir = std::env::temp_dir().join(format!("coracle-collector-{}", std::process::id()));
        let store = Arc::new(ImageStore::open(&dir).unwrap());
        let image = store.ensure_builtin().unwrap();
        let policy =
            Policy { high_percent: 100, low_percent: 80, minimum_age: Duration::ZERO, maximum_age: Duration::ZERO };
        let taken = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let users = {
            let (store, taken) = (Arc::clone(&store), Arc::clone(&taken));
            move || {
                let users = Users::new();
                // A container starts, and is done with the start, just when it was asked what is used.
                if taken.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(store.hold(BUILTIN).is_some());
                }
                Ok(users)
            }
        };
        let collector = Collector::new(Arc::clone(&store), policy, users, |_| {});
        assert_eq!(collector.prune(true, false).unwrap().removed, []);
        assert!(matches!(collector.remove(BUILTIN, true), Err(Error::InUse { .. })));
        assert!(!store.was_removed(&image.id), "it was not, so it may not be marked");
        assert!(store.check(&image).is_ok());
        taken.store(false, std::sync::atomic::Ordering::Relaxed);
        let held = store.hold(BUILTIN).unwrap();
        assert_eq!(collector.prune(true, false).unwrap().removed, []);
        drop(held);

        let hex = image.id.trim_start_matches("sha256:");
        assert_eq!(store.pick(&hex[..12]).unwrap().id, image.id);
        assert!(matches!(store.pick(&hex[..3]), Err(Error::NotFound { .. })), "too short for an ID");
        assert!(matches!(store.pick("nothing:1"), Err(Error::NotFound { .. })));
        let account = collector.account().unwrap();
        assert_eq!(account.unique[&image.id], store.bytes().unwrap());
        let removed = collector.remove(&hex[..12], true).unwrap();
        assert_eq!((removed.id, removed.left, removed.freed), (image.id.clone(), vec![], account.unique[&image.id]));
        assert_eq!(store.bytes().unwrap(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn times_of_use_are_read_by_a_clock_that_went_back() {
        let now = clock::wall().as_second();
        let images = [("a", now + 9_000), ("b", now + 20_000), ("c", now - 50)];
        let images: BTreeMap<String, i64> = images.into_iter().map(|(id, at)| (id.to_owned(), at)).collect();
        let mut used = Used { images: images.clone(), at: now + 10_000, ..Used::default() };
        let at = used.follow_clock();
        assert!((used.images["a"] - (at - 1_000)).abs() <= 2, "{used:?}");
        assert_eq!(used.images["b"], at, "never in the future");
        assert!(used.changed);
        let before = used.images.clone();
        used.follow_clock();
        assert_eq!(used.images, before);
        // Nobody knows how long the machine was off.
        let mut used = Used { images: [("c".to_owned(), now - 50)].into(), at: now - 40, ..Used::default() };
        used.follow_clock();
        assert_eq!((used.images["c"], used.changed), (now - 50, false));
    }

    #[test]
    fn layers_are_found_in_mounts() {
        let (a, b) = ("ab".repeat(32), "01".repeat(32));
        let line =
            format!("36 35 98:0 /s/layers/{a} / ro - overlay o rw,lowerdir+=/s/layers/{b},upperdir=/p/{a}0/upper");
        let mut found: Vec<String> = digests_in(line.as_bytes()).collect();
        found.sort();
        assert_eq!(found, [b, a], "but not the 65 digits of another name");
    }
}
