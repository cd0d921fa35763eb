//! The user data on the machine: got, taken over, and erased once it is worthless.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::agent::AgentError;
use crate::layout::{Layout, MACHINE_FORMAT, Machine, RUNTIME_DEFAULT};
use crate::metadata;
use crate::protocol::UserData;
use crate::store::{Store, sync_dir};

/// The largest user data that is read: clouds allow 64 KiB.
const USER_DATA_BYTES_MAX: u64 = 64 << 10;

/// Where cloud-init keeps copies of the user data.
const CLOUD_INIT_DIRS: [&str; 2] = ["/var/lib/cloud/instances", "/run/cloud-init"];

/// The largest file of cloud-init that is searched for a copy, how many there may be, and how
/// deep: it keeps a few dozen files of kilobytes, two directories down.
const COPY_BYTES_MAX: u64 = 4 << 20;
const COPIES_MAX: usize = 1_000;
const COPY_DEPTH_MAX: usize = 3;

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
        // The last hob was killed between the claim and the erasure.
        erase(layout);
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
    if let Ok(text) = read(&path)
        && let Some(secret) = UserData::sealed_in(&text)
    {
        for root in CLOUD_INIT_DIRS {
            blot(Path::new(root), secret.as_bytes(), 0, &mut 0);
        }
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

/// Writes over a secret wherever it stands in the files below a directory, and leaves all else
/// as it is: cloud-init reads those files again at the next boot.
fn blot(dir: &Path, secret: &[u8], depth: usize, seen: &mut usize) {
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
            blot(&path, secret, depth + 1, seen);
        } else if kind.is_file() && *seen < COPIES_MAX {
            *seen += 1;
            match blot_file(&path, secret) {
                Ok(true) => tracing::info!(path = %path.display(), "a copy of the secret erased"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a copy may be left");
                }
            }
        }
    }
}

fn blot_file(path: &Path, secret: &[u8]) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).open(path)?;
    let mut bytes = Zeroizing::new(Vec::new());
    (&mut file).take(COPY_BYTES_MAX).read_to_end(&mut bytes)?;
    let places: Vec<usize> = find_all(&bytes, secret);
    if places.is_empty() {
        return Ok(false);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    for at in places {
        file.write_all_at(&vec![b'x'; secret.len()], at as u64)?;
    }
    file.sync_all()?;
    Ok(true)
}

fn find_all(bytes: &[u8], secret: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = bytes[from..]
        .windows(secret.len().max(1))
        .position(|it| it == secret)
    {
        found.push(from + at);
        from += at + secret.len().max(1);
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
        fs::write(&copy, "a SECRET and SECRETSECRET, b").unwrap();
        let other = instance.join("part-001");
        fs::write(&other, "SECRE T").unwrap();
        blot(dir.path(), b"SECRET", 0, &mut 0);
        let text = fs::read_to_string(&copy).unwrap();
        assert_eq!(text, "a xxxxxx and xxxxxxxxxxxx, b");
        assert_eq!(fs::read_to_string(&other).unwrap(), "SECRE T");
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
