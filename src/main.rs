//! argv → role → exit code.

use std::ffi::OsString;

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Shims and exec helpers run beside every pod: they must touch neither clap nor tokio.
    let code = match args.get(1).and_then(|role| role.to_str()) {
        Some("shim") => coracle::shim::main(args.into_iter().skip(2)),
        Some("exec-helper") => coracle::shim::exec::helper_main(args.into_iter().skip(2)),
        Some("pack") => coracle::shim::copy::pack_main(args.into_iter().skip(2)),
        Some("unpack") => coracle::shim::copy::unpack_main(args.into_iter().skip(2)),
        _ => coracle::cli::main(args),
    };
    std::process::exit(code);
}
