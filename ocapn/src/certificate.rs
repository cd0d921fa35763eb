//! A certificate that an Ed25519 key signs for itself (RFC 5280, RFC 8410).
//!
//! Nobody trusts it for what it says: it carries a key to programs that read keys from
//! certificates only. So its name and its dates are the same for every key, and the same key
//! always has the same certificate.

/// `id-Ed25519`, as an `AlgorithmIdentifier` without parameters.
const ED25519: [u8; 7] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// The attribute type `commonName`.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// Who it says that it is of.
const NAME: &[u8] = b"ocapn";

/// From when until when it is said to be good: `99991231235959Z` is the date for "has no end".
const NOT_BEFORE: &[u8] = b"700101000000Z";
const NOT_AFTER: &[u8] = b"99991231235959Z";

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// Returns what the key has to sign: a `TBSCertificate` of version 3.
pub(crate) fn unsigned(subject_public_key_info: &[u8]) -> Vec<u8> {
    let attribute = [&COMMON_NAME[..], &tagged(UTF8_STRING, NAME)].concat();
    let name = tagged(SEQUENCE, &tagged(SET, &tagged(SEQUENCE, &attribute)));
    let validity = [
        tagged(UTC_TIME, NOT_BEFORE),
        tagged(GENERALIZED_TIME, NOT_AFTER),
    ];
    let parts = [
        tagged(VERSION, &tagged(INTEGER, &[2])),
        tagged(INTEGER, &[1]),
        ED25519.to_vec(),
        name.clone(),
        tagged(SEQUENCE, &validity.concat()),
        name,
        subject_public_key_info.to_vec(),
    ];
    tagged(SEQUENCE, &parts.concat())
}

/// Returns the certificate.
pub(crate) fn signed(unsigned: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    let no_unused_bits = [&[0], signature.as_slice()].concat();
    let parts = [
        unsigned,
        ED25519.as_slice(),
        &tagged(BIT_STRING, &no_unused_bits),
    ];
    tagged(SEQUENCE, &parts.concat())
}

/// Returns a value with its tag and its length, in DER.
fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match length {
        [] => der.push(0),
        [one] if *one < 0x80 => der.push(*one),
        // At most the eight bytes of a `usize`.
        _ => {
            der.push(0x80 | length.len() as u8);
            der.extend_from_slice(length);
        }
    }
    der.extend_from_slice(value);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        assert_eq!(tagged(2, &[]), [2, 0]);
        assert_eq!(tagged(2, &[7; 127])[..2], [2, 127]);
        assert_eq!(tagged(2, &[7; 128])[..3], [2, 0x81, 128]);
        assert_eq!(tagged(2, &[7; 256])[..4], [2, 0x82, 1, 0]);
    }
}
