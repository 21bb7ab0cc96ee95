//! Build script of `coracle`: how its release binary is linked.

use std::error::Error;
use std::path::PathBuf;

/// Tables for unwinding, which a program that aborts on a panic never reads: 2.6 MB. What is lost are the addresses in the
/// backtrace of a panic, which a stripped binary could not name anyway; the panic's message and place stay.
const NO_UNWIND_TABLES: &str =
    "SECTIONS { /DISCARD/ : { *(.eh_frame) *(.gcc_except_table .gcc_except_table.*) } } INSERT AFTER .text;\n";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=xtask/link.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // Only lld can do this, which rustc links with by default for this target.
    if is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") {
        // Functions that came out the same are kept once: 0.7 MB less.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        let script = PathBuf::from(std::env::var("OUT_DIR")?).join("sections.ld");
        std::fs::write(&script, NO_UNWIND_TABLES)?;
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{}", script.display());
    }
    Ok(())
}
