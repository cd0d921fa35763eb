//! A peer whose every byte the test chooses: its keys, ids and certificates are made here, apart
//! from the crate's own code.

use ed25519_dalek::{Signer, SigningKey};
use ocapn::{Direction, Passable, SessionId};
use sha2::{Digest, Sha256};

use crate::support::{TRANSPORT, World};

/// Returns a key of the test's choice.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn double_hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

fn key_encoding(q: &[u8]) -> Vec<u8> {
    let start = b"[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa][1'q32:";
    [start, q, b"]]]"].concat()
}

fn signature(signer: &SigningKey, signed: &[u8]) -> Vec<u8> {
    let bytes = signer.sign(signed).to_bytes();
    let (r, s) = bytes.split_at(32);
    [b"[7'sig-val[5'eddsa[1'r32:", r, b"][1's32:", s, b"]]]"].concat()
}

fn envelope(signer: &SigningKey, signed: &[u8]) -> Vec<u8> {
    let signature = signature(signer, signed);
    [b"<17'desc:sig-envelope", signed, &signature, b">"].concat()
}

fn byte_array(bytes: &[u8]) -> Vec<u8> {
    [format!("{}:", bytes.len()).as_bytes(), bytes].concat()
}

fn location(transport: &str, designator: &str, hints: &str) -> Vec<u8> {
    let (t, d) = (transport.len(), designator.len());
    format!("<10'ocapn-peer{t}'{transport}{d}\"{designator}{hints}>").into_bytes()
}

/// One side of a session with vat 0.
pub(crate) struct Side {
    pub(crate) session: SessionId,
    pub(crate) key: SigningKey,
    /// The Public Identifier of our key.
    pub(crate) side: [u8; 32],
    /// The vat's key in this session.
    pub(crate) vat_key: [u8; 32],
    pub(crate) session_id: [u8; 32],
}

impl Side {
    /// Connects to vat 0, which has not been told by its netlayer who this is.
    pub(crate) fn connect(world: &mut World, designator: &str, key: SigningKey) -> Self {
        world.authenticated = false;
        let opening = world.opening(0, Direction::Inbound);
        let session = world.vats[0].open(opening);
        let own = key_encoding(key.verifying_key().as_bytes());
        let location = location(TRANSPORT, designator, "f");
        let signed = [b"<11'my-location", &location[..], b">"].concat();
        let signature = signature(&key, &signed);
        let hello = [
            b"<16'op:start-session3\"1.0",
            &own[..],
            &location,
            &signature,
            b">",
        ];
        world.vats[0].receive(session, &hello.concat()).unwrap();
        let theirs = world.vats[0].try_transmit(session).unwrap().bytes;
        let start = b"[1'q32:";
        let at = theirs.windows(start.len()).position(|part| part == start);
        let at = at.unwrap() + start.len();
        let vat_key: [u8; 32] = theirs[at..at + 32].try_into().unwrap();
        let (side, other) = (double_hash(&own), double_hash(&key_encoding(&vat_key)));
        let ids = [&b"prot0"[..], side.min(other).as_slice(), &side.max(other)].concat();
        let connected = Self {
            session,
            key,
            side,
            vat_key,
            session_id: double_hash(&ids),
        };
        connected.hear(world);
        let up = world.vats[0].session_with(TRANSPORT, designator);
        assert_eq!(up, Some(session), "{designator} is up");
        connected
    }

    /// Sends bytes and returns what vat 0 sends back, as text.
    pub(crate) fn say(&self, world: &mut World, bytes: impl AsRef<[u8]>) -> String {
        let _ = world.vats[0].receive(self.session, bytes.as_ref());
        self.hear(world)
    }

    /// Returns what vat 0 has sent, as text.
    pub(crate) fn hear(&self, world: &mut World) -> String {
        let mut back = Vec::new();
        for _ in 0..3 {
            world.serve(0);
            while let Some(output) = world.vats[0].try_transmit(self.session) {
                back.extend_from_slice(&output.bytes);
            }
        }
        String::from_utf8_lossy(&back).into_owned()
    }

    /// Fetches an object, as export 1 of the vat where it is the first.
    pub(crate) fn fetch(&self, world: &mut World, swissnum: &str) {
        let length = swissnum.len();
        let fetch = format!(
            "<10'op:deliver<11'desc:export0+>[5'fetch{length}:{swissnum}]\
             0+<18'desc:import-object1+>>"
        );
        let back = self.say(world, fetch);
        let fetched = "7'fulfill<18'desc:import-object1+>";
        assert!(back.contains(fetched), "{back}");
    }

    /// Deposits what was fetched; the answer comes to resolver 2.
    pub(crate) fn deposit(&self, world: &mut World, gift: &[u8]) -> String {
        let gift = byte_array(gift);
        let start = b"<10'op:deliver<11'desc:export0+>[12'deposit-gift";
        let end = b"<11'desc:export1+>]f<18'desc:import-object2+>>";
        self.say(world, [start, &gift[..], end].concat())
    }

    /// Asks for the gift of a certificate; the answer comes to resolver `position`.
    pub(crate) fn withdraw(&self, world: &mut World, certificate: &[u8], position: u64) -> String {
        let start = b"<10'op:deliver<11'desc:export0+>[13'withdraw-gift";
        let end = format!("]{position}+<18'desc:import-object{position}+>>");
        self.say(world, [start, certificate, end.as_bytes()].concat())
    }
}

/// What a gifter says, and with which key.
#[derive(Clone)]
pub(crate) struct Give {
    pub(crate) signer: SigningKey,
    /// The receiver's key towards the gifter.
    pub(crate) receiver: [u8; 32],
    pub(crate) exporter: (String, String),
    /// The hints of the exporter's locator, as they travel.
    pub(crate) hints: &'static str,
    pub(crate) session: [u8; 32],
    pub(crate) gifter_side: [u8; 32],
    pub(crate) gift: Vec<u8>,
}

impl Give {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let signed = [
            b"<17'desc:handoff-give",
            &key_encoding(&self.receiver)[..],
            &location(&self.exporter.0, &self.exporter.1, self.hints),
            &byte_array(&self.session),
            &byte_array(&self.gifter_side),
            &byte_array(&self.gift),
            b">",
        ];
        envelope(&self.signer, &signed.concat())
    }
}

/// What a receiver says, and with which key.
#[derive(Clone)]
pub(crate) struct Receive {
    pub(crate) signer: SigningKey,
    pub(crate) session: [u8; 32],
    pub(crate) receiver_side: [u8; 32],
    pub(crate) count: u64,
    pub(crate) give: Give,
}

impl Receive {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let count = format!("{}+", self.count);
        let signed = [
            b"<20'desc:handoff-receive",
            &byte_array(&self.session)[..],
            &byte_array(&self.receiver_side),
            count.as_bytes(),
            &self.give.encode(),
            b">",
        ];
        envelope(&self.signer, &signed.concat())
    }
}

/// Returns the reason for which what is here broke, in words.
pub(crate) fn broken(of: &Passable) -> String {
    let result = of.as_reference().map(|found| found.resolution().now());
    match result {
        Some(Some(Err(broken))) => broken.to_string(),
        other => format!("not broken: {other:?}"),
    }
}
