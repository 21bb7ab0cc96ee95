//! Images: archives, unpacked layers, records.

/// The image store.
pub struct ImageStore;
