//! Probes, lifecycle hooks, and the handlers that both have.

use super::{Report, names, not_negative, one_of, range};
use k8s_openapi::api::core::v1::{
    ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

const HEADER_RULE: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used \
for validation is '[-A-Za-z0-9]+')";

/// The hooks of a container; `grace` is the pod's time for stopping, in seconds.
pub(super) fn lifecycle(path: &str, lifecycle: &Lifecycle, grace: i64, report: &mut Report<'_>) {
    for (field, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        let Some(LifecycleHandler { exec, http_get, sleep, tcp_socket }) = hook else { continue };
        let path = format!("{path}.{field}");
        one_handler(
            &path,
            &[
                ("exec", exec.is_some()),
                ("httpGet", http_get.is_some()),
                ("tcpSocket", tcp_socket.is_some()),
                ("sleep", sleep.is_some()),
            ],
            report,
        );
        actions(&path, exec.as_ref(), http_get.as_ref(), tcp_socket.as_ref(), report);
        if let Some(SleepAction { seconds }) = sleep
            && !(0..=grace).contains(seconds)
        {
            let rule = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            report.invalid_number(format!("{path}.sleep"), *seconds, &rule);
        }
    }
}

pub(super) fn probe(path: &str, probe: &Probe, readiness: bool, report: &mut Report<'_>) {
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (field, number) in numbers {
        not_negative(&format!("{path}.{field}"), number.unwrap_or(0), report);
    }
    if !readiness && probe.success_threshold.unwrap_or(1) > 1 {
        let number = probe.success_threshold.unwrap_or(1);
        report.invalid_number(format!("{path}.successThreshold"), number, "must be 1");
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let field = format!("{path}.terminationGracePeriodSeconds");
        if readiness {
            report.invalid_number(field, seconds, "must not be set for readinessProbes");
        } else if seconds <= 0 {
            report.invalid_number(field, seconds, "must be greater than 0");
        }
    }
    one_handler(
        path,
        &[
            ("exec", probe.exec.is_some()),
            ("httpGet", probe.http_get.is_some()),
            ("tcpSocket", probe.tcp_socket.is_some()),
            ("grpc", probe.grpc.is_some()),
        ],
        report,
    );
    actions(path, probe.exec.as_ref(), probe.http_get.as_ref(), probe.tcp_socket.as_ref(), report);
    if let Some(action) = &probe.grpc {
        range(&format!("{path}.grpc.port"), action.port, 1, 65535, report);
    }
}

fn one_handler(path: &str, handlers: &[(&str, bool)], report: &mut Report<'_>) {
    let mut set = handlers.iter().filter(|(_, set)| *set);
    if set.next().is_none() {
        report.required(path, "must specify a handler type");
    }
    for (field, _) in set {
        report.error(format!("{path}.{field}"), "Forbidden: may not specify more than 1 handler type");
    }
}

fn actions(
    path: &str,
    exec: Option<&ExecAction>,
    http: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    report: &mut Report<'_>,
) {
    if let Some(action) = exec {
        let words = action.command.as_deref().unwrap_or_default();
        if words.is_empty() {
            report.required(format!("{path}.exec.command"), "");
        }
        for (index, word) in words.iter().enumerate() {
            super::no_nul(&format!("{path}.exec.command[{index}]"), word, report);
        }
    }
    if let Some(action) = http {
        let path = format!("{path}.httpGet");
        port(&format!("{path}.port"), &action.port, report);
        one_of(&format!("{path}.scheme"), action.scheme.as_deref().unwrap_or_default(), &["HTTP", "HTTPS"], report);
        for (index, header) in action.http_headers.iter().flatten().enumerate() {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if header.name.is_empty() || !header.name.bytes().all(fits) {
                report.invalid(format!("{path}.httpHeaders[{index}].name"), &header.name, HEADER_RULE);
            }
            // Ours: a line break would let a header's value write further headers.
            if header.value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
                let rule = "must not contain control characters";
                report.invalid(format!("{path}.httpHeaders[{index}].value"), &header.value, rule);
            }
        }
    }
    if let Some(action) = tcp {
        port(&format!("{path}.tcpSocket.port"), &action.port, report);
    }
}

fn port(field: &str, port: &IntOrString, report: &mut Report<'_>) {
    match port {
        IntOrString::Int(number) => range(field, *number, 1, 65535, report),
        IntOrString::String(name) => {
            if let Err(rule) = names::port_name(name) {
                report.invalid(field, name, rule);
            }
        }
    }
}
