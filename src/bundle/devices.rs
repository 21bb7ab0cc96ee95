//! Which devices a container may use: an ordered list of rules, of which for each kind of access the last one that fits
//! decides. Cgroup v1 takes the rules as they are; for v2 they become a program ([`crate::sys::bpf`]).

use super::Error;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Making a node of the device, as the kernel numbers it in device programs.
pub const MKNOD: u8 = 1;
/// Reading from it.
pub const READ: u8 = 2;
/// Writing to it.
pub const WRITE: u8 = 4;
/// All of it.
pub const FULL: u8 = MKNOD | READ | WRITE;

/// Largest number of a device that the kernel has, with room to spare; what is larger is a mistake.
const MAX_NUMBER: i64 = i32::MAX as i64;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A stream of bytes.
    Char,
    /// A disk.
    Block,
}

impl Kind {
    fn of_spec(kind: LinuxDeviceType) -> Option<Kind> {
        match kind {
            LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Char),
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::A | LinuxDeviceType::P => None,
        }
    }

    fn to_spec(self) -> LinuxDeviceType {
        match self {
            Kind::Char => LinuxDeviceType::C,
            Kind::Block => LinuxDeviceType::B,
        }
    }
}

/// A device of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// What it is.
    pub kind: Kind,
    /// Its driver.
    pub major: u32,
    /// Which of the driver's.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Char { "character" } else { "block" };
        write!(f, "{kind} device {}:{}", self.major, self.minor)
    }
}

/// One rule. `None` fits everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it permits or forbids.
    pub allow: bool,
    /// Kind of device.
    pub kind: Option<Kind>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Bits [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule { allow: true, kind: Some(kind), major, minor, access }
    }

    /// Permits the use of one device; reading only when `read_only`.
    #[must_use]
    pub fn device(device: Number, read_only: bool) -> Rule {
        let access = if read_only { READ | MKNOD } else { FULL };
        Rule::allow(device.kind, Some(device.major), Some(device.minor), access)
    }

    /// Whether it is about this device.
    #[must_use]
    pub fn fits(&self, device: Number) -> bool {
        self.kind.is_none_or(|kind| kind == device.kind)
            && self.major.is_none_or(|major| major == device.major)
            && self.minor.is_none_or(|minor| minor == device.minor)
    }

    /// A rule of a runtime spec.
    ///
    /// # Errors
    /// [`Error::DeviceRule`] for one that no device can fit, or of unknown access.
    pub fn of_spec(rule: &LinuxDeviceCgroup) -> Result<Rule, Error> {
        let refuse = || Error::DeviceRule(rule.to_string());
        let number = |n: Option<i64>| match n {
            // runc wrote −1 for "any" in old specs.
            None | Some(-1) => Ok(None),
            Some(n) if (0..=MAX_NUMBER).contains(&n) => Ok(u32::try_from(n).ok()),
            Some(_) => Err(refuse()),
        };
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(kind) => Some(Kind::of_spec(kind).ok_or_else(refuse)?),
        };
        let access = match rule.access().as_deref() {
            None | Some("") => FULL,
            Some(text) => access(text).ok_or_else(refuse)?,
        };
        Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
    }

    fn to_spec(self) -> Result<LinuxDeviceCgroup, Error> {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(self.allow).access(letters(self.access));
        if let Some(kind) = self.kind {
            builder = builder.typ(kind.to_spec());
        }
        if let Some(major) = self.major {
            builder = builder.major(major);
        }
        if let Some(minor) = self.minor {
            builder = builder.minor(minor);
        }
        Ok(builder.build()?)
    }
}

/// The letters `r`, `w`, `m` as bits; `None` for other ones, or none at all.
#[must_use]
pub fn access(text: &str) -> Option<u8> {
    let bits = text.chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | READ),
        'w' => Some(bits | WRITE),
        'm' => Some(bits | MKNOD),
        _ => None,
    });
    bits.filter(|bits| *bits != 0)
}

/// Bits as letters.
#[must_use]
pub fn letters(access: u8) -> String {
    [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| access & bit != 0).map(|(_, l)| *l).collect()
}

/// What every container may use (as runc): nodes of any device may be made, but of these only can they be opened.
pub const STANDARD: [Rule; 11] = [
    Rule::allow(Kind::Char, None, None, MKNOD),
    Rule::allow(Kind::Block, None, None, MKNOD),
    // null, zero, full, random, urandom
    Rule::allow(Kind::Char, Some(1), Some(3), FULL),
    Rule::allow(Kind::Char, Some(1), Some(5), FULL),
    Rule::allow(Kind::Char, Some(1), Some(7), FULL),
    Rule::allow(Kind::Char, Some(1), Some(8), FULL),
    Rule::allow(Kind::Char, Some(1), Some(9), FULL),
    // tty, console, ptmx
    Rule::allow(Kind::Char, Some(5), Some(0), FULL),
    Rule::allow(Kind::Char, Some(5), Some(1), FULL),
    Rule::allow(Kind::Char, Some(5), Some(2), FULL),
    // pts/*
    Rule::allow(Kind::Char, Some(136), None, FULL),
];

/// The network tunnel device, which libcontainer opens to everybody on cgroup v1 without being asked.
pub const TUN: Number = Number { kind: Kind::Char, major: 10, minor: 200 };

/// Whether `rules` permit that kind of access (bits of [`MKNOD`], [`READ`], [`WRITE`], at least one) to a device.
#[must_use]
pub fn permits(rules: &[Rule], device: Number, access: u8) -> bool {
    [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        rules.iter().rev().find(|rule| rule.access & bit != 0 && rule.fits(device)).is_some_and(|rule| rule.allow)
    })
}

/// The rules of a container; none when none are enforced.
///
/// # Errors
/// [`Error::DeviceRule`].
pub fn rules(spec: &Spec) -> Result<Vec<Rule>, Error> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    rules.into_iter().flatten().map(Rule::of_spec).collect()
}

/// The first rules of a container: nothing, or when privileged everything. Without anything that enforces rules there
/// are none, and [`allow`] adds none.
pub(super) fn first(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, Error> {
    Ok(vec![Rule { allow: privileged, kind: None, major: None, minor: None, access: FULL }.to_spec()?])
}

/// Adds `rule` to those of a container, when its rules are enforced and do not permit as much already.
///
/// # Errors
/// [`Error::Spec`].
pub fn allow(spec: &mut Spec, rule: Rule) -> Result<(), Error> {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    let Some(rules) = resources.and_then(|resources| resources.devices_mut().as_mut()) else { return Ok(()) };
    let known = rules.iter().map(Rule::of_spec).collect::<Result<Vec<_>, _>>()?;
    if let (Some(kind), Some(major), Some(minor)) = (rule.kind, rule.major, rule.minor)
        && permits(&known, Number { kind, major, minor }, rule.access)
    {
        return Ok(());
    }
    rules.push(rule.to_spec()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SDA: Number = Number { kind: Kind::Block, major: 8, minor: 0 };
    const NULL: Number = Number { kind: Kind::Char, major: 1, minor: 3 };

    #[test]
    fn the_standard_rules_permit_nodes_of_everything_and_the_use_of_little() {
        assert!(permits(&STANDARD, NULL, READ | WRITE));
        assert!(permits(&STANDARD, SDA, MKNOD));
        assert!(!permits(&STANDARD, SDA, READ));
        assert!(!permits(&STANDARD, TUN, READ | WRITE));
        assert!(permits(&STANDARD, Number { kind: Kind::Char, major: 136, minor: 77 }, READ | WRITE));
        assert!(
            !permits(&STANDARD, Number { kind: Kind::Block, major: 1, minor: 3 }, READ),
            "a block device of that number"
        );
    }

    #[test]
    fn the_last_rule_that_fits_decides_for_each_kind_of_access() {
        let deny = Rule { allow: false, ..Rule::device(SDA, false) };
        let read = Rule::device(SDA, true);
        assert!(permits(&[deny, read], SDA, READ));
        assert!(!permits(&[deny, read], SDA, READ | WRITE));
        assert!(!permits(&[read, deny], SDA, READ));
    }

    #[test]
    fn rules_of_a_spec() {
        let rule = |json: serde_json::Value| Rule::of_spec(&serde_json::from_value(json).expect("rule"));
        let all = rule(serde_json::json!({"allow": false, "access": "rwm"})).expect("deny all");
        assert_eq!(all, Rule { allow: false, kind: None, major: None, minor: None, access: FULL });
        let one = rule(serde_json::json!({"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rm"}));
        assert_eq!(one.expect("one"), Rule::device(SDA, true));
        for bad in [
            serde_json::json!({"allow": true, "type": "c", "major": -7}),
            serde_json::json!({"allow": true, "type": "c", "access": "rx"}),
            serde_json::json!({"allow": true, "type": "p", "major": 1}),
            serde_json::json!({"allow": true, "type": "c", "major": 1_i64 << 40}),
        ] {
            assert!(matches!(rule(bad.clone()), Err(Error::DeviceRule(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_survives_the_spec(allow: bool, kind in 0..3, major: Option<u16>, minor: Option<u16>, access in 1..=FULL) {
            let kind = [None, Some(Kind::Char), Some(Kind::Block)][kind as usize];
            let rule = Rule { allow, kind, major: major.map(u32::from), minor: minor.map(u32::from), access };
            prop_assert_eq!(Rule::of_spec(&rule.to_spec().expect("spec")).expect("rule"), rule);
        }

        #[test]
        fn access_never_panics(text in "\\PC*") {
            let _ = super::access(&text);
        }
    }
}
