//! Signatures that the real tool made, and what is none.

use super::*;
