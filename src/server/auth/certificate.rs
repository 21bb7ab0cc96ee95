//! From a client certificate to a user. Pure.

use crate::cluster::User;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio_rustls::rustls::crypto::ring::default_provider;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// Why a certificate proves nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum Error {
    /// It is none, or nobody who is trusted vouches for it, or not now.
    #[error("the client certificate is not accepted: {0}")]
    NotVouched(String),
    /// It has no common name.
    #[error("the client certificate names nobody (no common name)")]
    Nameless,
}

/// Those who vouch for client certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::server) struct Authorities(Vec<TrustAnchor<'static>>);

impl Authorities {
    /// Of certificates; those that are none are left out.
    pub(in crate::server) fn of(certificates: &[CertificateDer<'static>]) -> Authorities {
        let anchor = |der| anchor_from_trusted_cert(der).ok().map(|anchor| anchor.to_owned());
        Authorities(certificates.iter().filter_map(anchor).collect())
    }

    /// Reads a bundle of PEM.
    ///
    /// # Errors
    /// When there is none in it, or one that is none.
    pub(in crate::server) fn read(pem: &[u8]) -> Result<Authorities, String> {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| format!("not PEM: {e}"))?;
        let anchors = certificates.iter().map(|der| anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()));
        let anchors: Vec<_> = anchors.collect::<Result<_, _>>().map_err(|e| format!("not a certificate: {e}"))?;
        if anchors.is_empty() { Err("no certificate in PEM form".to_owned()) } else { Ok(Authorities(anchors)) }
    }

    /// Whose certificate this is (as kubelet: the common name is the user, organizations are groups). `chain` begins with
    /// the user's own; the handshake has proved that they have its key. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Error`]: nobody's.
    pub(in crate::server) fn user(&self, chain: &[CertificateDer<'static>], now: i64) -> Result<User, Error> {
        let refused = |why: &str| Error::NotVouched(why.to_owned());
        let (own, between) = chain.split_first().ok_or_else(|| refused("there is none"))?;
        let now = u64::try_from(now).map_err(|_| refused("before 1970"))?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let algorithms = default_provider().signature_verification_algorithms.all;
        let vouched = |error: webpki::Error| Error::NotVouched(error.to_string());
        EndEntityCert::try_from(own)
            .and_then(|own| {
                own.verify_for_usage(algorithms, &self.0, between, now, KeyUsage::client_auth(), None, None).map(drop)
            })
            .map_err(vouched)?;
        let (_, read) = X509Certificate::from_der(own).map_err(|e| Error::NotVouched(e.to_string()))?;
        subject(read.subject())
    }
}

fn subject(name: &X509Name<'_>) -> Result<User, Error> {
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    // As Go reads it: the last of several.
    let common = name.iter_common_name().filter_map(text).last().filter(|name| !name.is_empty());
    let groups = name.iter_organization().filter_map(text).collect();
    Ok(User { name: common.ok_or(Error::Nameless)?, groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    const NOW: i64 = 1_800_000_000;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(
        issuer: &CertifiedIssuer<'_, KeyPair>,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        // One of a kind is all that rcgen writes; two groups are in the tests of the whole.
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_its_user_if_somebody_who_is_trusted_vouches_for_it() {
        let (ours, other) = (authority(), authority());
        let authorities = Authorities::read(ours.pem().as_bytes()).unwrap();
        assert_eq!(Authorities::of(&[ours.der().clone()]), authorities);
        let usage = || ExtendedKeyUsagePurpose::ClientAuth;
        let user = authorities.user(&[client(&ours, "ann", &["system:masters"], usage())], NOW).unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("ann", &["system:masters".to_owned()][..]));
        for (chain, now) in [
            (vec![client(&other, "ann", &["system:masters"], usage())], NOW),
            (vec![client(&other, "ann", &[], usage()), ours.der().clone()], NOW),
            (vec![client(&ours, "ann", &[], ExtendedKeyUsagePurpose::ServerAuth)], NOW),
            (vec![client(&ours, "ann", &[], usage())], 5_000_000_000),
            (vec![client(&ours, "ann", &[], usage())], -1),
            (vec![CertificateDer::from(vec![0x30, 0x00])], NOW),
            (vec![], NOW),
        ] {
            let error = authorities.user(&chain, now).unwrap_err();
            assert!(matches!(error, Error::NotVouched(_)), "{error}");
        }
        assert_eq!(authorities.user(&[client(&ours, "", &["g"], usage())], NOW), Err(Error::Nameless));
        assert!(Authorities::default().user(&[client(&ours, "ann", &[], usage())], NOW).is_err());
    }

    #[test]
    fn a_bundle_that_is_none_is_not_an_empty_one() {
        for text in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Authorities::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_anybody(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let authorities = Authorities::of(&[authority().der().clone()]);
            let chain = [CertificateDer::from(bytes.clone())];
            prop_assert!(authorities.user(&chain, NOW).is_err());
            let _ = Authorities::read(&bytes);
        }
    }
}
