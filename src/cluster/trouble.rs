//! What a failed request means, for people: what is wrong, and what to do about it. Pure.

use crate::causes;
use jiff::Timestamp;
use std::error::Error;
use std::io;
use tokio_rustls::rustls::{self, CertificateError};

/// Why nothing came back; `now` is by which certificates were checked.
pub(super) fn explain(error: &(dyn Error + 'static), now: Timestamp) -> String {
    let clock = || format!("by this machine's clock ({})", now.strftime("%Y-%m-%d %H:%M UTC"));
    match tls(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            format!("the API server's certificate has expired {}: renew it, or set the clock", clock())
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => format!("the API server's certificate is not valid yet {}: set the clock", clock()),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the API server's certificate is not from the cluster's authority: this is another cluster, or its authority \
             was replaced; join again"
                .to_owned()
        }
        Some(error) => error.to_string(),
        None => causes::distinct(error),
    }
}

/// What an answer of 401 means for a node whose certificate ends at `ends`.
pub(super) fn refused(ends: Option<Timestamp>, now: Timestamp) -> String {
    let what = match ends {
        Some(ends) if ends < now => {
            format!("the node's certificate has expired ({})", ends.strftime("%Y-%m-%d %H:%M UTC"))
        }
        Some(_) => "the API server does not accept the node's certificate".to_owned(),
        None => "the API server does not accept the node's token".to_owned(),
    };
    format!("{what}: join again (coracle join), or check the clocks of both machines")
}

/// The trouble with TLS among the causes of an error.
fn tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // What it wraps is not among its sources, but their first.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(inner) = inner {
            let inner: &(dyn Error + 'static) = inner;
            if let Some(found) = tls(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(error: CertificateError) -> io::Error {
        io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(error)))
    }

    #[test]
    fn the_clock_is_named_where_it_may_be_wrong() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let told = explain(&wrapped(CertificateError::Expired), now);
        assert!(told.contains("expired by this machine's clock (2030-01-01 00:00 UTC)"), "{told}");
        assert!(explain(&wrapped(CertificateError::NotValidYet), now).contains("set the clock"));
        assert!(explain(&wrapped(CertificateError::UnknownIssuer), now).contains("join again"));
        assert_eq!(explain(&io::Error::other("x"), now), "x");
        let ends = "2029-01-01T00:00:00Z".parse().unwrap();
        assert!(refused(Some(ends), now).starts_with("the node's certificate has expired (2029-01-01 00:00 UTC)"));
        assert!(refused(Some(now), ends).starts_with("the API server does not accept the node's certificate"));
        assert!(refused(None, now).contains("token"));
    }
}
