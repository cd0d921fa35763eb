//! One directory's sources, state and providers, opened in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use gobs_model::{Diagnostic, Known};
use gobs_provider::{Bounded, Provider};
use gobs_provider_dummy::{Dummy, DummyHost};
use gobs_provider_linode::{Linode, LinodeHost};
use gobs_state::{
    BossStore, CrashAt, DataKey, KeyError, Lock, LockError, OpenError, Reader, RowKind, Snapshot,
    Store, StoreError,
};

use crate::apply::{Providers, homes};
use crate::boss::{BossError, BossOptions};
use crate::clock::Clock;
use crate::lang::{
    Assignment, BlockId, BossPlace, Config, Evaluator, Files, Inputs, Schemas, Source, check, load,
    parse_vars,
};
use crate::plan::{
    Options, PlanFile, RecordedFile, RecordedFiles, RecordedInputs, check_cycles, plan,
};
use crate::plugins::{PluginSearch, Plugins};

/// The largest source, variable or `file()` that is read: far beyond what a person writes, and
/// small enough that a mistaken path does not fill memory.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a project is opened with: all that comes from outside its directory. It has no `Debug`,
/// since it holds the key and variables that may be sensitive.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// The project's directory, as the user would type it.
    pub directory: PathBuf,
    /// `GOBS_VAR_name`.
    pub environment_variables: Vec<Assignment>,
    /// `--var-file`, in order.
    pub variable_files: Vec<PathBuf>,
    /// `--var`, in order.
    pub variables: Vec<Assignment>,
    /// `GOBS_KEY`: the data key as text, instead of `.gobs/key`.
    pub key: Option<String>,
    /// The agent's command, to which the dummy provider adds `--dir DIR`.
    pub agent: Vec<OsString>,
    /// How hobs reach the boss, where that is said outside the directory.
    pub boss: BossPlace,
    /// Where machines of this host have their sockets.
    pub runtime_root: PathBuf,
    /// Where providers that are no part of gobs are looked for.
    pub plugins: PluginSearch,
    /// The token of the account at Linode, and where its API is.
    pub linode: LinodeHost,
    /// Where a test of crash safety wants a run to die.
    pub crash_at: Option<CrashAt>,
}

/// A project whose files are read and right.
pub struct Project {
    /// What it was opened with.
    pub surroundings: Surroundings,
    /// The texts.
    pub sources: Vec<Source>,
    /// What they declare.
    pub config: Config,
    /// What their expressions read from outside.
    pub inputs: Inputs,
    /// What is known of each provider.
    pub schemas: Schemas,
    /// What should be looked at, though nothing stops for it.
    pub warnings: Vec<Diagnostic>,
    /// The providers that are no part of gobs.
    pub plugins: Arc<Plugins>,
    files: Arc<DiskFiles>,
}

impl Project {
    /// Reads the project in a directory.
    ///
    /// # Errors
    /// Everything that is wrong with it and can be said without state.
    pub fn open(surroundings: Surroundings) -> Result<Self, Vec<Diagnostic>> {
        let sources = read_sources(&surroundings.directory)?;
        let variables = read_variables(&surroundings)?;
        let files = Arc::new(DiskFiles::new(surroundings.directory.clone()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let inputs = Inputs {
            variables,
            files: files.clone(),
            now_s: now.map_or(0, |since| since.as_secs()),
            workspace: "default".into(),
            root: PathBuf::from("."),
        };
        Self::read(surroundings, sources, inputs, files).checked()
    }

    /// Reads the project in a directory, right or wrong and without values for its variables:
    /// what is wrong is among its warnings. For looking at its state, and for `validate`.
    ///
    /// # Errors
    /// When there are no files, or they cannot be read.
    pub fn peek(surroundings: Surroundings) -> Result<Self, Vec<Diagnostic>> {
        let sources = read_sources(&surroundings.directory)?;
        let files = Arc::new(DiskFiles::new(surroundings.directory.clone()));
        Ok(Self::read(surroundings, sources, Inputs::default(), files))
    }

    /// Reads the project as a plan file has it: nothing of the directory's own texts counts.
    ///
    /// # Errors
    /// Never in practice: what was planned was right.
    pub fn of_plan(surroundings: Surroundings, file: &PlanFile) -> Result<Self, Vec<Diagnostic>> {
        let files = Arc::new(DiskFiles::new(surroundings.directory.clone()));
        let inputs = file.inputs.to_inputs();
        Self::read(surroundings, file.sources.clone(), inputs, files).checked()
    }

    /// Reads one file that is a project of its own, as a provider's test is.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of_file(surroundings: Surroundings, path: &Path) -> Result<Self, Vec<Diagnostic>> {
        let name = path.display().to_string();
        let sources = read_all(Path::new(""), [name])?;
        let files = Arc::new(DiskFiles::new(surroundings.directory.clone()));
        Self::read(surroundings, sources, Inputs::default(), files).checked()
    }

    fn read(
        surroundings: Surroundings,
        sources: Vec<Source>,
        inputs: Inputs,
        files: Arc<DiskFiles>,
    ) -> Self {
        let loaded = load(&sources);
        let (mut config, mut diagnostics) = (loaded.config, loaded.diagnostics);
        diagnostics.extend(surroundings.boss.settle(&mut config.settings));
        let directory = absolute(&surroundings.directory);
        let search = surroundings.plugins.clone();
        let (plugins, wrong) = Plugins::new(directory, search, &config);
        diagnostics.extend(wrong);
        let mut schemas: Schemas = built_in_names()
            .map(|name| (name.to_owned(), built_in(name, &surroundings)))
            .filter_map(|(name, provider)| Some((name, provider?.schema().clone())))
            .collect();
        let unusable = add_plugins(&plugins, &config, &mut schemas);
        let mut wrong = check(&config, &schemas);
        for error in &mut wrong {
            if error.summary == "Unknown provider" && error.hint.is_none() {
                let hint = "As a plugin it would be a program gobs-provider-NAME on PATH.";
                error.hint = Some(hint.into());
            }
        }
        // A plugin that cannot be used is no unknown provider.
        diagnostics.extend(wrong.into_iter().filter(|it| {
            let unknown = |name: &String| format!("There is no provider named \"{name}\".");
            !unusable
                .keys()
                .any(|name| it.detail.starts_with(&unknown(name)))
        }));
        diagnostics.extend(unusable.into_values());
        diagnostics.extend(check_cycles(&config));
        Self {
            surroundings,
            sources,
            config,
            inputs,
            schemas,
            warnings: diagnostics,
            plugins: Arc::new(plugins),
            files,
        }
    }

    fn checked(self) -> Result<Self, Vec<Diagnostic>> {
        if self.warnings.iter().any(Diagnostic::is_error) {
            return Err(self.warnings);
        }
        // Variables are part of what is right: a missing one is told before anything is done.
        let warnings = self.evaluator()?.warnings().to_vec();
        Ok(Self {
            warnings: [self.warnings, warnings].concat(),
            ..self
        })
    }

    /// Returns what planning would find wrong if nothing existed yet: what can be said without
    /// state and network. Nothing where a variable has no value, since that is no mistake here.
    pub fn rehearse(&self) -> Vec<Diagnostic> {
        if self.evaluator().is_err() {
            return Vec::new();
        }
        let (config, inputs, schemas) = (&self.config, &self.inputs, &self.schemas);
        let nothing = Snapshot::default();
        plan(
            config,
            inputs,
            &nothing,
            schemas,
            &Options::default(),
            Vec::new(),
        )
        .err()
        .unwrap_or_default()
    }

    /// Returns an evaluator of the project's expressions.
    ///
    /// # Errors
    /// When a variable has no value, or a wrong one.
    pub fn evaluator(&self) -> Result<Evaluator<'_>, Vec<Diagnostic>> {
        Evaluator::new(&self.config, &self.inputs, &self.schemas)
    }

    /// Returns the providers that the configuration and the rows need, configured.
    ///
    /// # Errors
    /// When there is no such provider, or one refuses its settings.
    pub async fn providers(&self, snapshot: &Snapshot) -> Result<Providers, Vec<Diagnostic>> {
        let declared = self
            .config
            .machines
            .values()
            .map(|machine| machine.provider.clone());
        let remembered = snapshot.rows.values().filter_map(|row| match &row.kind {
            RowKind::Machine { provider, .. } => Some(provider.clone()),
            _ => None,
        });
        let names: BTreeSet<String> = declared.chain(remembered).collect();
        let evaluator = self.evaluator()?;
        let (mut providers, mut errors) = (HashMap::new(), Vec::new());
        for name in names {
            match self.provider_of(&name, &evaluator, &snapshot.lineage).await {
                Ok(provider) => {
                    providers.insert(name, provider);
                }
                Err(diagnostics) => errors.extend(diagnostics),
            }
        }
        if errors.is_empty() {
            Ok(providers)
        } else {
            Err(errors)
        }
    }

    /// Returns a provider, `linode` or `linode.eu`, with the settings of its block.
    ///
    /// # Errors
    /// When there is none, or it refuses its settings.
    pub async fn provider(
        &self,
        name: &str,
        evaluator: &Evaluator<'_>,
    ) -> Result<Arc<dyn Provider>, Vec<Diagnostic>> {
        self.provider_of(name, evaluator, "").await
    }

    /// Returns a provider for the project that the state is of.
    async fn provider_of(
        &self,
        name: &str,
        evaluator: &Evaluator<'_>,
        lineage: &str,
    ) -> Result<Arc<dyn Provider>, Vec<Diagnostic>> {
        let kind = name.split_once('.').map_or(name, |(kind, _)| kind);
        let mut surroundings = self.surroundings.clone();
        surroundings.linode.project = lineage.to_owned();
        let provider: Arc<dyn Provider> = match built_in(kind, &surroundings) {
            Some(provider) => Arc::new(Bounded(provider)),
            None => self.plugin(kind).await?,
        };
        let settings = match self.config.providers.contains_key(name) {
            true => evaluator.provider_settings(name)?,
            false => gobs_model::Value::object::<Arc<str>>([]),
        };
        let settings = Known::try_from(settings).map_err(|unknown| {
            let detail = format!("The settings of provider {name}: {unknown}.");
            vec![Diagnostic::error("Provider settings not known", detail)]
        })?;
        provider.configure(&settings).await.map_err(|error| {
            let detail = format!("provider {name}: {error}.");
            vec![Diagnostic::error("Provider refused its settings", detail)]
        })?;
        Ok(provider)
    }

    async fn plugin(&self, kind: &str) -> Result<Arc<dyn Provider>, Vec<Diagnostic>> {
        let (plugins, name) = (self.plugins.clone(), kind.to_owned());
        // It blocks until the plugin has said hello.
        let started = tokio::task::spawn_blocking(move || plugins.start(&name)).await;
        match started {
            Ok(Ok(Some(client))) => Ok(Arc::new(client)),
            Ok(Err(error)) => Err(vec![*error]),
            Ok(Ok(None)) | Err(_) => {
                let detail = format!(
                    "The state has machines of the provider {kind:?}, which this gobs does not \
                     have."
                );
                let error = Diagnostic::error("Unknown provider", detail);
                Err(vec![error.hint(format!(
                    "As a plugin it would be gobs-provider-{kind} on PATH."
                ))])
            }
        }
    }

    /// Returns where the project's files are.
    pub fn paths(&self) -> Paths {
        let root = &self.surroundings.directory;
        Paths {
            dot: root.join(".gobs"),
            state: root.join(&self.config.settings.state_path),
        }
    }

    /// Returns the data key, made first where neither it nor a state exists.
    ///
    /// # Errors
    /// When it cannot be read, is lost, or others may read it.
    pub fn key(&self) -> Result<DataKey, Box<Diagnostic>> {
        let paths = self.paths();
        let key = match &self.surroundings.key {
            Some(text) => DataKey::from_text(text),
            None => DataKey::load_or_create(&paths.key(), &paths.state),
        };
        key.map_err(|error| key_error(&error))
    }

    /// Opens the state for reading, beside whatever else runs; nothing where there is none yet.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reader(&self) -> Result<Option<Reader>, Box<Diagnostic>> {
        let paths = self.paths();
        // What cannot be looked at may be there.
        if let Ok(false) = paths.state.try_exists() {
            return Ok(None);
        }
        match Reader::open(&paths.state, &self.key()?) {
            Ok(reader) => Ok(Some(reader)),
            Err(OpenError::Missing(_)) => Ok(None),
            Err(error) => Err(open_error(&error)),
        }
    }

    /// Opens the state for writing: takes the lock, which dies with this process.
    ///
    /// # Errors
    /// When another process writes, or it cannot be opened.
    pub fn store(&self, command: &str) -> Result<Store, Box<Diagnostic>> {
        let paths = self.paths();
        let lock = Lock::acquire(&paths.lock(), command, SystemTime::now())
            .map_err(|error| lock_error(&error))?;
        let store = Store::open(&paths.state, &self.key()?, lock);
        let mut store = store.map_err(|error| open_error(&error))?;
        store.crash_at(self.surroundings.crash_at);
        Ok(store)
    }

    /// Opens the boss's own tables.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn boss_store(&self) -> Result<BossStore, Box<Diagnostic>> {
        BossStore::open(&self.paths().state, &self.key()?).map_err(|error| open_error(&error))
    }

    /// Returns how this project's boss is reached.
    pub fn boss_options(&self, snapshot: &Snapshot) -> BossOptions {
        BossOptions {
            listen: self.config.settings.boss_listen.clone(),
            advertise: self.config.settings.boss_advertise.clone(),
            socket: self.paths().boss_socket(),
            program: self.surroundings.agent.first().map(PathBuf::from),
            clock: Clock::system(),
            homes: homes(snapshot, &self.schemas),
            dies_after: self.surroundings.crash_at.and_then(CrashAt::calls),
        }
    }

    /// Returns the inputs with every file that was read so far, for a plan file.
    pub fn recorded_inputs(&self) -> RecordedInputs {
        RecordedInputs {
            variables: self.inputs.variables.clone(),
            files: self.files.recorded(),
            now_s: self.inputs.now_s,
            workspace: self.inputs.workspace.clone(),
            root: self.inputs.root.clone(),
        }
    }
}

/// Where a project's own files are.
#[derive(Clone, Debug)]
pub struct Paths {
    dot: PathBuf,
    /// The state file.
    pub state: PathBuf,
}

impl Paths {
    /// Returns the path of the data key.
    pub fn key(&self) -> PathBuf {
        self.dot.join("key")
    }

    /// Returns the path of the write lock.
    pub fn lock(&self) -> PathBuf {
        self.state.with_extension("lock")
    }

    /// Returns the directory of backups.
    pub fn backups(&self) -> PathBuf {
        self.dot.join("backups")
    }

    /// Returns the path of the boss's socket.
    pub fn boss_socket(&self) -> PathBuf {
        self.dot.join("boss.sock")
    }
}

/// Starts the plugins that a configuration needs, for their schemas; returns what is wrong with
/// those that cannot be used, by name.
fn add_plugins(
    plugins: &Plugins,
    config: &Config,
    schemas: &mut Schemas,
) -> BTreeMap<String, Diagnostic> {
    let mut unusable = BTreeMap::new();
    let machines = config.machines.values().map(|it| it.provider.as_str());
    let kinds = machines.filter_map(|it| it.split('.').next());
    let kinds = kinds.chain(config.providers.values().map(|it| it.provider.as_str()));
    for kind in kinds.collect::<BTreeSet<_>>() {
        if schemas.contains_key(kind) {
            let commanded = config
                .providers
                .iter()
                .find(|(_, it)| it.provider == kind && it.command.is_some());
            if let Some((key, _)) = commanded {
                let detail = format!("The provider \"{kind}\" is part of gobs; it runs nothing.");
                let mut error = Diagnostic::error("Command of a built-in provider", detail);
                if let Some(place) = config.declared_at(&BlockId::Provider(key.clone())) {
                    error = error.at(place);
                }
                unusable.insert(kind.to_owned(), error);
            }
            continue;
        }
        match plugins.start(kind) {
            Ok(Some(client)) => {
                schemas.insert(kind.to_owned(), client.schema().clone());
                plugins.keep(kind, client);
            }
            Ok(None) => {}
            Err(error) => {
                unusable.insert(kind.to_owned(), *error);
            }
        }
    }
    unusable
}

/// Returns the names of the providers that are part of gobs.
pub fn built_in_names() -> impl Iterator<Item = &'static str> {
    ["dummy", "linode"].into_iter()
}

fn built_in(name: &str, surroundings: &Surroundings) -> Option<Arc<dyn Provider>> {
    match name {
        "dummy" => Some(Arc::new(Dummy::new(DummyHost {
            root: absolute(&surroundings.directory)
                .join(".gobs")
                .join("dummy"),
            agent: surroundings.agent.clone(),
            runtime_root: surroundings.runtime_root.clone(),
        }))),
        "linode" => Some(Arc::new(Linode::new(surroundings.linode.clone()))),
        _ => None,
    }
}

/// Machines outlive this process and its working directory.
fn absolute(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn read_sources(directory: &Path) -> Result<Vec<Source>, Vec<Diagnostic>> {
    let unreadable = |error: io::Error| {
        let detail = format!("{} cannot be read: {error}.", directory.display());
        vec![Diagnostic::error("Unreadable project directory", detail)]
    };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if let Some(name) = name.to_str()
            && name.ends_with(".gobs.hcl")
        {
            names.insert(name.to_owned());
        }
    }
    if names.is_empty() {
        let detail = format!(
            "There is no *.gobs.hcl in {}.",
            absolute(directory).display()
        );
        let hint = "Name another directory with -C DIR, or start a project with `gobs init`.";
        return Err(vec![
            Diagnostic::error("No configuration files", detail).hint(hint),
        ]);
    }
    read_all(directory, names)
}

fn read_all(
    directory: &Path,
    names: impl IntoIterator<Item = String>,
) -> Result<Vec<Source>, Vec<Diagnostic>> {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match read_text(&directory.join(&name)) {
            Ok(text) => sources.push(Source::new(name, text)),
            Err(why) => {
                let detail = format!("{name} cannot be read: {why}.");
                errors.push(Diagnostic::error("Unreadable file", detail));
            }
        }
    }
    if errors.is_empty() {
        Ok(sources)
    } else {
        Err(errors)
    }
}

/// Returns the values of variables: those of the environment, of files, of `--var`; later wins.
fn read_variables(surroundings: &Surroundings) -> Result<Vec<Assignment>, Vec<Diagnostic>> {
    let directory = &surroundings.directory;
    let mut names = BTreeSet::new();
    if let Ok(entries) = std::fs::read_dir(directory) {
        let found = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        names.extend(found.filter(|name| name.ends_with(".auto.gobsvars")));
    }
    let base = "gobs.gobsvars";
    let first = directory.join(base).exists().then(|| base.to_owned());
    let mut sources = read_all(directory, first.into_iter().chain(names))?;
    let given = surroundings
        .variable_files
        .iter()
        .map(|path| path.display().to_string());
    sources.extend(read_all(Path::new(""), given)?);
    let mut variables = surroundings.environment_variables.clone();
    let mut diagnostics = Vec::new();
    for source in &sources {
        let (values, wrong) = parse_vars(source);
        variables.extend(values);
        diagnostics.extend(wrong);
    }
    variables.extend(surroundings.variables.iter().cloned());
    if diagnostics.iter().any(Diagnostic::is_error) {
        Err(diagnostics)
    } else {
        Ok(variables)
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(path)?;
    String::from_utf8(bytes)
        .map_err(|error| format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    use io::Read;
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(format!("it is larger than {} MiB", FILE_BYTES_MAX >> 20)),
        false => Ok(bytes),
    }
}

/// What came of reading a file.
type FileRead = Result<Arc<[u8]>, String>;

/// Reads the files that expressions ask for, once each, so that evaluation is repeatable.
struct DiskFiles {
    root: PathBuf,
    read: Mutex<BTreeMap<PathBuf, FileRead>>,
}

impl DiskFiles {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            read: Mutex::default(),
        }
    }

    fn recorded(&self) -> RecordedFiles {
        let mut recorded = RecordedFiles::default();
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, outcome) in &*read {
            let file = match outcome {
                Ok(bytes) => RecordedFile::Content(bytes.clone()),
                Err(why) => RecordedFile::Unreadable(why.clone()),
            };
            recorded.record(path.clone(), file);
        }
        recorded
    }
}

impl Files for DiskFiles {
    fn read(&self, path: &Path) -> Result<Arc<[u8]>, String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.entry(path.to_owned())
            .or_insert_with(|| read_bounded(&self.root.join(path)).map(Into::into))
            .clone()
    }

    fn exists(&self, path: &Path) -> bool {
        // Reading it records the answer, so that a plan file gives the same one.
        self.read(path).is_ok()
    }
}

fn key_error(error: &KeyError) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("Data key not usable", sentence(error)))
}

fn open_error(error: &OpenError) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("State not usable", sentence(error)))
}

fn lock_error(error: &LockError) -> Box<Diagnostic> {
    let held = matches!(error, LockError::Held { .. });
    let summary = if held {
        "State is locked"
    } else {
        "State not usable"
    };
    let diagnostic = Diagnostic::error(summary, sentence(error));
    Box::new(match error {
        LockError::Held { .. } => {
            diagnostic.hint("Wait for it to end; the lock ends with the process that holds it.")
        }
        LockError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            diagnostic.hint("Free some space and run again; nothing was changed.")
        }
        _ => diagnostic,
    })
}

/// Returns what is wrong with the state while it is used.
pub fn store_error(error: &StoreError) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("State not usable", sentence(error)))
}

/// Returns why the boss does not run.
pub fn boss_error(error: &BossError) -> Box<Diagnostic> {
    let diagnostic = Diagnostic::error("The boss cannot run", sentence(error));
    Box::new(match error {
        BossError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => diagnostic
            .hint(
                "Another program has the port; the boss keeps its own, since hobs know it. End \
                 that program, or set `listen` in the `boss` block of `gobs`.",
            ),
        BossError::Running(_) => diagnostic.hint("Wait until that process ends."),
        _ => diagnostic,
    })
}

/// Returns an error as a sentence: errors are fragments.
fn sentence(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).chain(['.']).collect()
    })
}
