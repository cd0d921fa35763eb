//! Providers that are no part of gobs: where they are found, and who may run them.
//!
//! A provider NAME is the program that `command` in its block names, else `gobs-provider-NAME` in
//! `.gobs/plugins`, else `gobs-provider-NAME` on `PATH`. The first two are named by the project's
//! own tree: whoever sends a pull request could run anything with them, so they run only where
//! that is allowed from outside the tree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gobs_model::{Block, Diagnostic, Name, ProviderSchema};
use gobs_provider::Provider as _;
use gobs_provider::pipe::Client;

use crate::lang::{BlockId, Config, MACHINE_WORDS, PROVIDER_WORDS};

/// What the names of plugins begin with.
const PREFIX: &str = "gobs-provider-";

/// Variables of the environment that every plugin gets: where programs, files, languages and the
/// way to the network are. Everything else may be a secret of somebody else.
const VARIABLES: [&str; 22] = [
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Where plugins are looked for. The default finds none. It has no `Debug`: it holds the
/// environment.
#[derive(Clone, Default)]
pub struct PluginSearch {
    /// `PATH`. Only absolute entries count: others would be places in the tree.
    pub path: Vec<PathBuf>,
    /// Whether what the project's tree names is looked for.
    pub in_tree: bool,
    /// Whether what the project's tree names may be run.
    pub may_run_tree: bool,
    /// The environment, of which a plugin gets a part.
    pub environment: Vec<(OsString, OsString)>,
}

/// A plugin that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The provider that it is.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// The program's arguments.
    pub arguments: Vec<String>,
    /// Whether the project's own tree names it.
    pub is_of_tree: bool,
}

/// The plugins of a project, of which those that are needed run.
pub struct Plugins {
    /// The project's directory, absolute.
    directory: PathBuf,
    search: PluginSearch,
    commands: BTreeMap<String, Vec<String>>,
    /// The variables that provider blocks name, by provider.
    variables: BTreeMap<String, BTreeSet<String>>,
    /// Running, and not configured yet.
    ready: Mutex<HashMap<String, Client>>,
}

impl Plugins {
    /// Returns the plugins of a project, and where its provider blocks contradict each other.
    pub fn new(
        directory: PathBuf,
        search: PluginSearch,
        config: &Config,
    ) -> (Self, Vec<Diagnostic>) {
        let (mut commands, mut errors) = (BTreeMap::new(), Vec::new());
        let mut variables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, provider) in &config.providers {
            let named = variables.entry(provider.provider.clone()).or_default();
            named.extend(provider.environment.iter().cloned());
            let Some(command) = &provider.command else {
                continue;
            };
            let earlier = commands.insert(provider.provider.clone(), command.clone());
            if earlier.is_some_and(|earlier| earlier != *command) {
                let detail = format!(
                    "All configurations of the provider {:?} are of one program.",
                    provider.provider
                );
                let mut error = Diagnostic::error("Two commands for one provider", detail);
                if let Some(place) = config.declared_at(&BlockId::Provider(key.clone())) {
                    error = error.at(place);
                }
                errors.push(error.hint("Write `command` in one of the blocks only."));
            }
        }
        let plugins = Self {
            directory,
            search,
            commands,
            variables,
            ready: Mutex::default(),
        };
        (plugins, errors)
    }

    /// Returns the plugin that is this provider, if there is one.
    pub fn find(&self, name: &str) -> Option<Found> {
        // What is no name could be a path.
        Name::new(name).ok()?;
        let found = |program, arguments: &[String], is_of_tree| Found {
            name: name.into(),
            program,
            arguments: arguments.into(),
            is_of_tree,
        };
        if let Some(command) = self.commands.get(name).filter(|_| self.search.in_tree) {
            let (program, arguments) = command.split_first()?;
            let program = match program.contains('/') {
                true => self.directory.join(program),
                // Where it is nowhere, starting it says so.
                false => self.on_path(program).unwrap_or_else(|| program.into()),
            };
            return Some(found(program, arguments, true));
        }
        let file = format!("{PREFIX}{name}");
        let in_tree = self.directory.join(".gobs/plugins").join(&file);
        if self.search.in_tree && is_program(&in_tree) {
            return Some(found(in_tree, &[], true));
        }
        let program = self.on_path(&file)?;
        let is_of_tree = self.is_of_tree(&program);
        Some(found(program, &[], is_of_tree))
    }

    /// Returns every plugin that there is, in the order of their names.
    pub fn all(&self) -> Vec<Found> {
        let directories = self.path().map(Path::to_owned);
        let directories = directories.chain([self.directory.join(".gobs/plugins")]);
        let mut names: BTreeSet<String> = self.commands.keys().cloned().collect();
        for directory in directories {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            let files = entries.flatten().map(|entry| entry.file_name());
            names.extend(files.filter_map(|file| {
                let name = file.to_str()?.strip_prefix(PREFIX)?;
                Some(name.to_owned())
            }));
        }
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// Returns this provider as a process that is not configured yet; nothing where there is no
    /// such plugin. Blocks until it has said hello.
    ///
    /// # Errors
    /// When it may not be run, or is of no use.
    pub fn start(&self, name: &str) -> Result<Option<Client>, Box<Diagnostic>> {
        let ready = self.ready().remove(name);
        if ready.is_some() {
            return Ok(ready);
        }
        let Some(found) = self.find(name) else {
            return Ok(None);
        };
        if found.is_of_tree && !self.search.may_run_tree {
            return Err(Box::new(not_allowed(&found)));
        }
        let mut command = Command::new(&found.program);
        command
            .args(&found.arguments)
            .current_dir(&self.directory)
            .env_clear()
            .envs(self.environment(name)?);
        tracing::debug!(provider = name, program = %found.program.display(), "a plugin starts");
        let client = Client::start(name, command).map_err(|error| {
            let program = found.program.display();
            let detail = format!("The plugin of provider {name:?}, {program}: {error}.");
            let error = Diagnostic::error("Plugin of no use", detail);
            Box::new(error.hint("What it writes to stderr is in the log: GOBS_LOG=info."))
        })?;
        match taken_word(client.schema()) {
            None => Ok(Some(client)),
            Some(word) => {
                let program = found.program.display();
                let detail = format!(
                    "The plugin of provider {name:?}, {program}: its schema has {word:?}, which \
                     is gobs' own word there."
                );
                let error = Diagnostic::error("Plugin of no use", detail);
                Err(Box::new(
                    error.hint("Its author has to choose another name."),
                ))
            }
        }
    }

    /// Returns the part of the environment that a plugin gets: what every program needs, what
    /// begins with its own name, and what its provider block names, where the tree may do so.
    fn environment(
        &self,
        name: &str,
    ) -> Result<impl Iterator<Item = (&OsString, &OsString)>, Box<Diagnostic>> {
        let named = self.variables.get(name);
        if !self.search.may_run_tree
            && let Some(variable) = named.and_then(|it| it.first())
        {
            let detail = format!(
                "The project's files name {variable} for the provider {name:?}: whoever can \
                 change them could have any variable of the environment sent anywhere."
            );
            let own = prefix_of(name);
            let hint = format!(
                "If you trust everybody who can, allow it with --allow-tree-commands or \
                 GOBS_ALLOW_TREE_COMMANDS=1. What begins with {own} needs no leave."
            );
            let error = Diagnostic::error("Variable of the environment not allowed", detail);
            return Err(Box::new(error.hint(hint)));
        }
        let own = prefix_of(name);
        let gets = move |variable: &str| {
            // No plugin is called gobs, or it would get the key of the state.
            VARIABLES.contains(&variable)
                || variable.starts_with("LC_")
                || (variable.starts_with(&own) && own != "GOBS_")
                || (named.is_some_and(|it| it.contains(variable)) && variable != "GOBS_KEY")
        };
        let all = self.search.environment.iter();
        let all = all.map(|(variable, value)| (variable, value));
        Ok(all.filter(move |(variable, _)| variable.to_str().is_some_and(&gets)))
    }

    /// Keeps a process for whoever starts this provider next.
    pub fn keep(&self, name: &str, client: Client) {
        self.ready().insert(name.to_owned(), client);
    }

    fn ready(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> impl Iterator<Item = &Path> {
        let entries = self.search.path.iter().map(PathBuf::as_path);
        entries.filter(|entry| entry.is_absolute())
    }

    fn on_path(&self, file: &str) -> Option<PathBuf> {
        self.path()
            .map(|entry| entry.join(file))
            .find(|it| is_program(it))
    }

    /// Returns whether a file is within the project's directory, where `PATH` may lead too.
    fn is_of_tree(&self, file: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let tree = real(&self.directory);
        file.starts_with(&self.directory) || real(file).starts_with(tree)
    }
}

impl Found {
    /// Returns how it is run, for people.
    pub fn command_line(&self) -> String {
        let program = self.program.display().to_string();
        let words = std::iter::once(program.as_str()).chain(self.arguments.iter().map(|it| &**it));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Returns the entries of a `PATH`.
pub fn split_path(path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path).collect()
}

/// Returns how the variables begin that are a provider's own: `PAPER_` for `paper`.
fn prefix_of(name: &str) -> String {
    format!("{}_", name.to_ascii_uppercase().replace('-', "_"))
}

/// Returns a word of gobs' own that a schema takes for something else.
fn taken_word(schema: &ProviderSchema) -> Option<&'static str> {
    let taken = |block: &Block, words: &[&'static str]| {
        let has =
            |word: &&str| block.attributes.contains_key(*word) || block.blocks.contains_key(*word);
        words.iter().copied().find(has)
    };
    taken(&schema.machine, &MACHINE_WORDS).or_else(|| taken(&schema.settings, &PROVIDER_WORDS))
}

fn not_allowed(found: &Found) -> Diagnostic {
    let detail = format!(
        "The provider {:?} would run {}, which the project's own files name: whoever can change \
         them could run anything here.",
        found.name,
        found.command_line()
    );
    let hint = "If you trust everybody who can, allow it with --allow-tree-commands or \
                GOBS_ALLOW_TREE_COMMANDS=1. What is on PATH outside the project needs no leave.";
    Diagnostic::error("Command of the project not allowed", detail).hint(hint)
}

fn is_program(path: &Path) -> bool {
    let metadata = std::fs::metadata(path);
    metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}
