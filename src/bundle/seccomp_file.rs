//! A seccomp profile as a file: what Kubernetes calls a `Localhost` profile, JSON of the runtime spec's form.
//!
//! Strict, because a field that is passed over in a filter is a door left open: conditions of Docker's own form
//! (`archMap`, `includes`, `excludes`) are refused.

use super::seccomp::masked_equal;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Largest profile, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// Largest error number that a filter can return.
const MAX_ERRNO: u32 = 4095;
/// A system call has six arguments.
const ARGUMENTS: usize = 6;

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of this form.
    #[error("it is not a seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that cannot be done, or a value out of range.
    #[error("{field}: {reason}")]
    Field { field: String, reason: String },
    /// It could not be put together.
    #[error("it cannot be used: {0}")]
    Spec(#[from] OciSpecError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    flags: Vec<Flag>,
    #[serde(default)]
    syscalls: Vec<Call>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Call {
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(default, rename = "comment")]
    _comment: String,
    #[serde(default)]
    includes: Map<String, Value>,
    #[serde(default)]
    excludes: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

/// Reads a profile.
///
/// # Errors
/// Any of [`Error`].
pub fn parse(text: &[u8]) -> Result<LinuxSeccomp, Error> {
    let profile: Profile = serde_json::from_slice(text)?;
    no_notice("defaultAction", profile.default_action)?;
    errno("defaultErrnoRet", profile.default_errno_ret)?;
    let mut rules = Vec::with_capacity(profile.syscalls.len());
    for (i, call) in profile.syscalls.into_iter().enumerate() {
        rules.push(rule(&format!("syscalls[{i}]"), call)?);
    }
    if profile.flags.contains(&Flag::SeccompFilterFlagWaitKillableRecv) {
        let reason = "is for supervisors of system calls, which are not supported".into();
        return Err(Error::Field { field: "flags".into(), reason });
    }
    let mut builder = LinuxSeccompBuilder::default().default_action(profile.default_action).syscalls(rules);
    if let Some(errno) = profile.default_errno_ret {
        builder = builder.default_errno_ret(errno);
    }
    if !profile.architectures.is_empty() {
        builder = builder.architectures(profile.architectures);
    }
    if !profile.flags.is_empty() {
        builder = builder.flags(profile.flags);
    }
    Ok(builder.build()?)
}

fn rule(path: &str, call: Call) -> Result<LinuxSyscall, Error> {
    let field = |name: &str| format!("{path}.{name}");
    let refuse = |name: &str, reason: &str| Err(Error::Field { field: field(name), reason: reason.to_owned() });
    if call.names.is_empty() {
        return refuse("names", "is empty");
    }
    for (name, condition) in [("includes", &call.includes), ("excludes", &call.excludes)] {
        if !condition.is_empty() {
            return refuse(name, "conditions of Docker's own form are not supported");
        }
    }
    no_notice(&field("action"), call.action)?;
    errno(&field("errnoRet"), call.errno_ret)?;
    let mut args = Vec::new();
    for (i, arg) in call.args.into_iter().flatten().enumerate() {
        if arg.index >= ARGUMENTS {
            return refuse(&format!("args[{i}].index"), "must be 0 to 5");
        }
        args.push(argument(&arg)?);
    }
    let mut builder = LinuxSyscallBuilder::default().names(call.names).action(call.action);
    if let Some(errno) = call.errno_ret {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    Ok(builder.build()?)
}

fn argument(arg: &Argument) -> Result<LinuxSeccompArg, OciSpecError> {
    if arg.op == Operator::ScmpCmpMaskedEq {
        return masked_equal(arg.index, arg.value, arg.value_two);
    }
    LinuxSeccompArgBuilder::default().index(arg.index).value(arg.value).value_two(arg.value_two).op(arg.op).build()
}

/// Nobody listens to notices here: a system call that waits for an answer would hang for ever.
fn no_notice(field: &str, action: Action) -> Result<(), Error> {
    if action == Action::ScmpActNotify {
        return Err(Error::Field { field: field.to_owned(), reason: "SCMP_ACT_NOTIFY is not supported".to_owned() });
    }
    Ok(())
}

fn errno(field: &str, errno: Option<u32>) -> Result<(), Error> {
    match errno {
        Some(n) if n > MAX_ERRNO => {
            Err(Error::Field { field: field.to_owned(), reason: format!("must be 0 to {MAX_ERRNO}") })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_profile_of_the_documentation() {
        let text = br#"{
            "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "comment": "no folders"},
                {"names": ["personality"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
                 "includes": {}, "excludes": {}}
            ]
        }"#;
        let profile = parse(text).expect("profile");
        assert_eq!(profile.default_action(), Action::ScmpActAllow);
        assert_eq!(profile.architectures().as_ref().map(Vec::len), Some(4));
        let rules = profile.syscalls().clone().expect("rules");
        assert_eq!(rules[0].names(), &["mkdir", "mkdirat"]);
        assert_eq!((rules[0].errno_ret(), rules[1].action()), (Some(1), Action::ScmpActKill));
        assert!(parse(br#"{"defaultAction": "SCMP_ACT_LOG"}"#).is_ok(), "the shortest one");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let call = |rest: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{{rest}}}]}}"#);
        let all = [
            String::new(),
            "{}".into(),
            r#"{"defaultAction":"ALLOW"}"#.into(),
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into(),
            r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[]}"#.into(),
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#.into(),
            call(r#""names":[],"action":"SCMP_ACT_ERRNO""#),
            call(r#""names":["a"],"action":"SCMP_ACT_NOTIFY""#),
            call(r#""names":["a"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#),
            call(r#""names":["a"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_BPF"]}"#),
        ];
        let said: Vec<String> = all
            .iter()
            .map(|text| parse(text.as_bytes()).expect_err(text).to_string().chars().take(100).collect())
            .collect();
        expect_test::expect![[r#"
            it is not a seccomp profile: EOF while parsing a value at line 1 column 0
            it is not a seccomp profile: missing field `defaultAction` at line 1 column 2
            it is not a seccomp profile: unknown variant `ALLOW`, expected one of `SCMP_ACT_KILL`, `SCMP_ACT_KIL
            defaultAction: SCMP_ACT_NOTIFY is not supported
            it is not a seccomp profile: unknown field `archMap`, expected one of `defaultAction`, `defaultErrno
            defaultErrnoRet: must be 0 to 4095
            syscalls[0].names: is empty
            syscalls[0].action: SCMP_ACT_NOTIFY is not supported
            syscalls[0].args[0].index: must be 0 to 5
            syscalls[0].includes: conditions of Docker's own form are not supported"#]]
        .assert_eq(&said.join("\n"));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn any_value_in_any_place_is_answered(field in "[a-zA-Z]{1,12}", value in "[\\[\\]{}\",:0-9a-zA-Z_ ]{0,40}") {
            let _ = parse(format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","{field}":{value}}}"#).as_bytes());
            let _ = parse(format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["x"],"{field}":{value}}}]}}"#).as_bytes());
        }
    }
}
