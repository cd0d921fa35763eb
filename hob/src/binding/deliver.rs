//! Secrets at the receiver: asked for, kept in a file that is in memory only, and asked for again.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ocapn::{Broken, EnlivenError, Passable, Reference};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::{Bindings, Link, OpenError, lock};
use crate::files::{self, remove_if_there};
use crate::grant::Chain;
use crate::owner::Owner;
use crate::protocol::{DELIVERY_HOLD, Malformed, SECRET_BYTES_MAX, code, method};
use crate::slot::Slot;

/// The kind of the services that are delivered.
pub(crate) const KIND: &str = "secret";

/// The name of a secret's file in its binding's directory.
pub(crate) const FILE: &str = "secret";

/// The link that says whose a secret elsewhere is.
const OF: &str = "of";

/// How long the first answer may take: the exporter may have to run a command for it.
pub(super) const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a held question may stay without an answer.
const HELD_TIMEOUT: Duration = DELIVERY_HOLD.saturating_add(FIRST_TIMEOUT);

/// Pauses between tries while the exporter is away or has no secret.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where files are in memory on most machines.
const IN_MEMORY: &str = "/dev/shm";

/// Says where else secrets are to be.
const DIR_VARIABLE: &str = "GOBS_SECRETS_DIR";

/// Set to `yes`, lets them be on a disk.
const DISK_VARIABLE: &str = "GOBS_SECRETS_ON_DISK";

/// What the kernel calls file systems that are in memory.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// A secret, or that it is still the one that is held.
pub(super) type Fetched = Option<Zeroizing<Vec<u8>>>;

impl Bindings {
    /// Keeps a secret's file what the exporter says, for as long as the grant is held.
    pub(super) fn deliver(self: &Arc<Self>, slot: &Arc<Slot>, owner: Owner) {
        let Some(link) = slot.link().filter(|link| link.kind == KIND) else {
            return;
        };
        // One task for each grant.
        if link.delivering.swap(true, Ordering::Relaxed) {
            return;
        }
        let (bindings, slot) = (Arc::clone(self), Arc::clone(slot));
        tokio::spawn(async move {
            let mut closed = link.closed.subscribe();
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => {}
                () = bindings.keep_delivering(&slot, &link, owner) => {}
            }
        });
    }

    async fn keep_delivering(&self, slot: &Slot, link: &Arc<Link>, owner: Owner) {
        let binding = &link.generation.binding;
        let mut pause = RETRY_PAUSE_MIN;
        // A later generation has a task of its own.
        while slot.link().is_some_and(|now| Arc::ptr_eq(&now, link)) {
            let held = held(slot.directory.clone()).await;
            let fetched = timeout(HELD_TIMEOUT, self.fetch_live(link, held)).await;
            let done = match fetched.unwrap_or(Err(OpenError::TimedOut(HELD_TIMEOUT))) {
                Ok(None) => Ok(()),
                Ok(Some(secret)) => {
                    tracing::info!(%binding, "the secret is another one");
                    link.put(&self.secrets, slot.directory.clone(), secret, owner)
                        .await
                }
                Err(error) if error.is_over() => {
                    // Whoever revoked it may not have reached this machine.
                    tracing::warn!(%binding, "the secret was revoked");
                    let directory = slot.directory.clone();
                    blocking(move || remove(&directory)).await
                }
                Err(error) => Err(io::Error::other(error)),
            };
            match done {
                Ok(()) => pause = RETRY_PAUSE_MIN,
                // Once is enough: it is tried for as long as the grant is held.
                Err(error) if pause == RETRY_PAUSE_MIN => {
                    tracing::warn!(%binding, error = %Chain(&error), "secret not delivered");
                }
                Err(error) => {
                    tracing::debug!(%binding, error = %Chain(&error), "secret not delivered");
                }
            }
            sleep(pause).await;
            pause = RETRY_PAUSE_MAX.min(pause * 2);
        }
    }

    /// Asks the grant behind a link.
    pub(super) async fn fetch_live(
        &self,
        link: &Link,
        held: Option<Vec<u8>>,
    ) -> Result<Fetched, OpenError> {
        let grant = self.live(link).await?;
        let answer = link.ask(fetching(&grant, held), &grant).await;
        Ok(read(&answer.map_err(OpenError::Ticket)?)?)
    }
}

impl OpenError {
    /// Returns whether the exporter has said that the grant is no more.
    fn is_over(&self) -> bool {
        match self {
            Self::Enliven(EnlivenError::Refused(broken)) => !broken.is_severed(),
            Self::Ticket(broken) => broken.code() == Some(code::REVOKED),
            _ => false,
        }
    }
}

/// Asks a grant for its secret.
pub(super) async fn fetch(grant: &Reference) -> Result<Fetched, Broken> {
    let late = || {
        let seconds = FIRST_TIMEOUT.as_secs();
        Broken::new(code::UNREACHABLE, format!("no secret came in {seconds} s"))
    };
    let answer = timeout(FIRST_TIMEOUT, fetching(grant, None)).await;
    Ok(read(&answer.map_err(|_| late())??)?)
}

fn fetching(grant: &Reference, held: Option<Vec<u8>>) -> ocapn::Promise {
    grant.call(method::FETCH, held.map(Passable::bytes))
}

fn read(answer: &Passable) -> Result<Fetched, Malformed> {
    if matches!(answer, Passable::Null) {
        return Ok(None);
    }
    let secret = answer.as_struct().and_then(|answer| answer.get("secret"));
    let secret = secret.and_then(Passable::as_bytes);
    let secret = secret.filter(|secret| secret.len() as u64 <= SECRET_BYTES_MAX);
    let wrong = || Malformed {
        what: "fetch's answer",
        why: "it is no secret".into(),
    };
    let secret = secret.ok_or_else(wrong)?;
    Ok(Some(Zeroizing::new(secret.to_vec())))
}

impl Link {
    /// Puts a secret where programs find it, unless the grant was given up meanwhile.
    pub(super) async fn put(
        &self,
        home: &Arc<Home>,
        directory: PathBuf,
        secret: Zeroizing<Vec<u8>>,
        owner: Owner,
    ) -> io::Result<()> {
        let (over, home) = (Arc::clone(&self.over), Arc::clone(home));
        blocking(move || match *lock(&over) {
            true => Ok(()),
            false => home.put(&directory, &secret, owner),
        })
        .await
    }

    /// Returns the secret that programs find now.
    pub(super) async fn delivered(&self, directory: PathBuf) -> Fetched {
        if self.kind != KIND {
            return None;
        }
        let read = blocking(move || fs::read(directory.join(FILE)).map(Zeroizing::new)).await;
        read.ok()
    }

    /// Lets nothing come any more by this link; what programs find stays.
    pub(super) async fn stop_delivering(&self) {
        if self.kind != KIND {
            return;
        }
        let over = Arc::clone(&self.over);
        let stopped = blocking(move || {
            *lock(&over) = true;
            Ok(())
        });
        // It fails only where the hob is ending.
        let _ = stopped.await;
        self.closed.send_replace(true);
    }

    /// Removes a secret, which does not come again.
    pub(super) async fn withdraw(&self, directory: PathBuf) -> io::Result<()> {
        if self.kind != KIND {
            return Ok(());
        }
        let over = Arc::clone(&self.over);
        blocking(move || {
            let mut over = lock(&over);
            *over = true;
            remove(&directory)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

/// Returns the digest of the secret that is there.
async fn held(directory: PathBuf) -> Option<Vec<u8>> {
    let secret = blocking(move || fs::read(directory.join(FILE)).map(Zeroizing::new)).await;
    secret
        .ok()
        .map(|secret| Sha256::digest(secret.as_slice()).to_vec())
}

/// Removes a secret's file; one that is gone already is a success.
fn remove(directory: &Path) -> io::Result<()> {
    let shown = directory.join(FILE);
    if let Ok(path) = fs::read_link(&shown) {
        remove_if_there(fs::remove_file(&path))?;
        if let Some(home) = path.parent() {
            remove_if_there(fs::remove_file(home.join(OF)))?;
            remove_if_there(fs::remove_dir(home))?;
        }
    }
    remove_if_there(fs::remove_file(shown))
}

/// Where secrets are: in memory, unless whoever started the hob said that a disk will do.
#[derive(Debug)]
pub(crate) struct Home {
    dir: Option<PathBuf>,
    on_disk: bool,
}

impl Home {
    /// Reads what the hob's environment says.
    pub(super) fn from_env() -> Self {
        let dir = std::env::var_os(DIR_VARIABLE).filter(|it| !it.is_empty());
        Self {
            dir: dir.map(PathBuf::from),
            on_disk: std::env::var_os(DISK_VARIABLE).is_some_and(|it| it == "yes"),
        }
    }

    /// Checks that a secret of this binding can be in memory.
    pub(super) async fn check(self: &Arc<Self>, directory: PathBuf) -> io::Result<()> {
        let home = Arc::clone(self);
        blocking(move || home.base(&directory).map(drop)).await
    }

    /// Makes a secret's file, all at once.
    fn put(&self, directory: &Path, secret: &[u8], owner: Owner) -> io::Result<()> {
        let home = self.of(directory, owner.is_declared)?;
        let path = home.join(FILE);
        let beside = home.join(".secret.new");
        remove_if_there(fs::remove_file(&beside))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(secret)?;
        owner.take_file(&file)?;
        fs::rename(&beside, &path)?;
        let shown = directory.join(FILE);
        if shown != path && fs::read_link(&shown).ok().as_ref() != Some(&path) {
            let beside = directory.join(".secret.link");
            remove_if_there(fs::remove_file(&beside))?;
            symlink(&path, &beside)?;
            fs::rename(&beside, &shown)?;
        }
        Ok(())
    }

    /// Returns the directory for a secret's file: the binding's own if that is in memory, else one
    /// for it in a file system that is.
    fn of(&self, directory: &Path, is_shared: bool) -> io::Result<PathBuf> {
        files::make_dir(directory, is_shared)?;
        let Some(base) = self.base(directory)? else {
            return Ok(directory.to_owned());
        };
        let own = own(&base)?;
        let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
        let home = own.join(HEXLOWER.encode(&digest[..16]));
        files::make_dir(&home, is_shared)?;
        match symlink(directory, home.join(OF)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(home),
        }
    }

    /// Returns below which directory a secret goes; nothing where it is the binding's own.
    fn base(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        let refused = |looked: String| {
            io::Error::other(format!(
                "a secret is kept in memory only, and {looked} is no tmpfs: mount one and name it \
                 in {DIR_VARIABLE} where the hob is started, or let secrets be on a disk with \
                 {DISK_VARIABLE}=yes there"
            ))
        };
        if let Some(dir) = &self.dir {
            return match self.on_disk || is_in_memory(dir) {
                true => Ok(Some(dir.clone())),
                false => Err(refused(dir.display().to_string())),
            };
        }
        // A directory that is still to be made is where its parent is.
        let mut made = directory.ancestors().filter(|it| it.exists());
        if made.next().is_some_and(is_in_memory) {
            return Ok(None);
        }
        let usual = usual();
        match usual.iter().find(|base| is_in_memory(base)) {
            Some(base) => Ok(Some(base.clone())),
            None if self.on_disk => Ok(None),
            None => Err(refused(
                usual.map(|it| it.display().to_string()).join(" or "),
            )),
        }
    }

    /// Removes the secrets of bindings whose directory is gone: of machines that have ended without
    /// being told to give anything up.
    pub(super) fn sweep(&self) {
        let bases = self.dir.iter().cloned().chain(usual());
        let is_there = |base: &PathBuf| base.join(own_name()).symlink_metadata().is_ok();
        let entries = bases
            .filter(is_there)
            .filter_map(|base| fs::read_dir(own(&base).ok()?).ok());
        for entry in entries.flatten().flatten() {
            let home = entry.path();
            let of = fs::read_link(home.join(OF));
            if of.is_ok_and(|directory| !directory.exists())
                && let Err(error) = fs::remove_dir_all(&home)
            {
                tracing::warn!(%error, "a secret that nobody holds is not removed");
            }
        }
    }
}

/// Returns where files of this user are in memory, on most machines.
fn usual() -> [PathBuf; 2] {
    let uid = rustix::process::geteuid().as_raw();
    [format!("/run/user/{uid}").into(), IN_MEMORY.into()]
}

fn own_name() -> String {
    format!("gobs-{}", rustix::process::geteuid().as_raw())
}

/// Returns this user's directory below another one. Others may write there, so what it is called
/// must be the hob's own.
fn own(base: &Path) -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let own = base.join(own_name());
    let made = DirBuilder::new().mode(0o711).create(&own);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = fs::symlink_metadata(&own)?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        let text = format!("{} is not a directory of this user's own", own.display());
        return Err(io::Error::other(text));
    }
    Ok(own)
}

fn is_in_memory(path: &Path) -> bool {
    let stat = rustix::fs::statfs(path);
    stat.is_ok_and(|stat| [TMPFS, RAMFS].contains(&stat.f_type))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;
    use crate::protocol::{Described, Expose, Registration};
    use crate::store::BindingRow;

    fn home() -> (tempfile::TempDir, Arc<Home>, Owner) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home {
            dir: Some(dir.path().to_owned()),
            on_disk: true,
        };
        let owner = Owner::of(&Expose::default()).unwrap();
        (dir, Arc::new(home), owner)
    }

    #[tokio::test]
    async fn s4_what_is_on_its_way_when_a_secret_is_given_up_does_not_come() {
        let (dir, home, owner) = home();
        let directory = dir.path().join("bindings/db");
        let row = BindingRow {
            registration: Registration {
                name: "db".into(),
                binding: "binding.db".into(),
                generation: 1,
                expose: Vec::new(),
            },
            grant: "ocapn://abc.tls-rpk/s/c2VjcmV0".parse().unwrap(),
            bound: Vec::new(),
            service: Described {
                binding: "binding.db".into(),
                generation: 1,
                kind: KIND.into(),
                r#type: None,
                database: None,
                username: None,
            },
        };
        let link = Link::new(&row, None);
        let put = async || {
            let secret = Zeroizing::new(b"sesame".to_vec());
            link.put(&home, directory.clone(), secret, owner).await
        };
        put().await.unwrap();
        let delivered = link.delivered(directory.clone()).await;
        assert_eq!(delivered.unwrap().as_slice(), b"sesame");
        link.withdraw(directory.clone()).await.unwrap();
        put().await.unwrap();
        assert!(link.delivered(directory.clone()).await.is_none());
        // Nor is it left where only the link led.
        let left = fs::read_dir(own(dir.path()).unwrap()).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn whoever_reads_meanwhile_sees_the_secret_of_before_or_the_one_of_after() {
        let (dir, home, owner) = home();
        let directory = dir.path().join("bindings/db");
        // Too long to be written at once.
        let secrets = [b'a', b'b'].map(|byte| vec![byte; 100_000]);
        let put = |secret: &[u8]| home.put(&directory, secret, owner).unwrap();
        put(&secrets[0]);
        let (is_over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let read = fs::read(directory.join(FILE)).unwrap();
                    assert!(secrets.contains(&read), "{} bytes", read.len());
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
            for change in 0..400 {
                let before = reads.load(Ordering::SeqCst);
                put(&secrets[change % 2]);
                while !reader.is_finished() && reads.load(Ordering::SeqCst) < before + 2 {
                    std::thread::yield_now();
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
    }
}
