//! How a hob gets onto a machine: the script that gobs writes, run by a shell with a machine's
//! root in a directory, fetching from a boss that serves its own program.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gobs::boot::{Install, message, script};
use gobs::boss::{Boss, BossOptions};
use gobs::lang::{Schemas, Source};
use gobs_state::{BossStore, DataKey, Lock, Store};
use tempfile::TempDir;

use crate::support::repository;

/// Programs of a machine that a test's must not be: they note how they are called.
const STANDINS: [&str; 7] = [
    "systemctl",
    "useradd",
    "nft",
    "iptables",
    "ip6tables",
    "id",
    "restorecon",
];

/// A boss, and a machine that has nothing yet.
struct Site {
    directory: TempDir,
    boss: Boss,
}

impl Site {
    /// Starts a boss that serves this program.
    async fn start(program: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let key = DataKey::generate().expect("a key");
        let lock = Lock::acquire(&at("lock"), "test", std::time::SystemTime::now());
        let store = Store::open(&at("state.db"), &key, lock.expect("a free lock"));
        drop(store.expect("a state"));
        let tables = BossStore::open(&at("state.db"), &key).expect("a state");
        let options = BossOptions {
            listen: "127.0.0.1:0".into(),
            advertise: Vec::new(),
            socket: at("boss.sock"),
            program: Some(program.to_owned()),
            clock: gobs::clock::Clock::system(),
            homes: Vec::new(),
            dies_after: None,
        };
        let boss = Boss::start(tables, options).await.expect("the boss starts");
        let site = Self { directory, boss };
        std::fs::create_dir_all(site.bin()).expect("a directory");
        for name in STANDINS {
            let does = match name {
                "id" => "echo 999",
                "nft" => "{ echo \"nft $*\"; cat; } >>\"$CALLS\"",
                // No chain knows the rule yet.
                "iptables" | "ip6tables" => "echo \"${0##*/} $*\" >>\"$CALLS\"; [ \"$1\" != -C ]",
                _ => "echo \"${0##*/} $*\" >>\"$CALLS\"",
            };
            site.write_program(name, does);
        }
        site
    }

    fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// The machine's root directory.
    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn hob(&self) -> PathBuf {
        self.root().join("usr/local/bin/hob")
    }

    fn write_program(&self, name: &str, does: &str) {
        let path = self.bin().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{does}\n")).expect("written");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a program");
    }

    /// Runs a script as the machine would.
    async fn run(&self, program: &Path) -> Output {
        let mut command = Command::new("sh");
        command.arg(program).env_clear().stdin(Stdio::null());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.bin().display()));
        command.env("GOBS_ROOT", self.root());
        command.env("CALLS", self.directory.path().join("calls"));
        let run = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        run.await.expect("no panic")
    }

    /// Runs what the first boot runs: what cloud-init is given, and then what the unit does first.
    async fn boot(&self, install: &Install) -> (bool, String) {
        let path = self.directory.path().join("part-001");
        std::fs::write(&path, script(install)).expect("written");
        let output = self.run(&path).await;
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.success(), "{said}");
        let prepare = self.root().join("usr/local/lib/gobs/prepare");
        let output = self.run(&prepare).await;
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.success(), said)
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("calls")).unwrap_or_default()
    }
}

fn metadata() -> Vec<String> {
    ["http://169.254.169.254", "http://[fd00:a9fe:a9fe::1]"]
        .map(str::to_owned)
        .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_its_hob_from_the_boss() {
    let site = Site::start(Path::new(env!("CARGO_BIN_EXE_gobs"))).await;
    let install = Install {
        metadata: metadata(),
        ..site.boss.install().expect("a program")
    };
    let (done, said) = site.boot(&install).await;
    assert!(done, "{said}");
    assert_eq!(said, "");
    let version = Command::new(site.hob()).arg("--version").output();
    let version = String::from_utf8(version.expect("it runs").stdout).expect("UTF-8");
    assert_eq!(version, concat!("hob ", env!("CARGO_PKG_VERSION"), "\n"));

    let unit = site.root().join("etc/systemd/system/gobs-hob.service");
    let unit = std::fs::read_to_string(unit).expect("a unit");
    assert!(unit.contains("\nUser=gobs\n"), "{unit}");
    assert!(
        unit.contains(
            "\nExecStart=/usr/local/bin/hob --dir /var/lib/gobs --metadata \
             http://169.254.169.254 --metadata http://[fd00:a9fe:a9fe::1]\n"
        ),
        "{unit}"
    );
    let calls = site.calls();
    let expected = "systemctl daemon-reload\n\
                    systemctl enable --quiet gobs-hob.service\n\
                    systemctl start --no-block gobs-hob.service\n\
                    nft -f -\n";
    assert!(calls.starts_with(expected), "{calls}");
    for rule in [
        "ip daddr 169.254.169.254 meta skuid != { 0, 999 } reject",
        "ip6 daddr fd00:a9fe:a9fe::1 meta skuid != { 0, 999 } reject",
    ] {
        assert!(calls.contains(rule), "{calls}");
    }
    // It came from another directory, whose label is no program's.
    let relabelled = format!("restorecon {}\n", site.hob().display());
    assert_eq!(calls.matches(&relabelled).count(), 1, "{calls}");

    // What is there is not fetched again: the boss may be gone.
    site.boss.clone().shutdown().await;
    let (done, said) = site.boot(&install).await;
    assert!(done, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_announced_hob_is_never_run() {
    let site = Site::start(Path::new("/bin/true")).await;
    let right = site.boss.install().expect("a program");

    // Somebody else's key: nothing is even asked for.
    let other = ocapn::Identity::generate().expect("a key");
    let digest = <sha2::Sha256 as sha2::Digest>::digest(other.subject_public_key_info());
    let wrong_pin = Install {
        pin: Some(format!("sha256//{}", data_encoding::BASE64.encode(&digest))),
        ..right.clone()
    };
    let (done, said) = site.boot(&wrong_pin).await;
    assert!(!done && said.contains("could not be fetched"), "{said}");
    assert!(said.contains("public key does not match"), "{said}");
    assert!(!site.hob().exists());

    // The right boss, and another program than was announced.
    let announced = "0".repeat(64);
    let wrong_digest = Install {
        sha256: Some(announced.clone()),
        ..right.clone()
    };
    let (done, said) = site.boot(&wrong_digest).await;
    let found = right.sha256.as_deref().expect("a digest");
    let expected = format!("its SHA-256 is {found}, not {announced}. It is not run");
    assert!(!done && said.contains(&expected), "{said}");
    assert!(!site.hob().exists());

    // The first place does not answer, and the second has it.
    let mut both = right.clone();
    both.urls.insert(0, "https://127.0.0.1:1/hob".into());
    site.write_program("restorecon", "exit 1");
    let (done, said) = site.boot(&both).await;
    assert!(
        done && said.contains("https://127.0.0.1:1/hob could not be fetched"),
        "{said}"
    );
    assert!(said.contains("SELinux may keep it from running"), "{said}");
    let there = std::fs::read(site.hob()).expect("a hob");
    assert_eq!(there, std::fs::read("/bin/true").expect("a program"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_for_another_machine_is_not_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("hob");
    let mut bytes = std::fs::read("/bin/true").expect("a program");
    bytes[18] = 183; // EM_AARCH64
    std::fs::write(&program, bytes).expect("written");
    let site = Site::start(&program).await;
    let refused = site.boss.install().expect_err("another machine");
    assert!(
        refused.contains("no program for Linux on x86-64"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_boss_serves_that_one_file_and_nothing_else() {
    let site = Site::start(Path::new("/bin/true")).await;
    let install = site.boss.install().expect("a program");
    let url = install.urls[0].clone();
    let base = url.split("/hob/").next().expect("a host").to_owned();
    let ask = async |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
        ]);
        curl.args(arguments);
        let run = tokio::task::spawn_blocking(move || curl.output().expect("curl runs"));
        String::from_utf8(run.await.expect("no panic").stdout).expect("UTF-8")
    };
    let size = std::fs::metadata("/bin/true").expect("a program").len();
    assert_eq!(ask(&[&url]).await, format!("200 {size}"));
    assert_eq!(ask(&["-I", &url]).await, "200 0");
    assert_eq!(ask(&[&base]).await, "404 0");
    assert_eq!(ask(&[&format!("{url}0")]).await, "404 0");
    assert_eq!(
        ask(&["--path-as-is", &format!("{base}/hob/../../etc/passwd")]).await,
        "404 0"
    );
    assert_eq!(ask(&["-d", "x", &url]).await, "405 0");
    let long = format!("X: {}", "x".repeat(20_000));
    assert_eq!(ask(&["-H", &long, &url]).await, "000 0");
    assert_eq!(ask(&[&url]).await, format!("200 {size}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_service_is_for_root_and_the_hob_or_it_is_said() {
    let site = Site::start(Path::new("/bin/true")).await;
    let install = Install {
        metadata: metadata(),
        as_root: true,
        ..site.boss.install().expect("a program")
    };
    site.write_program("nft", "exit 1");
    let (done, said) = site.boot(&install).await;
    assert!(done, "{said}");
    let calls = site.calls();
    for call in [
        "iptables -A GOBS_METADATA -m owner --uid-owner 0 -j RETURN",
        "iptables -A GOBS_METADATA -j REJECT",
        "iptables -I OUTPUT -d 169.254.169.254 -j GOBS_METADATA",
        "ip6tables -I OUTPUT -d fd00:a9fe:a9fe::1 -j GOBS_METADATA",
    ] {
        assert!(calls.contains(call), "{calls}");
    }
    assert!(!calls.contains("useradd"), "{calls}");

    for name in ["iptables", "ip6tables"] {
        site.write_program(name, "exit 1");
    }
    let (done, said) = site.boot(&install).await;
    assert!(done, "{said}");
    let expected = "every program on this machine can ask the metadata service";
    assert!(said.contains(expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_must_have_the_hob_that_it_is_said_to_have() {
    let site = Site::start(Path::new("/bin/true")).await;
    let (done, said) = site.boot(&Install::default()).await;
    assert!(!done && said.contains("is said to have one"), "{said}");
    std::fs::create_dir_all(site.hob().parent().expect("a directory")).expect("made");
    std::fs::copy("/bin/true", site.hob()).expect("a hob");
    let (done, said) = site.boot(&Install::default()).await;
    assert!(done, "{said}");
}

/// Returns what is wrong with a machine at Linode that has these arguments.
fn wrong_with(arguments: &str) -> Vec<String> {
    let linode = gobs_provider_linode::Linode::new(gobs_provider_linode::LinodeHost::default());
    let schema = gobs_provider::Provider::schema(&linode).clone();
    let schemas: Schemas = [(schema.name.clone(), schema)].into();
    let text = format!(
        "machine \"a\" {{\n  provider = linode\n  region = \"x\"\n  type = \"y\"\n{arguments}\n  \
         image = \"z\"\n  authorized_users = [\"me\"]\n}}\n"
    );
    let loaded = gobs::lang::load(&[Source::new("main.gobs.hcl", text)]);
    let mut found = loaded.diagnostics;
    found.extend(gobs::lang::check(&loaded.config, &schemas));
    let lines = found.iter().map(|it| {
        let place = match &it.place {
            Some(gobs_model::Place::Source(span)) => span.start.line.to_string(),
            _ => "?".into(),
        };
        let hint = it.hint.as_deref().unwrap_or_default();
        format!("{place}: {}: {} {hint}", it.summary, it.detail)
    });
    lines.collect()
}

#[test]
fn what_cannot_be_booted_with_is_an_error_at_its_place() {
    let check = |arguments: &str, expected: &[&str]| {
        let found = wrong_with(arguments);
        assert_eq!(found.len(), expected.len(), "{arguments}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{arguments}: {found}");
        }
    };
    check("user_data = \"#cloud-config\\n\"", &[]);
    check(
        "user_data = \"packages: []\"",
        &["5: Unknown kind of user_data: cloud-init would not know"],
    );
    check(
        "user_data = \"#!/bin/sh\\n${sensitive(\"x\")}\"",
        &["a binding to a service of kind \"secret\""],
    );
    // Nothing makes random letters shorter.
    let mut letters = String::from("#!/bin/sh\\n");
    let mut state: u32 = 1;
    while letters.len() < 20_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        letters.push(char::from(b'a' + (state >> 24) as u8 % 26));
    }
    check(
        &format!("user_data = \"{letters}\""),
        &["and machines take 16384"],
    );
    let digest = "0123456789abcdef".repeat(4);
    check("hob { install = \"image\" }", &[]);
    check(
        &format!("hob {{\n url = \"https://example.net/hob\"\n sha256 = \"{digest}\"\n}}"),
        &[],
    );
    check(
        "hob { url = \"https://example.net/hob\" }",
        &["\"sha256\" must be set too. sha256sum prints it."],
    );
    check(
        &format!("hob {{ sha256 = \"{digest}\" }}"),
        &["there is none"],
    );
    check(
        &format!("hob {{\n install = \"boss\"\n url = \"http://h\"\n sha256 = \"{digest}\"\n}}"),
        &["exclude each other"],
    );
    check("hob { install = \"disk\" }", &["5: Invalid value"]);
    check(
        &format!("hob {{\n url = \"https://h/'; reboot; '\"\n sha256 = \"{digest}\"\n}}"),
        &["6: Invalid address"],
    );
    check(
        "hob {\n url = \"file:///hob\"\n sha256 = \"abc\"\n}",
        &[
            "is not an address such as",
            "7: Invalid value: \"sha256\" is 64",
        ],
    );
    check("hob { deadline = \"3h\" }", &["two hours at most"]);
    check("hob { user = \"nobody\" }", &["or as \"root\""]);
    check("hob { require_address = \"x\" }", &["require_address"]);
    check("hob { instal = \"image\" }", &["Did you mean \"install\""]);
}

/// Reads a message as cloud-init does, which is written in Python.
const READ: &str = r#"
import email, gzip, json, sys
message = email.message_from_string(sys.stdin.read())
parts = []
for part in message.walk():
    if part.is_multipart():
        continue
    body = part.get_payload(decode=True)
    if part.get_content_type() == "application/gzip":
        body = gzip.decompress(body)
    parts.append([part.get_content_type(), body.decode()])
print(json.dumps({"header": message["X-Gobs-Hob"], "parts": parts}))
"#;

#[test]
fn cloud_init_finds_the_users_part_as_it_was_written() {
    let mut seed = String::from("#!/bin/sh\n");
    for number in 0..1_500 {
        seed.push_str(&format!("echo {number} grüße\n"));
    }
    let script = script(&Install::default());
    for (own, limit, kind) in [
        (
            "#cloud-config\npackages: [nginx]\n",
            None,
            "text/cloud-config",
        ),
        ("#!/bin/sh\necho grüße\n", None, "text/x-shellscript"),
        (seed.as_str(), Some(16_384), "application/gzip"),
    ] {
        let text = message("X-Gobs-Hob: c2VjcmV0", &script, Some(own), limit).expect("it fits");
        assert!(limit.is_none_or(|limit| text.len() <= limit));
        let input = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(input.path(), text).expect("written");
        let mut python = Command::new("python3");
        python.args(["-c", READ]).current_dir(repository());
        python.stdin(std::fs::File::open(input.path()).expect("a file"));
        let output = python.output().expect("python runs");
        let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(read["header"], "c2VjcmV0");
        assert_eq!(read["parts"][0][0], "text/cloud-boothook");
        let hook = read["parts"][0][1].as_str().expect("text").trim_end();
        assert_eq!(hook, format!("#cloud-boothook\n{script}").trim_end());
        assert_eq!(read["parts"][1][0], kind);
        let body = read["parts"][1][1].as_str().expect("text").trim_end();
        assert_eq!(body, own.trim_end());
    }
}
