//! argv → role → exit code.

fn main() {
    let mut args = std::env::args_os().skip(1);
    let role = args.next();
    let code = match role.as_ref().and_then(|role| role.to_str()) {
        Some("shim") => coracle::shim::main(args),
        Some("exec-helper") => coracle::shim::exec::helper_main(args),
        _ => 2,
    };
    std::process::exit(code);
}
