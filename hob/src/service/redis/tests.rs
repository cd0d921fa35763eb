//! Whatever a program says, Redis hears nothing that would make the stream another user's.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::filter::{Filter, Filtered, write_command};

fn filtered(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Filter::default().turn(input, &mut out);
    out
}

#[track_caller]
fn check(input: &str, expected: &str) {
    let out = filtered(input.as_bytes());
    assert_eq!(String::from_utf8_lossy(&out), expected, "{input:?}");
}

fn command(words: &[&str]) -> String {
    let mut out = Vec::new();
    write_command(&mut out, words);
    String::from_utf8(out).unwrap()
}

#[test]
fn what_would_change_the_user_is_put_in_other_words() {
    let select = command(&["SELECT", "0"]);
    for auth in [
        command(&["AUTH", "default", ""]),
        command(&["auth", "x"]),
        command(&["AuTh", "default", "x"]),
        "AUTH default x\r\n".into(),
        " auth  x \n".into(),
        "\"\\x41UTH\" 'default' \"\"\r\n".into(),
    ] {
        check(&auth, &select);
    }
    check(&command(&["AUTH"]), &command(&["AUTH"]));
    check(&command(&["AUTH", "a", "b", "c"]), &command(&["AUTH"]));
    let reset = command(&["RESET is not possible through a binding"]);
    check(&command(&["reset"]), &reset);
    check("RESET now\r\n", &reset);
    for (said, heard) in [
        (&["HELLO"][..], &["HELLO"][..]),
        (&["hello", "3"], &["hello", "3"]),
        (&["HELLO", "3", "AUTH", "default", ""], &["HELLO", "3"]),
        (
            &[
                "HELLO", "3", "setname", "auth", "auth", "a", "setname", "AUTH", "x", "y",
            ],
            &["HELLO", "3", "setname", "auth"],
        ),
        (
            &["HELLO", "2", "AUTH", "u", "p", "SETNAME", "n"],
            &["HELLO", "2", "SETNAME", "n"],
        ),
        (&["HELLO", "2", "AUTH", "u"], &["HELLO", "2", "?"]),
        (&["HELLO", "2", "SETNAME"], &["HELLO", "2", "?"]),
    ] {
        check(&command(said), &command(heard));
    }
}

#[test]
fn everything_else_passes_as_it_is() {
    let all = [
        command(&["GET", "AUTH"]),
        command(&["SET", "k", "*1\r\n$5\r\nRESET\r\n"]),
        command(&["AUTHX", "y"]),
        command(&["", "x"]),
        command(&["subscribe", "c"]),
        command(&["PING"]),
    ]
    .concat();
    check(&all, &all);
    // Nothing at all is nothing.
    check("*0\r\n*-1\r\n\r\n \n", "");
    check("set a 'b c'\r\n", &command(&["set", "a", "b c"]));
    check(
        "x \"\\n\\x0g\\\"\" '\\'' y\r\n",
        &command(&["x", "\nx0g\"", "'", "y"]),
    );
}

#[test]
fn what_is_not_well_formed_ends_the_stream_where_redis_can_say_so() {
    for start in [
        "*\r\n",
        "*01\r\n",
        "*+1\r\n",
        "* 1\r\n",
        "*1\n",
        "*1\r\r\n",
        "*1x\r\n",
        "*--1\r\n",
        "*-0\r\n",
        "*1048577\r\n",
        "*99999999999999999999999999",
        "*1\r\n+4\r\nPING",
        "*1\r\n$-1\r\n",
        "*1\r\n$04\r\nPING\r\n",
        "*1\r\n$4\r\nPINGxx",
        "*2\r\n$4\r\nAUTH\r\n$99999\r\n",
    ] {
        let input = format!("{start}*1\r\n$5\r\nRESET\r\n");
        check(&input, "*?\r\n");
    }
    check("get \"a\"b\r\nPING\r\n", "\"\r\n");
    check("get 'a\r\nPING\r\n", "\"\r\n");
    check(&"x".repeat((64 << 10) + 1), "*?\r\n");
    let begun = "*3\r\n$3\r\nSET\r\n";
    check(&format!("{begun}x4\r\n*1\r\n"), &format!("{begun}?\r\n"));
    check(
        &format!("{begun}$1\r\nabc"),
        &format!("{begun}$1\r\na\r\n?\r\n"),
    );
    let last = "*2\r\n$3\r\nGET\r\n$1\r\n";
    check(&format!("{last}abc"), &format!("{last}a\r\n*?\r\n"));
    let mut failed = Filter::default();
    failed.turn(b"*x\r\n", &mut Vec::new());
    assert!(failed.has_failed());
}

/// Parts of what a program may say, for good or ill.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "AUTH", "auth", "HELLO", "RESET", "SELECT", "GET", "SET", "3", "default", "", "SETNAME",
        "\r\n", "*1", "x",
    ]);
    let well_formed = prop::collection::vec(word, 1..6).prop_map(|words| {
        let mut out = Vec::new();
        write_command(&mut out, &words);
        out
    });
    let piece = prop::sample::select(vec![
        "*",
        "$",
        "1",
        "2",
        "5",
        "\r\n",
        "\r",
        "\n",
        "AUTH",
        "RESET",
        "HELLO",
        " ",
        "\"",
        "'",
        "\\x41",
        "-1",
        "0",
        "*1\r\n$5\r\nRESET\r\n",
        "*3\r\n",
        "$4\r\n",
        "GET",
        "x",
    ]);
    prop_oneof![
        3 => well_formed,
        3 => piece.prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

fn said() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(part(), 0..30).prop_map(|parts| parts.concat())
}

/// Reads commands as Redis does, which looks at less than the filter: where it is lax, so is this.
fn heard(mut rest: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut commands = Vec::new();
    let line = |rest: &mut &[u8]| {
        let end = rest.iter().position(|byte| *byte == b'\r')?;
        let line = rest[..end].to_vec();
        *rest = rest.get(end + 2..)?;
        Some(line)
    };
    let number = |line: &[u8]| {
        std::str::from_utf8(line.get(1..)?)
            .ok()?
            .parse::<usize>()
            .ok()
    };
    let mut next = || {
        if rest.first() != Some(&b'*') {
            return None;
        }
        let mut words = Vec::new();
        for _ in 0..number(&line(&mut rest)?)? {
            let size = number(&line(&mut rest)?)?;
            words.push(rest.get(..size)?.to_vec());
            rest = rest.get(size + 2..)?;
        }
        Some(words)
    };
    while let Some(command) = next() {
        commands.push(command);
    }
    commands
}

proptest! {
    #[test]
    fn redis_hears_nothing_that_changes_the_user(said in said()) {
        for words in heard(&filtered(&said)) {
            let name = words[0].to_ascii_uppercase();
            prop_assert!(name != b"RESET", "{said:?}");
            prop_assert!(name != b"AUTH" || words.len() == 1, "{said:?}");
            let options = words.get(2..).unwrap_or_default().iter();
            let mut options = options.step_by(2).map(|option| option.to_ascii_uppercase());
            prop_assert!(name != b"HELLO" || !options.any(|it| it == b"AUTH"), "{said:?}");
        }
    }

    /// However the bytes arrive, and whether or not they are looked at, the same comes of them.
    #[test]
    fn pieces_are_heard_as_the_whole(
        said in said(),
        sizes in prop::collection::vec(1..9_usize, 1..40),
    ) {
        let whole = filtered(&said);
        let (mut filter, mut out, mut rest) = (Filter::default(), Vec::new(), said.as_slice());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let passing = usize::try_from(filter.passing()).unwrap_or(usize::MAX);
            let size = rest.len().min(*size);
            let passed = size.min(passing);
            out.extend_from_slice(&rest[..passed]);
            filter.passed(passed as u64);
            filter.turn(&rest[passed..size], &mut out);
            rest = &rest[size..];
        }
        prop_assert_eq!(out, whole);
    }
}

#[tokio::test]
async fn large_arguments_pass_whole_through_a_stream() {
    let argument = vec![b'*'; 3 << 20];
    let mut said = b"*1\r\n$5\r\nhello\r\n".to_vec();
    write_command(&mut said, &[b"SET", b"k".as_slice(), &argument]);
    said.extend_from_slice(b"*1\r\n$5\r\nRESET\r\n");
    let expected = filtered(&said);
    let (mut program, stream) = duplex(10_000);
    let speaking = tokio::spawn(async move {
        program.write_all(&said).await.unwrap();
        program.shutdown().await.unwrap();
    });
    let mut heard = Vec::new();
    Filtered::new(stream).read_to_end(&mut heard).await.unwrap();
    speaking.await.unwrap();
    assert!(
        heard == expected,
        "{} of {} bytes",
        heard.len(),
        expected.len()
    );
}
