//! How programs see bindings: whose the sockets and files are, when they are there, and what the
//! hob's own commands tell.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use hob::protocol::{
    Expose, Held, Registration, ServiceKind, code, from_passable, method, to_passable,
};
use ocapn::Broken;

use crate::postgres::cluster::free_port;
use crate::support::{
    Boss, Host, Pair, connect, echo, ends, eventually, generation, grant, ping, registration,
};

/// A user that every Debian has, and another one.
const USER: &str = "daemon";
const OTHER: &str = "nobody";

/// Whether processes of other users can be made, and sockets given to them.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Connects as another user, and exchanges one byte. Returns the exit code: 3, it could not
/// connect; 4, the connection ended.
fn exchange_as(user: &str, socket: &Path) -> Option<i32> {
    let program = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; \
                   my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 3; \
                   syswrite($s, 'x'); sysread($s, my $b, 1) == 1 or exit 4;";
    let perl = ["perl", "-e", program];
    let mut command = as_user(user);
    command.args(perl).arg(socket).status().unwrap().code()
}

fn as_user(user: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--clear-groups"]);
    command
}

/// Lets other users reach what is in a machine's directory, as they would below `/run`.
fn open_up(host: &Host) {
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(host.layout.dir(), mode.clone()).unwrap();
    fs::set_permissions(host.layout.machine(), mode).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_other_users_than_the_declared_one_are_refused() {
    let pair = Pair::start(&echo().await).await;
    let socket = pair.app.runtime.join("bindings/db/..run/socket");
    let owned = Expose {
        user: Some(USER.into()),
        ..Expose::default()
    };
    let asked = grant(1, &pair.importer.designator);
    let granted = pair.exporter.grant(&asked);
    let granted = granted.await.unwrap();
    let register = async |expose: &Expose| {
        let registration = registration(1, std::slice::from_ref(expose));
        pair.importer.register(&registration, &granted).await
    };
    if !is_root() {
        let refused = register(&owned).await.unwrap_err().to_string();
        assert!(
            refused.contains("only a hob that runs as root, or may change owners"),
            "{refused}"
        );
        return;
    }
    open_up(&pair.app);
    let held = register(&owned).await.unwrap();
    assert_eq!(exchange_as(USER, &socket), Some(0));
    assert_eq!(exchange_as("root", &socket), Some(0));
    assert_eq!(exchange_as(OTHER, &socket), Some(3), "the mode refuses");
    // Whoever loosens the mode has not loosened what was declared.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(
        exchange_as(OTHER, &socket),
        Some(4),
        "the peer is asked for"
    );

    // The files are the user's to read, and their directory the hob's alone.
    let uri = Path::new(&held.directory).join("uri");
    let read = |user: &str| as_user(user).arg("cat").arg(&uri).output().unwrap();
    assert!(read(USER).status.success());
    assert!(!read(OTHER).status.success());
    assert_eq!(fs::metadata(&held.directory).unwrap().uid(), 0);

    // Another owner gets the same socket, and what is connected stays so.
    let mut before = connect(&held.address).await;
    ping(&mut before).await.unwrap();
    let (inode, shared) = (
        fs::metadata(&socket).unwrap().ino(),
        Expose {
            user: Some(OTHER.into()),
            group: Some(USER.into()),
            mode: Some(0o660),
            ..Expose::default()
        },
    );
    assert_eq!(register(&shared).await.unwrap(), held);
    let meta = fs::metadata(&socket).unwrap();
    assert_eq!((meta.ino(), meta.mode() & 0o777), (inode, 0o660));
    assert_eq!(exchange_as(OTHER, &socket), Some(0));
    assert_eq!(exchange_as(USER, &socket), Some(3), "it has no group now");
    let member = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--init-groups", "cat"])
        .arg(&uri)
        .output();
    assert!(member.unwrap().status.success());
    ping(&mut before).await.unwrap();

    let nobody = Expose {
        user: Some("no-such-user".into()),
        ..Expose::default()
    };
    let refused = register(&nobody).await.unwrap_err();
    assert_eq!(refused.code(), Some("expose"));
    assert!(
        refused.to_string().contains("no user no-such-user"),
        "{refused}"
    );
    assert_eq!(exchange_as(OTHER, &socket), Some(0), "as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_there_before_the_grant_and_connections_wait() {
    let orders = echo().await;
    let boss = Boss::new().await;
    let user_data = boss.invite("machine.app", &["db"]);
    let dir = tempfile::tempdir().unwrap();
    // As below /run, where nothing is left of the last boot.
    let path = dir.path().join("app/db.sock");
    boss.announce("machine.app", "db", Expose::unix(&path));
    let db = Host::start(&boss.invite("machine.db", &[]), &[]);
    let mut app = Host::start(&user_data, &[]);
    let (exporter, importer) = tokio::join!(boss.client("machine.db"), boss.client("machine.app"));
    let address = format!("unix:{}", path.display());
    eventually("listening", async || path.exists()).await;
    let mut early = connect(&address).await;
    assert_eq!(importer.status().await.bindings, []);
    let told = app.command().args(["run", "--wait", "0", "true"]).output();
    let told = String::from_utf8(told.unwrap().stderr).unwrap();
    assert!(
        told.contains("not there after 0 s: db is not granted"),
        "{told}"
    );

    // A hob that restarts meanwhile knows what it waits for.
    app.kill();
    fs::remove_dir_all(dir.path().join("app")).unwrap();
    app.start_again();
    eventually("listening again", async || path.exists()).await;
    assert!(ends(&mut early).await);
    let mut early = connect(&address).await;

    let kind = hob::protocol::ServiceKind::Tcp(orders);
    exporter.offer("orders", kind).await;
    let importer = boss.client("machine.app").await;
    let granted = exporter
        .grant(&grant(1, &importer.designator))
        .await
        .unwrap();
    let asked = registration(1, &[Expose::unix(&path)]);
    let held = importer.register(&asked, &granted).await.unwrap();
    assert_eq!(held.address, address);
    ping(&mut early).await.unwrap();

    // Whoever removes a socket, and whoever has a port for a while, is outlasted.
    fs::remove_file(&path).unwrap();
    eventually("listening again", async || path.exists()).await;
    ping(&mut connect(&address).await).await.unwrap();
    ping(&mut early).await.unwrap();
    drop(db);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_libraries_find_nothing_but_texts_in_a_directory() {
    let pair = Pair::start(&echo().await).await;
    let held = pair.bind(1, &[]).await;
    let mut read = Vec::new();
    for entry in fs::read_dir(&held.directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // As they pass over what Kubernetes keeps there.
        if !name.starts_with("..") {
            let path = Path::new(&held.directory).join(&name);
            read.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    read.sort();
    let path = held.address.strip_prefix("unix:").unwrap();
    let expected = [
        ("path", path),
        ("provider", "gobs"),
        ("type", "orders"),
        ("uri", &held.address),
    ];
    assert_eq!(
        read,
        expected.map(|(name, text)| (name.into(), text.into()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_wait_for_a_grant_and_more_are_closed() {
    /// As many as `hob/src/slot.rs` lets wait.
    const WAITING: usize = 1_024;
    // Those of this process.
    let files = rustix::process::Resource::Nofile;
    let maximum = rustix::process::getrlimit(files).maximum;
    let raised = rustix::process::Rlimit {
        current: maximum,
        maximum,
    };
    rustix::process::setrlimit(files, raised).unwrap();

    let pair = Pair::start(&echo().await).await;
    let path = pair.app.runtime.join("bindings/db/..run/socket");
    eventually("listening", async || path.exists()).await;
    let address = format!("unix:{}", path.display());
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        waiting.push(connect(&address).await);
    }
    assert!(ends(&mut connect(&address).await).await, "one too many");
    pair.bind(1, &[]).await;
    for stream in &mut waiting {
        ping(stream).await.unwrap();
    }
    drop(waiting);
    ping(&mut connect(&address).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_at_the_start_is_listened_on_later() {
    let mut pair = Pair::start(&echo().await).await;
    let port = format!("127.0.0.1:{}", free_port());
    let unix = pair.app.runtime.join("s");
    let exposes = [Expose::tcp(&port), Expose::unix(&unix)];
    pair.bind(1, &exposes).await;
    pair.app.kill();
    let taken = std::net::TcpListener::bind(&port).unwrap();
    pair.app.start_again();
    let unix = format!("unix:{}", unix.display());
    eventually("the other one is listened on", async || {
        tokio::net::UnixStream::connect(unix.trim_start_matches("unix:"))
            .await
            .is_ok()
    })
    .await;
    ping(&mut connect(&unix).await).await.unwrap();
    drop(taken);
    eventually("listening", async || {
        std::net::TcpStream::connect(&port).is_ok()
    })
    .await;
    ping(&mut connect(&port).await).await.unwrap();
    assert_eq!(pair.app.log().matches("not exposed; trying on").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_programs_are_told_by_files_and_environment() {
    let pair = Pair::start(&echo().await).await;
    let ask = |args: &[&str]| {
        let output = pair.app.command().args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let mut expose = Expose::tcp("127.0.0.1:0");
    expose.env = BTreeMap::from([("DATABASE_URL".into(), "uri".into())]);
    let held = pair.bind(1, &[expose]).await;
    let port = held.address.rsplit_once(':').unwrap().1;
    let dir = Path::new(&held.directory);
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
    assert_eq!(
        (read("host"), read("port")),
        ("127.0.0.1".into(), port.into())
    );
    let root = dir.parent().unwrap().display();
    let address = &held.address;
    let expected = format!(
        "DATABASE_URL=\"tcp://{address}\"\nDB_ADDRESS=\"{address}\"\nDB_HOST=\"127.0.0.1\"\n\
         DB_PORT=\"{port}\"\nSERVICE_BINDING_ROOT=\"{root}\"\n"
    );
    let file = pair.app.layout.environment("db");
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    let exports = expected.replace('"', "");
    let exports: String = exports.lines().map(|it| format!("export {it}\n")).collect();
    assert_eq!(ask(&["env"]), (Some(0), exports));

    let run = ask(&[
        "run",
        "--",
        "sh",
        "-c",
        "echo $DATABASE_URL; exit 7",
        "--json",
    ]);
    assert_eq!(run, (Some(7), format!("tcp://{address}\n")));
    assert_eq!(ask(&["run", "/no/such/program"]).0, Some(127));
    assert_eq!(ask(&["run", "/etc"]).0, Some(126));
    for wrong in [
        &["run"][..],
        &["run", "--"],
        &["run", "--wait", "x", "y"],
        &["--json"],
    ] {
        assert_eq!(ask(wrong).0, Some(64), "{wrong:?}");
    }
    assert_eq!(ask(&["get", "db"]).1, format!("{address}\n"));
    let json = ask(&["get", "db", "--json"]).1;
    assert!(json.contains("\"binding\": \"binding.db\""), "{json}");
    assert_eq!(
        ask(&["list"]).1,
        format!("db\t{address}\t{}\n", held.directory)
    );
    assert_eq!(ask(&["get", "other"]).0, Some(1));

    // A variable that is to hold what there is not: nothing has changed.
    let asked = grant(1, &pair.importer.designator);
    let granted = pair.exporter.grant(&asked);
    let mut wrong = Expose::tcp("127.0.0.1:0");
    wrong.env = BTreeMap::from([("PGUSER".into(), "username".into())]);
    let wrong = registration(1, &[wrong]);
    let granted = granted.await.unwrap();
    let refused = pair.importer.register(&wrong, &granted).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("PGUSER is to hold \"username\""),
        "{refused}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);

    pair.importer.unregister(&generation(1)).await;
    assert!(!file.exists() && !dir.exists());
    assert_eq!(ask(&["list"]).1, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_told_of_its_own_bindings() {
    let pair = Pair::start(&echo().await).await;
    if !is_root() {
        return;
    }
    open_up(&pair.app);
    let mut owned = Expose::unix(pair.app.runtime.join("own"));
    owned.user = Some(USER.into());
    pair.bind(1, &[]).await;
    let mut second = grant(1, &pair.importer.designator);
    second.binding = "binding.second".into();
    let granted = pair.exporter.grant(&second).await.unwrap();
    let asked = Registration {
        name: "second".into(),
        binding: second.binding.clone(),
        ..registration(1, &[owned])
    };
    pair.importer.register(&asked, &granted).await.unwrap();
    // The program must be found by all.
    let hob = pair.app.layout.dir().join("a-hob");
    // By a process of its own: children of other tests would have it open to write for a moment.
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_hob")).arg(&hob);
    assert!(copy.status().unwrap().success());
    let ask = |user: &str, args: &[&str]| {
        let mut command = as_user(user);
        command.arg(&hob).arg("--dir").arg(pair.app.layout.dir());
        let output = command.args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    };
    let listed = ask(USER, &["list"]);
    assert!(
        listed.starts_with("second\t") && listed.lines().count() == 1,
        "{listed}"
    );
    assert_eq!(ask(OTHER, &["list"]), "");
    assert!(ask(USER, &["env"]).contains("SECOND_SOCKET="));
    assert!(!ask(USER, &["env"]).contains("DB_SOCKET="));
    assert!(ask(USER, &["get", "db"]).contains("no binding has this name"));
    assert!(ask(USER, &["status"]).contains("root and to its own user only"));
    assert_eq!(ask("root", &["list"]).lines().count(), 2);
}

#[test]
fn a_machine_without_a_hob_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
        let output = command.arg("--dir").arg(dir.path()).args(args).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let machine = dir.path().join("machine.json");
    assert!(ask(&["list"]).contains(&format!("cannot read {}", machine.display())));
    let text = format!(
        r#"{{"format":1,"token":"t","runtime":"{}"}}"#,
        dir.path().display()
    );
    fs::write(machine, text).unwrap();
    for args in [&["list"][..], &["env"], &["run", "true"]] {
        let error = ask(args);
        let socket = dir.path().join("hob.sock");
        let expected = format!("hob: no hob answers at {}: ", socket.display());
        assert!(error.starts_with(&expected), "{error}");
    }
}

/// Asks a machine's hob to let programs see what it holds in another way.
async fn expose(pair: &Pair, number: u64, expose: &[Expose]) -> Result<Held, Broken> {
    let data = to_passable(&registration(number, expose));
    let hob = &pair.importer.hob;
    let answer = hob.call(method::EXPOSE_BINDING, [data]).await?;
    Ok(from_passable("held", &answer).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_seen_in_another_way_and_its_streams_go_on() {
    let mut pair = Pair::start(&echo().await).await;
    let at = |name: &str| pair.app.runtime.join(name);
    let (first, second) = (at("first.sock"), at("second.sock"));
    let held = pair.bind(1, &[Expose::unix(&first)]).await;
    let mut live = connect(&held.address).await;
    ping(&mut *live).await.unwrap();

    // The exporter has no part in it.
    pair.db.signal(rustix::process::Signal::STOP);
    let held = expose(&pair, 1, &[Expose::unix(&second)]).await.unwrap();
    pair.db.signal(rustix::process::Signal::CONT);
    assert_eq!(held.address, format!("unix:{}", second.display()));
    ping(&mut *live).await.unwrap();
    assert!(!first.exists(), "it is listened where nobody asked for");
    let mut anew = connect(&held.address).await;
    ping(&mut *anew).await.unwrap();
    let told = fs::read_to_string(Path::new(&held.directory).join("path")).unwrap();
    assert_eq!(told, second.display().to_string());
    let [grant] = pair.exporter.status().await.grants.try_into().unwrap();
    assert_eq!((grant.generation, grant.streams), (1, 2));

    let unknown = expose(&pair, 2, &[]).await.unwrap_err();
    assert_eq!(unknown.code(), Some(code::UNKNOWN));
    ping(&mut *live).await.unwrap();

    pair.app.kill();
    pair.app.start_again();
    pair.importer = pair.boss.client("machine.app").await;
    let mut after = connect(&held.address).await;
    ping(&mut *after).await.unwrap();
    assert!(!first.exists(), "the way of before comes again");
}

/// More than a registration has steps.
const STEPS_MAX: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_killed_receiver_leaves_no_socket_at_which_nobody_listens() {
    let mut pair = Pair::start(&echo().await).await;
    let dir = tempfile::tempdir().unwrap();
    let armed = pair.app.layout.dir().join("hob/die-at");
    let (mut deaths, mut left) = (0, 0);
    for step in 1..=STEPS_MAX {
        // Each time another one, so that it is to be remembered each time.
        let path = dir.path().join(format!("below/{step}.sock"));
        let asked = grant(step, &pair.importer.designator);
        let granted = pair.exporter.grant(&asked).await.unwrap();
        let asked = registration(step, &[Expose::unix(&path)]);
        fs::write(&armed, step.to_string()).unwrap();
        let registered = pair.importer.register(&asked, &granted).await;
        if fs::remove_file(&armed).is_ok() {
            registered.unwrap();
            break;
        }
        deaths += 1;
        let down = pair.importer.clone();
        eventually("its session ends", async || {
            down.hob.call(method::STATUS, []).await.is_err()
        })
        .await;
        pair.app.kill();
        left += u64::from(path.exists());
        pair.app.start_again();
        pair.importer = pair.boss.client("machine.app").await;
        let holds = !pair.importer.status().await.bindings.is_empty();
        assert_eq!(path.exists(), holds, "died at step {step}");
        pair.importer.unregister(&generation(step)).await;
        assert!(!path.exists(), "died at step {step}");
        pair.exporter.revoke(&generation(step)).await.unwrap();
    }
    // A release build has no steps.
    if cfg!(debug_assertions) {
        assert!((4..STEPS_MAX).contains(&deaths), "{deaths} deaths");
        assert!(left > 0, "no death left a socket");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_a_receiver_that_is_killed_as_it_gives_a_binding_up_leaves_no_files() {
    let mut pair = Pair::start(&echo().await).await;
    let held = pair.bind(1, &[]).await;
    let told = [
        Path::new(&held.directory).join("type"),
        pair.app.layout.environment("db"),
    ];
    let are_there = || told.each_ref().map(|it| it.exists());
    assert_eq!(are_there(), [true; 2]);
    // As soon as it is on disk that the binding is over. A release build has no steps.
    if cfg!(debug_assertions) {
        fs::write(pair.app.layout.dir().join("hob/die-at"), "2").unwrap();
        let given_up = [to_passable(&generation(1))];
        let called = pair.importer.hob.call(method::UNREGISTER_BINDING, given_up);
        called.await.unwrap_err();
        pair.app.kill();
        assert_eq!(are_there(), [true; 2], "it died too late");
        pair.app.start_again();
        pair.importer = pair.boss.client("machine.app").await;
    } else {
        pair.importer.unregister(&generation(1)).await;
    }
    assert_eq!(are_there(), [false; 2]);
    assert_eq!(pair.importer.status().await.bindings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_on_a_machine_offers_is_there_until_it_is_withdrawn() {
    let mut pair = Pair::start(&echo().await).await;
    let offered = async |pair: &Pair| {
        let offers = pair.exporter.status().await.offers;
        let offers = offers.into_iter().map(|it| it.service);
        offers.collect::<Vec<_>>().join(" ")
    };
    let said = |pair: &Pair, args: &[&str]| {
        let output = pair.db.command().arg("offer").args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let line = text.lines().next().unwrap_or_default().to_owned();
        (output.status.code().unwrap(), line)
    };
    let done = (0, String::new());
    assert_eq!(said(&pair, &["extra", "--tcp", "127.0.0.1:1"]), done);
    assert_eq!(said(&pair, &["more", "--unix", "/run/more"]), done);
    assert_eq!(offered(&pair).await, "extra more orders");
    let declared = "hob: the project declares the service orders";
    for wish in [&["--withdraw"][..], &["--tcp", "127.0.0.1:1"]] {
        let args = [&["orders"], wish].concat();
        assert_eq!(said(&pair, &args), (1, declared.into()));
    }
    let unknown = "hob: no service nothing is offered";
    assert_eq!(said(&pair, &["nothing", "--withdraw"]), (1, unknown.into()));
    for (args, why) in [
        (&["x", "--tcp", "here"][..], "hob: here is not HOST:PORT"),
        (
            &["x", "--unix", "run/x"],
            "hob: run/x does not begin with /",
        ),
        (&["x y", "--withdraw"], "hob: \"x y\" is no name"),
        (&["x"], "hob: hob offer takes NAME, and --tcp"),
    ] {
        let (code, text) = said(&pair, args);
        assert!(code == 64 && text.starts_with(why), "{code} {text}");
    }
    if is_root() {
        open_up(&pair.db);
        let mut command = as_user(OTHER);
        command.args([env!("CARGO_BIN_EXE_hob"), "--dir"]);
        command.arg(pair.db.layout.dir());
        let refused = command.args(["offer", "extra", "--withdraw"]).output();
        let text = String::from_utf8(refused.unwrap().stderr).unwrap();
        let expected = "hob: the hob tells this to root and to its own user only";
        assert!(text.starts_with(expected), "{text}");
    }
    pair.db.kill();
    pair.db.start_again();
    pair.exporter = pair.boss.client("machine.db").await;
    assert_eq!(offered(&pair).await, "extra more orders");
    assert_eq!(said(&pair, &["extra", "--withdraw"]), done);
    // What the project comes to declare is its own.
    let kind = ServiceKind::Tcp("127.0.0.1:1".into());
    pair.exporter.offer("more", kind).await;
    assert_eq!(said(&pair, &["more", "--withdraw"]).0, 1);
    assert_eq!(offered(&pair).await, "more orders");
}
