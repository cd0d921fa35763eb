//! A binding's files: a directory after servicebinding.io, and a file of its environment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::binding::deliver;
use crate::expose::ExposeError;
use crate::owner::Owner;
use crate::protocol::{Described, Expose, Place};
use crate::service::postgres;

/// The link in a binding's directory that is swapped when its files change.
const DATA: &str = "..data";

/// Where sockets are in a binding's directory. The libraries that read such a directory take what
/// is in it for files with text, and fail at a socket; what begins like this they pass over, since
/// Kubernetes keeps directories with such names there.
const SOCKETS: &str = "..run";

/// The socket of a binding that is not exposed otherwise.
const DEFAULT_SOCKET: &str = "socket";

/// The permissions of directories that others than the hob's user look into. Only the hob writes:
/// it may run as root, and must not be led astray by a link.
const SHARED_MODE: u32 = 0o755;
const PRIVATE_MODE: u32 = 0o700;

/// The text of each file.
pub(crate) type Entries = BTreeMap<&'static str, String>;

/// Returns what is told of a binding that is listened for at `place`, by file; they are in
/// `directory`.
pub(crate) fn entries(service: &Described, place: &Place, directory: &Path) -> Entries {
    let mut files = BTreeMap::from([("provider", "gobs".to_owned())]);
    let kind = service.kind.as_str();
    let (plain, uri) = match (kind, place) {
        ("redis", Place::Unix(path)) => (kind, format!("unix://{}", path.display())),
        ("redis" | "http", Place::Tcp(address)) => (kind, format!("{kind}://{address}")),
        ("http", Place::Unix(_)) => (kind, place.to_string()),
        ("postgres", place) => ("postgresql", place.to_string()),
        (_, Place::Unix(_)) => ("unix", place.to_string()),
        (_, Place::Tcp(address)) => ("tcp", format!("tcp://{address}")),
    };
    files.insert("uri", uri);
    match place {
        Place::Unix(path) => {
            files.insert("path", path.display().to_string());
        }
        Place::Tcp(address) => {
            if let Some((host, port)) = host_and_port(address) {
                files.insert("host", host);
                files.insert("port", port);
            }
        }
    }
    files.insert(
        "type",
        service.r#type.as_deref().unwrap_or(plain).to_owned(),
    );
    let named = [
        ("database", &service.database),
        ("username", &service.username),
    ];
    files.extend(
        named
            .into_iter()
            .filter_map(|(file, text)| Some((file, text.clone()?))),
    );
    if let (Some(database), Some(username)) = (&service.database, &service.username)
        && kind == "postgres"
    {
        let at = match place {
            Place::Tcp(address) => host_and_port(address),
            Place::Unix(path) => {
                postgres::of_socket(path).or_else(|| postgres::of_socket(&linked_socket(directory)))
            }
        };
        let more = at.map(|at| postgres::entries(at, database, username));
        files.extend(more.into_iter().flatten());
    }
    files
}

/// Returns where a binding with this directory is listened for, unless it is exposed otherwise.
pub(crate) fn default_socket(directory: &Path) -> PathBuf {
    directory.join(SOCKETS).join(DEFAULT_SOCKET)
}

/// Returns where a link to a binding's socket is, under the name that PostgreSQL's clients know.
fn linked_socket(directory: &Path) -> PathBuf {
    directory.join(SOCKETS).join(postgres::SOCKET_NAME)
}

/// Makes a link to a binding's socket in its directory, where the clients of its kind look for one
/// by name.
pub(crate) fn link_socket(
    kind: &str,
    place: &Place,
    directory: &Path,
    owner: &Owner,
) -> io::Result<()> {
    let Place::Unix(path) = place else {
        return Ok(());
    };
    if kind != "postgres" || postgres::of_socket(path).is_some() {
        return Ok(());
    }
    make_dir(&directory.join(SOCKETS), owner.is_declared)?;
    let link = linked_socket(directory);
    if fs::read_link(&link).is_ok_and(|leads| leads == *path) {
        return Ok(());
    }
    remove_if_there(fs::remove_file(&link))?;
    symlink(path, link)
}

/// Returns what is told of a binding that programs do not connect to, by file.
pub(crate) fn told(service: &Described, directory: &Path) -> Entries {
    let kind = service.kind.as_str();
    let r#type = service.r#type.as_deref().unwrap_or(kind);
    let mut files = BTreeMap::from([("provider", "gobs".to_owned()), ("type", r#type.to_owned())]);
    if kind == deliver::KIND {
        let path = directory.join(deliver::FILE);
        files.insert("path", path.display().to_string());
    }
    files
}

/// Returns the parts of `host:port`; an IPv6 address loses its brackets.
pub(crate) fn host_and_port(address: &str) -> Option<(String, String)> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), address.port().to_string()));
    }
    address
        .rsplit_once(':')
        .map(|(host, port)| (host.to_owned(), port.to_owned()))
}

/// Returns what a binding adds to the environment of programs: its addresses under its name, and
/// the variables that were asked for.
pub(crate) fn variables(
    name: &str,
    exposed: &[(Expose, Place, Entries)],
) -> Result<BTreeMap<String, String>, ExposeError> {
    let mut variables = BTreeMap::new();
    let prefix = prefix(name);
    if let Some((_, first, _)) = exposed.first() {
        variables.insert(format!("{prefix}_ADDRESS"), first.to_string());
    }
    for (_, place, _) in exposed.iter().rev() {
        match place {
            Place::Unix(path) => {
                variables.insert(format!("{prefix}_SOCKET"), path.display().to_string());
            }
            Place::Tcp(address) => {
                if let Some((host, port)) = host_and_port(address) {
                    variables.insert(format!("{prefix}_HOST"), host);
                    variables.insert(format!("{prefix}_PORT"), port);
                }
            }
        }
    }
    for (expose, _, entries) in exposed {
        add_asked(expose, entries, &mut variables)?;
    }
    Ok(variables)
}

/// Returns how the variables of a name begin.
pub(crate) fn prefix(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// Adds the variables that were asked for.
pub(crate) fn add_asked(
    expose: &Expose,
    entries: &Entries,
    variables: &mut BTreeMap<String, String>,
) -> Result<(), ExposeError> {
    for (variable, file) in &expose.env {
        let value = entries.get(file.as_str()).ok_or_else(|| {
            let known: Vec<_> = entries.keys().copied().collect();
            ExposeError::NoFile {
                variable: variable.clone(),
                file: file.clone(),
                known: known.join(", "),
            }
        })?;
        variables.insert(variable.clone(), value.clone());
    }
    Ok(())
}

/// Returns an environment as systemd's `EnvironmentFile=` and a shell both read it.
pub(crate) fn environment_file(variables: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(name);
        text.push_str("=\"");
        for letter in value.chars() {
            if matches!(letter, '"' | '\\' | '$' | '`') {
                text.push('\\');
            }
            text.push(letter);
        }
        text.push_str("\"\n");
    }
    text
}

/// Makes a directory that only the hob writes to, and others may look into if it is shared.
pub(crate) fn make_dir(dir: &Path, is_shared: bool) -> io::Result<()> {
    let mode = match is_shared {
        true => SHARED_MODE,
        false => PRIVATE_MODE,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

/// Makes one file this text, all at once; returns whether that changed it.
pub(crate) fn write_file(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|have| have == text) {
        return Ok(false);
    }
    let beside = path.with_extension("new");
    remove_if_there(fs::remove_file(&beside))?;
    let mut file = create(&beside, PRIVATE_MODE & 0o666)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, path)?;
    Ok(true)
}

/// Makes a directory's files these, all at once: a reader sees the old ones or the new ones.
///
/// The files stand in a directory of their own, to which one link leads; that is swapped.
pub(crate) fn write_files(dir: &Path, files: &Entries, owner: &Owner) -> io::Result<()> {
    make_dir(dir, owner.is_declared)?;
    let sockets = dir.join(SOCKETS);
    if sockets.is_dir() {
        make_dir(&sockets, owner.is_declared)?;
    }
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_as(&data, files, owner) {
        return Ok(());
    }
    let number: u64 = old
        .as_deref()
        .and_then(|old| old.to_str()?.strip_prefix("..")?.parse().ok())
        .unwrap_or_default();
    let name = format!("..{}", number.wrapping_add(1));
    let new = dir.join(&name);
    // Left by a hob that was killed before it swapped.
    remove_if_there(fs::remove_dir_all(&new))?;
    make_dir(&new, owner.is_declared)?;
    for (file, text) in files {
        let mut file = create(&new.join(file), PRIVATE_MODE & 0o666)?;
        file.write_all(text.as_bytes())?;
        owner.take_file(&file)?;
    }
    let beside = dir.join("..data.new");
    remove_if_there(fs::remove_file(&beside))?;
    symlink(&name, &beside)?;
    fs::rename(&beside, &data)?;
    for file in files.keys() {
        match symlink(Path::new(DATA).join(file), dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let is_data = |path: &Path| {
        let number = path.to_str().and_then(|name| name.strip_prefix(".."));
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, found) = (entry.path(), PathBuf::from(entry.file_name()));
        let dangling = entry.file_type()?.is_symlink() && !path.exists();
        if dangling {
            fs::remove_file(path)?;
        } else if is_data(&found) && found != *name && Some(&found) != old.as_ref() {
            // The one of before stays until the next change: a reader may be on its way into it.
            remove_if_there(fs::remove_dir_all(path))?;
        }
    }
    Ok(())
}

/// Removes a binding's directory; one that is gone already is a success.
pub(crate) fn remove_files(dir: &Path) -> io::Result<()> {
    remove_if_there(fs::remove_dir_all(dir))
}

/// Turns a removal of what is not there into a success.
pub(crate) fn remove_if_there(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

fn is_as(data: &Path, files: &Entries, owner: &Owner) -> bool {
    let same = |(file, text): (&&str, &String)| {
        let path = data.join(file);
        fs::read_to_string(&path).is_ok_and(|have| have == *text)
            && fs::metadata(path).is_ok_and(|meta| owner.has(&meta))
    };
    fs::read_dir(data).map_or(0, Iterator::count) == files.len() && files.iter().all(same)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::protocol;

    fn service(kind: &str) -> Described {
        Described {
            binding: "binding.db".into(),
            generation: 1,
            kind: kind.into(),
            r#type: None,
            database: None,
            username: None,
        }
    }

    #[test]
    fn files_are_swapped_whole_and_stale_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("db");
        let owner = Owner::of(&Expose::default()).unwrap();
        let mut service = service("tcp");
        service.r#type = Some("postgresql".into());
        let tcp = entries(&service, &Place::Tcp("[::1]:5432".into()), Path::new("/d"));
        write_files(&dir, &tcp, &owner).unwrap();
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        assert_eq!(read("type").as_deref(), Some("postgresql"));
        assert_eq!(read("host").as_deref(), Some("::1"));
        assert_eq!(read("port").as_deref(), Some("5432"));
        assert_eq!(read("uri").as_deref(), Some("tcp://[::1]:5432"));
        let before = fs::read_link(dir.join(DATA)).unwrap();
        write_files(&dir, &tcp, &owner).unwrap();
        assert_eq!(
            fs::read_link(dir.join(DATA)).unwrap(),
            before,
            "unchanged files stay"
        );

        service.r#type = None;
        let unix = entries(&service, &Place::Unix("/run/x".into()), Path::new("/d"));
        write_files(&dir, &unix, &owner).unwrap();
        assert_eq!(read("type").as_deref(), Some("unix"));
        assert_eq!(read("path").as_deref(), Some("/run/x"));
        let mut left: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["..1", "..2", "..data", "path", "provider", "type", "uri"]
        );
        remove_files(&dir).unwrap();
        remove_files(&dir).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn s3_whoever_reads_meanwhile_sees_the_files_of_before_or_those_of_after() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("db");
        let owner = Owner::of(&Expose::default()).unwrap();
        // Too long to be written at once.
        let texts = ["a", "b"].map(|it| it.repeat(100_000));
        let write = |text: &str| {
            let files = Entries::from([("type", "tcp".to_owned()), ("uri", text.to_owned())]);
            write_files(&dir, &files, &owner).unwrap();
        };
        write(&texts[0]);
        let (is_over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let read = fs::read_to_string(dir.join("uri")).unwrap();
                    assert!(texts.contains(&read), "{} bytes", read.len());
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
            for change in 0..400 {
                let before = reads.load(Ordering::SeqCst);
                write(&texts[change % 2]);
                // Not again before it has come through.
                while !reader.is_finished() && reads.load(Ordering::SeqCst) < before + 2 {
                    std::thread::yield_now();
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn clients_of_postgresql_are_pointed_at_a_socket_by_its_directory() {
        let mut service = service("postgres");
        service.database = Some("orders".into());
        service.username = Some("gobs_db_1".into());
        let told = |place: Place| entries(&service, &place, Path::new("/run/b/db"));
        let unix = told(Place::Unix("/run/a/.s.PGSQL.5433".into()));
        assert_eq!(unix["uri"], "postgresql:///orders?host=/run/a&port=5433");
        assert_eq!(unix["type"], "postgresql");
        // Of one with another name there is a link in the binding's directory.
        let unix = told(Place::Unix("/run/db.sock".into()));
        assert_eq!(
            (&*unix["host"], &*unix["port"]),
            ("/run/b/db/..run", "5432")
        );
    }

    #[test]
    fn what_a_plan_takes_for_a_file_is_one() {
        let dir = Path::new("/run/b/db");
        for kind in ["tcp", "unix", "http", "redis", "postgres"] {
            let mut service = service(kind);
            if kind == "postgres" {
                service.database = Some("orders".into());
                service.username = Some("gobs_db_1".into());
            }
            for (place, is_tcp) in [
                (Place::Tcp("127.0.0.1:1".into()), true),
                (Place::Unix("/run/x".into()), false),
            ] {
                let names: Vec<_> = entries(&service, &place, dir).into_keys().collect();
                assert_eq!(names, protocol::entry_names(kind, is_tcp), "{kind}");
            }
        }
        for kind in ["secret", "sturdyref"] {
            let names: Vec<_> = told(&service(kind), dir).into_keys().collect();
            assert_eq!(names, protocol::entry_names(kind, false), "{kind}");
        }
    }

    #[test]
    fn environments_are_read_back_by_a_shell() {
        let values = [
            "unix:/run/x y",
            "a\"b",
            "$HOME `id` \\ $(id)",
            "#",
            "",
            "'",
            "é\t\n!",
        ];
        let names = (0..values.len()).map(|n| format!("V{n}"));
        let variables: BTreeMap<_, _> = names.zip(values.map(str::to_owned)).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db.env");
        assert!(write_file(&path, &environment_file(&variables)).unwrap());
        assert!(!write_file(&path, &environment_file(&variables)).unwrap());
        for (name, value) in &variables {
            let line = format!(". {}; printf %s \"${name}\"", path.display());
            let shell = std::process::Command::new("sh")
                .args(["-c", &line])
                .output();
            assert_eq!(String::from_utf8(shell.unwrap().stdout).unwrap(), *value);
        }
    }

    #[test]
    fn variables_name_each_binding() {
        let mut unix = Expose::unix("/run/x/socket");
        unix.env = BTreeMap::from([("DATABASE_URL".into(), "uri".into())]);
        let tcp = Expose::tcp("127.0.0.1:5432");
        let exposed = [unix, tcp].map(|expose| {
            let place = expose.place.clone().unwrap();
            let entries = entries(&service("tcp"), &place, Path::new("/d"));
            (expose, place, entries)
        });
        let text: Vec<_> = variables("app-db", &exposed)
            .unwrap()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            text,
            [
                "APP_DB_ADDRESS=unix:/run/x/socket",
                "APP_DB_HOST=127.0.0.1",
                "APP_DB_PORT=5432",
                "APP_DB_SOCKET=/run/x/socket",
                "DATABASE_URL=unix:/run/x/socket",
            ]
        );
        let mut exposed = exposed;
        exposed[1].0.env = BTreeMap::from([("PGHOST".into(), "hots".into())]);
        assert_eq!(
            variables("app-db", &exposed).unwrap_err().to_string(),
            "the variable PGHOST is to hold \"hots\", and the binding has only host, port, \
             provider, type, uri"
        );
    }
}
