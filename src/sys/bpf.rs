//! Device rules of cgroup v2: a small program that the kernel asks at each open and mknod of a device in the cgroup.
//!
//! [`assemble`] is pure; what it makes is checked by the kernel's verifier when it is attached.
#![allow(unsafe_code)]

use crate::bundle::devices::{FULL, Kind, Rule};
use std::ffi::{CStr, c_long};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// Most rules of a program: with the most instructions each it stays below the 4096 that every kernel takes.
const MAX_RULES: usize = 500;

/// Why there is no program for a list of rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than a program can hold.
    #[error("{0} device rules are more than the {MAX_RULES} that a program can hold")]
    TooMany(usize),
}

/// One instruction, laid out as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one (the other way round on big-endian machines).
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Operation codes: the width of loads is 32 bits, arithmetic and comparisons are on 64.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_IF_SET: u8 = 0x45;
const EXIT: u8 = 0x95;

/// The answer.
const R0: u8 = 0;
/// The question: `struct bpf_cgroup_dev_ctx`.
const R1: u8 = 1;
/// The kinds of access that no rule has decided yet.
const PENDING: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const BLOCK: i32 = 1;
const CHAR: i32 = 2;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { destination | source << 4 } else { destination << 4 | source };
    Instruction { code, registers, offset, immediate }
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [op(MOVE, R0, 0, 0, i32::from(allowed)), op(EXIT, 0, 0, 0, 0)]
}

/// The program that decides as the list does: what no rule permits is forbidden, and for each kind of access the last
/// rule that fits the device decides.
///
/// # Errors
/// [`Error::TooMany`].
pub fn assemble(rules: &[Rule]) -> Result<Vec<Instruction>, Error> {
    if rules.len() > MAX_RULES {
        return Err(Error::TooMany(rules.len()));
    }
    let mut program = vec![
        // access << 16 | kind
        op(LOAD, PENDING, R1, 0, 0),
        op(MOVE_REGISTER, KIND, PENDING, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, PENDING, 0, 0, 16),
        op(LOAD, MAJOR, R1, 4, 0),
        op(LOAD, MINOR, R1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let body = body(rule);
        let mut tests = Vec::new();
        let mut test = |register, value: Option<i32>| tests.extend(value.map(|value| (register, value)));
        test(KIND, rule.kind.map(|kind| if kind == Kind::Block { BLOCK } else { CHAR }));
        test(MAJOR, rule.major.map(number));
        test(MINOR, rule.minor.map(number));
        let always = tests.is_empty() && rule.access == FULL;
        for (i, (register, value)) in tests.iter().enumerate() {
            // At most two tests and five instructions are jumped over.
            let skipped = (tests.len() - i - 1 + body.len()) as i16;
            program.push(op(JUMP_UNLESS_EQUAL, *register, 0, skipped, *value));
        }
        program.extend(body);
        if always {
            // Nothing before it in the list can matter, and the verifier refuses what cannot be reached.
            return Ok(program);
        }
    }
    program.extend(answer(false));
    Ok(program)
}

/// Numbers in rules are 31 bits wide at most; a larger one would fit no device.
fn number(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// What a rule does with a device that it fits.
fn body(rule: &Rule) -> Vec<Instruction> {
    let access = i32::from(rule.access & FULL);
    if access == i32::from(FULL) {
        return answer(rule.allow).to_vec();
    }
    let mut body = Vec::new();
    if rule.allow {
        body.push(op(AND, PENDING, 0, 0, i32::from(FULL) & !access));
        body.push(op(JUMP_UNLESS_EQUAL, PENDING, 0, 2, 0));
        body.extend(answer(true));
    } else {
        body.push(op(JUMP_IF_SET, PENDING, 0, 1, access));
        body.push(op(JUMP, 0, 0, 2, 0));
        body.extend(answer(false));
    }
    body
}

const PROG_LOAD: c_long = 5;
const PROG_ATTACH: c_long = 8;
const PROG_DETACH: c_long = 9;
const PROG_GET_FD_BY_ID: c_long = 13;
const PROG_QUERY: c_long = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of ancestors and of others stay in force beside this one: all must permit.
const ALLOW_MULTI: u32 = 2;
/// Most programs of one cgroup that are looked at.
const MAX_ATTACHED: usize = 64;

/// The head of `union bpf_attr` for loading.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// … for attaching and detaching.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// … for asking what is attached.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// … for a program by its number.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// bpf(2).
///
/// # Safety
/// Every pointer in `attributes` must be valid for what `command` does with it.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes of `attributes`, which is borrowed mutably; for
    // the pointers in it the caller vouches.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(number: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &impl AsRawFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Apache-2.0";
    let mut name = [0; 16];
    name[..14].copy_from_slice(b"coracle_device");
    let mut attributes = Load {
        program_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: `instructions` points to `count` of them and `license` to a C string; both outlive the call, which only
    // reads them.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
    descriptor(fd)
}

/// Whether this process may load device programs, and the kernel has them.
///
/// # Errors
/// Why not.
pub fn probe() -> io::Result<()> {
    load(&answer(false)).map(drop)
}

/// Puts `program` in charge of the cgroup `dir` (of a v2 tree), in place of those that were attached to it before. There
/// is no moment without one; while both are attached both must permit.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN or CAP_BPF and CAP_NET_ADMIN, `EINVAL` for a program that the verifier refuses, or when
/// `dir` is not of a v2 tree.
pub fn attach(dir: &Path, program: &[Instruction]) -> io::Result<()> {
    let cgroup = File::open(dir)?;
    let before = attached(&cgroup)?;
    let program = load(program)?;
    let mut attributes = Attach {
        target: raw(&cgroup),
        program: raw(&program),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(PROG_ATTACH, &mut attributes) }?;
    for old in before {
        let mut attributes = Attach {
            target: raw(&cgroup),
            program: raw(&old),
            attach_type: ATTACH_CGROUP_DEVICE,
            flags: 0,
            replaced: 0,
        };
        // SAFETY: no pointers in it.
        unsafe { bpf(PROG_DETACH, &mut attributes) }?;
    }
    Ok(())
}

/// The device programs that are attached to a cgroup itself.
fn attached(cgroup: &File) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut attributes = Query {
        target: raw(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_ATTACHED as u32,
        padding: 0,
    };
    // SAFETY: `ids` has room for `count` numbers and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attributes) }?;
    let mut programs = Vec::new();
    for id in ids.into_iter().take(attributes.count as usize) {
        let mut attributes = ById { id, next: 0, flags: 0 };
        // SAFETY: no pointers in it.
        programs.push(descriptor(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) }?)?);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::devices::{MKNOD, Number, READ, STANDARD, WRITE, permits};
    use proptest::prelude::*;

    /// Runs a program as the kernel would; `None` for what its verifier refuses.
    fn interpret(program: &[Instruction], device: Number, access: u8) -> Option<bool> {
        let kind = if device.kind == Kind::Block { BLOCK } else { CHAR };
        let question = [(u32::from(access) << 16) | kind as u32, device.major, device.minor];
        let mut registers = [None::<u64>; 11];
        let mut at = 0_usize;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = *program.get(at)?;
            let (destination, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            let value = immediate as i64 as u64;
            let jump = |taken: bool| at + 1 + if taken { usize::try_from(offset).expect("forward") } else { 0 };
            let mut next = at + 1;
            match code {
                LOAD => registers[destination] = Some(u64::from(*question.get(usize::try_from(offset).ok()? / 4)?)),
                MOVE => registers[destination] = Some(value),
                MOVE_REGISTER => registers[destination] = Some(registers[source]?),
                AND => registers[destination] = Some(registers[destination]? & value),
                SHIFT_RIGHT => registers[destination] = Some(registers[destination]? >> value),
                JUMP => next = jump(true),
                JUMP_UNLESS_EQUAL => next = jump(registers[destination]? != value),
                JUMP_IF_SET => next = jump(registers[destination]? & value != 0),
                EXIT => return Some(registers[0]? != 0),
                _ => return None,
            }
            at = next;
        }
    }

    /// What the verifier refuses: an instruction that nothing leads to.
    fn all_reachable(program: &[Instruction]) -> bool {
        let mut seen = vec![false; program.len()];
        let mut queue = vec![0];
        while let Some(at) = queue.pop() {
            if seen[at] {
                continue;
            }
            seen[at] = true;
            let target = at + 1 + usize::try_from(program[at].offset).expect("forward");
            match program[at].code {
                EXIT => {}
                JUMP => queue.push(target),
                JUMP_UNLESS_EQUAL | JUMP_IF_SET => queue.extend([at + 1, target]),
                _ => queue.push(at + 1),
            }
        }
        seen.into_iter().all(|seen| seen)
    }

    fn a_rule() -> impl Strategy<Value = Rule> {
        let few = proptest::option::of(0..4_u32);
        (any::<bool>(), 0..3_usize, few.clone(), few, 1..=FULL).prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind: [None, Some(Kind::Char), Some(Kind::Block)][kind],
            major,
            minor,
            access,
        })
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_list(
            rules in proptest::collection::vec(a_rule(), 0..12),
            (block, major, minor) in (any::<bool>(), 0..5_u32, 0..5_u32),
            access in 1..=FULL,
        ) {
            let program = assemble(&rules).expect("program");
            let device = Number { kind: if block { Kind::Block } else { Kind::Char }, major, minor };
            prop_assert_eq!(interpret(&program, device, access), Some(permits(&rules, device, access)), "{:?}", rules);
            prop_assert!(all_reachable(&program), "{:?}", rules);
        }
    }

    #[test]
    fn no_rules_permit_nothing() {
        let program = assemble(&[]).expect("program");
        let device = Number { kind: Kind::Char, major: 1, minor: 3 };
        for access in [MKNOD, READ, WRITE, FULL] {
            assert_eq!(interpret(&program, device, access), Some(false));
        }
    }

    #[test]
    fn the_longest_program_is_short_enough() {
        let rule = Rule { allow: true, ..STANDARD[2] };
        let rule = Rule { access: READ, ..rule };
        assert!(assemble(&vec![rule; MAX_RULES]).expect("program").len() <= 4096);
        assert!(matches!(assemble(&vec![rule; MAX_RULES + 1]), Err(Error::TooMany(501))));
    }

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Instruction>(), size_of::<Load>()), (8, 64));
        assert_eq!(std::mem::offset_of!(Load, name), 48);
        assert_eq!(std::mem::offset_of!(Query, count), 24);
    }
}
