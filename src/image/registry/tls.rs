//! Connections to registries: where their settings count.

#[cfg(test)]
mod tests;

use tokio_rustls::rustls;

use super::hosts::{Endpoint, TlsSettings};
use super::{Error, Settings};
use crate::http;
use crate::http::place::Place;

/// Makes connections to endpoints, and keeps them open for a while. Blocking; shared between threads.
#[derive(Debug)]
pub struct Connections(http::Connections);

impl Connections {
    pub fn new(settings: &Settings) -> Connections {
        Connections(http::Connections::new(settings.environment.clone()))
    }

    /// For requests to an endpoint. Statuses are no errors, redirects are not followed, and the time for a whole body
    /// is not limited, only for each piece.
    ///
    /// # Errors
    /// [`Error::Settings`] for certificates, keys or proxies that cannot be used.
    pub fn agent(&self, endpoint: &Endpoint) -> Result<ureq::Agent, Error> {
        let plain = endpoint.base.starts_with("http://");
        self.get(endpoint.tls.clone(), !plain && !endpoint.insecure, plain, endpoint.authority())
    }

    /// For requests to another place that an endpoint led to: of a redirect or a token server. What the settings say of
    /// that place itself (`named`) counts, and the endpoint's authorities, as who has one of his own has it sign all of
    /// his servers. That a certificate is not looked at goes for other ports of the same host, not for other hosts; the
    /// client certificate is shown to nobody else. Plain HTTP is spoken only by who is spoken to by it.
    ///
    /// # Errors
    /// As [`Connections::agent`].
    pub(super) fn agent_for(
        &self,
        endpoint: &Endpoint,
        named: Option<&Endpoint>,
        target: &Place,
    ) -> Result<ureq::Agent, Error> {
        let own = Place::of(&endpoint.base);
        let mut tls = named.map(|named| named.tls.clone()).unwrap_or_default();
        tls.ca.extend(endpoint.tls.ca.iter().filter(|ca| !tls.ca.contains(ca)).cloned().collect::<Vec<_>>());
        tls.skip_verify |= endpoint.tls.skip_verify && own.as_ref().is_some_and(|own| own.host == target.host);
        if own.as_ref() == Some(target) {
            tls.clients.clone_from(&endpoint.tls.clients);
        }
        let https_only = !endpoint.base.starts_with("http://");
        self.get(tls, https_only, target.plain, &target.authority())
    }

    fn get(&self, tls: TlsSettings, https_only: bool, plain: bool, authority: &str) -> Result<ureq::Agent, Error> {
        Ok(self.0.agent(tls, https_only, plain, authority)?)
    }
}

/// Whether an error says that the other side does not speak TLS, or nothing at all on that port: then an
/// [`insecure`](Endpoint::insecure) endpoint may be asked by [plain](Endpoint::plain) HTTP.
pub fn may_be_plain(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(rustls::Error::InvalidMessage(_)) | ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(e) => {
            let cause = e.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            matches!(cause, Some(rustls::Error::InvalidMessage(_)))
                || matches!(
                    e.kind(),
                    std::io::ErrorKind::ConnectionRefused
                        | std::io::ErrorKind::ConnectionReset
                        | std::io::ErrorKind::UnexpectedEof
                )
        }
        _ => false,
    }
}
