//! `cargo xtask fields`: writes FIELDS.md from the table of fields. The same test fails when the document is stale.

use crate::shell;
use anyhow::Result;

const TEST: &str = "manifest::supported::tests::the_document_is_what_the_table_says";

pub fn run() -> Result<()> {
    let arguments = ["test", "--package", "coracle", "--lib", "--quiet", "--", "--exact", TEST];
    shell::step(shell::cargo().env("UPDATE_EXPECT", "1").args(arguments))
}
