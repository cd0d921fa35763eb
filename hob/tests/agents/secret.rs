//! Secrets that are delivered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use hob::protocol::{Expose, Secret, ServiceKind, code, method, to_passable};

use crate::support::{Host, Pair, echo, eventually, generation, grant, registration};

/// Returns every file below a directory, links not followed.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn x1_a_secret_is_delivered_again_when_it_changes_and_is_on_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, "open sesame one").unwrap();
    let mut pair = Pair::of(ServiceKind::Secret(Secret::File(source.clone()))).await;
    let held = pair.bind(1, &[]).await;
    let path = PathBuf::from(held.address.strip_prefix("file:").unwrap());
    assert_eq!(path, Path::new(&held.directory).join("secret"));
    let delivered = || fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(delivered(), "open sesame one");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(pair.importer.check(&generation(1)).await.answers);
    let told = |file: &str| fs::read_to_string(Path::new(&held.directory).join(file)).unwrap();
    assert_eq!(told("path"), path.display().to_string());
    assert!(!Path::new(&held.directory).join("..run/socket").exists());

    fs::write(&source, "open sesame two").unwrap();
    eventually("the other secret is there", async || {
        delivered() == "open sesame two"
    })
    .await;
    // The exporter's hob is another one now, and the boss is in no path.
    pair.db.kill();
    fs::write(&source, "open sesame three").unwrap();
    pair.db.start_again();
    eventually("the third is there", async || {
        delivered() == "open sesame three"
    })
    .await;
    // A reboot takes what is in memory.
    pair.app.kill();
    let real = fs::canonicalize(&path).unwrap();
    fs::remove_file(&real).unwrap();
    fs::remove_dir_all(&held.directory).unwrap();
    pair.app.start_again();
    eventually("it comes again", async || {
        delivered() == "open sesame three"
    })
    .await;
    eventually("its files too", async || {
        Path::new(&held.directory).join("type").exists()
    })
    .await;

    // What is not in memory has none of it, in any form.
    for host in [&pair.db, &pair.app] {
        for file in files(host.layout.dir()) {
            let bytes = fs::read(&file).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            for form in [
                "sesame".to_owned(),
                HEXLOWER.encode(b"open sesame"),
                BASE64.encode(b"open sesame "),
                "open%20sesame".to_owned(),
            ] {
                // On a host whose temporary files are in memory, so is this one.
                let is_memory = file.ends_with("secret");
                let file = file.display();
                assert!(is_memory || !text.contains(&form), "{form} in {file}");
            }
        }
    }
    pair.importer = pair.boss.client("machine.app").await;
    pair.importer.unregister(&generation(1)).await;
    assert!(!path.exists() && !real.exists());
    assert!(!Path::new(&held.directory).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_secret_goes_though_nobody_has_told_its_holder() {
    let line = ["sh", "-c", "echo sesame"].map(str::to_owned).to_vec();
    let pair = Pair::of(ServiceKind::Secret(Secret::Command(line))).await;
    let held = pair.bind(1, &[]).await;
    let path = PathBuf::from(held.address.strip_prefix("file:").unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "sesame\n");
    pair.exporter.revoke(&generation(1)).await.unwrap();
    eventually("it is gone", async || !path.exists()).await;
    pair.importer.unregister(&generation(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_told_and_others_do_not_notice() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("flag");
    let line = format!("cat {} || exit 7", flag.display());
    let line = vec!["sh".to_owned(), "-c".to_owned(), line];
    let pair = Pair::of(ServiceKind::Secret(Secret::Command(line))).await;
    let receiver = pair.importer.designator.clone();
    let granted = pair.exporter.grant(&grant(1, &receiver)).await.unwrap();
    let refused = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(code::SERVICE));
    let why = refused.to_string();
    assert!(
        why.contains("the secret's command sh failed: exit status: 7"),
        "{why}"
    );
    // Another binding of the same machines.
    let mut other = grant(1, &receiver);
    (other.service, other.binding) = ("echo".into(), "binding.echo".into());
    pair.exporter
        .offer("echo", ServiceKind::Tcp(echo().await))
        .await;
    let granted_other = pair.exporter.grant(&other).await.unwrap();
    let mut named = registration(1, &[]);
    (named.name, named.binding) = ("echo".into(), "binding.echo".into());
    let held = pair
        .importer
        .register(&named, &granted_other)
        .await
        .unwrap();
    crate::support::ping(&mut crate::support::connect(&held.address).await)
        .await
        .unwrap();
    fs::write(&flag, "sesame").unwrap();
    let held = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await
        .unwrap();
    assert_eq!(
        fs::read(held.address.strip_prefix("file:").unwrap()).unwrap(),
        b"sesame"
    );

    // A machine that ends without a word leaves its secret, until any hob of this user starts.
    let real = fs::canonicalize(held.address.strip_prefix("file:").unwrap()).unwrap();
    let Pair { app, boss, .. } = pair;
    drop(app);
    let another = Host::start(&boss.invite("machine.other", &[]), &[]);
    boss.client("machine.other").await;
    assert!(!real.exists());
    drop(another);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_seen_in_another_way_and_still_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, "one").unwrap();
    let pair = Pair::of(ServiceKind::Secret(Secret::File(source.clone()))).await;
    let held = pair.bind(1, &[]).await;
    let path = PathBuf::from(held.address.strip_prefix("file:").unwrap());
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let shared = Expose {
        mode: Some(0o640),
        ..Expose::default()
    };
    let data = to_passable(&registration(1, &[shared]));
    let hob = &pair.importer.hob;
    hob.call(method::EXPOSE_BINDING, [data]).await.unwrap();
    assert_eq!((mode(), fs::read(&path).unwrap()), (0o640, b"one".to_vec()));
    fs::write(&source, "two").unwrap();
    eventually("the other one is there", async || {
        fs::read(&path).is_ok_and(|it| it == b"two")
    })
    .await;
    assert_eq!(mode(), 0o640);
    pair.importer.unregister(&generation(1)).await;
    assert!(!path.exists());
}

/// Returns a directory that is on a disk.
fn on_disk() -> tempfile::TempDir {
    const TMPFS: i64 = 0x0102_1994;
    let candidates = [env!("CARGO_TARGET_TMPDIR"), "/var/tmp", "/"];
    let is_disk = |dir: &&str| rustix::fs::statfs(*dir).is_ok_and(|it| it.f_type != TMPFS);
    let dir = candidates.into_iter().find(is_disk);
    tempfile::tempdir_in(dir.expect("something is on a disk")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn x1_a_secret_goes_to_no_disk_unless_that_was_asked_for() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), on_disk());
    let source = dir.path().join("source");
    fs::write(&source, "sesame").unwrap();
    let mut pair = Pair::of(ServiceKind::Secret(Secret::File(source))).await;
    pair.app.kill();
    let start = |host: &Host, with: &[(&str, &Path)]| {
        let mut command = host.command();
        command.arg("--session").envs(with.iter().copied());
        command.env("GOBS_SECRETS_DIR", disk.path());
        let null = std::process::Stdio::null;
        command.stdin(null()).stdout(null()).stderr(null());
        command.spawn().unwrap()
    };
    let mut hob = start(&pair.app, &[]);
    pair.importer = pair.boss.client("machine.app").await;
    let asked = grant(1, &pair.importer.designator);
    let granted = pair.exporter.grant(&asked).await.unwrap();
    let refused = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Some(code::EXPOSE));
    let why = refused.to_string();
    let named = disk.path().display().to_string();
    assert!(why.contains(&named) && why.contains("is no tmpfs"), "{why}");
    assert!(why.contains("GOBS_SECRETS_ON_DISK=yes"), "{why}");
    assert_eq!(files(disk.path()), Vec::<PathBuf>::new());
    assert!(pair.importer.status().await.bindings.is_empty());

    hob.kill().unwrap();
    hob.wait().unwrap();
    let mut hob = start(&pair.app, &[("GOBS_SECRETS_ON_DISK", Path::new("yes"))]);
    pair.importer = pair.boss.client("machine.app").await;
    let granted = pair.exporter.grant(&asked).await.unwrap();
    let held = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await;
    let path = held.unwrap().address.replace("file:", "");
    assert_eq!(fs::read(&path).unwrap(), b"sesame");
    assert_eq!(files(disk.path()).len(), 1);
    pair.importer.unregister(&generation(1)).await;
    assert_eq!(files(disk.path()), Vec::<PathBuf>::new());
    hob.kill().unwrap();
    hob.wait().unwrap();
}
