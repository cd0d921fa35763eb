//! Plan files, written and read.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gobs_model::Diagnostic;
use gobs_state::DataKey;

use crate::plan::PlanFile;
use crate::project::{Project, Surroundings};
use crate::run::Planned;

use super::Failure;

/// The largest plan file that is read: 10,000 machines with long scripts, and room.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Writes a plan so that it can be applied later.
pub(super) fn write(path: &Path, project: &Project, planned: &Planned) -> Result<(), Failure> {
    let file = PlanFile {
        gobs: env!("CARGO_PKG_VERSION").into(),
        lineage: planned.snapshot.lineage.clone(),
        sources: project.sources.clone(),
        inputs: project.recorded_inputs(),
        plan: planned.plan.clone(),
    };
    let failed = |why: &dyn std::fmt::Display| {
        let detail = format!("{} cannot be written: {why}.", path.display());
        Failure::from(Diagnostic::error("Plan file not written", detail))
    };
    let text = file.seal(&project.key()?).map_err(|error| failed(&error))?;
    // Beside its place first: a full disk leaves no half of a plan.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|error| {
        // What went wrong is said; the part may not even be there.
        let _ = std::fs::remove_file(&part);
        failed(&error)
    })
}

/// Reads a plan file, and the project as it was planned.
pub(super) fn read(
    path: &Path,
    surroundings: Surroundings,
) -> Result<(PlanFile, Project), Failure> {
    let refused = |why: &dyn std::fmt::Display| {
        let detail = format!("{}: {why}.", path.display());
        Failure::from(Diagnostic::error("Plan file refused", detail))
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| refused(&error))?;
    let key = match &surroundings.key {
        Some(text) => DataKey::from_text(text),
        None => DataKey::load(&surroundings.directory.join(".gobs/key")),
    };
    let key = key.map_err(|error| refused(&error))?;
    let file = PlanFile::open(&text, &key).map_err(|error| refused(&error))?;
    let project = Project::of_plan(surroundings, &file)?;
    Ok((file, project))
}
