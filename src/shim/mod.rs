//! One process per pod: the only caller of libcontainer. See [`protocol`] for what it is asked.

pub mod protocol;
pub mod exec;
