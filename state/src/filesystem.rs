//! Which filesystems a state file must not lie on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
