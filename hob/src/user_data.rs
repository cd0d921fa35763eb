//! The user data on the machine: got, taken over, and erased once it is worthless.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::agent::AgentError;
use crate::layout::{Layout, MACHINE_FORMAT, Machine, RUNTIME_DEFAULT};
use crate::metadata;
use crate::protocol::{USER_DATA_HEADER, UserData};
use crate::store::{Store, sync_dir};

/// The largest user data that is read: clouds allow 64 KiB.
const USER_DATA_BYTES_MAX: u64 = 64 << 10;

/// Where cloud-init keeps copies of the user data.
const CLOUD_INIT_DIRS: [&str; 2] = ["/var/lib/cloud/instances", CLOUD_INIT];

/// Where it says how far it is.
const CLOUD_INIT: &str = "/run/cloud-init";

/// The largest file of cloud-init that is searched for a copy, how many there may be, and how
/// deep: it keeps a few dozen files of kilobytes, two directories down.
const COPY_BYTES_MAX: u64 = 4 << 20;
const COPIES_MAX: usize = 1_000;
const COPY_DEPTH_MAX: usize = 3;

/// What a secret is written over with.
const BLOT: u8 = b'x';

/// Where systemd says that they are.
const RUNTIME_VARIABLE: &str = "RUNTIME_DIRECTORY";

/// What is there while systemd runs the machine, and where an administrator's units go then.
const SYSTEMD: &str = "/run/systemd/system";
const UNITS_DEFAULT: &str = "/etc/systemd/system";

/// Describes a machine that no provider has described: one whose user data comes from a metadata
/// service.
pub(crate) fn describe(layout: &Layout) -> Result<(), AgentError> {
    let path = layout.machine();
    if path.exists() {
        return Ok(());
    }
    let runtime = std::env::var_os(RUNTIME_VARIABLE).filter(|it| !it.is_empty());
    let mut token = [0; 16];
    getrandom::fill(&mut token).map_err(io::Error::from)?;
    let machine = Machine {
        format: MACHINE_FORMAT,
        token: data_encoding::BASE32_NOPAD
            .encode(&token)
            .to_ascii_lowercase(),
        runtime: runtime.map_or_else(|| RUNTIME_DEFAULT.into(), PathBuf::from),
        run: Vec::new(),
        units: Path::new(SYSTEMD).is_dir().then(|| UNITS_DEFAULT.into()),
        cloud_init: Path::new(CLOUD_INIT).is_dir().then(|| CLOUD_INIT.into()),
    };
    // Paths and texts only: this cannot fail.
    let text = serde_json::to_vec(&machine).unwrap_or_default();
    keep(&path, &text).map_err(|source| AgentError::Io { path, source })
}

/// Takes the user data over into the store, unless that was done before; where there is none in
/// the machine's directory, these metadata services are asked for it.
pub(crate) async fn take(
    layout: &Layout,
    store: &Store,
    services: &[String],
) -> Result<(), AgentError> {
    if store.contents().registered {
        // The last hob was killed between the claim and the erasure; or cloud-init has asked the
        // service again at this boot.
        erase(layout);
        if !services.is_empty() {
            blot_copies();
        }
        return Ok(());
    }
    if store.contents().presence.is_some() {
        return Ok(());
    }
    let path = layout.user_data();
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && services.is_empty() => {
            return Err(AgentError::NoUserData(path));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = metadata::user_data(services).await;
            // Kept until the claim: what is in it tells other copies from other files.
            keep(&path, text.as_bytes()).map_err(|source| AgentError::Io { path, source })?;
            text
        }
        Err(source) => return Err(AgentError::Io { path, source }),
    };
    let data = UserData::decode(&text)?;
    store.update(|contents| {
        contents.listen = data.listen;
        contents.advertise = data.advertise;
        contents.presence = Some(data.sturdyref);
    })?;
    Ok(())
}

/// Erases the user data, and makes cloud-init's copies of the secret in it unreadable.
pub(crate) fn erase(layout: &Layout) {
    let path = layout.user_data();
    // Last, so that whoever is killed here finds it again.
    if read(&path).is_ok_and(|text| UserData::sealed_in(&text).is_some()) {
        blot_copies();
    }
    let erased = fs::remove_file(&path).and_then(|()| sync_dir(&path));
    match erased {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "user data not erased");
        }
        _ => {}
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path)?;
    file.take(USER_DATA_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file that only this user reads, whole or not at all.
fn keep(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_dir(path)
}

fn blot_copies() {
    for root in CLOUD_INIT_DIRS {
        blot(Path::new(root), 0, &mut 0);
    }
}

/// Writes over the hob's document wherever it stands in the files below a directory, and leaves
/// all else as it is: cloud-init reads those files again at the next boot.
fn blot(dir: &Path, depth: usize, seen: &mut usize) {
    let Ok(entries) = fs::read_dir(dir) else {
        // Most machines have none.
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = entry.path();
        if kind.is_dir() && depth < COPY_DEPTH_MAX {
            blot(&path, depth + 1, seen);
        } else if kind.is_file() && *seen < COPIES_MAX {
            *seen += 1;
            match blot_file(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "a copy of the secret erased"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a copy may be left");
                }
            }
        }
    }
}

fn blot_file(path: &Path) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).open(path)?;
    let mut bytes = Zeroizing::new(Vec::new());
    (&mut file).take(COPY_BYTES_MAX).read_to_end(&mut bytes)?;
    let places = documents_in(&bytes);
    if places.is_empty() {
        return Ok(false);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    for place in places {
        let blots = vec![BLOT; place.len()];
        file.write_all_at(&blots, place.start as u64)?;
    }
    file.sync_all()?;
    Ok(true)
}

/// Returns where the values of the hob's header stand that are not written over yet.
fn documents_in(bytes: &[u8]) -> Vec<Range<usize>> {
    let header = format!("{USER_DATA_HEADER}: ");
    let is_base64 = |it: &u8| it.is_ascii_alphanumeric() || b"+/=".contains(it);
    let mut found = Vec::new();
    let mut from = 0;
    let begins = |from: usize| {
        let mut windows = bytes[from..].windows(header.len());
        windows.position(|it| it == header.as_bytes())
    };
    while let Some(at) = begins(from) {
        let start = from + at + header.len();
        from = start + bytes[start..].iter().take_while(|it| is_base64(it)).count();
        if bytes[start..from].iter().any(|it| *it != BLOT) {
            found.push(start..from);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_secret_become_unreadable_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let instance = dir.path().join("i-1/scripts");
        fs::create_dir_all(&instance).unwrap();
        let copy = dir.path().join("i-1/user-data.txt");
        fs::write(&copy, "a\nX-Gobs-Hob: c2Vj+/0=\nb X-Gobs-Hob: c2Vj\\n").unwrap();
        let other = instance.join("part-001");
        fs::write(&other, "X-Gobs: c2Vj").unwrap();
        // What was erased stays so.
        for has_document in [true, false] {
            assert_eq!(blot_file(&copy).unwrap(), has_document);
            blot(dir.path(), 0, &mut 0);
            let text = fs::read_to_string(&copy).unwrap();
            assert_eq!(text, "a\nX-Gobs-Hob: xxxxxxxx\nb X-Gobs-Hob: xxxx\\n");
            assert_eq!(fs::read_to_string(&other).unwrap(), "X-Gobs: c2Vj");
        }
        // A later boot got it anew.
        fs::write(&copy, "X-Gobs-Hob: c2Vj").unwrap();
        blot(dir.path(), 0, &mut 0);
        assert_eq!(fs::read_to_string(&copy).unwrap(), "X-Gobs-Hob: xxxx");
    }

    #[test]
    fn a_machine_is_described_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("gobs"));
        describe(&layout).unwrap();
        let first = layout.read_machine().unwrap();
        assert_eq!(first.token.len(), 26);
        describe(&layout).unwrap();
        assert_eq!(layout.read_machine().unwrap(), first);
    }
}
