//! Device rules of a container, where libcontainer does not enforce them, or not these.

use super::cgroup;
use crate::bundle::devices::{FULL, Kind, Number, READ, Rule, STANDARD, TUN, WRITE, access, letters, permits};
use crate::sys::bpf;
use libcontainer::oci_spec::runtime::LinuxDeviceCgroup;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Puts the rules of a runtime spec, and the standard ones after them, in force for all processes of a cgroup, now and
/// later. Without any rule nothing is done.
///
/// # Errors
/// When they are not in force: the container must not run then.
pub(super) fn enforce(cgroup: &str, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut rules = rules.iter().map(Rule::of_spec).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    rules.extend(STANDARD);
    let folders = cgroup::folders(cgroup)?;
    if let Some(v1) = folders.iter().find(|dir| dir.join("devices.deny").exists()) {
        if !permits(&rules, TUN, READ | WRITE) {
            fs::write(v1.join("devices.deny"), format!("c {}:{} rw", TUN.major, TUN.minor))?;
        }
        return Ok(());
    }
    if permit_everything(&rules) {
        return Ok(());
    }
    attach(cgroup, &folders, &rules)
}

/// Puts other rules (and the standard ones after them) in force than a running container was started with: what they do
/// not name is forbidden before what is new is permitted. Without any rule nothing is done.
///
/// # Errors
/// What the kernel says; then some of it may have been done.
pub(super) fn change(cgroup: &str, rules: &[Rule]) -> io::Result<()> {
    if rules.is_empty() || permit_everything(rules) {
        return Ok(());
    }
    let folders = cgroup::folders(cgroup)?;
    let Some(v1) = folders.iter().find(|dir| dir.join("devices.deny").exists()) else {
        return attach(cgroup, &folders, &[rules, &STANDARD].concat());
    };
    let list = fs::read_to_string(v1.join("devices.list"))?;
    for (file, line) in steps(&list, &[rules, &STANDARD].concat()) {
        fs::write(v1.join(file), line)?;
    }
    Ok(())
}

fn permit_everything(rules: &[Rule]) -> bool {
    let everything = Rule { allow: true, kind: None, major: None, minor: None, access: FULL };
    rules.first() == Some(&everything) && rules.iter().all(|rule| rule.allow)
}

fn attach(cgroup: &str, folders: &[PathBuf], rules: &[Rule]) -> io::Result<()> {
    let v2 = folders.iter().find(|dir| dir.join("cgroup.controllers").exists());
    let v2 = v2.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("cgroup {cgroup} is gone")))?;
    let program = bpf::assemble(rules).map_err(io::Error::other)?;
    bpf::attach(v2, &program)
}

/// What to write, in this order, to make of the exceptions in `devices.list` those that `rules` permit. Only what is said
/// of one device is touched: patterns do not come and go.
fn steps(list: &str, rules: &[Rule]) -> Vec<(&'static str, String)> {
    let named = |number: Number| {
        let of = rules.iter().filter(|r| r.allow && r.kind == Some(number.kind));
        let of = of.filter(|r| r.major == Some(number.major) && r.minor == Some(number.minor));
        of.fold(0, |access, rule| access | rule.access)
    };
    let line = |number: Number, access: u8| {
        let kind = if number.kind == Kind::Char { 'c' } else { 'b' };
        format!("{kind} {}:{} {}", number.major, number.minor, letters(access))
    };
    let listed: Vec<(Number, u8)> = list.lines().filter_map(exception).collect();
    let mut steps = Vec::new();
    for (number, access) in &listed {
        let excess = access & !named(*number);
        if excess != 0 {
            steps.push(("devices.deny", line(*number, excess)));
        }
    }
    for rule in rules {
        let (true, Some(kind), Some(major), Some(minor)) = (rule.allow, rule.kind, rule.major, rule.minor) else {
            continue;
        };
        let number = Number { kind, major, minor };
        let has = listed.iter().filter(|(n, _)| *n == number).fold(0, |has, (_, access)| has | access);
        if rule.access & !has != 0 {
            steps.push(("devices.allow", line(number, rule.access)));
        }
    }
    steps
}

/// A line of `devices.list` about a single device: `c 188:0 rwm`.
fn exception(line: &str) -> Option<(Number, u8)> {
    let mut words = line.split_whitespace();
    let kind = match words.next()? {
        "c" => Kind::Char,
        "b" => Kind::Block,
        _ => return None,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    let number = Number { kind, major: major.parse().ok()?, minor: minor.parse().ok()? };
    Some((number, access(words.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_went_is_forbidden_before_what_came_is_permitted() {
        let tty = |minor| Number { kind: Kind::Char, major: 188, minor };
        let list = "c *:* m\nb *:* m\nc 1:3 rwm\nc 136:* rwm\nc 188:0 rwm\nc 188:7 rwm\nb 7:0 rm\n";
        let disk = Number { kind: Kind::Block, major: 7, minor: 0 };
        let deny = Rule { allow: false, kind: None, major: None, minor: None, access: FULL };
        let null = Rule::device(Number { kind: Kind::Char, major: 1, minor: 3 }, false);
        let rules = [deny, null, Rule::device(tty(1), false), Rule::device(tty(7), true), Rule::device(disk, false)];
        assert_eq!(
            steps(list, &rules),
            [
                ("devices.deny", "c 188:0 rwm".to_owned()),
                ("devices.deny", "c 188:7 w".to_owned()),
                ("devices.allow", "c 188:1 rwm".to_owned()),
                ("devices.allow", "b 7:0 rwm".to_owned()),
            ]
        );
        assert_eq!(steps("a *:* rwm\n", &[]), []);
    }

    proptest! {
        #[test]
        fn after_the_steps_the_exceptions_are_those_of_the_rules(
            listed in proptest::collection::btree_map(0..5_u32, 1..=FULL, 0..5),
            given in proptest::collection::vec((0..5_u32, any::<bool>()), 0..5),
        ) {
            let tty = |minor| Number { kind: Kind::Char, major: 188, minor };
            let rules: Vec<Rule> = given.iter().map(|(minor, read_only)| Rule::device(tty(*minor), *read_only)).collect();
            let list: String = listed.iter().map(|(minor, access)| format!("c 188:{minor} {}\n", letters(*access))).collect();
            let mut kernel = listed;
            let mut allowing = false;
            for (file, line) in steps(&list, &rules) {
                let (number, access) = exception(&line).expect("about one device");
                let has = kernel.entry(number.minor).or_default();
                allowing |= file == "devices.allow";
                prop_assert_eq!(allowing, file == "devices.allow", "first what went");
                *has = if allowing { *has | access } else { *has & !access };
            }
            kernel.retain(|_, access| *access != 0);
            let mut wanted = BTreeMap::new();
            for rule in rules {
                *wanted.entry(rule.minor.expect("a device")).or_insert(0) |= rule.access;
            }
            prop_assert_eq!(kernel, wanted);
        }
    }

    #[test]
    fn only_lines_about_one_device_are_exceptions() {
        assert_eq!(exception("c 10:200 rw").map(|(n, access)| (n.minor, access)), Some((200, READ | WRITE)));
        for other in ["a *:* rwm", "c *:* m", "c 136:* rwm", "c 1:3", "c 1:3 x", "", "p 1:3 r", "c 1:99999999999 r"] {
            assert_eq!(exception(other), None, "{other}");
        }
    }
}
