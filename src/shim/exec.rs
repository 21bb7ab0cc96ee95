//! Exec into a running container.

/// Where to exec.
pub struct Target;
