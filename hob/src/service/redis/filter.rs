//! What of a program's words reaches Redis: everything but what would change whom it speaks as.
//!
//! The stream is logged in already. `AUTH`, `HELLO … AUTH` and `RESET` are the commands that no
//! rights of a user hold back, and each could make the stream the default user's. They are put in
//! other words: Redis itself then gives the answer, in its turn, so that nothing has to be known of
//! what comes back, be it of a pipeline, a transaction or a subscription.
//!
//! Two readers that split a stream differently would be a way around. So Redis never reads what
//! the program wrote as it wrote it, except the inside of arguments: headers are written anew,
//! inline commands become lists, and what is not plainly well-formed ends the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a line that is a whole command; as Redis has it.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a header, such as `*3` or `$5`, with its end: a sign, 19 digits and the rest.
const HEADER_BYTES_MAX: usize = 24;

/// Arguments of a command; as Redis has it.
const ARGUMENTS_MAX: u64 = 1 << 20;

/// Bytes of one argument. Redis has a limit of its own, 512 MB by default, and answers for it;
/// this one keeps the arithmetic safe.
const ARGUMENT_BYTES_MAX: u64 = 1 << 40;

/// Bytes of the longest name of a command that is put in other words.
const NAME_BYTES_MAX: u64 = 5;

/// Bytes of all arguments of a command that is put in other words: two names and a password.
const REWORDED_BYTES_MAX: usize = 16 << 10;

/// Bytes that are read at once, where they are to be looked at.
const READ_BYTES: usize = 8 << 10;

/// What a program's words become. It does no I/O.
#[derive(Debug, Default)]
pub(super) struct Filter {
    state: State,
    /// A header or an inline command, as far as it has come.
    line: Vec<u8>,
    /// The arguments of a command that may have to be put in other words.
    held: Vec<Vec<u8>>,
    held_bytes: usize,
    /// All arguments of this command.
    count: u64,
    /// Those that have not ended yet.
    left: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A command.
    #[default]
    Start,
    /// The rest of an inline command.
    Inline,
    /// The rest of `*count`.
    Count,
    /// `$size`, or the rest of it.
    Size,
    /// So many bytes of an argument that is held.
    Hold(u64),
    /// So many bytes of an argument that passes.
    Pass(u64),
    /// The rest of the end of an argument, which is held or passes.
    End { held: bool, half: bool },
    /// Nothing: the stream was not well-formed.
    Failed,
}

/// What is not well-formed.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// The quotes of an inline command do not match.
    Quotes,
    /// Anything else.
    Protocol,
}

impl Filter {
    /// Returns whether nothing more is taken.
    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Returns how many of the bytes that come next may pass without being looked at.
    pub(super) fn passing(&self) -> u64 {
        match self.state {
            State::Pass(left) => left,
            _ => 0,
        }
    }

    /// Notes that so many bytes have passed, at most [`Filter::passing`].
    pub(super) fn passed(&mut self, bytes: u64) {
        if let State::Pass(left) = self.state {
            self.pass(left.saturating_sub(bytes));
        }
    }

    fn pass(&mut self, left: u64) {
        let end = State::End {
            held: false,
            half: false,
        };
        self.state = if left == 0 { end } else { State::Pass(left) };
    }

    /// Takes what the program says next, and adds what Redis is to be told to `out`.
    pub(super) fn turn(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() && !self.has_failed() {
            if let Err(wrong) = self.step(&mut input, out) {
                self.fail(wrong, out);
            }
        }
    }

    fn step(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
        match self.state {
            State::Start => {
                self.state = if input[0] == b'*' {
                    State::Count
                } else {
                    State::Inline
                };
            }
            State::Inline => {
                if self.take_line(input, INLINE_BYTES_MAX)? {
                    let line = std::mem::take(&mut self.line);
                    let words = split(&line).ok_or(Wrong::Quotes)?;
                    if !words.is_empty() {
                        write_command(out, &reword(words));
                    }
                    self.state = State::Start;
                }
            }
            State::Count => {
                if let Some(count) = self.take_header(input, b'*')? {
                    (self.count, self.left) = (count, count);
                    if count > ARGUMENTS_MAX {
                        return Err(Wrong::Protocol);
                    }
                    // Redis takes an empty list for nothing at all.
                    self.state = if count == 0 {
                        State::Start
                    } else {
                        State::Size
                    };
                }
            }
            State::Size => {
                if let Some(size) = self.take_header(input, b'$')? {
                    self.begin_argument(size, out)?;
                }
            }
            State::Hold(left) => {
                let taken = take(input, left);
                if let Some(argument) = self.held.last_mut() {
                    argument.extend_from_slice(taken);
                }
                self.hold(left - taken.len() as u64);
            }
            State::Pass(left) => {
                let taken = take(input, left);
                out.extend_from_slice(taken);
                self.pass(left - taken.len() as u64);
            }
            State::End { held, half } => {
                let expected = if half { b'\n' } else { b'\r' };
                if take(input, 1) != [expected] {
                    return Err(Wrong::Protocol);
                }
                if !half {
                    self.state = State::End { held, half: true };
                } else {
                    self.end_argument(held, out);
                }
            }
            State::Failed => *input = &[],
        }
        Ok(())
    }

    fn hold(&mut self, left: u64) {
        let end = State::End {
            held: true,
            half: false,
        };
        self.state = if left == 0 { end } else { State::Hold(left) };
    }

    /// Takes the size of the argument that comes, and decides whether it is held.
    fn begin_argument(&mut self, size: u64, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if size > ARGUMENT_BYTES_MAX {
            return Err(Wrong::Protocol);
        }
        let first = self.left == self.count;
        let holds = if first {
            size <= NAME_BYTES_MAX
        } else {
            !self.held.is_empty()
        };
        if holds {
            // With what an empty one takes in memory: there may be a million of them.
            self.held_bytes += size as usize + size_of::<Vec<u8>>();
            if self.held_bytes > REWORDED_BYTES_MAX {
                return Err(Wrong::Protocol);
            }
            self.held.push(Vec::new());
            self.hold(size);
        } else {
            if first {
                write_header(out, b'*', self.count);
            }
            write_header(out, b'$', size);
            self.pass(size);
        }
        Ok(())
    }

    fn end_argument(&mut self, held: bool, out: &mut Vec<u8>) {
        self.left -= 1;
        if !held {
            out.extend_from_slice(b"\r\n");
        } else if let [name] = self.held.as_slice()
            && !is_reworded(name)
        {
            // Only its name had to be known.
            write_header(out, b'*', self.count);
            write_argument(out, name);
            self.forget();
        }
        self.state = State::Size;
        if self.left == 0 {
            self.state = State::Start;
            if !self.held.is_empty() {
                let words = std::mem::take(&mut self.held);
                write_command(out, &reword(words));
                self.forget();
            }
        }
    }

    fn forget(&mut self) {
        self.held = Vec::new();
        self.held_bytes = 0;
    }

    /// Takes bytes of a line; returns whether it has ended. Its end is not part of it.
    fn take_line(&mut self, input: &mut &[u8], max: usize) -> Result<bool, Wrong> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let taken = take(input, end.map_or(input.len(), |end| end + 1) as u64);
        if self.line.len() + taken.len() > max {
            return Err(Wrong::Protocol);
        }
        self.line.extend_from_slice(taken);
        Ok(end.is_some())
    }

    /// Takes bytes of a header; returns its number once it has ended.
    fn take_header(&mut self, input: &mut &[u8], mark: u8) -> Result<Option<u64>, Wrong> {
        if !self.take_line(input, HEADER_BYTES_MAX)? {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let number = line
            .strip_prefix(&[mark])
            .and_then(|line| line.strip_suffix(b"\r\n"))
            .and_then(|digits| number(digits, mark == b'*'));
        number.ok_or(Wrong::Protocol).map(Some)
    }

    /// Has Redis say what is wrong, and end the stream.
    fn fail(&mut self, wrong: Wrong, out: &mut Vec<u8>) {
        let begun = match self.state {
            State::Size => self.held.is_empty() && self.left < self.count,
            // Its bytes have passed, and Redis looks for the next argument after two more.
            State::End { held: false, .. } => {
                out.extend_from_slice(b"\r\n");
                self.left > 1
            }
            _ => false,
        };
        let words: &[u8] = match (begun, wrong) {
            // Where an argument is expected.
            (true, _) => b"?\r\n",
            (false, Wrong::Quotes) => b"\"\r\n",
            (false, Wrong::Protocol) => b"*?\r\n",
        };
        out.extend_from_slice(words);
        self.forget();
        self.line = Vec::new();
        self.state = State::Failed;
    }
}

/// Takes up to `max` bytes from the front.
fn take<'a>(input: &mut &'a [u8], max: u64) -> &'a [u8] {
    let at = usize::try_from(max).map_or(input.len(), |max| max.min(input.len()));
    let (taken, rest) = input.split_at(at);
    *input = rest;
    taken
}

/// Returns the number of a header: digits without leading zeros. Less than none, which Redis takes
/// for none, is 0.
fn number(digits: &[u8], negative: bool) -> Option<u64> {
    let (digits, below) = match digits.strip_prefix(b"-") {
        Some(digits) if negative => (digits, true),
        _ => (digits, false),
    };
    let plain = matches!(digits, [b'0'] if !below) || matches!(digits, [b'1'..=b'9', ..]);
    if !plain || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if below { 0 } else { number })
}

/// Splits an inline command into its words, as Redis does; `None` if quotes do not match.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0 | 11);
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let blanks = rest.iter().take_while(|byte| is_blank(byte)).count();
        rest = &rest[blanks..];
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        while let Some((first, more)) = rest.split_first() {
            if is_blank(first) {
                break;
            }
            rest = more;
            match first {
                b'"' | b'\'' => {
                    rest = unquote(rest, *first, &mut word)?;
                    // Nothing may follow a closing quote directly.
                    if !rest.first().is_none_or(is_blank) {
                        return None;
                    }
                    break;
                }
                plain => word.push(*plain),
            }
        }
        words.push(word);
    }
}

/// Takes what is in quotes; returns what comes after the closing one.
fn unquote<'a>(mut rest: &'a [u8], quote: u8, word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    loop {
        let byte;
        (byte, rest) = match (quote, rest) {
            (b'"', [b'\\', b'x', high, low, more @ ..])
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) =>
            {
                ((high * 16 + low) as u8, more)
            }
            (b'"', [b'\\', escaped, more @ ..]) => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                };
                (byte, more)
            }
            (b'\'', [b'\\', b'\'', more @ ..]) => (b'\'', more),
            (_, [end, more @ ..]) if *end == quote => return Some(more),
            (_, [plain, more @ ..]) => (*plain, more),
            (_, []) => return None,
        };
        word.push(byte);
    }
}

fn is_reworded(name: &[u8]) -> bool {
    [&b"AUTH"[..], b"HELLO", b"RESET"]
        .iter()
        .any(|it| it.eq_ignore_ascii_case(name))
}

/// Returns what Redis is told for a command, which has at least a name.
fn reword(words: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let is = |name: &[u8]| words[0].eq_ignore_ascii_case(name);
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    if is(b"AUTH") {
        return match words.len() {
            // Who knows no password may say any: the answer is OK, and nothing changes.
            2 | 3 => texts(&["SELECT", "0"]),
            _ => texts(&["AUTH"]),
        };
    }
    if is(b"RESET") {
        return texts(&["RESET is not possible through a binding"]);
    }
    if !is(b"HELLO") {
        return words;
    }
    let mut kept = words;
    let options = kept.split_off(kept.len().min(2));
    let mut options = options.into_iter();
    while let Some(option) = options.next() {
        if option.eq_ignore_ascii_case(b"AUTH") && options.len() >= 2 {
            options.nth(1);
        } else if option.eq_ignore_ascii_case(b"SETNAME")
            && let Some(name) = options.next()
        {
            kept.extend([option, name]);
        } else {
            // Redis says what is wrong with it.
            kept.push(b"?".to_vec());
            return kept;
        }
    }
    kept
}

fn write_header(out: &mut Vec<u8>, mark: u8, number: u64) {
    out.push(mark);
    out.extend_from_slice(number.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_argument(out: &mut Vec<u8>, argument: &[u8]) {
    write_header(out, b'$', argument.len() as u64);
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}

/// Writes a command as Redis reads it in one way only.
pub(super) fn write_command(out: &mut Vec<u8>, words: &[impl AsRef<[u8]>]) {
    write_header(out, b'*', words.len() as u64);
    for word in words {
        write_argument(out, word.as_ref());
    }
}

/// A program's stream, of which only what passes the filter is read.
#[derive(Debug)]
pub(super) struct Filtered<S> {
    stream: S,
    filter: Filter,
    /// What passed, and how much of it was read.
    out: Vec<u8>,
    start: usize,
}

impl<S> Filtered<S> {
    /// Returns the stream behind a filter of its own.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            filter: Filter::default(),
            out: Vec::new(),
            start: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let waiting = &this.out[this.start..];
            if !waiting.is_empty() {
                let taken = waiting.len().min(buf.remaining());
                buf.put_slice(&waiting[..taken]);
                this.start += taken;
                if this.start == this.out.len() {
                    // Given back, so that an idle stream costs nothing.
                    (this.out, this.start) = (Vec::new(), 0);
                }
                return Poll::Ready(Ok(()));
            }
            let passing = this.filter.passing();
            if this.filter.has_failed() || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if passing > 0 {
                // The inside of an argument goes where it is wanted at once.
                let room =
                    usize::try_from(passing).map_or(buf.remaining(), |n| n.min(buf.remaining()));
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
                let read = part.filled().len();
                buf.advance(read);
                this.filter.passed(read as u64);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; READ_BYTES];
            let mut part = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.turn(part.filled(), &mut this.out);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
