//! What is sensitive is nowhere in clear, and a sealed cell opens only in its place.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use gobs_model::{Name, Value};
use gobs_state::{
    Fault, Finished, HobRow, KeyError, OpenError, Outcome, Reader, RowChange, SealError, SealedBlob,
};
use zeroize::Zeroizing;

use crate::*;

const CANARY: &str = "canary-4b1d-never-in-clear";

#[test]
fn x1_a_secret_is_in_no_file_in_any_form() {
    let project = Project::new();
    let mut store = project.running();
    let secret = || Value::from(CANARY).sensitive();
    let nested = Value::object([
        ("plain", Value::from("visible-text")),
        ("deep", Value::list([Value::map([("k", secret())])])),
        (
            "whole",
            Value::object([("inner", Value::from(CANARY))]).sensitive(),
        ),
    ]);
    let row = Row {
        observed: known(nested.clone()),
        ..machine_row("machine.a", nested)
    };
    let doubt = Intent {
        detail: serde_json::json!({"user_data": CANARY}),
        ..intent("machine.b")
    };
    drop(start(&mut store, doubt));
    let failing = start(&mut store, intent("machine.a"));
    let output = Name::new("url").expect("a name");
    let finished = Finished {
        started: failing,
        outcome: Outcome::Failed(format!("the provider says {CANARY}")),
        changes: vec![
            put(row.clone()),
            RowChange::PutOutput(output, Some(known(secret()))),
        ],
    };
    let _ = store.commit(vec![finished], Vec::new()).expect("committed");
    let boss = project.boss();
    let seed = boss.seed().expect("a seed");
    let hob = HobRow {
        machine: address("machine.a"),
        incarnation: 1,
        designator: "designator".into(),
        locator: "ocapn://x".into(),
        presence: Some(Zeroizing::new(CANARY.into())),
        last_seen: at(0),
        locked_at: None,
    };
    let _ = boss.put_hob(&hob).expect("kept");
    assert_eq!(boss.hobs().expect("readable"), std::slice::from_ref(&hob));
    assert!(!format!("{hob:?}").contains(CANARY));
    store
        .backup(&project.path("backups"), at(0))
        .expect("a backup");

    let key = project.path("key");
    let saved = DataKey::load_or_create(&key, &project.path("none")).expect("a key");
    let blob = saved.seal("plan", CANARY.as_bytes()).expect("sealed");
    std::fs::write(
        project.path("plan"),
        serde_json::to_vec(&blob).expect("JSON"),
    )
    .expect("written");

    let mut searched = 0;
    let mut visible = false;
    for file in files(project.directory.path()) {
        let bytes = std::fs::read(&file).expect("readable");
        for form in forms(CANARY.as_bytes()).into_iter().chain(forms(&*seed)) {
            let found = bytes.windows(form.len()).any(|window| window == form);
            assert!(!found, "{form:?} is in {}", file.display());
        }
        visible |= bytes.windows(12).any(|window| window == b"visible-text");
        searched += 1;
        let mode = std::fs::metadata(&file)
            .expect("a file")
            .permissions()
            .mode();
        if file.file_name() != Some("plan".as_ref()) {
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
    }
    assert!(
        searched >= 7,
        "state, -wal, -shm, lock, backup, key, plan: {searched}"
    );
    assert!(visible, "the search finds what is not secret");
    let kept = crate::row(&store, "machine.a").expect("a row");
    assert_eq!((&kept.wanted, &kept.observed), (&row.wanted, &row.observed));
}

/// Returns a secret as bytes, in hex, in percent form, and in base64 at each alignment.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
    let mut forms = vec![
        secret.to_vec(),
        HEXLOWER.encode(secret).into_bytes(),
        HEXUPPER.encode(secret).into_bytes(),
        secret
            .iter()
            .flat_map(|byte| format!("%{byte:02X}").into_bytes())
            .collect(),
    ];
    for lead in 0..3 {
        let shifted = [&[0; 2][..lead], secret].concat();
        for encoding in [BASE64, BASE64URL] {
            // The first and last characters mix with what is around.
            let text = encoding.encode(&shifted).into_bytes();
            forms.push(text[4..text.len() - 4].to_vec());
        }
    }
    forms
}

fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn x2_a_sealed_cell_opens_in_its_place_only() {
    let secrets = |a: &str, b: &str| {
        Value::object([
            ("a", Value::from(a).sensitive()),
            ("b", Value::from(b).sensitive()),
        ])
    };
    let tampers = [
        (
            "between rows",
            "UPDATE rows SET wanted = (SELECT wanted FROM rows r
                          WHERE r.address <> rows.address)",
        ),
        (
            "between columns",
            "UPDATE rows SET wanted = observed, observed = wanted",
        ),
        ("another version", "UPDATE rows SET version = version + 1"),
        (
            "within a cell",
            "UPDATE rows SET wanted = json_object('object', json_object(
             'a', json_extract(wanted, '$.object.b'), 'b', json_extract(wanted, '$.object.a')))",
        ),
        (
            "cut off",
            "UPDATE rows SET wanted = '{\"object\":{\"a\":{\"sealed\":\"AQ\"}}}'",
        ),
        (
            "not base64",
            "UPDATE rows SET wanted = '{\"object\":{\"a\":{\"sealed\":7}}}'",
        ),
    ];
    for (name, tamper) in tampers {
        let project = Project::new();
        let mut store = project.running();
        let rows = ["machine.a", "machine.b"].map(|name| {
            put(Row {
                observed: known(secrets("3", "4")),
                ..machine_row(name, secrets("1", "2"))
            })
        });
        write(&mut store, rows.into());
        assert_eq!(store.snapshot().expect("readable").rows.len(), 2);
        assert!(project.sql().execute(tamper, []).expect("changed") > 0);
        let fault = store.snapshot().expect_err(name).fault;
        assert!(matches!(fault, Fault::Tampered(_)), "{name}: {fault}");
    }
}

#[test]
fn x2_sealed_columns_open_in_their_row_only() {
    let project = Project::new();
    let mut store = project.running();
    for name in ["machine.a", "machine.b"] {
        drop(start(&mut store, intent(name)));
    }
    let boss = project.boss();
    let _ = boss.seed().expect("a seed");
    let sql = project.sql();
    let swap =
        "UPDATE journal SET detail = (SELECT detail FROM journal j WHERE j.id <> journal.id)";
    assert_eq!(sql.execute(swap, []).expect("changed"), 2);
    assert!(matches!(
        store.in_doubt().expect_err("moved").fault,
        Fault::Tampered(_)
    ));
    let foreign = "UPDATE boss SET seed = (SELECT detail FROM journal LIMIT 1)";
    assert_eq!(sql.execute(foreign, []).expect("changed"), 1);
    assert!(matches!(
        boss.seed().expect_err("foreign").fault,
        Fault::Tampered(_)
    ));
}

#[test]
fn a_sealed_blob_opens_only_unchanged_with_its_key_and_purpose() {
    let key = DataKey::generate().expect("a key");
    let sealed = key.seal("plan", b"secret").expect("sealed");
    assert_eq!(&*key.open("plan", &sealed).expect("opened"), b"secret");
    assert_ne!(
        key.seal("plan", b"secret").expect("sealed"),
        sealed,
        "a nonce is used once"
    );
    assert_eq!(key.open("other", &sealed), Err(SealError::Unopenable));
    let other = DataKey::generate().expect("a key");
    assert_eq!(other.open("plan", &sealed), Err(SealError::Unopenable));
    for index in 0..sealed.as_bytes().len() {
        let mut bytes = sealed.as_bytes().to_vec();
        bytes[index] ^= 1;
        let flipped = SealedBlob::from_bytes(bytes);
        assert_eq!(
            key.open("plan", &flipped),
            Err(SealError::Unopenable),
            "byte {index}"
        );
        let cut = SealedBlob::from_bytes(sealed.as_bytes()[..index].to_vec());
        assert_eq!(
            key.open("plan", &cut),
            Err(SealError::Unopenable),
            "cut at {index}"
        );
    }
    let json = serde_json::to_string(&sealed).expect("JSON");
    assert_eq!(
        serde_json::from_str::<SealedBlob>(&json).expect("a blob"),
        sealed
    );
}

#[test]
fn a_wrong_key_is_told_from_a_damaged_file() {
    let project = Project::new();
    drop(project.store());
    let other = DataKey::generate().expect("a key");
    for error in [
        Reader::open(&project.state(), &other).expect_err("refused"),
        Store::open(&project.state(), &other, project.lock()).expect_err("refused"),
        BossStore::open(&project.state(), &other).expect_err("refused"),
    ] {
        assert!(matches!(error, OpenError::WrongKey(_)), "{error}");
    }
}

#[test]
fn a_key_file_is_private_and_made_once() {
    let project = Project::new();
    let (key, state) = (project.path("fresh/key"), project.state());
    let barrier = Barrier::new(8);
    let sealed: Vec<SealedBlob> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let key = DataKey::load_or_create(&key, &state).expect("a key");
                    key.seal("test", b"x").expect("sealed")
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let kept = DataKey::load(&key).expect("a key");
    for blob in sealed {
        assert_eq!(&*kept.open("test", &blob).expect("one key for all"), b"x");
    }
    let mode = |path: PathBuf| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(
        (mode(key.clone()), mode(project.path("fresh"))),
        (0o600, 0o700)
    );
    let left = std::fs::read_dir(project.path("fresh"))
        .expect("a directory")
        .count();
    assert_eq!(left, 1, "no temporary file stays");

    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).expect("changed");
    let error = DataKey::load(&key).expect_err("refused");
    assert!(
        matches!(error, KeyError::Exposed { mode: 0o640, .. }),
        "{error}"
    );
}

#[test]
fn a_missing_key_beside_a_state_is_not_replaced() {
    let project = Project::new();
    drop(project.store());
    let key = project.path("key");
    let error = DataKey::load_or_create(&key, &project.state()).expect_err("refused");
    assert!(matches!(error, KeyError::Missing { .. }), "{error}");
    assert!(!key.exists());
}

#[test]
fn a_key_is_text_in_base64url_or_hex_and_nothing_else() {
    let hex = "00".repeat(31) + "ff";
    let base64 = format!("{}P8", "A".repeat(41));
    let key = DataKey::from_text(&format!(" {hex}\n")).expect("hex");
    let same = DataKey::from_text(&base64).expect("base64url");
    let sealed = key.seal("test", b"x").expect("sealed");
    assert_eq!(&*same.open("test", &sealed).expect("the same key"), b"x");
    assert_eq!(format!("{key:?}"), "DataKey(…)");
    for bad in [
        "",
        "x",
        &hex[1..],
        &format!("{hex}00"),
        "ключ",
        &"=".repeat(43),
    ] {
        let error = DataKey::from_text(bad).expect_err("not a key");
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert!(
            bad.len() < 8 || !error.to_string().contains(bad),
            "a key is never shown"
        );
    }
    let project = Project::new();
    let file = project.path("key");
    std::fs::write(&file, [0xff; 9]).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("changed");
    let error = DataKey::load(&file).expect_err("not a key");
    assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
}
