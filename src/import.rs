//! Machines that exist already, and are gobs' from now on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use gobs_model::{Address, Diagnostic, Instance, Known, ProviderSchema, Value};
use gobs_provider::{Error, Observed, Token};
use gobs_state::{Outcome, Row, RowChange, RowKind, Snapshot, Store};

use crate::apply::{Providers, mark_of, perhaps};
use crate::lang::MachineValues;
use crate::plan::wanted_of;
use crate::project::{Project, store_error};
use crate::run::{finish, intend};

/// Takes over a machine by its provider's own identifier, as the machine that is declared here.
///
/// Nothing of it is changed but its mark: where it differs from its declaration, the next plan
/// says so.
///
/// # Errors
/// When it is declared with a hob, which it has none of, when there is no such machine, or when it
/// is somebody's already.
pub async fn import(
    project: &Project,
    instance: &Instance,
    id: &str,
) -> Result<(), Vec<Diagnostic>> {
    let address = Address::Machine(instance.clone());
    let evaluator = project.evaluator()?;
    let values = evaluator.machine(instance)?;
    if values.hob.enabled {
        return Err(vec![without_hob(&address)]);
    }
    let kind = values.provider.split('.').next().unwrap_or_default();
    let Some(schema) = project.schemas.get(kind) else {
        let detail = format!("There is no provider {kind:?}.");
        return Err(vec![Diagnostic::error("Unknown provider", detail)]);
    };
    let provider = project.provider(&values.provider, &evaluator).await?;
    let mut store = project.store("import").map_err(one)?;
    let snapshot = begin(project, &mut store)?;
    free(&snapshot, &address, &values.provider, id)?;
    let mark = mark_of(&snapshot.lineage);
    let token = Token::random().map_err(|error| {
        let detail = format!("There is no randomness: {error}.");
        vec![Diagnostic::error("Import failed", detail)]
    })?;
    let token = token.marked(&mark);
    let intent = intend(&mut store, address.clone(), "import", Some(token.0.clone()));
    let started = intent.map_err(one)?;
    let refusal = match provider.adopt(id, &token).await {
        Ok(Some((token, _))) if !token.has_mark(&mark) => {
            let tag = format!(
                "{} {id} belongs to another project of gobs",
                values.provider
            );
            (
                format!("{tag}: its token is {token}."),
                Some("Take that mark off it first."),
            )
        }
        Ok(Some((own, observed))) => {
            let is_ours = own != token;
            let row = row_of(&address, &values, schema, &snapshot, (own, observed))?;
            // One that was this project's before may still have what belonged to it then.
            let asked = Known::try_from(wanted_of(&schema.machine, &values, None)).ok();
            let asked = asked.filter(|_| is_ours);
            let had = asked.and_then(|asked| perhaps(&schema.machine, &row, &asked));
            let row = had.unwrap_or(row);
            let row = vec![RowChange::PutRow(Box::new(row))];
            return finish(&mut store, started, Outcome::Done, row).map_err(one);
        }
        Ok(None) => (format!("{} has no machine {id}.", values.provider), None),
        // It may carry the mark now, which a second import finds.
        Err(error @ Error::InDoubt(_)) => (format!("{error}."), Some("Import it again.")),
        Err(error) => (format!("{error}."), None),
    };
    let (detail, hint) = refusal;
    let outcome = Outcome::Failed(detail.clone());
    finish(&mut store, started, outcome, Vec::new()).map_err(one)?;
    let mut error = Diagnostic::error("Import failed", format!("{address}: {detail}"));
    error.hint = hint.map(str::to_owned);
    Err(vec![error])
}

/// Returns the rows of the machines that `import` blocks take over and the state does not have
/// yet, as they are now. Nothing is changed: that is what the plan's steps are for.
///
/// # Errors
/// When there is no such machine, when it is somebody's already, or when it cannot be taken over.
pub async fn look(
    project: &Project,
    providers: &Providers,
    snapshot: &Snapshot,
) -> Result<Vec<Row>, Vec<Diagnostic>> {
    let mut rows = Vec::new();
    if project.config.imports.is_empty() {
        return Ok(rows);
    }
    let evaluator = project.evaluator()?;
    let mut known = Marked::new();
    let mut errors = Vec::new();
    let mut all = Vec::new();
    for import in &project.config.imports {
        match evaluator.imported(import) {
            Ok(found) => all.extend(found.into_iter().map(|it| (import, it))),
            Err(wrong) => errors.extend(wrong),
        }
    }
    for (at, (import, (instance, id))) in all.iter().enumerate() {
        let [to, at_id] = project.config.import_at(import);
        if all[..at].iter().any(|(_, (other, _))| other == instance) {
            let detail = format!("Two imports lead to machine.{instance}.");
            errors.push(Diagnostic::error("Duplicate import", detail).at(to));
            continue;
        }
        let known = (providers, &mut known);
        let looked = looked(project, known, (snapshot, &rows), instance, id);
        match looked.await {
            Ok(row) => rows.extend(row),
            Err(wrong) => {
                let placed = wrong.into_iter().map(|error| match &error.place {
                    Some(_) => error,
                    None if is_of_id(&error) => error.at(at_id.clone()),
                    None => error.at(to.clone()),
                });
                errors.extend(placed);
            }
        }
    }
    if errors.is_empty() {
        Ok(rows)
    } else {
        Err(errors)
    }
}

/// The machines of each provider that carry a token, once they were asked for.
type Marked = BTreeMap<String, Vec<(Token, Observed)>>;

/// What is said of the identifier rather than of the machine that is declared.
const OF_ID: [&str; 3] = [
    "No such machine",
    "Machine of another project",
    "Import failed",
];

fn is_of_id(error: &Diagnostic) -> bool {
    OF_ID.contains(&error.summary.as_str())
}

/// Returns the row of one machine; nothing where the state has that already.
async fn looked(
    project: &Project,
    (providers, known): (&Providers, &mut Marked),
    (snapshot, earlier): (&Snapshot, &[Row]),
    instance: &Instance,
    id: &str,
) -> Result<Option<Row>, Vec<Diagnostic>> {
    let address = Address::Machine(instance.clone());
    let evaluator = project.evaluator()?;
    let values = evaluator.machine(instance)?;
    let name = &values.provider;
    let kind = name.split('.').next().unwrap_or_default();
    let (Some(schema), Some(provider)) = (project.schemas.get(kind), providers.get(name)) else {
        let detail = format!("There is no provider {name:?}.");
        return Err(vec![Diagnostic::error("Unknown provider", detail)]);
    };
    let is_it = |row: &Row| match &row.kind {
        RowKind::Machine {
            provider: of,
            id: known,
            ..
        } => of == name && known == id,
        _ => false,
    };
    if snapshot.rows.get(&address).is_some_and(|row| is_it(row)) {
        return Ok(None);
    }
    free(snapshot, &address, name, id)?;
    if let Some(other) = earlier.iter().find(|it| is_it(it)) {
        let detail = format!("{name} {id} is imported as {} already.", other.address);
        return Err(vec![Diagnostic::error("Machine known already", detail)]);
    }
    if values.hob.enabled {
        return Err(vec![without_hob(&address)]);
    }
    let failed = |error: &Error| {
        let detail = format!("{name} {id} cannot be imported: {error}.");
        vec![Diagnostic::error("Import failed", detail)]
    };
    let seen = provider.import(id).await.map_err(|error| failed(&error))?;
    let Some(seen) = seen else {
        let detail = format!("{name} has no machine {id}.");
        let error = Diagnostic::error("No such machine", detail);
        return Err(vec![error.hint("Take the import out, or mend its id.")]);
    };
    if !known.contains_key(name) {
        let all = provider.list().await.map_err(|error| failed(&error))?;
        known.insert(name.clone(), all);
    }
    let marked = known.get(name).into_iter().flatten();
    let token = marked.clone().find(|(_, it)| it.id == seen.id);
    if let Some((token, _)) = token
        && !token.has_mark(&mark_of(&snapshot.lineage))
    {
        let detail =
            format!("{name} {id} belongs to another project of gobs: its token is {token}.");
        let error = Diagnostic::error("Machine of another project", detail);
        return Err(vec![error.hint("Take that mark off it first.")]);
    }
    // Its token is that of the step that takes it over.
    let none = Token(String::new());
    row_of(&address, &values, schema, snapshot, (none, seen)).map(Some)
}

fn without_hob(address: &Address) -> Diagnostic {
    let detail = format!(
        "{address} is declared with a hob, and a machine that gobs did not make has none: it came \
         up without the data that a hob finds its boss with."
    );
    let hint = "Import it with `hob { enabled = false }` in its block. Without that line, the next \
                apply then rebuilds it, which writes its disk anew.";
    Diagnostic::error("Machine without a hob", detail).hint(hint)
}

/// Forgets a machine and its services: it goes on as it is, and gobs knows nothing of it.
///
/// # Errors
/// When there is no such machine, or a binding still leads from it or to it.
pub fn forget(project: &Project, instance: &Instance) -> Result<(), Vec<Diagnostic>> {
    let address = Address::Machine(instance.clone());
    let mut store = project.store("state rm").map_err(one)?;
    let snapshot = begin(project, &mut store)?;
    let Some(row) = snapshot.rows.get(&address) else {
        let error = Diagnostic::error("No such machine", format!("The state has no {address}."));
        return Err(vec![error.hint("gobs state list says what it has.")]);
    };
    let is_of = |it: &Address| match it {
        Address::Service { machine, .. } => machine == instance,
        it => *it == address,
    };
    let leads = |row: &Row, end: &str| {
        let end = row.wanted.get(end).and_then(Value::as_ref_address);
        end.is_some_and(is_of)
    };
    let bound = snapshot.rows.values().find(|row| {
        matches!(row.kind, RowKind::Binding { .. }) && (leads(row, "from") || leads(row, "to"))
    });
    if let Some(bound) = bound {
        let detail = format!(
            "{} leads from {address} or to it, and is granted.",
            bound.address
        );
        let hint = "Take the binding out of the configuration and apply that first.";
        return Err(vec![
            Diagnostic::error("Machine is in use", detail).hint(hint),
        ]);
    }
    if let RowKind::Machine { incarnation, .. } = &row.kind {
        let boss = project.boss_store().map_err(one)?;
        boss.forget_machine(&address, *incarnation, SystemTime::now())
            .map_err(|error| one(store_error(&error)))?;
    }
    let of_it = snapshot.rows.keys().filter(|it| is_of(it)).cloned();
    let changes = of_it.map(RowChange::RemoveRow).collect();
    let started = intend(&mut store, address.clone(), "forget", None).map_err(one)?;
    finish(&mut store, started, Outcome::Done, changes).map_err(one)
}

/// Begins a run that changes rows only.
fn begin(project: &Project, store: &mut Store) -> Result<Snapshot, Vec<Diagnostic>> {
    let unusable = |error| one(store_error(&error));
    let snapshot = store.snapshot().map_err(unusable)?;
    if let Some(doubt) = store.in_doubt().map_err(unusable)?.first() {
        let intent = doubt.started.intent();
        let detail = format!(
            "Whether {} of {} was done is not known.",
            intent.action, intent.address
        );
        let error = Diagnostic::error("Step in doubt", detail);
        return Err(vec![error.hint("An apply settles it; then try again.")]);
    }
    let now = SystemTime::now();
    if snapshot.serial > 0 {
        let backups = project.paths().backups();
        store.backup(&backups, now).map_err(unusable)?;
    }
    store.begin_run("state", now).map_err(unusable)?;
    store.snapshot().map_err(unusable)
}

/// Refuses an address or a machine that the state has already.
fn free(
    snapshot: &Snapshot,
    address: &Address,
    provider: &str,
    id: &str,
) -> Result<(), Vec<Diagnostic>> {
    let is_it = |row: &&Arc<Row>| match &row.kind {
        RowKind::Machine {
            provider: of,
            id: known,
            ..
        } => of == provider && known == id,
        _ => false,
    };
    let detail = match snapshot.rows.values().find(is_it) {
        Some(row) => format!("{provider} {id} is {} already.", row.address),
        None if snapshot.rows.contains_key(address) => {
            format!("The state has a {address} already.")
        }
        None => return Ok(()),
    };
    let error = Diagnostic::error("Machine known already", detail);
    Err(vec![error.hint("`gobs state rm` forgets a machine.")])
}

/// Returns the row of a machine that was taken over: as asked last counts what it is like, so that
/// the next plan tells where it differs from its declaration.
fn row_of(
    address: &Address,
    values: &MachineValues,
    schema: &ProviderSchema,
    snapshot: &Snapshot,
    (token, observed): (Token, Observed),
) -> Result<Row, Vec<Diagnostic>> {
    let declared = wanted_of(&schema.machine, values, None);
    let entries = declared.as_entries().into_iter().flatten();
    let asked = entries.map(|(name, declared)| {
        let seen = observed.attributes.get(name).filter(|it| !it.is_null());
        let is_block = schema.machine.blocks.contains_key(&**name);
        let value = match seen {
            // What is not declared is nobody's wish.
            _ if declared.is_null() => Value::NULL,
            Some(seen) => seen.clone().sensitive_if(declared.sensitive),
            // A block that the machine has none of is to be made, whatever it is.
            None if is_block && declared.as_elements().is_some() => Value::list([]),
            None if is_block || declared.contains_unknown() => Value::NULL,
            None => declared.clone(),
        };
        (name.clone(), value)
    });
    let wanted = Known::try_from(Value::object(asked)).map_err(|error| {
        let error = Diagnostic::error("Import failed", format!("{address}: {error}."));
        vec![error]
    })?;
    Ok(Row {
        address: address.clone(),
        wanted,
        observed: observed.attributes,
        depends_on: Vec::new(),
        version: 0,
        kind: RowKind::Machine {
            provider: values.provider.clone(),
            id: observed.id,
            token: token.0,
            // No run numbered anything so high.
            incarnation: snapshot
                .serial
                .saturating_add(snapshot.generation)
                .saturating_add(1),
            enrolled: None,
        },
    })
}

#[expect(
    clippy::boxed_local,
    reason = "errors travel boxed until they are listed"
)]
fn one(diagnostic: Box<Diagnostic>) -> Vec<Diagnostic> {
    vec![*diagnostic]
}
