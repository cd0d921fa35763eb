//! Secrets that are delivered, and objects that are called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use futures_util::future::BoxFuture;
use hob::protocol::{Attenuate, Secret, ServiceKind, code};
use ocapn::{
    Identity, Methods, Peer, PeerId, Reference, Sturdyref, SturdyrefTable, Swissnum, TlsRpk,
    TlsRpkOptions, Turn,
};

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

/// Somebody's object, anywhere.
struct Elsewhere(std::sync::OnceLock<Reference>);

impl SturdyrefTable for Elsewhere {
    fn fetch(&self, swissnum: Bytes, _: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let found = (&*swissnum == b"sesame")
            .then(|| self.0.get().cloned())
            .flatten();
        Box::pin(async move { found })
    }
}

async fn elsewhere() -> (Peer, Sturdyref) {
    let identity = Identity::generate().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let netlayer = TlsRpk::bind(identity, listen, TlsRpkOptions::default())
        .await
        .unwrap();
    let table = Arc::new(Elsewhere(std::sync::OnceLock::new()));
    let peer = Peer::builder()
        .netlayer(netlayer)
        .sturdyrefs(table.clone())
        .spawn();
    let object = peer.export(
        Methods::new()
            .on("add", |_: &Turn, (a, b): (i64, i64)| Ok(a + b))
            .on("greet", |_: &Turn, (name,): (String,)| {
                Ok(format!("hello {name}"))
            })
            .on("erase", |_: &Turn, ()| Ok("erased".to_owned())),
    );
    table.0.set(object).ok().unwrap();
    let sturdyref = Sturdyref {
        peer: peer.locator(),
        swissnum: Swissnum::new(b"sesame".to_vec()),
    };
    (peer, sturdyref)
}

async fn call(host: &Host, args: &[&str]) -> String {
    let mut command = host.command();
    command.arg("call").args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_elsewhere_is_called_until_it_is_revoked() {
    let (peer, sturdyref) = elsewhere().await;
    let uri = sturdyref.to_uri().to_string();
    let pair = Pair::of(ServiceKind::Sturdyref(uri)).await;
    let narrow = Attenuate {
        methods: Some(vec!["add".into(), "greet".into()]),
        ..Attenuate::default()
    };
    let held = pair.bind_narrowed(1, &[], narrow).await;
    assert_eq!(held.address, "hob:db");
    assert!(pair.importer.check(&generation(1)).await.answers);
    assert_eq!(call(&pair.app, &["db", "add", "2", "40"]).await, "42");
    assert_eq!(
        call(&pair.app, &["db", "greet", "it's"]).await,
        "\"hello it's\""
    );
    let refused = call(&pair.app, &["db", "erase"]).await;
    assert!(refused.contains("not-allowed"), "{refused}");
    let unknown = call(&pair.app, &["nothing", "add"]).await;
    assert_eq!(unknown, "hob: no binding has this name");
    // A new session with the object is found by itself.
    peer.disconnect(&pair.exporter.designator, "test");
    eventually("it is called again", async || {
        call(&pair.app, &["db", "add", "1", "1"]).await == "2"
    })
    .await;
    pair.exporter.revoke(&generation(1)).await.unwrap();
    let revoked = call(&pair.app, &["db", "add", "1", "1"]).await;
    assert!(revoked.contains("revoked"), "{revoked}");
    let logs = pair.db.log() + &pair.app.log();
    assert!(
        !logs.contains(&BASE64.encode(b"sesame")),
        "the sturdyref is in no log"
    );
}
