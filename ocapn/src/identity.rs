//! A peer's long-lived Ed25519 key, and the designator that names it.
//!
//! The designator is the public key itself, as unpadded lower-case base32 (RFC 4648): whoever holds
//! a locator can check the key that a connection proves, and no directory stands in between. The
//! keys that sign CapTP messages are others: those are made anew for each session.

use std::fmt;
use std::io;
use std::sync::Arc;

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use ed25519_dalek::{Signer, SigningKey};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::certificate;

/// The bytes before the seed in the PKCS #8 form of an Ed25519 private key (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The bytes before the key in the `SubjectPublicKeyInfo` of an Ed25519 key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// An Ed25519 keypair that a peer is known by.
///
/// `Debug` shows the designator only; the secret half is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Identity {
    key: Arc<SigningKey>,
}

impl Identity {
    /// Returns the identity that a 32-byte seed stands for.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self {
            key: Arc::new(SigningKey::from_bytes(seed)),
        }
    }

    /// Returns a new identity from the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice())
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// Returns the seed, for keeping: the one door by which the secret leaves.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }

    /// Returns the public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Returns the public key as a designator: 52 letters and digits of lower-case base32.
    pub fn designator(&self) -> String {
        designator_of(&self.public_key())
    }

    /// Returns the `SubjectPublicKeyInfo` of the public key, in DER: what programs that know
    /// certificates pin, commonly by its SHA-256.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        spki_of(&self.public_key())
    }

    /// Returns the key as rustls wants it for raw public keys (RFC 7250): the private half, and the
    /// `SubjectPublicKeyInfo` where a certificate chain would stand.
    pub(crate) fn raw_certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        self.certified(self.subject_public_key_info())
    }

    /// Returns the key with a certificate that it has signed for itself, for programs that know
    /// no raw public keys. It says nothing but the key, which is what they are to pin.
    pub(crate) fn self_signed_key(&self) -> Result<CertifiedKey, rustls::Error> {
        let signed = certificate::unsigned(&self.subject_public_key_info());
        let signature = self.key.sign(&signed).to_bytes();
        self.certified(certificate::signed(&signed, &signature))
    }

    fn certified(&self, public: Vec<u8>) -> Result<CertifiedKey, rustls::Error> {
        let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(self.seed().as_slice());
        let key =
            rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(public)], key))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.designator())
    }
}

/// Returns the designator of a public key.
pub(crate) fn designator_of(public_key: &[u8; 32]) -> String {
    BASE32_NOPAD.encode(public_key).to_ascii_lowercase()
}

/// Returns the public key that a designator names, unless it names none.
///
/// Each key has one designator, in lower case: who compares designators compares keys.
pub(crate) fn key_of_designator(designator: &str) -> Option<[u8; 32]> {
    let key = BASE32_NOPAD_NOCASE
        .decode(designator.as_bytes())
        .ok()?
        .try_into()
        .ok()?;
    (designator_of(&key) == designator).then_some(key)
}

/// Returns the `SubjectPublicKeyInfo` of a public key, in DER.
pub(crate) fn spki_of(public_key: &[u8; 32]) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), public_key.as_slice()].concat()
}

/// Returns the Ed25519 key in a `SubjectPublicKeyInfo`; a key of another kind gives none.
pub(crate) fn key_of_spki(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(SPKI_PREFIX.as_slice())?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_designator_is_the_key_in_lower_case_base32() {
        // RFC 8032, section 7.1, test 1.
        let seed: [u8; 32] = data_encoding::HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .unwrap()
            .try_into()
            .unwrap();
        let identity = Identity::from_seed(&seed);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&identity.public_key()),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert_eq!(
            identity.designator(),
            "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena"
        );
        assert_eq!(identity.designator().len(), 52);
        assert_eq!(
            key_of_designator(&identity.designator()),
            Some(identity.public_key())
        );
        assert_eq!(*identity.seed(), seed);
        assert!(!format!("{identity:?}").contains("9d61"));
    }

    #[test]
    fn a_text_that_is_no_key_gives_none() {
        for text in [
            "",
            "abc",
            "0189",
            &"a".repeat(51),
            &"a".repeat(53),
            &"é".repeat(26),
        ] {
            assert_eq!(key_of_designator(text), None, "{text:?}");
        }
    }

    #[test]
    fn rustls_sees_the_same_public_key() {
        let identity = Identity::generate().unwrap();
        let certified = identity.raw_certified_key().unwrap();
        assert_eq!(
            certified.key.public_key().unwrap().as_ref(),
            certified.cert[0].as_ref()
        );
        assert_eq!(key_of_spki(&certified.cert[0]), Some(identity.public_key()));
        assert_eq!(key_of_spki(b"not a key"), None);
    }
}
