//! Secrets that are delivered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use hob::protocol::{Secret, ServiceKind, code};

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
    assert!(!Path::new(&held.directory).join("socket").exists());

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
