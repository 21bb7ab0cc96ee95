//! The program that a container runs: found and checked inside the container, so that what is wrong with it is said
//! in words, then executed.

use super::userns::Users;
use crate::sys::{idmap, process};
use libcontainer::oci_spec::runtime::{Capability, LinuxCapabilities, LinuxSeccomp, Spec, User};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{AccessFlags, Gid, Uid};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a program cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// 127 not found, 126 not executable: as every shell reports it.
    pub(super) code: i32,
    pub(super) message: String,
}

/// Marks a refusal in the text of a libcontainer error, which is all that reaches its caller.
const MARK: [&str; 2] = ["\u{1}exit=", "\u{2}"];

impl Refusal {
    fn marked(&self) -> String {
        format!("{}{}\u{1}{}{}", MARK[0], self.code, self.message, MARK[1])
    }

    /// Finds the refusal in an error text.
    pub(super) fn find(text: &str) -> Option<Refusal> {
        let (_, rest) = text.split_once(MARK[0])?;
        let (code, rest) = rest.split_once('\u{1}')?;
        let message = rest.split(MARK[1]).next().unwrap_or(rest);
        Some(Refusal { code: code.parse().ok()?, message: message.to_owned() })
    }
}

/// Runs the process of an OCI spec inside a container that libcontainer has set up.
#[derive(Clone, Default)]
pub(super) struct Program {
    /// For a process that joins a running container: libcontainer filters the system calls of a container's first
    /// process only.
    pub(super) seccomp: Option<LinuxSeccomp>,
    /// Capabilities to fall back to after the filter is loaded, which needs more without `noNewPrivileges`.
    pub(super) capabilities: Option<LinuxCapabilities>,
    /// End with the parent.
    pub(super) die_with_parent: bool,
    /// For a process that joins a running container with a user namespace of its own.
    pub(super) joined: Option<Joined>,
    /// This program, open, to be executed instead of one of the container's. What runs in the container can reach it
    /// through `/proc`, but not write to it: see [`process::sealed_program`].
    pub(super) own: Option<Arc<File>>,
}

/// A user namespace to join last, when everything else that takes the machine's root is done: libcontainer joins none for
/// a further process, and knows users as the machine numbers them.
#[derive(Clone)]
pub(super) struct Joined {
    /// The namespace, open: in the container it has no path.
    pub(super) namespace: Arc<File>,
    pub(super) users: Users,
    /// Who runs the program, as the container numbers users.
    pub(super) user: User,
}

impl Joined {
    /// Who runs the program, as the machine numbers users.
    pub(super) fn owner(&self) -> u32 {
        self.users.on_the_machine(self.user.uid())
    }

    fn join(&self) -> Result<(), ExecutorError> {
        let failed =
            |what: &str, error: &dyn std::fmt::Display| ExecutorError::Other(format!("cannot {what}: {error}"));
        for stream in 0..3 {
            // A terminal was made by the machine's root.
            if nix::unistd::isatty(stream) == Ok(true) {
                let owner = Uid::from_raw(self.owner());
                nix::unistd::fchown(stream, Some(owner), None).map_err(|e| failed("own the terminal", &e))?;
            }
        }
        idmap::enter(&*self.namespace).map_err(|e| failed("enter the user namespace", &e))?;
        let groups: Vec<Gid> = self.user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        let syscall = create_syscall();
        syscall.set_groups(&groups).map_err(|e| failed("set groups", &e))?;
        let (uid, gid) = (Uid::from_raw(self.user.uid()), Gid::from_raw(self.user.gid()));
        syscall.set_id(uid, gid).map_err(|e| failed("set the user", &e))?;
        libcontainer::capabilities::reset_effective(&*syscall).map_err(|e| failed("set capabilities", &e))
    }
}

impl Program {
    fn refusal(spec: &Spec) -> Result<PathBuf, Refusal> {
        let process = spec.process().as_ref();
        let name = process.and_then(|process| process.args().as_ref()?.first().cloned()).unwrap_or_default();
        let env = process.and_then(|process| process.env().as_ref());
        let path = env.and_then(|env| env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")));
        find(&name, path.unwrap_or(""))
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if self.own.is_some() {
            return Ok(());
        }
        Program::refusal(spec)
            .map(drop)
            .map_err(|refusal| ExecutorValidationError::ArgValidationError(refusal.marked()))
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Some(joined) = &self.joined {
            joined.join()?;
        }
        let path = match &self.own {
            Some(_) => PathBuf::from("coracle"),
            None => Program::refusal(spec).map_err(|refusal| ExecutorError::Other(refusal.marked()))?,
        };
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().iter().flatten().map(|arg| CString::new(arg.as_bytes()));
        let args: Vec<CString> = args.collect::<Result<_, _>>().map_err(|_| ExecutorError::InvalidArg)?;
        let program = CString::new(path.as_os_str().as_bytes()).map_err(|_| ExecutorError::InvalidArg)?;
        process::reset_signals();
        // libcontainer knows nothing of SELinux.
        if let Some(label) = process.selinux_label() {
            fs::write("/proc/thread-self/attr/exec", label)
                .map_err(|e| ExecutorError::Other(format!("cannot take the SELinux label {label}: {e}")))?;
        }
        if self.die_with_parent {
            process::die_with_parent().map_err(|e| ExecutorError::Other(format!("PR_SET_PDEATHSIG: {e}")))?;
        }
        // Last, as the filter may forbid everything but execve.
        if let Some(seccomp) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(seccomp)
                .map_err(|e| ExecutorError::Other(format!("cannot load the seccomp filter: {e}")))?;
        }
        if let Some(capabilities) = &self.capabilities {
            libcontainer::capabilities::drop_privileges(capabilities, &*create_syscall())
                .map_err(|e| ExecutorError::Other(format!("cannot drop capabilities: {e}")))?;
        }
        let Err(errno) = match &self.own {
            // Without an environment: the container's is for its own programs.
            Some(own) => {
                let (none, at): (&[CString], _) = (&[], nix::fcntl::AtFlags::AT_EMPTY_PATH);
                nix::unistd::execveat(Some(own.as_raw_fd()), c"", &args, none, at)
            }
            None => nix::unistd::execv(&program, &args),
        };
        let refusal = refuse_exec(&path, &io::Error::from(errno));
        // The container has started by now: its log is where this can be seen.
        eprintln!("{}", refusal.message);
        Err(ExecutorError::Other(refusal.marked()))
    }
}

/// `capabilities` and what loading a filter and dropping capabilities afterwards needs.
pub(super) fn with_filter_rights(capabilities: &LinuxCapabilities) -> LinuxCapabilities {
    let more = |set: &Option<libcontainer::oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend([Capability::SysAdmin, Capability::Setpcap]);
        Some(set)
    };
    let mut wide = capabilities.clone();
    wide.set_bounding(more(capabilities.bounding()));
    wide.set_effective(more(capabilities.effective()));
    wide.set_permitted(more(capabilities.permitted()));
    wide
}

fn refuse(code: i32, message: String) -> Refusal {
    Refusal { code, message }
}

fn refuse_exec(path: &Path, error: &io::Error) -> Refusal {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    refuse(code, format!("exec: {:?}: {}", path.display().to_string(), reason(error)))
}

/// The kernel's words, as C programs print them.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOTDIR) => "not a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// Finds `name` as execvp does and checks that this process may execute it.
fn find(name: &str, path: &str) -> Result<PathBuf, Refusal> {
    if name.is_empty() {
        return Err(refuse(127, "exec: no command".to_owned()));
    }
    if name.contains('/') {
        check(Path::new(name), 0)?;
        return Ok(name.into());
    }
    let mut denied = None;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check(&candidate, 0) {
            Ok(()) => return Ok(candidate),
            // As execvp: what is there but not executable is remembered, the search goes on.
            Err(refusal) if candidate.is_file() => denied = denied.or(Some(refusal)),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| refuse(127, format!("exec: {name:?}: executable file not found in $PATH"))))
}

/// Checks a program file and the interpreters that it names (`depth` deep).
fn check(path: &Path, depth: u32) -> Result<(), Refusal> {
    let shown = path.display().to_string();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(refuse(127, format!("exec: {shown:?}: stat {shown}: no such file or directory")));
        }
        Err(e) => return Err(refuse_exec(path, &e)),
    };
    if meta.is_dir() {
        return Err(refuse(126, format!("exec: {shown:?}: is a directory")));
    }
    let flags = nix::fcntl::AtFlags::AT_EACCESS;
    if !meta.is_file() || nix::unistd::faccessat(None, path, AccessFlags::X_OK, flags).is_err() {
        return Err(refuse(126, format!("exec: {shown:?}: permission denied")));
    }
    // A file that may be executed but not read cannot be looked into; the kernel can still run it.
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let interpreter = match interpreter(&mut file) {
        Ok(Some(interpreter)) => interpreter,
        Ok(None) | Err(_) => return Ok(()),
    };
    if depth >= 4 {
        return Err(refuse(126, format!("exec: {shown:?}: too many levels of interpreters")));
    }
    check(&interpreter, depth + 1).map_err(|refusal| {
        let interpreter = interpreter.display();
        match refusal.code {
            127 => refuse(127, format!("exec: {shown:?}: its interpreter {interpreter} does not exist in the image")),
            _ => refuse(126, format!("exec: {shown:?}: its interpreter {interpreter} cannot be executed")),
        }
    })
}

/// The program that the kernel starts for this one: of a `#!` line, or the dynamic loader of an ELF file.
fn interpreter(file: &mut (impl Read + Seek)) -> io::Result<Option<PathBuf>> {
    let mut head = [0; 256];
    let mut length = 0;
    while length < head.len() {
        match file.read(&mut head[length..])? {
            0 => break,
            n => length += n,
        }
    }
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or(line).trim_ascii();
        let path = line.split(|b| matches!(b, b' ' | b'\t' | 0)).next().unwrap_or(line);
        return Ok((!path.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path))));
    }
    // ELF, 64 bit, little endian; others are left to the kernel.
    if !head.starts_with(b"\x7fELF\x02\x01") || head.len() < 64 {
        return Ok(None);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let (offset, size, count) = (number(&head[32..40]), number(&head[54..56]), number(&head[56..58]));
    if size < 56 {
        return Ok(None);
    }
    for i in 0..count.min(128) {
        let mut header = [0; 56];
        file.seek(SeekFrom::Start(offset.saturating_add(i * size)))?;
        file.read_exact(&mut header)?;
        const PT_INTERP: u64 = 3;
        if number(&header[..4]) == PT_INTERP {
            let (start, length) = (number(&header[8..16]), number(&header[32..40]).min(4096));
            let mut path = vec![0; length as usize];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut path)?;
            let path = path.split(|&b| b == 0).next().unwrap_or_default();
            return Ok((!path.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn refusals_survive_a_libcontainer_error() {
        let refusal = refuse(127, "exec: \"x\": not there".to_owned());
        let text = format!("failed: {}: and more", refusal.marked());
        assert_eq!(Refusal::find(&text), Some(refusal));
        assert_eq!(Refusal::find("plain"), None);
    }

    #[test]
    fn interpreters() {
        let of = |bytes: &[u8]| interpreter(&mut Cursor::new(bytes)).unwrap();
        assert_eq!(of(b"#!/bin/sh -e\nx"), Some("/bin/sh".into()));
        assert_eq!(of(b"#! /usr/bin/env python"), Some("/usr/bin/env".into()));
        assert_eq!(of(b"#!\n"), None);
        assert_eq!(of(b""), None);
    }

    proptest! {
        #[test]
        fn any_file_is_looked_into_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = interpreter(&mut Cursor::new(&bytes));
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.extend(&bytes);
            let _ = interpreter(&mut Cursor::new(&elf));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = std::env::temp_dir().join(format!("coracle-program-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, content: &str, mode: u32| {
            let path = dir.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let path = dir.to_str().unwrap();
        let good = file("good", "#!/bin/sh\n", 0o755);
        assert_eq!(find("good", path).unwrap(), Path::new(&good));
        assert_eq!(find(&good, "").unwrap(), Path::new(&good));
        let error = |name: &str| {
            let refusal = find(name, path).unwrap_err();
            format!("{} {}", refusal.code, refusal.message.replace(path, "DIR"))
        };
        file("plain", "x", 0o644);
        let lost = file("lost", "#!/no/such/shell\n", 0o755);
        let texts = [error("nothing"), error("/no/thing"), error("plain"), error(&lost), error("/"), error("")];
        expect_test::expect![[r#"
            [
                "127 exec: \"nothing\": executable file not found in $PATH",
                "127 exec: \"/no/thing\": stat /no/thing: no such file or directory",
                "126 exec: \"DIR/plain\": permission denied",
                "127 exec: \"DIR/lost\": its interpreter /no/such/shell does not exist in the image",
                "126 exec: \"/\": is a directory",
                "127 exec: no command",
            ]
        "#]]
        .assert_debug_eq(&texts);
        fs::remove_dir_all(&dir).unwrap();
    }
}
