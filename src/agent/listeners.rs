//! Opens what is served besides `coracle.sock`: health, the node API, the local Kubernetes API, the status page, CRI.

use crate::config::{CRI_SOCKET_NAME, Config};
use crate::cri;
use crate::server::{self, Node};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;

/// Opens what is configured; each is served in a task of its own until `end` turns true.
///
/// # Errors
/// When an address is taken. One that the machine does not have yet is waited for: pods do not wait for the network.
pub(super) async fn open(
    config: &Arc<Config>,
    api: &Arc<dyn Node>,
    end: &watch::Receiver<bool>,
) -> Result<(), server::Error> {
    status_page(config.server.status_page_port, api, end).await?;
    health(config, api, end).await?;
    api.local_api().resume(api, end);
    read_only(config, api, end).await?;
    cri(config, api, end)?;
    // It waits for a cluster, and for its port.
    tokio::spawn(server::serve_node_api(Arc::clone(api), end.clone()));
    Ok(())
}

async fn read_only(config: &Config, api: &Arc<dyn Node>, end: &watch::Receiver<bool>) -> Result<(), server::Error> {
    if config.server.read_only_port == 0 {
        return Ok(());
    }
    let listener = server::bind_read_only(config).await?;
    tokio::spawn(server::serve_read_only(Arc::clone(api), listener, end.clone()));
    Ok(())
}

async fn status_page(port: u16, api: &Arc<dyn Node>, end: &watch::Receiver<bool>) -> Result<(), server::Error> {
    if port != 0 {
        let page = server::bind_healthz(Ipv4Addr::LOCALHOST.into(), port).await?;
        tokio::spawn(server::serve_page(Arc::clone(api), page, end.clone()));
    }
    Ok(())
}

/// The socket for crictl.
fn cri(config: &Config, api: &Arc<dyn Node>, end: &watch::Receiver<bool>) -> Result<(), server::Error> {
    if config.server.cri_socket {
        let listener = server::Listener::bind(&config.run_dir.join(CRI_SOCKET_NAME))?;
        tokio::spawn(cri::serve(Arc::clone(api), listener, end.clone()));
    }
    Ok(())
}

async fn health(config: &Config, api: &Arc<dyn Node>, end: &watch::Receiver<bool>) -> Result<(), server::Error> {
    if config.healthz_port == 0 {
        return Ok(());
    }
    let (api, end) = (Arc::clone(api), end.clone());
    let (address, port) = (config.healthz_bind_address, config.healthz_port);
    match server::bind_healthz(address, port).await {
        Ok(health) => drop(tokio::spawn(server::serve_healthz(api, health, end))),
        Err(error) if error.is_no_address() => {
            tracing::warn!(%address, "no such address yet: the health endpoint waits for it");
            tokio::spawn(async move {
                let health = server::await_healthz(address, port).await;
                server::serve_healthz(api, health, end).await;
            });
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
