//! `gobs open`

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gobs_model::{Address, Diagnostic};
use gobs_state::{RowKind, Snapshot};
use hob::person::{Opened, Person, PersonError};

use crate::boss::{Boss, BossError, Loan};
use crate::lang::{duration, rfc3339};
use crate::live;
use crate::project::{Project, boss_error};

use super::watch::Interrupts;
use super::{Context, Failure, Outcome, exit, remembered, runtime, who};

/// The longest that a person may have a service at a time: a working day, with lunch.
const FOR_MAX: Duration = Duration::from_hours(12);

/// The names of sockets that clients look for in a directory; of other kinds it is `socket`.
const POSTGRES_SOCKET: &str = ".s.PGSQL.5432";

/// Gives you a service through a local socket, for a while
///
/// The grant is on the record of the machine that gives it, under your name, and ends by that
/// machine's clock: gobs who shows it, afterwards too. Ctrl-C ends it before. Processes of other
/// users are refused.
#[derive(Debug, clap::Args)]
pub(super) struct Open {
    /// The service's address: machine.db.service.orders
    service: String,

    /// How long: 90s, 30m, 1h
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    time: String,

    /// Where the socket is made [default: in a directory of its own in /tmp]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Open {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let (project, snapshot) = remembered(context)?;
        let time = match duration(&self.time) {
            Ok(time) if (Duration::from_secs(1)..=FOR_MAX).contains(&time) => time,
            Ok(_) => {
                let hours = FOR_MAX.as_secs() / 3_600;
                let detail = format!("--for can be between 1s and {hours}h.");
                return Err(Diagnostic::error("Not that long", detail).into());
            }
            Err(why) => return Err(Diagnostic::error("Invalid time", format!("{why}.")).into()),
        };
        let user = ["USER", "LOGNAME"]
            .iter()
            .find_map(|it| context.env.get(it)?.to_str());
        let host = rustix::system::uname();
        let holder = format!(
            "open by {} on {}",
            user.unwrap_or("somebody"),
            host.nodename().to_string_lossy()
        );
        let exporter = exporter(&self.service, &project, &snapshot)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        runtime()?.block_on(async {
            let person = Person::new().map_err(|it| failed(&it))?;
            let loan = Loan {
                exporter: exporter.0,
                service: exporter.1,
                holder,
                // Of two in one millisecond, the second is refused.
                generation: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                receiver: person.designator().to_owned(),
                expires: now.as_secs().saturating_add(time.as_secs()),
            };
            let mut interrupts = Interrupts::listen().map_err(|error| {
                let detail = format!("Signals cannot be waited for: {error}.");
                Failure::from(Diagnostic::error("No signals", detail))
            })?;
            let sturdyref =
                with_boss(&project, &snapshot, async |boss| boss.lend(&loan).await).await?;
            let opened = person.take(&sturdyref).await;
            let served = match opened {
                Ok(opened) => {
                    let end = async {
                        tokio::select! {
                            () = interrupts.next() => {}
                            () = tokio::time::sleep(time) => {}
                        }
                    };
                    self.serve(context, opened, loan.expires, end).await
                }
                Err(error) => Err(failed(&error)),
            };
            // It ends by itself, too.
            let taken = with_boss(&project, &snapshot, async |boss| {
                boss.take_back(&loan).await
            })
            .await;
            served.and(taken)?;
            context
                .terminal
                .out(&format!("{} is closed.\n", self.service));
            Ok(exit::DONE)
        })
    }

    async fn serve(
        &self,
        context: &mut Context,
        opened: Opened,
        expires: u64,
        end: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let directory = match &self.socket {
            Some(_) => None,
            None => Some(Directory::make()?),
        };
        let name = match opened.described.kind.as_str() {
            "postgres" => POSTGRES_SOCKET,
            _ => "socket",
        };
        let path = match (&self.socket, &directory) {
            (Some(path), _) => path.clone(),
            (None, Some(directory)) => directory.0.join(name),
            (None, None) => PathBuf::from(name),
        };
        let mut text = format!(
            "{} is at {} until {}. Ctrl-C ends it.\n",
            self.service,
            path.display(),
            rfc3339(expires)
        );
        if let ("postgres", Some(directory)) = (opened.described.kind.as_str(), &directory) {
            let database = opened.described.database.as_deref().unwrap_or("postgres");
            text += &format!("psql -h {} {database}\n", directory.0.display());
        }
        // Whoever reads this may connect at once.
        let listening = opened.listen(&path).map_err(|it| failed(&it))?;
        context.terminal.out(&text);
        listening.serve(end).await.map_err(|it| failed(&it))
    }
}

/// A directory of this user's own, gone when dropped.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self, Failure> {
        let path = Path::new("/tmp").join(format!("gobs-open-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        match made {
            Ok(()) => Ok(Self(path)),
            Err(error) => {
                let detail = format!("{} cannot be made: {error}.", path.display());
                let error = Diagnostic::error("No directory for the socket", detail);
                Err(error.hint("Say where with --socket.").into())
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What else somebody put there stays.
        let _: io::Result<()> = std::fs::remove_dir(&self.0);
    }
}

type Exporter = ((gobs_model::Instance, u64), gobs_model::Name);

/// Returns the machine that offers a service, as it is now.
fn exporter(service: &str, project: &Project, snapshot: &Snapshot) -> Result<Exporter, Failure> {
    let offered = who::address(service)?;
    if !snapshot.rows.contains_key(&offered) {
        let report = runtime()?.block_on(live::report(project, snapshot))?;
        who::offered(&offered, snapshot, &report)?;
    }
    let row = snapshot.rows.get(&offered);
    let has = |kind: &&str| row.is_some_and(|row| row.wanted.get(kind).is_some());
    if let Some(kind) = ["secret", "sturdyref"].into_iter().find(has) {
        let detail = format!("{offered} is of kind {kind}, which no program connects to.");
        let error = Diagnostic::error("No socket for this service", detail);
        return Err(error.hint("Bind it to a machine.").into());
    }
    let Address::Service { machine, service } = offered else {
        return Err(Diagnostic::error("No such service", "It has no machine.").into());
    };
    let row = snapshot.rows.get(&Address::Machine(machine.clone()));
    match row.map(|row| &row.kind) {
        Some(RowKind::Machine {
            incarnation,
            enrolled: Some(_),
            ..
        }) => Ok(((machine, *incarnation), service)),
        _ => {
            let detail = format!("The hob on machine.{machine} has not registered.");
            Err(Diagnostic::error("No hob", detail).into())
        }
    }
}

/// Does something with the project's boss, hosted for the moment.
async fn with_boss<T>(
    project: &Project,
    snapshot: &Snapshot,
    act: impl AsyncFnOnce(&Boss) -> Result<T, BossError>,
) -> Result<T, Failure> {
    let boss = Boss::start(project.boss_store()?, project.boss_options(snapshot)).await;
    let boss = boss.map_err(|error| boss_error(&error))?;
    let done = act(&boss).await;
    boss.shutdown().await;
    done.map_err(|error| boss_error(&error).into())
}

fn failed(error: &PersonError) -> Failure {
    let source = std::error::Error::source(error);
    let detail = match source {
        Some(source) => format!("{error}: {source}."),
        None => format!("{error}."),
    };
    Diagnostic::error("Service not opened", detail).into()
}
