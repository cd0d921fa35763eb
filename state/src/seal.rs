//! Sealing: XChaCha20-Poly1305 with the place of each secret as associated data, so that a sealed
//! cell opens only where, and as long as, it was meant to.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::filesystem::{TemporaryFile, create_private_directory, parent};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// Leads every sealed blob, so that another cipher can follow.
const FORMAT: u8 = 1;
/// A key file holds one short line; whatever is longer is not one.
const KEY_FILE_BYTES_MAX: u64 = 256;

/// What an operator keeps apart from the state file: it opens the state's sealed cells, and seals
/// plan files. Wiped from memory when dropped.
pub struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

/// Ciphertext with its nonce; as JSON, base64url text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBlob(Vec<u8>);

/// Why something was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another key sealed it, or it was changed, or it was moved from another place.
    #[error("this key does not open it: another key sealed it, or it was changed")]
    Unopenable,
    /// The system gave no random bytes, or the text is beyond what the cipher takes.
    #[error("it cannot be sealed: the system gives no random bytes")]
    Unsealable,
}

/// Why there is no data key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key file is gone, but what it sealed is there.
    #[error(
        "the key file {} is missing, and the state file {} cannot be opened without it: bring \
         it back, or set GOBS_KEY", .key.display(), .state.display()
    )]
    Missing {
        /// The key file.
        key: PathBuf,
        /// The state file that needs it.
        state: PathBuf,
    },
    /// Others can read it.
    #[error(
        "the key file {} can be read by others (mode {mode:04o}): run `chmod 600` on it; if \
         others may have read it, treat its secrets as known", .path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not a key.
    #[error("{origin} is not a data key: expected 32 bytes in base64url or hex")]
    Malformed {
        /// Where the text came from: a path or `the given text`.
        origin: String,
    },
    /// The system refused.
    #[error("cannot read or write the key file {}: {source}", .path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no random bytes.
    #[error("cannot make a data key: the system gives no random bytes")]
    Random,
}

impl DataKey {
    /// Returns a fresh random key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(|_| KeyError::Random)?;
        Ok(Self(key))
    }

    /// Returns the key that a text holds, such as the value of `GOBS_KEY`.
    ///
    /// # Errors
    /// When it is not 32 bytes in base64url (unpadded) or hex.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        Self::parse(text).ok_or_else(|| KeyError::Malformed {
            origin: "the given text".into(),
        })
    }

    /// Returns the key in the file, which is made first where neither it nor the state exists.
    ///
    /// # Errors
    /// When the file can be read by others, is malformed, or is missing beside an existing state.
    pub fn load_or_create(path: &Path, state: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io {
            path: path.into(),
            source,
        };
        match Self::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        if fs::metadata(state).is_ok_and(|state| state.len() > 0) {
            return Err(KeyError::Missing {
                key: path.into(),
                state: state.into(),
            });
        }
        let directory = parent(path);
        create_private_directory(directory).map_err(io)?;
        let mut line = Zeroizing::new(BASE64URL_NOPAD.encode(Self::generate()?.bytes()));
        line.push('\n');
        TemporaryFile::create(directory)
            .and_then(|mut fresh| {
                fresh.file.write_all(line.as_bytes())?;
                fresh.put_in_place(path)
            })
            .map_err(io)?;
        // Another process may have been faster: its file is then the one that is there.
        Self::load(path)
    }

    /// Returns the key in the file.
    ///
    /// # Errors
    /// When the file is missing, can be read by others, or is malformed.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.into(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::new());
        let read = file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text);
        match read {
            Ok(_) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(io(error)),
        }
        .ok_or_else(|| KeyError::Malformed {
            origin: path.display().to_string(),
        })
    }

    /// Returns the text sealed for one purpose; it opens for the same purpose only.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&self, purpose: &str, clear: &[u8]) -> Result<SealedBlob, SealError> {
        self.seal_at(&[purpose.as_bytes()], clear)
    }

    /// Returns what was sealed for this purpose.
    ///
    /// # Errors
    /// When this key did not seal exactly this for exactly this purpose.
    pub fn open(
        &self,
        purpose: &str,
        sealed: &SealedBlob,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.open_at(&[purpose.as_bytes()], &sealed.0)
    }

    /// Seals a text for one place, named by its parts.
    pub(crate) fn seal_at(&self, place: &[&[u8]], clear: &[u8]) -> Result<SealedBlob, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Unsealable)?;
        let payload = Payload {
            msg: clear,
            aad: &associated_data(place),
        };
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::Unsealable)?;
        let mut blob = Vec::with_capacity(1 + NONCE_BYTES + sealed.len());
        blob.push(FORMAT);
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(&sealed);
        Ok(SealedBlob(blob))
    }

    /// Opens what was sealed for this place.
    pub(crate) fn open_at(
        &self,
        place: &[&[u8]],
        blob: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let Some((&[FORMAT], rest)) = blob.split_first_chunk::<1>() else {
            return Err(SealError::Unopenable);
        };
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(SealError::Unopenable)?;
        let payload = Payload {
            msg: sealed,
            aad: &associated_data(place),
        };
        self.cipher()
            .decrypt(&XNonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| SealError::Unopenable)
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(bytes))?;
        Some(Self(key))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().as_bytes();
        let decoded = BASE64URL_NOPAD
            .decode(text)
            .or_else(|_| HEXLOWER.decode(text))
            .map(Zeroizing::new);
        // 64 hex digits are base64url of 48 bytes too, so the length decides.
        match decoded.ok()? {
            bytes if bytes.len() == KEY_BYTES => Self::from_bytes(&bytes),
            _ => Self::from_bytes(&Zeroizing::new(HEXLOWER.decode(text).ok()?)),
        }
    }
}

/// Returns the parts, each with its length before it, so that no two places share one text.
fn associated_data(place: &[&[u8]]) -> Vec<u8> {
    let mut data = b"gobs-seal-1".to_vec();
    for part in place {
        data.extend_from_slice(&(part.len() as u64).to_le_bytes());
        data.extend_from_slice(part);
    }
    data
}

impl SealedBlob {
    /// Returns the bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the blob that was stored; whether it opens is another matter.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Serialize for SealedBlob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SealedBlob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}
