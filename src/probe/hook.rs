//! Lifecycle hooks: `postStart` and `preStop`.

use super::exec::{self, Ended};
use super::http::{self, Get};
use super::{Target, cut, words};
use k8s_openapi::api::core::v1::{HTTPGetAction, LifecycleHandler};
use std::time::Duration;

const AGENT: &str = "kube-lifecycle/1.36";
/// Most of a command's output in an error, in bytes.
const MAX_OUTPUT: usize = 1024;

/// Delivers a hook and waits for its end, or until `timeout`; dropping the future ends it.
///
/// # Errors
/// Why it failed, for people. As kubelet any HTTP response is success, and a command's is exit code 0.
pub async fn hook(handler: &LifecycleHandler, target: &Target, timeout: Option<Duration>) -> Result<(), String> {
    let deliver = async {
        if let Some(action) = &handler.exec {
            command(action.command.clone().unwrap_or_default(), target).await
        } else if let Some(action) = &handler.http_get {
            get(action, target).await
        } else if let Some(action) = &handler.sleep {
            let seconds = u64::try_from(action.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        } else if handler.tcp_socket.is_some() {
            // The API takes it, for old manifests; no kubelet ever ran it.
            Err("invalid handler: tcpSocket is not supported as a lifecycle hook: use exec, httpGet or sleep"
                .to_owned())
        } else {
            Err("invalid handler: the hook has none of exec, httpGet and sleep".to_owned())
        }
    };
    let ended = match timeout {
        None => deliver.await,
        Some(limit) => match tokio::time::timeout(limit, deliver).await {
            Ok(ended) => ended,
            Err(_) => Err(format!("the hook did not end within {}", words(limit))),
        },
    };
    ended.map_err(|mut text| {
        cut(&mut text);
        text
    })
}

async fn command(argv: Vec<String>, target: &Target) -> Result<(), String> {
    let text = argv.join(" ");
    match exec::run(argv, target, None).await {
        Ok(Ended { code: 0, .. }) => Ok(()),
        Ok(Ended { code, output }) => {
            let mut output = output.trim();
            if output.len() > MAX_OUTPUT {
                output = &output[output.ceil_char_boundary(output.len() - MAX_OUTPUT)..];
            }
            let says = if output.is_empty() { String::new() } else { format!(": {output}") };
            Err(format!("command {text:?} exited with code {code}{says}"))
        }
        Err(exec::Error::NotRun(why)) => Err(format!("command {text:?} was not run: {why}")),
        // Only with a time-out of its own, which it has not.
        Err(exec::Error::TimedOut(after)) => Err(format!("command {text:?} did not end within {}", words(after))),
    }
}

async fn get(action: &HTTPGetAction, target: &Target) -> Result<(), String> {
    let get = Get::new(action, target, AGENT)?;
    match get.clone().send().await {
        // It answered; how it goes on does not matter.
        Ok(_) | Err(http::Error::Body(_)) => Ok(()),
        Err(http::Error::PlainHttp) => {
            let clear = get.clone().in_clear();
            tracing::warn!(url = %get.url(), "a lifecycle hook asks for HTTPS, but the server speaks HTTP: asking again");
            match clear.send().await {
                Ok(_) | Err(http::Error::Body(_)) => Ok(()),
                Err(_) => Err(http::explain(get.url(), &http::Error::PlainHttp)),
            }
        }
        Err(error) => Err(http::explain(get.url(), &error)),
    }
}
