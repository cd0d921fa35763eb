//! TLS configurations: raw Ed25519 keys both ways, TLS 1.3 only, nothing kept between connections.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, key_of_designator, key_of_spki};

/// Returns what whoever dials somebody unknown is configured with: any Ed25519 key will do.
pub(super) fn stranger_config(identity: &Identity, alpn: &[u8]) -> Result<ClientConfig, Error> {
    let (provider, keys) = provider();
    client_config_with(
        identity,
        alpn,
        provider,
        RawKeys {
            pins: false,
            ..keys
        },
    )
}

/// Returns what the dialler is configured with. The server name of a connection is the designator
/// that is pinned: it is checked here and, with SNI off, never sent.
pub(super) fn client_config(identity: &Identity, alpn: &[u8]) -> Result<ClientConfig, Error> {
    let (provider, keys) = provider();
    client_config_with(identity, alpn, provider, keys)
}

fn client_config_with(
    identity: &Identity,
    alpn: &[u8],
    provider: Arc<CryptoProvider>,
    keys: RawKeys,
) -> Result<ClientConfig, Error> {
    let key = Arc::new(identity.raw_certified_key()?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(keys))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(config)
}

/// Returns what the listener is configured with.
pub(super) fn server_config(
    identity: &Identity,
    alpns: Vec<Vec<u8>>,
) -> Result<ServerConfig, Error> {
    let (provider, keys) = provider();
    let key = Arc::new(identity.raw_certified_key()?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(keys))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.alpn_protocols = alpns;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Returns what the listener is configured with for programs that know certificates: they show no
/// key, and get ours in a certificate.
pub(super) fn public_config(identity: &Identity, alpn: &[u8]) -> Result<ServerConfig, Error> {
    let (provider, _) = provider();
    let key = identity.self_signed_key()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn provider() -> (Arc<CryptoProvider>, RawKeys) {
    let provider = rustls::crypto::ring::default_provider();
    let keys = RawKeys {
        algorithms: provider.signature_verification_algorithms,
        pins: true,
    };
    (Arc::new(provider), keys)
}

/// Verifies that the other end holds the Ed25519 key that it shows; the dialler also that it is the
/// key asked for, where it asks for one.
#[derive(Debug)]
struct RawKeys {
    algorithms: WebPkiSupportedAlgorithms,
    /// Whether the dialler knows whom it dials.
    pins: bool,
}

impl RawKeys {
    fn verify_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

/// What is said of a key that is of another kind, or not the one that was asked for.
const REFUSED: Error = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

/// TLS 1.2 is not configured: whoever signs for it does not keep to the protocol.
const TLS12: Error =
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.pins {
            let shown = key_of_spki(end_entity).ok_or(REFUSED);
            return shown.map(|_| ServerCertVerified::assertion());
        }
        let ServerName::DnsName(designator) = server_name else {
            return Err(REFUSED);
        };
        match (
            key_of_spki(end_entity),
            key_of_designator(designator.as_ref()),
        ) {
            (Some(shown), Some(pinned)) if shown == pinned => Ok(ServerCertVerified::assertion()),
            _ => Err(REFUSED),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of_spki(end_entity)
            .map(|_| ClientCertVerified::assertion())
            .ok_or(REFUSED)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
