//! One connection: bytes from the netlayer to the vat, and back.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::captp::SessionId;
use crate::netlayer::{Connection, Incoming, Outgoing};
use crate::vat::{Output, Vat};

/// Bytes of answers that may wait to be sent before we stop reading from that peer. Whoever calls
/// and does not take the answers is held up by this long before the vat's own limit ends the
/// session.
const ANSWERS_BYTES_MAX: usize = 4 << 20;

/// How long nothing is sent before twice as much may wait: the peer may have stopped reading for
/// the same reason, and then one of the two has to give way.
const STALLED_AFTER: Duration = Duration::from_millis(100);

/// Bytes of answers that may wait in the end. A peer that takes none is dead before long.
const ANSWERS_BYTES_STALLED_MAX: usize = 64 << 20;

/// How many eighths of what may be kept for a peer may be kept without a pause in reading, and how
/// long it pauses for each one more.
const CROWDED_EIGHTHS: usize = 4;
const CROWDED_PAUSE: Duration = Duration::from_secs(1);

/// How long an ended connection is kept for the last words to cross: closing a socket with
/// unread bytes in it would reset the connection and lose what we just said.
const LINGER: Duration = Duration::from_secs(1);

/// Carries bytes both ways until the connection or the session is over, and returns why it ended.
pub(super) async fn serve(vat: &Vat, session: SessionId, connection: Connection) -> String {
    let Connection {
        mut incoming,
        mut outgoing,
        ..
    } = connection;
    let sent = Notify::new();
    let reason = {
        let read = receive(vat, session, incoming.as_mut(), &sent);
        let mut write = pin!(transmit(vat, session, outgoing.as_mut(), &sent));
        tokio::select! {
            reason = read => {
                // What was said last (why the session is aborted, say) is still sent.
                let _ = timeout(LINGER, write).await;
                reason
            }
            written = &mut write => {
                let reason = match written {
                    Ok(()) => "the session was ended".to_owned(),
                    Err(error) => error.to_string(),
                };
                vat.closed(session, &reason);
                reason
            }
        }
    };
    let discard = async {
        let mut ignored = Vec::new();
        while let Ok(true) = incoming.read(&mut ignored).await {
            ignored.clear();
        }
    };
    // Past the time, the peer goes without its last word.
    let _ = timeout(LINGER, discard).await;
    reason
}

/// Reads until the connection or the session is over, and returns why.
async fn receive(
    vat: &Vat,
    session: SessionId,
    incoming: &mut dyn Incoming,
    sent: &Notify,
) -> String {
    let mut chunks = Vec::new();
    let mut up = false;
    let mut eighths = CROWDED_EIGHTHS;
    loop {
        let read = {
            let mut read = incoming.read(&mut chunks);
            poll_fn(|cx| {
                // The session may also come up when another one ends. Its coming up wakes this
                // task to write, if to nothing else.
                if !up && vat.is_up(session) {
                    return Poll::Ready(None);
                }
                read.poll_unpin(cx).map(Some)
            })
            .await
        };
        let Some(read) = read else {
            up = true;
            incoming.session_up();
            continue;
        };
        let ended = match read {
            Ok(true) => None,
            Ok(false) => Some("the peer closed the connection".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = ended {
            vat.closed(session, &reason);
            return reason;
        }
        for chunk in chunks.drain(..) {
            // The vat has ended the session by itself, and may have a last word to send.
            if let Err(over) = vat.receive(session, &chunk) {
                return over.reason;
            }
        }
        await_room(vat, session, &mut eighths).await;
        let mut answers_max = ANSWERS_BYTES_MAX;
        while vat.unsent_answers(session) > answers_max {
            if timeout(STALLED_AFTER, sent.notified()).await.is_err() {
                answers_max = ANSWERS_BYTES_STALLED_MAX.min(2 * answers_max);
            }
        }
    }
}

/// Waits while much is kept for the peer, and may soon be let go of. Turns that wait to be run, and
/// messages to be sent on to others, need nothing of the peer; calls that run or wait may do, and
/// so are waited for a little only, and not again before more is kept. `eighths` of what may be
/// kept are let pass; they start at [`CROWDED_EIGHTHS`].
async fn await_room(vat: &Vat, session: SessionId, eighths: &mut usize) {
    if vat
        .has_room(session, CROWDED_EIGHTHS)
        .now_or_never()
        .is_some()
    {
        *eighths = CROWDED_EIGHTHS;
        return;
    }
    while timeout(CROWDED_PAUSE, vat.has_room(session, *eighths))
        .await
        .is_err()
    {
        if !vat.is_busy(session) {
            *eighths += 1;
        }
    }
}

/// Writes until the session is over.
async fn transmit(
    vat: &Vat,
    session: SessionId,
    outgoing: &mut dyn Outgoing,
    sent: &Notify,
) -> io::Result<()> {
    let mut messages = Vec::new();
    loop {
        match within(outgoing.keepalive(), vat.transmit(session)).await {
            Some(Some(output)) => split(output, &mut messages),
            Some(None) => return outgoing.close().await,
            // Silent for too long: no messages is a sign of life.
            None => {}
        }
        outgoing.write(&mut messages).await?;
        sent.notify_one();
    }
}

/// Returns what the future gives, or nothing if the time is over before.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

fn split(output: Output, messages: &mut Vec<Bytes>) {
    let mut start = 0;
    for end in output.ends {
        messages.push(output.bytes.slice(start..end));
        start = end;
    }
}
