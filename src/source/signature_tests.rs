//! Keys and signatures made here as minisign makes them.

use super::*;
