//! Build script of `coracle`: how its release binary is linked.

fn main() {
    println!("cargo::rerun-if-changed=xtask/link.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // Functions that came out the same are kept once: 0.7 MB less. Only lld can do it, which rustc links with by
    // default for this target.
    if is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
