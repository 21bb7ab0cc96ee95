//! Images: archives, unpacked layers, records.
//!
//! ```text
//! archive ─ documents ─▶ candidates ─▶ ingest: blob ─ digest ─ decompress ─ digest ─ unpack ─▶ staging ─▶ layers, images
//! ```
//!
//! An image becomes usable in one step, the rename of its record, after all it is made of is verified and on disk
//! ([`store`]). Nothing is ever unpacked into a place where it could be used half-done.

mod abreast;
mod archive;
pub mod blob;
mod builtin;
mod collector;
mod digest;
mod document;
mod dropin;
mod error;
mod export;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod heal;
mod holds;
pub mod gc;
mod ingest;
mod leftovers;
mod load;
mod origin;
mod pass;
pub mod recipe;
mod record;
pub mod reference;
pub mod registry;
pub mod seal;
mod space;
mod store;
pub mod tarball;
pub mod trust;
mod unlisted;
pub mod unpack;
mod verify;

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

pub use builtin::BUILTIN;
pub use collector::{Account, Collected, Collector, Notice, Reason, Removal, Removed, Users};
pub use digest::Digest;
pub use document::{architecture, configuration};
pub use dropin::{DropIn, Outcome, Wanted};
pub use error::Error;
pub use export::Export;
pub use heal::Damage;
pub use holds::Held;
pub use ingest::{Ingest, NewImage, StoredLayer};
pub use origin::{Origin, Verification};
pub use space::Space;
pub use store::{Damaged, ImageStore};
pub use verify::Step;

/// An image whose layers are unpacked and ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration, `sha256:…`: what kubelet calls the image ID.
    pub id: String,
    /// Full names (`docker.io/library/nginx:latest`), sorted; none if they all moved to other images.
    pub names: Vec<String>,
    /// Digests of its manifest, and of the indexes that listed it, where the source had them.
    pub digests: Vec<String>,
    pub config: ImageConfiguration,
    /// Unpacked layers, bottom first, each once: overlayfs takes no folder twice. There may be one on top that the
    /// configuration does not have ([`unlisted`]).
    pub layers: Vec<PathBuf>,
    /// Bytes of file content in all layers.
    pub size: u64,
    /// When it came in, seconds since 1970 by the clock of then.
    pub added: i64,
    /// Whether it is kept though nothing uses it.
    pub pinned: bool,
    /// Where it can be had again, the newest last.
    pub origins: Vec<Origin>,
    /// Good signatures it came with.
    pub verified: Vec<Verification>,
}
