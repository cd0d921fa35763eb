//! Whose a socket and its files are, and who may connect.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Group, User, getgrouplist};
use rustix::fs::{AtFlags, OFlags, chownat};
use tokio::net::unix::UCred;
use tokio::task::spawn_blocking;

use crate::protocol::{Expose, MODE_DEFAULT};

/// The user who may do everything.
const ROOT: u32 = 0;

/// The bits of a mode that let the group, and everyone, connect to a socket.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// Why nobody can be given a socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error("this machine has no user {0}")]
    NoUser(String),
    #[error("this machine has no group {0}")]
    NoGroup(String),
    #[error("only a hob that runs as root, or may change owners, can give to another user")]
    NotRoot,
    #[error("users and groups cannot be looked up")]
    Lookup(#[from] nix::Error),
}

/// The owner and the permissions of a socket and its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
    /// Whether the files must be found by others than the hob.
    pub(crate) is_declared: bool,
}

impl Owner {
    /// Looks up who is to own what is exposed so.
    pub(crate) fn of(expose: &Expose) -> Result<Self, OwnerError> {
        let own = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        let (uid, users_group) = match &expose.user {
            None => (own, own_group),
            Some(name) => user(name)?,
        };
        let gid = match &expose.group {
            None => users_group,
            Some(name) => group(name)?,
        };
        if (uid, gid) != (own, own_group) && !may(Capability::Chown) {
            return Err(OwnerError::NotRoot);
        }
        Ok(Self {
            uid,
            gid,
            mode: expose.mode.unwrap_or(MODE_DEFAULT),
            is_declared: expose.user.is_some() || expose.group.is_some() || expose.mode.is_some(),
        })
    }

    /// Returns whether a process may connect. The kernel has asked the socket's mode already, but
    /// not in the moment before the mode was set, and nothing of who is passed the path of it.
    pub(crate) async fn admits(self, peer: UCred) -> bool {
        let uid = peer.uid();
        if uid == self.uid || uid == ROOT || self.mode & OTHERS_WRITE != 0 {
            return true;
        }
        if self.mode & GROUP_WRITES == 0 {
            return false;
        }
        // The databases may be somewhere on a network.
        let member = move || is_member(uid, self.gid);
        peer.gid() == self.gid || spawn_blocking(member).await.unwrap_or(false)
    }

    /// Returns whether a process may know of the binding.
    pub(crate) fn shows(&self, uid: u32) -> bool {
        uid == self.uid
            || self.mode & OTHERS_WRITE != 0
            || (self.mode & GROUP_WRITES != 0 && is_member(uid, self.gid))
    }

    /// Gives the socket at `path` to the owner: one that was just bound, or the one of an inode.
    ///
    /// Whoever may write to the directory may have put something else there meanwhile: what is
    /// given away is what was looked at, and a new socket must be of this process's user.
    pub(crate) fn take_socket(&self, path: &Path, inode: Option<u64>) -> io::Result<()> {
        let no_follow = OFlags::PATH | OFlags::NOFOLLOW;
        let socket = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow.bits().cast_signed())
            .open(path)?;
        let meta = socket.metadata()?;
        let is_ours = match inode {
            Some(inode) => meta.ino() == inode,
            None => meta.uid() == rustix::process::geteuid().as_raw(),
        };
        if !meta.file_type().is_socket() || meta.nlink() != 1 || !is_ours {
            return Err(io::Error::other("something else took the socket's place"));
        }
        if (meta.uid(), meta.gid()) != (self.uid, self.gid) {
            self.chown(&socket)?;
        }
        let this = format!("/proc/self/fd/{}", socket.as_raw_fd());
        fs::set_permissions(this, fs::Permissions::from_mode(self.mode))
    }

    /// Gives a file that was just made, in a directory of the hob's own, to the owner.
    pub(crate) fn take_file(&self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        if (meta.uid(), meta.gid()) != (self.uid, self.gid) {
            self.chown(file)?;
        }
        file.set_permissions(fs::Permissions::from_mode(self.file_mode()))
    }

    /// Returns whether a file is as [`Owner::take_file`] would make it.
    pub(crate) fn has(&self, meta: &fs::Metadata) -> bool {
        (meta.uid(), meta.gid()) == (self.uid, self.gid)
            && meta.permissions().mode() & 0o777 == self.file_mode()
    }

    /// The hob alone writes.
    fn file_mode(&self) -> u32 {
        self.mode & 0o444 | 0o200
    }

    fn chown(&self, file: &File) -> io::Result<()> {
        let uid = rustix::fs::Uid::from_raw(self.uid);
        let gid = rustix::fs::Gid::from_raw(self.gid);
        Ok(chownat(
            file,
            "",
            Some(uid),
            Some(gid),
            AtFlags::EMPTY_PATH,
        )?)
    }
}

/// What a process may do that is not root, by the kernel's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Capability {
    /// Give files to others.
    Chown = 0,
    /// Become another user.
    Setuid = 7,
}

/// Returns whether the hob may do that: as root, or since its unit says so.
pub(crate) fn may(capability: Capability) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << capability as u32) != 0)
}

/// Returns a user's number and group.
fn user(name: &str) -> Result<(u32, u32), OwnerError> {
    let found = match name.parse() {
        Ok(uid) => User::from_uid(nix::unistd::Uid::from_raw(uid))?,
        Err(_) => User::from_name(name)?,
    };
    let found = found.ok_or_else(|| OwnerError::NoUser(name.to_owned()))?;
    Ok((found.uid.as_raw(), found.gid.as_raw()))
}

fn group(name: &str) -> Result<u32, OwnerError> {
    let found = match name.parse() {
        Ok(gid) => Group::from_gid(nix::unistd::Gid::from_raw(gid))?,
        Err(_) => Group::from_name(name)?,
    };
    let found = found.ok_or_else(|| OwnerError::NoGroup(name.to_owned()))?;
    Ok(found.gid.as_raw())
}

/// Returns whether a user is in a group, as the machine's databases say.
fn is_member(uid: u32, gid: u32) -> bool {
    let member = || {
        let user = User::from_uid(nix::unistd::Uid::from_raw(uid)).ok()??;
        let groups = getgrouplist(&CString::new(user.name).ok()?, user.gid).ok()?;
        Some(groups.iter().any(|group| group.as_raw() == gid))
    };
    member().unwrap_or(false)
}
