//! SCRAM-SHA-256 (RFC 5802, 7677) from a secret that is no password.
//!
//! A server remembers two keys that follow from a salted password. Nothing asks that there be a
//! password: here the salted one is a secret of the hob's own, so nobody can type it, and no
//! login pays for the salting.

use data_encoding::BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Told to the server with the salt; nobody computes with it.
const ITERATIONS: u32 = 4_096;

/// The mechanism's name.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";

/// No channel is bound: the server is on this machine.
const GS2_HEADER: &str = "n,,";

/// Bytes of the client's nonce.
const NONCE_SIZE: usize = 18;

/// The keys of one role.
#[derive(Clone)]
pub(crate) struct Keys {
    salt: [u8; 16],
    client: Zeroizing<[u8; 32]>,
    server: Zeroizing<[u8; 32]>,
}

/// A login that waits for the server's first message.
pub(crate) struct Exchange<'a> {
    keys: &'a Keys,
    client_first: String,
}

/// A login that waits for the server's last message.
pub(crate) struct Finishing {
    signature: [u8; 32],
}

/// The server's answer does not fit: it is another server, or another verifier.
#[derive(Debug, thiserror::Error)]
#[error("the server's side of the SCRAM login does not fit")]
pub(crate) struct Mismatch;

impl Keys {
    /// Returns the keys that follow from a secret.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let mut salt = [0; 16];
        salt.copy_from_slice(&mac(secret, &[b"Salt"])[..16]);
        Self {
            salt,
            client: Zeroizing::new(mac(secret, &[b"Client Key"])),
            server: Zeroizing::new(mac(secret, &[b"Server Key"])),
        }
    }

    /// Returns what the server remembers, in the form of `pg_authid.rolpassword`.
    pub(crate) fn verifier(&self) -> String {
        let stored = Sha256::digest(self.client.as_slice());
        format!(
            "{MECHANISM}${ITERATIONS}:{}${}:{}",
            BASE64.encode(&self.salt),
            BASE64.encode(&stored),
            BASE64.encode(self.server.as_slice()),
        )
    }

    /// Begins a login; returns it with the first message.
    pub(crate) fn begin(&self) -> Result<(Exchange<'_>, String), getrandom::Error> {
        let mut nonce = [0; NONCE_SIZE];
        getrandom::fill(&mut nonce)?;
        // PostgreSQL takes the user from the start-up and wants none here.
        let client_first = format!("n=,r={}", BASE64.encode(&nonce));
        let message = format!("{GS2_HEADER}{client_first}");
        let exchange = Exchange {
            keys: self,
            client_first,
        };
        Ok((exchange, message))
    }
}

impl Exchange<'_> {
    /// Answers the server's first message.
    pub(crate) fn answer(self, server_first: &[u8]) -> Result<(Finishing, String), Mismatch> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| Mismatch)?;
        let mut parts = server_first.split(',');
        let mut next = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let (nonce, salt) = (next("r="), next("s="));
        let own = self.client_first.strip_prefix("n=,r=").unwrap_or_default();
        let nonce = nonce.filter(|nonce| nonce.len() > own.len() && nonce.starts_with(own));
        let nonce = nonce.ok_or(Mismatch)?;
        if salt != Some(&BASE64.encode(&self.keys.salt)) {
            return Err(Mismatch);
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(GS2_HEADER.as_bytes()));
        let parts = [&self.client_first, ",", server_first, ",", &without_proof];
        let signed = parts.map(str::as_bytes);
        let stored: [u8; 32] = Sha256::digest(self.keys.client.as_slice()).into();
        let mut proof = mac(&stored, &signed);
        for (byte, key) in proof.iter_mut().zip(self.keys.client.iter()) {
            *byte ^= key;
        }
        let message = format!("{without_proof},p={}", BASE64.encode(&proof));
        let signature = mac(&self.keys.server, &signed);
        Ok((Finishing { signature }, message))
    }
}

impl Finishing {
    /// Checks that the server knows the verifier, too.
    pub(crate) fn finish(self, server_last: &[u8]) -> Result<(), Mismatch> {
        let expected = format!("v={}", BASE64.encode(&self.signature));
        let fits = server_last == expected.as_bytes();
        fits.then_some(()).ok_or(Mismatch)
    }
}

/// Returns the HMAC of these parts.
pub(crate) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key that is shorter than a block is the same with zeroes behind it (RFC 2104).
    let mut block = Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verifier's half, as the RFC has it.
    fn server(
        verifier: &str,
        client_first: &str,
    ) -> (String, impl Fn(&str) -> Option<String> + use<>) {
        let rest = verifier.strip_prefix("SCRAM-SHA-256$4096:").unwrap();
        let (salt, keys) = rest.split_once('$').unwrap();
        let (stored, key) = keys.split_once(':').unwrap();
        let decode = |text: &str| BASE64.decode(text.as_bytes()).unwrap();
        let (stored, key): ([u8; 32], [u8; 32]) = (
            decode(stored).try_into().unwrap(),
            decode(key).try_into().unwrap(),
        );
        let bare = client_first.strip_prefix("n,,").unwrap().to_owned();
        let server_first = format!("{}xyz,s={salt},i=4096", bare.strip_prefix("n=,").unwrap());
        let first = server_first.clone();
        let check = move |client_last: &str| {
            let (without_proof, proof) = client_last.rsplit_once(",p=").unwrap();
            let signed = format!("{bare},{first},{without_proof}");
            let mut client = mac(&stored, &[signed.as_bytes()]);
            for (byte, proof) in client.iter_mut().zip(decode(proof)) {
                *byte ^= proof;
            }
            let fits = Sha256::digest(client).as_slice() == stored;
            fits.then(|| format!("v={}", BASE64.encode(&mac(&key, &[signed.as_bytes()]))))
        };
        (server_first, check)
    }

    #[test]
    fn both_sides_prove_what_they_know() {
        let keys = Keys::new(&[7; 32]);
        let (exchange, first) = keys.begin().unwrap();
        let (server_first, check) = server(&keys.verifier(), &first);
        let (finishing, last) = exchange.answer(server_first.as_bytes()).unwrap();
        let server_last = check(&last).expect("the proof fits");
        finishing.finish(server_last.as_bytes()).unwrap();

        let (exchange, first) = keys.begin().unwrap();
        let (server_first, check) = server(&Keys::new(&[8; 32]).verifier(), &first);
        assert!(exchange.answer(server_first.as_bytes()).is_err());
        let (exchange, _) = keys.begin().unwrap();
        assert!(exchange.answer(b"r=other,s=,i=1").is_err());
        assert_eq!(check("c=biws,r=,p=AAAA"), None);
    }
}
