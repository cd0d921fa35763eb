//! The certificates of third-party handoffs.
//!
//! The gifter signs a [`Give`] for the receiver, and deposits the gift at the exporter; the
//! receiver signs a [`Receive`] around it and withdraws the gift there.

use bytes::Bytes;

use super::crypto::{Envelope, PublicKey, SessionKeys};
use crate::locator::PeerLocator;
use crate::syrup::{Mode, Orders, Reader, SyrupError, Writer};

/// What the gifter says: the holder of a key may have a gift from the exporter.
pub(crate) struct Give {
    /// The receiver's key in its session with the gifter.
    pub(crate) receiver_key: PublicKey,
    pub(crate) exporter: PeerLocator,
    /// The session of gifter and exporter.
    pub(crate) session: Bytes,
    /// The gifter's side of it.
    pub(crate) gifter_side: Bytes,
    /// The encoding of the gift's id: bytes, but older peers use other values.
    pub(crate) gift_id: Bytes,
}

impl Give {
    pub(crate) fn read(envelope: &Envelope, mode: Mode) -> Result<Self, SyrupError> {
        let mut reader = Reader::new(&envelope.signed, mode);
        reader.record_of("desc:handoff-give")?;
        let give = Self {
            receiver_key: PublicKey::read(&mut reader)?,
            exporter: PeerLocator::read(&mut reader, Orders::OF_SESSION)?,
            session: reader.bytes()?,
            gifter_side: reader.bytes()?,
            gift_id: reader.raw()?,
        };
        reader.end()?;
        Ok(give)
    }
}

/// Returns the signed certificate by which a gifter gives. `exporter` is the encoding of the
/// location that the exporter itself announced.
pub(crate) fn sign_give(
    keys: &SessionKeys,
    receiver_key: &PublicKey,
    exporter: &[u8],
    session: &[u8],
    gift_id: &[u8],
) -> Bytes {
    let mut writer = Writer::new();
    writer
        .record("desc:handoff-give")
        .raw(&receiver_key.encoding())
        .raw(exporter);
    writer
        .bytes(session)
        .bytes(&keys.public.side)
        .bytes(gift_id)
        .end_record();
    keys.envelope(&writer.take())
}

/// What the receiver says: here is the gift's certificate, and I am the one it names.
pub(crate) struct Receive {
    /// The session of exporter and receiver.
    pub(crate) session: Bytes,
    /// The receiver's side of it.
    pub(crate) receiver_side: Bytes,
    pub(crate) count: u64,
    pub(crate) give: Envelope,
}

impl Receive {
    /// Reads the certificate out of `envelope`, the encoding of the whole.
    pub(crate) fn read(envelope: &Bytes, mode: Mode) -> Result<(Envelope, Self), SyrupError> {
        let outer = Envelope::read(&mut Reader::new(envelope, mode))?;
        let mut reader = Reader::new(&outer.signed, mode);
        reader.record_of("desc:handoff-receive")?;
        let receive = Self {
            session: reader.bytes()?,
            receiver_side: reader.bytes()?,
            count: reader.unsigned()?,
            give: Envelope::read(&mut reader)?,
        };
        reader.end()?;
        Ok((outer, receive))
    }
}

/// Returns the signed certificate by which a receiver withdraws: `keys` are those of its session
/// with the gifter, session and side those with the exporter.
pub(crate) fn sign_receive(
    keys: &SessionKeys,
    session: &[u8],
    receiver_side: &[u8],
    count: u64,
    give: &[u8],
) -> Bytes {
    let mut writer = Writer::new();
    writer
        .record("desc:handoff-receive")
        .bytes(session)
        .bytes(receiver_side);
    writer.unsigned(count).raw(give).end_record();
    keys.envelope(&writer.take())
}

/// Returns whether `envelope` holds a record with this label.
pub(crate) fn holds(envelope: &Envelope, label: &str, mode: Mode) -> bool {
    let mut reader = Reader::new(&envelope.signed, mode);
    matches!(reader.record(), Ok(found) if found == label)
}
