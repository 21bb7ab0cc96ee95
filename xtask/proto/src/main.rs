//! `proto API.PROTO OUT`: the messages of the CRI that coracle decodes and sends, as Rust.
//!
//! Whatever no method of [`METHODS`] reaches is left out, and so is what nothing here fills or reads: a field that is not known
//! is skipped on the wire, so leaving one out changes nothing for the other side.

use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// The methods that are implemented.
const METHODS: &[&str] = &[
    "Version",
    "Status",
    "RuntimeConfig",
    "ListPodSandbox",
    "PodSandboxStatus",
    "ListContainers",
    "ContainerStatus",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "ListImages",
    "ImageStatus",
    "PullImage",
    "RemoveImage",
    "ImageFsInfo",
];

/// What is left out wherever it is referred to: nothing here fills or reads it.
const LEFT_OUT: &[&str] = &["Windows", "PodSandboxConfig", "Signal", "PsiStats", "IoUsage", "HugepageLimit"];

/// Messages with secrets: nothing prints them.
const SECRET: &[&str] = &["AuthConfig", "PullImageRequest"];

const HEAD: &str =
    "//! Messages of the CRI v1, as far as they are used. Written by `cargo xtask proto`; not to be edited.\n\n";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [proto, out] = arguments.as_slice() else { return Err("usage: proto API.PROTO OUT".into()) };
    let (proto, out) = (Path::new(proto), Path::new(out));
    let made = std::env::temp_dir().join(format!("coracle-proto.{}", std::process::id()));
    std::fs::create_dir(&made)?;
    // An option that protoc knows from version 22 on; SECRET stands for it here.
    let plain = made.join("api.proto");
    std::fs::write(&plain, std::fs::read_to_string(proto)?.replace(" [debug_redact = true]", ""))?;
    let mut config = prost_build::Config::new();
    config.out_dir(&made).btree_map(["."]).skip_debug(SECRET.iter().map(|name| format!("runtime.v1.{name}")));
    let mut files = config.load_fds(&[&plain], &[&made])?;
    reduce(&mut files)?;
    config.compile_fds(files)?;
    let text = std::fs::read_to_string(made.join("runtime.v1.rs"))?;
    std::fs::remove_dir_all(&made)?;
    // The first line is prost's own; documentation is where the proto is.
    let text: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    std::fs::write(out, format!("{HEAD}{}\n", text.join("\n")))?;
    let formatted = Command::new("rustfmt").args(["--edition", "2024"]).arg(out).status()?;
    if formatted.success() { Ok(()) } else { Err("rustfmt failed".into()) }
}

/// Leaves what the methods reach.
fn reduce(files: &mut FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    for file in &mut files.file {
        file.source_code_info = None;
        for message in &mut file.message_type {
            message.field.retain(|field| {
                let kind = field.type_name().trim_start_matches(".runtime.v1.");
                !LEFT_OUT.iter().any(|out| kind.starts_with(out))
            });
        }
        let methods = file.service.iter().flat_map(|service| &service.method);
        let wanted: Vec<_> = methods.filter(|method| METHODS.contains(&method.name())).collect();
        if wanted.len() != METHODS.len() {
            return Err("the proto lacks a method".into());
        }
        let mut due: Vec<String> =
            wanted.iter().flat_map(|method| [method.input_type(), method.output_type()]).map(str::to_owned).collect();
        let mut reached = BTreeSet::new();
        while let Some(name) = due.pop() {
            let message = file.message_type.iter().find(|message| format!(".runtime.v1.{}", message.name()) == name);
            if reached.insert(name)
                && let Some(message) = message
            {
                due.extend(types(message));
            }
        }
        file.message_type.retain(|message| reached.contains(&format!(".runtime.v1.{}", message.name())));
        file.enum_type.retain(|kind| reached.contains(&format!(".runtime.v1.{}", kind.name())));
        file.service.clear();
    }
    Ok(())
}

/// What a message refers to, by full name; those within it too.
fn types(message: &DescriptorProto) -> Vec<String> {
    let own = message.field.iter().filter(|field| field.type_name.is_some()).map(|field| field.type_name().to_owned());
    own.chain(message.nested_type.iter().flat_map(types)).collect()
}
