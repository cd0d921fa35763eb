//! `gobs show`

use std::path::PathBuf;

use gobs_model::{Address, Value};
use gobs_state::{Row, RowKind};

use crate::plan::{binding_object, machine_object};
use crate::project::Project;

use super::arguments::Variables;
use super::view::{self, state};
use super::{Context, Outcome, exit, plan_file, remembered};

/// Shows what exists, or what a plan file would do
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// A plan that plan --out wrote
    #[arg(value_name = "PLANFILE")]
    plan: Option<PathBuf>,
}

impl Show {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        if let Some(path) = &self.plan {
            let surroundings = Variables::default().surroundings(context)?;
            let (file, _) = plan_file::read(path, surroundings)?;
            context.terminal.out(&view::plan::plan(&file.plan));
            return Ok(exit::DONE);
        }
        let (project, snapshot) = remembered(context)?;
        let objects: Vec<(&Address, Value)> = snapshot
            .rows
            .iter()
            .map(|(address, row)| (address, object(&project, row)))
            .collect();
        let mut text = state::objects(objects.iter().map(|(address, value)| (*address, value)));
        let outputs = snapshot.outputs.iter();
        text += &view::apply::outputs(outputs.map(|(name, it)| (name.as_str(), it.value())));
        if text.is_empty() {
            text += "Nothing exists yet.\n";
        }
        context.terminal.out(&text);
        Ok(exit::DONE)
    }
}

/// Returns what a row is about, as the language shows it.
fn object(project: &Project, row: &Row) -> Value {
    match &row.kind {
        RowKind::Machine { provider, .. } => {
            let kind = provider
                .split_once('.')
                .map_or(provider.as_str(), |(kind, _)| kind);
            match project.schemas.get(kind) {
                Some(schema) => machine_object(schema, row),
                None => row.observed.value().clone(),
            }
        }
        RowKind::Service { .. } => row.wanted.value().clone(),
        RowKind::Binding { .. } => {
            let mut entries = row.wanted.value().as_entries().cloned().unwrap_or_default();
            entries.extend(
                binding_object(row)
                    .as_entries()
                    .cloned()
                    .unwrap_or_default(),
            );
            Value::object(entries)
        }
    }
}
