//! Keys, signatures and the ids made of them.

use bytes::{Bytes, BytesMut};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::syrup::{Reader, SyrupError, SyrupErrorKind, Writer};

/// SHA-256 of SHA-256, as every id here is made.
fn double_hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    Sha256::digest(hash.finalize()).into()
}

/// Makes as many secrets as one session needs out of the seed it was given.
pub(crate) struct Secrets {
    seed: [u8; 32],
    counter: u64,
}

impl Secrets {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// Returns the next secret, which tells nothing of the others.
    pub(crate) fn next(&mut self) -> [u8; 32] {
        self.counter += 1;
        let mut hash = Sha256::new();
        hash.update(b"ocapn session secret");
        hash.update(self.seed);
        hash.update(self.counter.to_be_bytes());
        hash.finalize().into()
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.seed);
    }
}

/// The keypair of one side of one session.
pub(crate) struct SessionKeys {
    signing: SigningKey,
    pub(crate) public: PublicKey,
}

impl SessionKeys {
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let public = PublicKey::new(&signing.verifying_key());
        Self { signing, public }
    }

    /// Writes the signature of `signed`.
    pub(crate) fn sign(&self, signed: &[u8], writer: &mut Writer) {
        let signature = self.signing.sign(signed).to_bytes();
        let (r, s) = signature.split_at(32);
        writer.list().symbol("sig-val").list().symbol("eddsa");
        writer.list().symbol("r").bytes(r).end_list();
        writer.list().symbol("s").bytes(s).end_list();
        writer.end_list().end_list();
    }

    /// Returns the envelope of `signed`.
    pub(crate) fn envelope(&self, signed: &[u8]) -> Bytes {
        let mut writer = Writer::new();
        writer.record("desc:sig-envelope").raw(signed);
        self.sign(signed, &mut writer);
        writer.end_record();
        writer.take().freeze()
    }
}

/// One side's public key. Small, since every session keeps two: what can be made of it at once is
/// not kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    q: [u8; 32],
    /// The Public Identifier, which names the side.
    pub(crate) side: [u8; 32],
}

impl PublicKey {
    fn new(key: &VerifyingKey) -> Self {
        let mut key = Self {
            q: key.to_bytes(),
            side: [0; 32],
        };
        key.side = double_hash(&[&key.encoding()]);
        key
    }

    /// Returns the key as it travels.
    pub(crate) fn encoding(&self) -> BytesMut {
        let mut writer = Writer::new();
        writer.list().symbol("public-key").list().symbol("ecc");
        writer.list().symbol("curve").symbol("Ed25519").end_list();
        writer.list().symbol("flags").symbol("eddsa").end_list();
        writer.list().symbol("q").bytes(&self.q).end_list();
        writer.end_list().end_list();
        writer.take()
    }

    /// Returns the key with these bytes, unless they are none.
    #[cfg(feature = "websocket")]
    pub(crate) fn of(key: &[u8; 32]) -> Option<Self> {
        Some(Self::new(&VerifyingKey::from_bytes(key).ok()?))
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, SyrupError> {
        let start = reader.offset();
        let wrong = || SyrupErrorKind::Kind.at(start);
        reader.list()?;
        symbols(reader, &["public-key"])?;
        reader.list()?;
        symbols(reader, &["ecc"])?;
        reader.list()?;
        symbols(reader, &["curve", "Ed25519"])?;
        reader.end()?;
        reader.list()?;
        symbols(reader, &["flags", "eddsa"])?;
        reader.end()?;
        reader.list()?;
        symbols(reader, &["q"])?;
        let q: [u8; 32] = reader.bytes()?.as_ref().try_into().map_err(|_| wrong())?;
        for _ in 0..3 {
            reader.end()?;
        }
        let key = VerifyingKey::from_bytes(&q).map_err(|_| wrong())?;
        Ok(Self::new(&key))
    }

    /// Returns whether `signature` is of `signed` by this key. Strict: weak keys and the
    /// malleable forms of a signature are refused.
    pub(crate) fn verifies(&self, signed: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.q)
            .is_ok_and(|key| key.verify_strict(signed, &signature).is_ok())
    }
}

fn symbols(reader: &mut Reader<'_>, names: &[&str]) -> Result<(), SyrupError> {
    for name in names {
        let start = reader.offset();
        if reader.symbol()? != *name {
            return Err(SyrupErrorKind::Kind.at(start));
        }
    }
    Ok(())
}

/// Reads a signature.
pub(crate) fn read_signature(reader: &mut Reader<'_>) -> Result<[u8; 64], SyrupError> {
    let start = reader.offset();
    let mut signature = [0; 64];
    reader.list()?;
    symbols(reader, &["sig-val"])?;
    reader.list()?;
    symbols(reader, &["eddsa"])?;
    for (name, half) in [("r", 0), ("s", 32)] {
        reader.list()?;
        symbols(reader, &[name])?;
        let bytes = reader.bytes()?;
        if bytes.len() != 32 {
            return Err(SyrupErrorKind::Kind.at(start));
        }
        signature[half..half + 32].copy_from_slice(&bytes);
        reader.end()?;
    }
    reader.end()?;
    reader.end()?;
    Ok(signature)
}

/// A signed record, as it came.
#[derive(Clone)]
pub(crate) struct Envelope {
    /// The whole envelope.
    pub(crate) encoding: Bytes,
    /// The record inside: the exact bytes that were signed, canonical as all that is accepted.
    pub(crate) signed: Bytes,
    pub(crate) signature: [u8; 64],
}

impl Envelope {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, SyrupError> {
        let start = reader.offset();
        let encoding = reader.raw()?;
        reader.rewind(start);
        reader.record_of("desc:sig-envelope")?;
        let signed = reader.raw()?;
        let signature = read_signature(reader)?;
        reader.end()?;
        Ok(Self {
            encoding,
            signed,
            signature,
        })
    }

    pub(crate) fn is_by(&self, key: &PublicKey) -> bool {
        key.verifies(&self.signed, &self.signature)
    }
}

/// Returns the id of the session between two sides, the same at both.
pub(crate) fn session_id(one: &[u8; 32], two: &[u8; 32]) -> [u8; 32] {
    double_hash(&[b"prot0", one.min(two), one.max(two)])
}
