//! Private files that appear whole, and the filesystems that a state file must not lie on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;

/// A file for its owner alone, removed with what SQLite puts beside it when dropped.
pub(crate) struct TemporaryFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

impl TemporaryFile {
    /// Makes an empty file in the directory, under a name that nobody else has.
    pub(crate) fn create(directory: &Path) -> io::Result<Self> {
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(|error| io::Error::other(error.to_string()))?;
        let path = directory.join(format!(".new-{}", HEXLOWER.encode(&suffix)));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { file, path })
    }

    /// Gives the file its name, whole and durable, unless another is there under it.
    pub(crate) fn put_in_place(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match fs::hard_link(&self.path, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        File::open(parent(path))?.sync_all()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut path = self.path.as_os_str().to_owned();
            path.push(suffix);
            // Mostly there is only the first.
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns the directory that a file lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes a directory that only its owner may enter; one that is there stays as it is.
pub(crate) fn create_private_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// The `statfs` magic numbers of filesystems that other hosts write too: their locks and shared
/// memory do not reach across hosts, which SQLite's WAL and `flock` need. 9p is not among them:
/// it is mostly a virtual machine's or sandbox's own root.
const NETWORK: [(u64, &str); 10] = [
    (0x6969, "nfs"),
    (0x517B, "smb"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x00C3_6400, "ceph"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "afs"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x7461_636F, "ocfs2"),
];

/// FUSE says nothing about where the data lies; the mount's type does.
const FUSE: u64 = 0x6573_5546;

const NETWORK_FUSE: [&str; 12] = [
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.gcsfuse",
    "fuse.goofys",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.davfs",
    "fuse.davfs2",
    "fuse.blobfuse2",
    "fuse.juicefs",
];

/// Returns the name of the network filesystem that the directory lies on, if it is one.
pub(crate) fn network(directory: &Path) -> io::Result<Option<String>> {
    let magic = rustix::fs::statfs(directory)?.f_type;
    // The field's type differs between architectures; its low 32 bits are the number.
    let magic = (magic as u64) & 0xFFFF_FFFF;
    if magic != FUSE {
        return Ok(classify(magic, ""));
    }
    let device = fs::metadata(directory)?.dev();
    let device = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    // Without /proc there is nothing to tell by, and refusing would lock a user out.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(classify(magic, mount_type(&mounts, &device)))
}

fn classify(magic: u64, mount_type: &str) -> Option<String> {
    if magic == FUSE {
        return NETWORK_FUSE
            .contains(&mount_type)
            .then(|| mount_type.into());
    }
    let (_, name) = NETWORK.iter().find(|(number, _)| *number == magic)?;
    Some((*name).into())
}

/// Returns the type of the mount of a device: the first field after the lone `-`.
fn mount_type<'a>(mounts: &'a str, device: &str) -> &'a str {
    mounts
        .lines()
        .filter(|line| line.split(' ').nth(2) == Some(device))
        .find_map(|line| line.split_once(" - ")?.1.split(' ').next())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a8_network_filesystems_are_told_from_local_ones() {
        const EXT4: u64 = 0xEF53;
        let mounts = "36 35 0:77 / /mnt rw,noatime shared:1 - fuse.sshfs me@host:/ rw\n\
                      37 35 0:78 / /data rw - fuseblk /dev/sdb1 rw\n";
        assert_eq!(classify(0x6969, ""), Some("nfs".into()));
        assert_eq!(classify(0xFE53_4D42, ""), Some("smb2".into()));
        assert_eq!(
            classify(FUSE, mount_type(mounts, "0:77")),
            Some("fuse.sshfs".into())
        );
        assert_eq!(classify(FUSE, mount_type(mounts, "0:78")), None);
        assert_eq!(classify(FUSE, mount_type("", "0:78")), None);
        assert_eq!(classify(EXT4, ""), None);
    }

    #[test]
    fn a_temporary_directory_is_local() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(network(directory.path()).expect("statfs"), None);
    }
}
