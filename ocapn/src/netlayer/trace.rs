//! What goes over the connections of any netlayer, in readable form.
//!
//! Labels, positions and arguments are shown. What may be a secret is not: byte arrays (among them
//! swissnums, gift ids, keys and signatures) are shown by their length, and the swissnum of a
//! sturdyref's URI is left out of texts. Texts are data of the programs all the same: a trace is
//! for who may see that.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};

use super::{Connection, DialError, Incoming, Netlayer, Outgoing};
use crate::locator::{PeerLocator, Sturdyref};
use crate::syrup::{Limits, Mode, Reader, Scanner, Token};

/// Letters of one text or name that are shown.
const TEXT_MAX: usize = 80;

/// Letters of one message that are shown.
const MESSAGE_MAX: usize = 2_000;

/// One message that was sent or arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Counts the netlayer's connections from 1.
    pub connection: u64,
    /// Whether we sent it.
    pub sent: bool,
    /// The message in readable form.
    pub text: String,
}

type Sink = Arc<dyn Fn(Traced) + Send + Sync>;

/// A netlayer that tells of every message that goes over another one.
///
/// ```
/// # use std::{sync::{Arc, Mutex}, time::Duration};
/// # use ocapn::{Methods, Peer, Sturdyrefs, Turn};
/// # use ocapn::netlayer::{memory::MemoryNetwork, trace::Trace};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = MemoryNetwork::new(1, Duration::ZERO..Duration::ZERO);
/// # let table = Arc::new(Sturdyrefs::new());
/// # let alice = Peer::builder().netlayer(network.netlayer("alice"))
/// #     .sturdyrefs(table.clone()).spawn();
/// # let echo = alice.export(Methods::new().on("echo", |_: &Turn, (x,): (i64,)| Ok(x)));
/// # let sturdyref = table.export(&alice.locator(), &echo)?;
/// let lines = Arc::new(Mutex::new(Vec::new()));
/// let sink = lines.clone();
/// let netlayer = Trace::new(network.netlayer("bob"), move |traced| {
///     sink.lock().unwrap().push(traced.text);
/// });
/// let bob = Peer::builder().netlayer(netlayer).spawn();
/// bob.enliven(&sturdyref).await?.ask::<i64>("echo", (7,)).await?;
/// let lines = lines.lock().unwrap();
/// assert!(lines.iter().any(|line| line.contains("args=['fetch ‹32 bytes›]")));
/// assert!(lines.iter().any(|line| line.contains("args=['echo 7]")));
/// # Ok(())
/// # }
/// ```
pub struct Trace<N> {
    netlayer: N,
    sink: Sink,
    connections: AtomicU64,
}

impl<N: Netlayer> Trace<N> {
    /// Returns a netlayer that does what `netlayer` does, and tells `sink` of each message. The
    /// sink is called where messages are sent and received, so it should be quick.
    pub fn new(netlayer: N, sink: impl Fn(Traced) + Send + Sync + 'static) -> Self {
        Self {
            netlayer,
            sink: Arc::new(sink),
            connections: AtomicU64::new(0),
        }
    }

    fn tap(&self, connection: Connection) -> Connection {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let tap = |sent| Tap {
            connection: number,
            sent,
            sink: Arc::clone(&self.sink),
            scanner: Some(Scanner::new(Limits::default(), Mode::Lenient)),
            input: BytesMut::new(),
        };
        Connection {
            incoming: Box::new(TappedIncoming(connection.incoming, tap(false))),
            outgoing: Box::new(TappedOutgoing(connection.outgoing, tap(true))),
            ..connection
        }
    }
}

impl<N: Netlayer> Netlayer for Trace<N> {
    fn transport(&self) -> &str {
        self.netlayer.transport()
    }

    fn locator(&self) -> PeerLocator {
        self.netlayer.locator()
    }

    fn dial<'a>(&'a self, to: &'a PeerLocator) -> BoxFuture<'a, Result<Connection, DialError>> {
        let dial = self.netlayer.dial(to);
        async move { Ok(self.tap(dial.await?)) }.boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Connection>> {
        async move { Some(self.tap(self.netlayer.accept().await?)) }.boxed()
    }

    fn close(&self) {
        self.netlayer.close();
    }

    fn believes_claims(&self) -> bool {
        self.netlayer.believes_claims()
    }

    fn freed(&self) -> BoxFuture<'_, ()> {
        self.netlayer.freed()
    }
}

/// Finds the messages in one direction of a connection.
struct Tap {
    connection: u64,
    sent: bool,
    sink: Sink,
    /// `None` once something came that is no Syrup: nobody knows where the next message starts.
    scanner: Option<Scanner>,
    input: BytesMut,
}

impl Tap {
    fn see(&mut self, bytes: &[u8]) {
        let Some(scanner) = &mut self.scanner else {
            return;
        };
        self.input.extend_from_slice(bytes);
        let mut texts = Vec::new();
        let malformed = loop {
            match scanner.scan(&self.input) {
                Ok(Some(end)) => texts.push(describe(&self.input.split_to(end).freeze())),
                Ok(None) => break false,
                Err(error) => {
                    texts.push(format!("malformed: {error}"));
                    break true;
                }
            }
        };
        if malformed {
            self.scanner = None;
            self.input.clear();
        }
        for text in texts {
            (self.sink)(Traced {
                connection: self.connection,
                sent: self.sent,
                text,
            });
        }
    }
}

struct TappedIncoming(Box<dyn Incoming>, Tap);

impl Incoming for TappedIncoming {
    fn read<'a>(&'a mut self, into: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            let before = into.len();
            let read = self.0.read(into).await;
            into[before..].iter().for_each(|chunk| self.1.see(chunk));
            read
        }
        .boxed()
    }

    fn session_up(&mut self) {
        self.0.session_up();
    }
}

struct TappedOutgoing(Box<dyn Outgoing>, Tap);

impl Outgoing for TappedOutgoing {
    fn write<'a>(&'a mut self, messages: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<()>> {
        messages.iter().for_each(|message| self.1.see(message));
        self.0.write(messages)
    }

    fn keepalive(&self) -> Option<std::time::Duration> {
        self.0.keepalive()
    }

    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.0.close()
    }
}

/// Names of the fields of an operation.
fn fields(label: &str) -> &'static [&'static str] {
    match label {
        "op:start-session" => &["version", "key", "location", "signature"],
        "op:deliver" => &["to", "args", "answer", "resolver"],
        "op:deliver-only" => &["to", "args"],
        "op:listen" => &["to", "listener", "partial"],
        "op:get" => &["from", "field", "answer"],
        "op:index" => &["from", "index", "answer"],
        "op:untag" => &["from", "tag", "answer"],
        "op:abort" => &["reason"],
        "op:gc-exports" | "op:gc-export" => &["positions", "mentions"],
        "op:gc-answers" | "op:gc-answer" => &["positions"],
        _ => &[],
    }
}

/// A container that has begun.
struct Open {
    kind: Kind,
    label: String,
    values: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    List,
    Dict,
    Record,
}

/// Returns one whole message in readable form.
pub fn describe(message: &Bytes) -> String {
    let mut reader = Reader::new(message, Mode::Lenient);
    let mut text = String::new();
    let mut open: Vec<Open> = Vec::new();
    // Containers inside of a key or a signature, which is shown by a word.
    let mut hidden = 0_usize;
    loop {
        let token = match reader.token() {
            Ok(token) => token,
            Err(error) => {
                // Writing to a String cannot fail, here and below.
                let _ = write!(text, " malformed: {error}");
                break;
            }
        };
        if hidden > 0 {
            match token {
                Token::List | Token::Dict | Token::Record => hidden += 1,
                Token::End => hidden -= 1,
                _ => {}
            }
            if hidden == 0 {
                open.pop();
            }
        } else if let Token::End = token {
            if let Some(ended) = open.pop() {
                text.push_str(close(&ended, open.is_empty()));
            }
        } else {
            hidden = usize::from(value(&mut text, &mut open, &token));
        }
        if open.is_empty() || text.len() > MESSAGE_MAX {
            break;
        }
    }
    shorten(&mut text, MESSAGE_MAX);
    text
}

/// Writes one token that begins or is a value; returns whether the rest of its list is hidden.
fn value(text: &mut String, open: &mut Vec<Open>, token: &Token<'_>) -> bool {
    let outermost = open.len() == 1;
    if let Some(inside) = open.last_mut() {
        before(text, inside, outermost);
        inside.values += 1;
        if inside.kind == Kind::Record && inside.values == 1 {
            if let Token::Symbol(label) = token {
                inside.label = (*label).to_owned();
                text.push_str(label.strip_prefix("desc:").unwrap_or(label));
                return false;
            }
        } else if let (Kind::List, 1, Token::Symbol(head)) = (inside.kind, inside.values, token) {
            let word = match *head {
                "public-key" => "‹key›",
                "sig-val" => "‹signature›",
                _ => "",
            };
            if !word.is_empty() {
                // The bracket that was written already belongs to the word.
                text.pop();
                text.push_str(word);
                return true;
            }
        }
    }
    let kind = match token {
        Token::List => Some(Kind::List),
        Token::Dict => Some(Kind::Dict),
        Token::Record => Some(Kind::Record),
        _ => None,
    };
    if let Some(kind) = kind {
        text.push_str(match kind {
            Kind::List => "[",
            Kind::Dict => "{",
            Kind::Record if open.is_empty() => "",
            Kind::Record => "<",
        });
        open.push(Open {
            kind,
            label: String::new(),
            values: 0,
        });
        return false;
    }
    let _ = match token {
        Token::Bool(b) => write!(text, "{b}"),
        Token::Int(n) => write!(text, "{n}"),
        Token::Float(x) => write!(text, "{x:?}"),
        Token::String(string) => write!(text, "{:?}", masked(string)),
        Token::Symbol(symbol) => write!(text, "'{}", masked(symbol)),
        Token::Bytes(bytes) => write!(text, "‹{} bytes›", bytes.len()),
        Token::List | Token::Dict | Token::Record | Token::End => Ok(()),
    };
    false
}

/// Writes what stands between the values of a container.
fn before(text: &mut String, inside: &Open, outermost: bool) {
    match inside.kind {
        Kind::List | Kind::Record if inside.values == 0 => {}
        Kind::Dict if inside.values % 2 == 1 => text.push_str(": "),
        Kind::Dict if inside.values > 0 => text.push_str(", "),
        Kind::Dict => {}
        Kind::List | Kind::Record => text.push(' '),
    }
    if outermost
        && inside.kind == Kind::Record
        && inside.values > 0
        && let Some(name) = fields(&inside.label).get(inside.values - 1)
    {
        text.push_str(name);
        text.push('=');
    }
}

fn close(ended: &Open, outermost: bool) -> &'static str {
    match ended.kind {
        Kind::List => "]",
        Kind::Dict => "}",
        Kind::Record if outermost => "",
        Kind::Record => ">",
    }
}

/// Returns a text without a swissnum, and not too long.
fn masked(text: &str) -> String {
    let mut shown = match text.parse::<Sturdyref>() {
        Ok(sturdyref) => sturdyref.to_string(),
        // Whatever else looks like one is not to be trusted to be none.
        Err(_) if text.contains("/s/") => "…".to_owned(),
        Err(_) => text.to_owned(),
    };
    shorten(&mut shown, TEXT_MAX);
    shown
}

fn shorten(text: &mut String, most: usize) {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_readable_and_secrets_are_not() {
        for (message, expected) in [
            (
                &b"<10'op:deliver<11'desc:export0+>[5'fetch4:\x01\x02\x03\x04]3+\
                   <18'desc:import-object1+>>"[..],
                "op:deliver to=<export 0> args=['fetch ‹4 bytes›] answer=3 \
                 resolver=<import-object 1>",
            ),
            (
                b"<10'op:deliver<11'desc:answer2+>[{1\"a[t]2\"aa1-}<4'null>]ff>",
                "op:deliver to=<answer 2> args=[{\"a\": [true], \"aa\": -1} <null>] \
                 answer=false resolver=false",
            ),
            (
                b"<16'op:start-session3\"1.0[10'public-key[3'ecc[1'q1:x]]]\
                  <10'ocapn-peer1'm1\"af>[7'sig-val[5'eddsa[1'r1:x][1's1:y]]]>",
                "op:start-session version=\"1.0\" key=‹key› location=<ocapn-peer 'm \"a\" false> \
                 signature=‹signature›",
            ),
            (
                b"<13'op:gc-exports[1+2+][3+4+]>",
                "op:gc-exports positions=[1 2] mentions=[3 4]",
            ),
            (
                b"<8'op:abort22\"ocapn://a.m/s/AAAAAAAA>",
                "op:abort reason=\"ocapn://a.m/s/…\"",
            ),
        ] {
            assert_eq!(describe(&Bytes::from_static(message)), expected);
        }
        let long = format!("<8'op:abort200\"{}>", "é".repeat(100));
        let shown = describe(&Bytes::from(long));
        assert_eq!(shown, format!("op:abort reason=\"{}…\"", "é".repeat(80)));
        assert!(describe(&Bytes::from_static(b"<8'op:abort")).contains("malformed"));
    }
}
