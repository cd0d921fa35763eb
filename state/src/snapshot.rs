//! What gobs remembers of a project at one moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gobs_model::{Address, Known, Name};
use rusqlite::{Connection, Transaction};
use serde::{Deserialize, Serialize};

use crate::RowChange;
use crate::database::{Database, count};
use crate::encode::Cell;
use crate::error::Fault;
use crate::seal::DataKey;

/// One machine, service or binding that exists, or that may exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The declaration that it comes from.
    pub address: Address,
    /// What was asked last: a machine's attributes and its `hob` settings, a service's
    /// specification, a binding's ends and terms.
    pub wanted: Known,
    /// What the provider or the hobs said last.
    pub observed: Known,
    /// What this row needs directly; never what those need in turn.
    pub depends_on: Vec<Address>,
    /// The serial of the commit that wrote this row. Set by the store; ignored in a
    /// [`RowChange::PutRow`](crate::RowChange::PutRow).
    pub version: u64,
    /// What only this kind of row has.
    pub kind: RowKind,
}

/// What only one kind of row has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RowKind {
    /// A machine: its row exists from the moment its creation ended, or it was adopted.
    Machine {
        /// The provider with its alias, if any: `dummy` or `dummy.other`.
        provider: String,
        /// The provider's identifier.
        id: String,
        /// The text of the token that the machine was created under.
        token: String,
        /// Counts creations, replacements and rebuilds: one for each enrollment.
        incarnation: u64,
        /// The designator of the hob that enrolled; nothing until Enroll has ended.
        enrolled: Option<String>,
    },
    /// A service that was offered.
    Service {
        /// The incarnation of the machine that it was offered to.
        incarnation: u64,
        /// Whether it was to be offered otherwise since, and that did not end well: what the
        /// machine's hob has now may be anything.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unsettled: bool,
    },
    /// A binding that was granted.
    Binding {
        /// Counts the grants of this binding; the exporter refuses lower ones.
        generation: u64,
        /// The incarnation of the exporting machine at the grant.
        from_incarnation: u64,
        /// The incarnation of the importing machine at the grant.
        to_incarnation: u64,
        /// The generation of the binding that it was made from, where it was made from one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<u64>,
        /// How far it is.
        phase: Phase,
    },
}

/// How far a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Granted at the exporter and registered at the importer.
    Granted,
    /// Closed at the importer; the exporter has not yet acknowledged its revocation.
    RevokePending,
}

impl RowKind {
    /// Returns whether a row of this kind may have this address.
    pub fn suits(&self, address: &Address) -> bool {
        matches!(
            (self, address),
            (Self::Machine { .. }, Address::Machine(_))
                | (Self::Service { .. }, Address::Service { .. })
                | (Self::Binding { .. }, Address::Binding(_))
        )
    }
}

/// All rows and outputs as they were at one commit. Immutable once loaded, cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Names the project for its life: random, chosen with the state file. Empty where no state
    /// file exists yet.
    pub lineage: String,
    /// Counts the commits that changed rows or outputs.
    pub serial: u64,
    /// Counts the runs that could change something. Hobs keep the highest that they saw, so a
    /// restored state file is noticed.
    pub generation: u64,
    /// The rows by address.
    pub rows: BTreeMap<Address, Arc<Row>>,
    /// The outputs of the last apply.
    pub outputs: BTreeMap<Name, Known>,
}

pub(crate) fn load(database: &Database) -> Result<Snapshot, Fault> {
    let connection = &database.connection;
    let (serial, generation) =
        connection.query_row("SELECT serial, generation FROM project", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let mut needs = load_edges(connection)?;
    let mut rows = BTreeMap::new();
    let mut statement =
        connection.prepare_cached("SELECT address, version, kind, wanted, observed FROM rows")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let text = row.get_ref(0)?.as_str().map_err(Fault::corrupt)?;
        let version = row.get(1)?;
        let address: Address = text.parse().map_err(Fault::corrupt)?;
        let kind: RowKind = serde_json::from_str(row.get_ref(2)?.as_str().map_err(Fault::corrupt)?)
            .map_err(Fault::corrupt)?;
        if !kind.suits(&address) {
            return Err(Fault::Corrupt(format!("{address} has another kind's row")));
        }
        let cell = |column, index| {
            let cell = Cell {
                table: "rows",
                row: text,
                column,
                version,
            };
            let value = row.get_ref(index)?.as_str().map_err(Fault::corrupt)?;
            cell.decode(&database.cells, value)
        };
        let row = Row {
            wanted: cell("wanted", 3)?,
            observed: cell("observed", 4)?,
            depends_on: needs.remove(text).unwrap_or_default(),
            version: count(version)?,
            kind,
            address: address.clone(),
        };
        rows.insert(address, Arc::new(row));
    }
    Ok(Snapshot {
        lineage: database.lineage.clone(),
        serial: count(serial)?,
        generation: count(generation)?,
        rows,
        outputs: load_outputs(database)?,
    })
}

fn load_edges(connection: &Connection) -> Result<HashMap<String, Vec<Address>>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT address, needs FROM edges ORDER BY address, position")?;
    let mut edges = statement.query([])?;
    let mut needs: HashMap<String, Vec<Address>> = HashMap::new();
    while let Some(edge) = edges.next()? {
        let need = edge.get_ref(1)?.as_str().map_err(Fault::corrupt)?;
        let need = need.parse().map_err(Fault::corrupt)?;
        needs.entry(edge.get(0)?).or_default().push(need);
    }
    Ok(needs)
}

fn load_outputs(database: &Database) -> Result<BTreeMap<Name, Known>, Fault> {
    let mut statement = database
        .connection
        .prepare_cached("SELECT name, version, value FROM outputs")?;
    let mut rows = statement.query([])?;
    let mut outputs = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str().map_err(Fault::corrupt)?;
        let text = row.get_ref(2)?.as_str().map_err(Fault::corrupt)?;
        let value = output_cell(name, row.get(1)?).decode(&database.cells, text)?;
        outputs.insert(Name::new(name).map_err(Fault::corrupt)?, value);
    }
    Ok(outputs)
}

/// Writes changes; if there is any, the serial goes up by one and is their version.
pub(crate) fn write<'a>(
    transaction: &Transaction<'_>,
    cells: &DataKey,
    changes: impl Iterator<Item = &'a RowChange>,
) -> Result<(), Fault> {
    let mut serial = None;
    for change in changes {
        let version = match serial {
            Some(version) => version,
            None => *serial.insert(transaction.query_row(
                "UPDATE project SET serial = serial + 1 RETURNING serial",
                [],
                |row| row.get(0),
            )?),
        };
        match change {
            RowChange::PutRow(row) => put_row(transaction, cells, row, version)?,
            RowChange::RemoveRow(address) => {
                transaction
                    .prepare_cached("DELETE FROM rows WHERE address = ?1")?
                    .execute([address.to_string()])?;
            }
            RowChange::PutOutput(name, Some(value)) => {
                let address = Address::Output(name.clone());
                let text = output_cell(name.as_str(), version).encode(cells, &address, value)?;
                transaction
                    .prepare_cached(
                        "INSERT INTO outputs (name, version, value) VALUES (?1, ?2, ?3)
                         ON CONFLICT DO UPDATE SET
                             version = excluded.version, value = excluded.value",
                    )?
                    .execute((name.as_str(), version, text))?;
            }
            RowChange::PutOutput(name, None) => {
                transaction
                    .prepare_cached("DELETE FROM outputs WHERE name = ?1")?
                    .execute([name.as_str()])?;
            }
        }
    }
    Ok(())
}

fn put_row(
    transaction: &Transaction<'_>,
    cells: &DataKey,
    row: &Row,
    version: i64,
) -> Result<(), Fault> {
    let unstorable = |reason: String| Fault::Unstorable {
        address: row.address.clone(),
        reason,
    };
    if !row.kind.suits(&row.address) {
        return Err(unstorable("the row is of another kind".into()));
    }
    let kind = serde_json::to_string(&row.kind).map_err(|error| unstorable(error.to_string()))?;
    let address = row.address.to_string();
    let encode = |column, value| {
        let cell = Cell {
            table: "rows",
            row: &address,
            column,
            version,
        };
        cell.encode(cells, &row.address, value)
    };
    let wanted = encode("wanted", &row.wanted)?;
    let observed = encode("observed", &row.observed)?;
    transaction
        .prepare_cached(
            "INSERT INTO rows (address, version, kind, wanted, observed)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET version = excluded.version, kind = excluded.kind,
                 wanted = excluded.wanted, observed = excluded.observed",
        )?
        .execute((&address, version, kind, wanted, observed))?;
    transaction
        .prepare_cached("DELETE FROM edges WHERE address = ?1")?
        .execute([&address])?;
    let mut insert = transaction
        .prepare_cached("INSERT INTO edges (address, position, needs) VALUES (?1, ?2, ?3)")?;
    for (position, need) in (0i64..).zip(&row.depends_on) {
        insert.execute((&address, position, need.to_string()))?;
    }
    Ok(())
}

fn output_cell(name: &str, version: i64) -> Cell<'_> {
    Cell {
        table: "outputs",
        row: name,
        column: "value",
        version,
    }
}
