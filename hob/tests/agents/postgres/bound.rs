//! A pair of machines with a database between them, and what a program says through it.

use std::path::PathBuf;

use hob::protocol::{Attenuate, Expose, Grant, Held, ServiceKind};
use ocapn::Broken;
use tokio_postgres::{Client, Config, NoTls};

use super::cluster::{Cluster, free_port};
use crate::support::{Boss, Host, Pair, grant, registration};

/// The name of the socket at which PostgreSQL's clients look.
const SOCKET: &str = ".s.PGSQL.5432";

/// A pair of machines with a database between them.
pub(crate) struct Bound {
    pub(crate) pair: Pair,
    pub(crate) database: String,
    /// Where programs of `machine.app` look for it.
    pub(crate) directory: PathBuf,
    /// A port where they find it, too.
    pub(crate) port: u16,
}

impl Bound {
    /// Offers a database of its own, and grants nothing yet.
    pub(crate) async fn offer(cluster: &Cluster) -> Self {
        let database = Cluster::database();
        Self::offer_of(cluster.service(&database), &database).await
    }

    /// Offers this service.
    pub(crate) async fn offer_of(service: ServiceKind, database: &str) -> Self {
        let boss = Boss::new().await;
        let db = Host::start(&boss.invite("machine.db", &[]), &[]);
        let app = Host::start(&boss.invite("machine.app", &["db"]), &[]);
        let (exporter, importer) =
            tokio::join!(boss.client("machine.db"), boss.client("machine.app"));
        exporter.offer("orders", service).await;
        let directory = app.runtime.clone();
        let pair = Pair {
            boss,
            db,
            app,
            exporter,
            importer,
        };
        Self {
            pair,
            database: database.into(),
            directory,
            port: free_port(),
        }
    }

    /// Offers a database and binds it.
    pub(crate) async fn start(attenuate: Attenuate) -> Self {
        let bound = Self::offer(Cluster::shared()).await;
        bound.bind(1, attenuate).await;
        bound
    }

    /// Returns what is asked of the exporter.
    pub(crate) fn asked(&self, number: u64, attenuate: Attenuate) -> Grant {
        Grant {
            attenuate,
            ..grant(number, &self.pair.importer.designator)
        }
    }

    /// Grants a generation and registers it.
    pub(crate) async fn bind(&self, number: u64, attenuate: Attenuate) -> Held {
        self.try_bind(number, attenuate).await.expect("a grant")
    }

    /// Grants a generation and registers it, if the exporter does.
    pub(crate) async fn try_bind(&self, number: u64, attenuate: Attenuate) -> Result<Held, Broken> {
        let granted = self
            .pair
            .exporter
            .grant(&self.asked(number, attenuate))
            .await?;
        let address = format!("127.0.0.1:{}", self.port);
        let expose = [
            Expose::unix(self.directory.join(SOCKET)),
            Expose::tcp(address),
        ];
        let registration = registration(number, &expose);
        self.pair.importer.register(&registration, &granted).await
    }

    /// Returns the one role that is there, in the shared server.
    #[track_caller]
    pub(crate) fn role(&self) -> String {
        let roles = Cluster::shared().roles(&self.database);
        assert_eq!(roles.len(), 1, "{roles:?}");
        roles.into_iter().next().expect("a role")
    }

    /// Returns what a program would connect with, if it is careless about everything.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.directory)
            .user("whoever")
            .dbname("whatever");
        config
    }

    /// Connects as a program.
    pub(crate) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config().connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements as the program; returns the first value, or the SQLSTATE of the error.
    pub(crate) async fn ask(&self, statements: &str) -> Result<String, String> {
        let client = self.connect().await.map_err(|error| code(&error))?;
        ask(&client, statements).await
    }
}

/// Runs statements; returns the first value of the last one, or the SQLSTATE of the error.
pub(crate) async fn ask(client: &Client, statements: &str) -> Result<String, String> {
    let answered = client.simple_query(statements).await;
    let rows = answered.map_err(|error| code(&error))?;
    let value = rows.iter().rev().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

/// Returns the SQLSTATE of an error, or what it is instead.
pub(crate) fn code(error: &tokio_postgres::Error) -> String {
    match error.code() {
        Some(code) => code.code().to_owned(),
        None => format!("{error:?}"),
    }
}
