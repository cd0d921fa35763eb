//! What a machine is given to boot with: the part that installs its hob, and the user's own.
//!
//! It is a MIME message, as cloud-init reads it. The hob's document, with its secret, stands in
//! the head of the message: cloud-init neither runs it nor copies it elsewhere, and the hob asks
//! the metadata service for it by itself. Pure text: nothing here does I/O.

use std::fmt::Write as _;
use std::io::Write as _;

use data_encoding::BASE64_MIME;

/// The script of the part that installs the hob, with names in `@` for what differs.
const SCRIPT: &str = include_str!("hob.sh");

/// The unit's identity where the hob has a user of its own: it may use low ports, own sockets for
/// others and act as they, and nothing else that is root's.
const OWN_IDENTITY: &str = "\
User=gobs
AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_CHOWN CAP_FOWNER
AmbientCapabilities=CAP_DAC_OVERRIDE CAP_SETUID CAP_SETGID
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_CHOWN CAP_FOWNER
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_SETUID CAP_SETGID
NoNewPrivileges=yes";

const ROOT_IDENTITY: &str = "User=root";

/// The type of the part that installs the hob: it is run as soon as there is a network.
const HOOK: &str = "text/cloud-boothook";

/// How the texts that cloud-init knows begin, and of which type they are.
const KINDS: [(&str, &str); 8] = [
    ("#!", "text/x-shellscript"),
    ("#cloud-config-archive", "text/cloud-config-archive"),
    ("#cloud-config", "text/cloud-config"),
    ("#cloud-boothook", HOOK),
    ("#include-once", "text/x-include-once-url"),
    ("#include", "text/x-include-url"),
    ("#part-handler", "text/part-handler"),
    ("## template: jinja", "text/jinja2"),
];

/// What to do about user data that is too large.
pub const TOO_LARGE_HINT: &str = "Let user_data fetch the larger part of what it does from \
                                  somewhere, or put it into the image.";

/// What the hob's part is taken for before it is known: a boss with a few names for its address.
const HEADER_BYTES: usize = 1_024;
const URL_BYTES: usize = 160;
const URLS: usize = 3;

/// How a machine gets its hob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Install {
    /// Where it is fetched from, the first that answers; with no `sha256`, the image has it.
    pub urls: Vec<String>,
    /// The digest of the program, in hexadecimal.
    pub sha256: Option<String>,
    /// The key that is pinned, as curl writes it: `sha256//…`.
    pub pin: Option<String>,
    /// Whether it runs as root.
    pub as_root: bool,
    /// The metadata services, as `http://host`.
    pub metadata: Vec<String>,
}

/// The message is larger than the machine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the user data has {bytes} bytes, compressed too, and machines take {bytes_max}")]
pub struct TooLarge {
    /// Its size.
    pub bytes: usize,
    /// The limit.
    pub bytes_max: usize,
}

/// Returns the type of what a user wants to run at the boot.
///
/// # Errors
/// When it is of no kind that cloud-init would know.
pub fn kind_of(text: &str) -> Result<&'static str, String> {
    let known = KINDS.iter().find(|(start, _)| text.starts_with(start));
    known.map(|(_, kind)| *kind).ok_or_else(|| {
        let first = text.lines().next().unwrap_or_default();
        let first: String = first.chars().take(40).collect();
        format!("cloud-init would not know what a text is that begins with {first:?}")
    })
}

/// Returns the script that installs a hob and starts it.
pub fn script(install: &Install) -> String {
    let hosts = |is_v6: bool| {
        let hosts = install.metadata.iter().filter_map(|url| {
            let host = url.strip_prefix("http://")?.split('/').next()?;
            match (host.strip_prefix('['), is_v6) {
                (Some(v6), true) => v6.split(']').next(),
                (None, false) => host.split(':').next(),
                _ => None,
            }
        });
        hosts.collect::<Vec<_>>().join(" ")
    };
    let asks: String = install
        .metadata
        .iter()
        .map(|url| format!(" --metadata {url}"))
        .collect();
    let (user, identity) = match install.as_root {
        true => ("root", ROOT_IDENTITY),
        false => ("gobs", OWN_IDENTITY),
    };
    SCRIPT
        .replace("@USER@", user)
        .replace("@IDENTITY@", identity)
        .replace("@URLS@", &install.urls.join(" "))
        .replace("@PIN@", install.pin.as_deref().unwrap_or_default())
        .replace("@SHA256@", install.sha256.as_deref().unwrap_or_default())
        .replace("@METADATA4@", &hosts(false))
        .replace("@METADATA6@", &hosts(true))
        .replace("@METADATA@", &asks)
}

/// Returns the message: `header` is the line that holds the hob's document, `script` what
/// installs the hob, and `own` what the user wants beside. Parts are compressed where it would be
/// too large otherwise.
///
/// # Errors
/// When it is too large all the same.
pub fn message(
    header: &str,
    script: &str,
    own: Option<&str>,
    bytes_max: Option<usize>,
) -> Result<String, TooLarge> {
    let bytes_max = bytes_max.unwrap_or(usize::MAX);
    let hook = format!("#cloud-boothook\n{script}");
    let mut smallest = usize::MAX;
    // The user's own is what makes it long, if anything does.
    for (squeeze_own, squeeze_hook) in [(false, false), (true, false), (true, true)] {
        let mut parts = vec![part("gobs-hob", HOOK, &hook, squeeze_hook)];
        if let Some(own) = own {
            let kind = kind_of(own).unwrap_or("text/plain");
            parts.push(part("user-data", kind, own, squeeze_own));
        }
        let text = joined(header, &parts);
        if text.len() <= bytes_max {
            return Ok(text);
        }
        smallest = smallest.min(text.len());
    }
    Err(TooLarge {
        bytes: smallest,
        bytes_max,
    })
}

/// Returns how large what a user wants to run at the boot makes the message, where that is more
/// than machines take.
///
/// # Errors
/// When it is too large.
pub fn fits(own: &str, bytes_max: usize) -> Result<(), TooLarge> {
    let header = "x".repeat(HEADER_BYTES);
    let install = Install {
        urls: vec!["x".repeat(URL_BYTES); URLS],
        sha256: Some("x".repeat(64)),
        pin: Some("x".repeat(52)),
        metadata: vec!["http://x".to_owned() + &"x".repeat(32); 2],
        as_root: false,
    };
    message(&header, &script(&install), Some(own), Some(bytes_max)).map(drop)
}

/// Returns one part, with its head.
fn part(name: &str, kind: &str, text: &str, squeeze: bool) -> String {
    let (kind, encoding, body) = if squeeze {
        // What is in it, cloud-init finds out by its first line.
        let kind = "application/gzip".to_owned();
        (kind, "base64", BASE64_MIME.encode(&gzip(text.as_bytes())))
    } else if text.is_ascii() {
        (format!("{kind}; charset=\"us-ascii\""), "7bit", text.into())
    } else {
        let body = BASE64_MIME.encode(text.as_bytes());
        (format!("{kind}; charset=\"utf-8\""), "base64", body)
    };
    let mut part = String::new();
    // Writing to a text cannot fail.
    let _ = write!(
        part,
        "Content-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\
         Content-Disposition: attachment; filename=\"{name}\"\n\n{}\n",
        body.replace("\r\n", "\n").trim_end_matches('\n')
    );
    part
}

fn joined(header: &str, parts: &[String]) -> String {
    let is_free = |boundary: &String| !parts.iter().any(|part| part.contains(boundary.as_str()));
    let mut boundaries = (0..).map(|number| format!("==gobs-{number}=="));
    let boundary = boundaries.find(is_free).unwrap_or_default();
    let mut text = format!(
        "MIME-Version: 1.0\n{header}\nContent-Type: multipart/mixed; boundary=\"{boundary}\"\n\n"
    );
    for part in parts {
        let _ = write!(text, "--{boundary}\n{part}");
    }
    let _ = writeln!(text, "--{boundary}--");
    text
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    // Into memory: neither can fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_first_line() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(kind_of(text).ok(), expected, "{text:?}");
        };
        check("#cloud-config\npackages: []", Some("text/cloud-config"));
        check("#!/bin/sh\n", Some("text/x-shellscript"));
        check("## template: jinja\n#cloud-config", Some("text/jinja2"));
        check("packages: []", None);
        check("", None);
    }

    #[test]
    fn a_long_message_is_compressed_and_a_longer_one_refused() {
        let own = format!("#!/bin/sh\n{}", "echo the same again\n".repeat(1_000));
        let whole = message("X: y", "#!/bin/sh\n", Some(&own), None).unwrap();
        assert!(whole.contains(&own));
        let small = message("X: y", "#!/bin/sh\n", Some(&own), Some(4_096)).unwrap();
        assert!(small.len() <= 4_096 && small.contains("application/gzip"));
        assert_eq!(fits(&own, 16_384), Ok(()));
        let refused = message("X: y", "#!/bin/sh\n", Some(&own), Some(300)).unwrap_err();
        assert!(refused.bytes > 300 && refused.bytes_max == 300);
    }

    #[test]
    fn no_part_ends_the_message_early() {
        let own = "#!/bin/sh\n--==gobs-0==--\n";
        let text = message("X: y", "#!/bin/sh\n", Some(own), None).unwrap();
        assert!(text.contains("boundary=\"==gobs-1==\""), "{text}");
    }

    #[test]
    fn every_name_of_the_script_is_filled() {
        let install = Install {
            metadata: vec![
                "http://169.254.169.254".into(),
                "http://[fd00:a9fe:a9fe::1]/x".into(),
            ],
            ..Install::default()
        };
        let text = script(&install);
        let names = "USER IDENTITY URLS PIN SHA256 METADATA METADATA4 METADATA6";
        for name in names.split(' ') {
            assert!(!text.contains(&format!("@{name}@")), "{name}");
            assert!(SCRIPT.contains(&format!("@{name}@")), "{name}");
        }
        assert!(text.contains("v4='169.254.169.254'\nv6='fd00:a9fe:a9fe::1'\n"));
        assert!(text.contains("hob --dir /var/lib/gobs --metadata http://169.254.169.254 "));
    }
}
