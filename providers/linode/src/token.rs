//! The command that prints the token of the account.

use std::process::Stdio;
use std::time::Duration;

use gobs_provider::Error;
use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

/// How long it may take: it may ask a person for a touch of a key.
const WITHIN: Duration = Duration::from_secs(60);

/// How much of what it prints is kept: a token is one short line.
const PRINTED_BYTES_MAX: usize = 4 << 10;

/// How much of what it says on stderr is kept, and how much of that is shown: its last lines,
/// which commonly say what is wrong.
const SAID_BYTES_MAX: usize = 4 << 10;
const SAID_CHARS_MAX: usize = 400;

/// How long a run of letters and digits is that may be a secret: shorter than any token, longer
/// than most words of a message.
const SECRET_CHARS_MIN: usize = 16;

/// Returns the first line that a command prints.
pub(crate) async fn ask(words: &[&str]) -> Result<Zeroizing<String>, Error> {
    let denied = |why: String| Error::Denied(format!("token_command {}: {why}", words[0]));
    let mut command = tokio::process::Command::new(words[0]);
    command
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| denied(error.to_string()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut printed, mut said) = (Zeroizing::new(Vec::new()), Zeroizing::new(Vec::new()));
    let ended = tokio::time::timeout(WITHIN, async {
        let (_, _, status) = tokio::join!(
            drain(stdout, &mut printed, PRINTED_BYTES_MAX, false),
            drain(stderr, &mut said, SAID_BYTES_MAX, true),
            child.wait(),
        );
        status
    });
    let ended = ended.await;
    let token = std::str::from_utf8(&printed).ok();
    let token = token.and_then(|text| text.lines().next()).map(str::trim);
    let token = token.filter(|token| !token.is_empty());
    let said = || match shown(&said, token) {
        said if said.is_empty() => said,
        said => format!(", and said: {said}"),
    };
    match ended {
        Err(_) => Err(denied(format!("it takes too long{}", said()))),
        Ok(Err(error)) => Err(denied(error.to_string())),
        Ok(Ok(status)) if !status.success() => {
            Err(denied(format!("it ended with {status}{}", said())))
        }
        Ok(Ok(_)) => match token {
            Some(token) => Ok(Zeroizing::new(token.to_owned())),
            None => Err(denied(format!("it printed no token{}", said()))),
        },
    }
}

/// Reads to the end, and keeps the first or the last bytes.
async fn drain(
    from: Option<impl AsyncRead + Unpin>,
    kept: &mut Vec<u8>,
    bytes_max: usize,
    last: bool,
) {
    let Some(mut from) = from else { return };
    let mut buffer = Zeroizing::new([0; 1_024]);
    // What cannot be read any more has ended.
    while let Ok(count @ 1..) = from.read(&mut *buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let more = kept.len().saturating_sub(bytes_max);
        if last {
            kept.drain(..more);
        } else {
            kept.truncate(bytes_max);
        }
    }
}

/// Returns the end of what a command said, in one line and without what may be a secret.
fn shown(said: &[u8], token: Option<&str>) -> String {
    let said = String::from_utf8_lossy(said);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut text = lines.collect::<Vec<_>>().join("; ");
    if let Some(token) = token {
        text = text.replace(token, "…");
    }
    let text = masked(&text);
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    let count = text.chars().count();
    let end = text.chars().skip(count.saturating_sub(SAID_CHARS_MAX));
    end.map(plain).collect()
}

/// Returns a text without its long runs of letters with digits.
fn masked(text: &str) -> String {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "+=_-".contains(letter);
    let mut masked = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest.find(|it| !is_part(it)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(run);
        let has = |what: fn(&char) -> bool| word.chars().any(|it| what(&it));
        let is_secret = word.len() >= SECRET_CHARS_MIN
            && has(char::is_ascii_digit)
            && has(char::is_ascii_alphabetic);
        masked.push_str(if is_secret { "…" } else { word });
        let gap = behind.find(is_part).unwrap_or(behind.len());
        masked.push_str(&behind[..gap]);
        rest = &behind[gap..];
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_said_is_shown_without_secrets() {
        let check = |said: &str, token: Option<&str>, expected: &str| {
            assert_eq!(shown(said.as_bytes(), token), expected);
        };
        check(
            "gpg: no key\n\n  gpg: failed\n",
            None,
            "gpg: no key; gpg: failed",
        );
        check(
            "Authorization: Bearer 9f8a7b6c5d4e3f2a1b0c9d8e refused",
            None,
            "Authorization: Bearer … refused",
        );
        check("/home/user/.config/linode.gpg: not found", None, {
            "/home/user/.config/linode.gpg: not found"
        });
        check("it is swordfish", Some("swordfish"), "it is …");
        check("\u{1b}[31mred", None, " [31mred");
        check(
            "authentication-is-required",
            None,
            "authentication-is-required",
        );
        let long = "é ".repeat(SAID_CHARS_MAX);
        assert_eq!(shown(long.as_bytes(), None).chars().count(), SAID_CHARS_MAX);
    }

    #[tokio::test]
    async fn a_command_that_fails_says_why() {
        let check = async |script: &str, expected: &str| match ask(&["sh", "-c", script]).await {
            Err(Error::Denied(why)) => assert_eq!(why, format!("token_command sh: {expected}")),
            other => panic!("{:?}", other.map(|_| "a token")),
        };
        check(
            "echo locked >&2; exit 3",
            "it ended with exit status: 3, and said: locked",
        )
        .await;
        check("exit 3", "it ended with exit status: 3").await;
        check(
            "echo; echo nothing >&2",
            "it printed no token, and said: nothing",
        )
        .await;
        // Floods harm nobody.
        let flood = "i=0; while [ $i -lt 20000 ]; do echo spam >&2; i=$((i+1)); done; exit 1";
        let spam = "; spam".repeat(SAID_CHARS_MAX);
        let spam = &spam[spam.len() - SAID_CHARS_MAX..];
        check(
            flood,
            &format!("it ended with exit status: 1, and said: {spam}"),
        )
        .await;
        let token = ask(&["sh", "-c", "echo a-token; echo more; echo said >&2"]).await;
        assert_eq!(token.expect("a token").as_str(), "a-token");
    }
}
