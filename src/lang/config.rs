//! Declarations: what the blocks of a configuration say, expressions unevaluated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gobs_model::{Diagnostic, Instance, Name, SourceSpan, Type, Value};

use super::source::{Sources, Span};
use super::syntax::{Attribute, Block, Body, Expr};

/// What a project declares. Right declarations survive wrong ones.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub(crate) sources: Sources,
    /// The `gobs` block.
    pub settings: Settings,
    /// `variable` blocks.
    pub variables: BTreeMap<Name, Variable>,
    /// Arguments of `locals` blocks.
    pub locals: BTreeMap<Name, Local>,
    /// `provider` blocks by `name` or `name.alias`.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// `machine` blocks.
    pub machines: BTreeMap<Name, Machine>,
    /// `binding` blocks.
    pub bindings: BTreeMap<Name, Binding>,
    /// `output` blocks.
    pub outputs: BTreeMap<Name, Output>,
    /// `import` blocks.
    pub imports: Vec<Import>,
}

/// The `gobs` block: known before anything else is evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the state is kept, relative to the project's directory.
    pub state_path: String,
    /// Where the boss listens; port 0 is chosen once, then kept.
    pub boss_listen: String,
    /// How hobs reach the boss; empty means the addresses listened on.
    pub boss_advertise: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_path: ".gobs/state.db".into(),
            boss_listen: "127.0.0.1:0".into(),
            boss_advertise: Vec::new(),
        }
    }
}

/// How hobs reach the boss, where that is said outside the project: it depends on the host that a
/// run is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BossPlace {
    /// `GOBS_BOSS_LISTEN`: where the boss listens.
    pub listen: Option<String>,
    /// `GOBS_BOSS_ADVERTISE`: the addresses that hobs dial, apart by commas.
    pub advertise: Option<String>,
}

impl BossPlace {
    /// Puts what is said in the place of what the project says; returns what is wrong with it.
    pub fn settle(&self, settings: &mut Settings) -> Vec<Diagnostic> {
        let mut wrong = Vec::new();
        let mut check = |name: &str, text: &str, any_port: bool| {
            if let Err(why) = super::address::socket(text, any_port) {
                let detail = format!("{name}: {why}.");
                wrong.push(Diagnostic::error("Bad value in the environment", detail));
            }
        };
        if let Some(listen) = &self.listen {
            check("GOBS_BOSS_LISTEN", listen, true);
            settings.boss_listen.clone_from(listen);
        }
        if let Some(advertise) = &self.advertise {
            let texts = advertise.split(',').map(|it| it.trim().to_owned());
            settings.boss_advertise = texts.filter(|it| !it.is_empty()).collect();
            for text in &settings.boss_advertise {
                check("GOBS_BOSS_ADVERTISE", text, false);
            }
        }
        wrong
    }
}

/// A `variable` block.
#[derive(Clone, Debug)]
pub struct Variable {
    /// What a value is converted to.
    pub ty: Type,
    /// The value where none is given.
    pub default: Option<Value>,
    /// For people.
    pub description: String,
    /// Whether its value is never shown or stored in clear.
    pub sensitive: bool,
    /// Whether it may be `null`; otherwise `null` means the default.
    pub nullable: bool,
    pub(crate) validations: Vec<Validation>,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) struct Validation {
    pub(crate) condition: Expr,
    pub(crate) error_message: Expr,
}

/// An argument of a `locals` block.
#[derive(Clone, Debug)]
pub struct Local {
    pub(crate) expr: Expr,
    pub(crate) span: Span,
}

/// What stands in a `provider` block and is no setting of the provider.
pub const PROVIDER_WORDS: [&str; 3] = ["alias", "command", "environment"];

/// What stands in a `machine` block and is no attribute or block of its provider.
pub const MACHINE_WORDS: [&str; 7] = [
    "count",
    "depends_on",
    "for_each",
    "hob",
    "lifecycle",
    "provider",
    "service",
];

/// A `provider` block.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The provider's name: `dummy`.
    pub provider: String,
    /// The name of a second configuration of it.
    pub alias: Option<Name>,
    /// The program that is the provider, and its arguments, where it is no part of gobs.
    pub command: Option<Vec<String>>,
    /// The variables of the environment that this program gets beside the usual ones.
    pub environment: Vec<String>,
    pub(crate) body: Body,
    pub(crate) span: Span,
}

/// Which instances a block has.
#[derive(Clone, Debug, Default)]
pub(crate) enum Repeat {
    #[default]
    Once,
    Count(Expr),
    ForEach(Expr),
}

/// A `machine` block.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The key of [`Config::providers`] and of state rows: `dummy` or `dummy.alias`.
    pub provider: String,
    /// What `lifecycle` says.
    pub lifecycle: Lifecycle,
    /// The names of its services.
    pub services: BTreeMap<Name, Service>,
    pub(crate) provider_span: Span,
    pub(crate) repeat: Repeat,
    /// The provider's attributes and blocks.
    pub(crate) body: Body,
    pub(crate) hob: Option<Block>,
    pub(crate) depends_on: Vec<(BlockId, Span)>,
    pub(crate) span: Span,
}

/// What a machine's `lifecycle` block says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// A plan that would delete it is an error.
    pub prevent_destroy: bool,
    /// Whose changes are not planned.
    pub ignore_changes: IgnoreChanges,
}

/// Whose changes are not planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IgnoreChanges {
    /// Every attribute's.
    All,
    /// These attributes'.
    Attributes(Vec<String>),
}

impl Default for IgnoreChanges {
    fn default() -> Self {
        Self::Attributes(Vec::new())
    }
}

/// A `service` block of a machine.
#[derive(Clone, Debug)]
pub struct Service {
    /// What kind of service it is.
    pub kind: ServiceKind,
    /// The kind's own arguments; of a kind that is an argument itself, that one.
    pub(crate) arguments: Vec<Attribute>,
    /// The type that its files tell: `postgresql`.
    pub(crate) type_name: Option<Expr>,
    pub(crate) ready: Option<Expr>,
    pub(crate) span: Span,
}

/// Which protocol a service speaks, as far as gobs knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Bytes over TCP.
    Tcp,
    /// Bytes over a unix socket.
    Unix,
    /// A database of a PostgreSQL server.
    Postgres,
    /// A Redis server.
    Redis,
    /// An HTTP server.
    Http,
    /// A file's or a command's secret.
    Secret,
    /// Any OCapN object.
    Sturdyref,
}

impl ServiceKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Tcp,
        Self::Unix,
        Self::Postgres,
        Self::Redis,
        Self::Http,
        Self::Secret,
        Self::Sturdyref,
    ];

    /// Returns the argument or block that names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Http => "http",
            Self::Secret => "secret",
            Self::Sturdyref => "sturdyref",
        }
    }

    /// Returns the arguments of its block; nothing where it is an argument itself.
    pub(crate) fn block(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Tcp | Self::Unix | Self::Sturdyref => None,
            Self::Postgres => Some(&["database", "create", "socket", "admin_user"]),
            Self::Redis => Some(&["socket", "admin_file"]),
            Self::Http => Some(&["address", "header_file"]),
            Self::Secret => Some(&["file", "command"]),
        }
    }
}

/// A `binding` block.
#[derive(Clone, Debug)]
pub struct Binding {
    pub(crate) repeat: Repeat,
    pub(crate) from: Expr,
    pub(crate) to: Expr,
    pub(crate) name: Option<Expr>,
    pub(crate) drain: Option<Expr>,
    /// Of one from an object: how long that may take to answer.
    pub(crate) ready: Option<Expr>,
    pub(crate) attenuate: Option<Vec<Attribute>>,
    pub(crate) expose: Vec<Block>,
    pub(crate) depends_on: Vec<(BlockId, Span)>,
    pub(crate) span: Span,
}

/// An `output` block.
#[derive(Clone, Debug)]
pub struct Output {
    /// For people.
    pub description: String,
    /// Whether its value may be sensitive, and is never shown.
    pub sensitive: bool,
    pub(crate) value: Expr,
    pub(crate) depends_on: Vec<(BlockId, Span)>,
    pub(crate) span: Span,
}

/// An `import` block.
#[derive(Clone, Debug)]
pub struct Import {
    /// The machine that is declared for it; without its key where the block has `for_each`.
    pub to: Instance,
    /// `for_each`, and the key of the machine for each of it.
    pub(crate) each: Option<(Expr, Expr)>,
    /// What its provider calls it.
    pub(crate) id: Expr,
    /// Where the machine is named.
    pub(crate) span: Span,
}

impl Import {
    /// Returns whether it is for a machine, or may be for it.
    pub fn leads_to(&self, machine: &Instance) -> bool {
        self.to == *machine || self.each.is_some() && self.to.name == machine.name
    }
}

impl Machine {
    /// Returns whether the block has neither `count` nor `for_each`.
    pub fn is_single(&self) -> bool {
        matches!(self.repeat, Repeat::Once)
    }
}

impl Binding {
    /// Returns whether the block has neither `count` nor `for_each`.
    pub fn is_single(&self) -> bool {
        matches!(self.repeat, Repeat::Once)
    }
}

/// Names a block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockId {
    /// `var.x`
    Variable(Name),
    /// `local.x`
    Local(Name),
    /// A provider's configuration: `dummy` or `dummy.alias`.
    Provider(String),
    /// `machine.x`
    Machine(Name),
    /// `binding.x`
    Binding(Name),
    /// `output.x`
    Output(Name),
}

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "var.{name}"),
            Self::Local(name) => write!(f, "local.{name}"),
            Self::Provider(name) => write!(f, "provider.{name}"),
            Self::Machine(name) => write!(f, "machine.{name}"),
            Self::Binding(name) => write!(f, "binding.{name}"),
            Self::Output(name) => write!(f, "output.{name}"),
        }
    }
}

/// That one block needs another, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The machine or binding that is needed.
    pub on: BlockId,
    /// Where; of a reference through locals, where the local's expression says it.
    pub span: SourceSpan,
}

impl Config {
    /// Returns where a block is declared: the block's keyword and labels.
    pub fn declared_at(&self, block: &BlockId) -> Option<SourceSpan> {
        let span = match block {
            BlockId::Variable(name) => self.variables.get(name)?.span,
            BlockId::Local(name) => self.locals.get(name)?.span,
            BlockId::Provider(name) => self.providers.get(name)?.span,
            BlockId::Machine(name) => self.machines.get(name)?.span,
            BlockId::Binding(name) => self.bindings.get(name)?.span,
            BlockId::Output(name) => self.outputs.get(name)?.span,
        };
        Some(self.sources.place(span))
    }
}

impl Config {
    /// Returns where an import names its machine, and where what that is at its provider.
    pub fn import_at(&self, import: &Import) -> [SourceSpan; 2] {
        [import.span, import.id.span].map(|it| self.sources.place(it))
    }

    /// Returns where a machine says an attribute, or has a nested block of that name: of labelled
    /// ones that one, where it is named. Where it says nothing of it, it is where it is declared.
    pub fn said_at(&self, machine: &Name, name: &str, label: Option<&str>) -> Option<SourceSpan> {
        let machine = self.machines.get(machine)?;
        let mut attributes = machine.body.attributes.iter();
        let attribute = attributes.find(|it| &*it.name.text == name);
        let is_it = |it: &&Block| {
            let mut labels = it.labels.iter();
            let is_labelled = label.is_none_or(|label| labels.any(|of| &*of.text == label));
            &*it.keyword.text == name && is_labelled
        };
        let block = || machine.body.blocks.iter().find(is_it).map(Block::header);
        let span = attribute.map(|it| it.name.span).or_else(block);
        Some(self.sources.place(span.unwrap_or(machine.span)))
    }
}

impl Config {
    /// Returns where a binding says a limit.
    pub(crate) fn limit_at(&self, binding: &Name, limit: &str) -> Option<SourceSpan> {
        let limits = self.bindings.get(binding)?.attenuate.as_ref()?;
        let found = limits.iter().find(|it| &*it.name.text == limit)?;
        Some(self.sources.place(found.name.span))
    }

    /// Returns where one of a binding's `expose` blocks names a unit.
    pub(crate) fn unit_at(&self, binding: &Name, block: usize) -> Option<SourceSpan> {
        let attributes = &self
            .bindings
            .get(binding)?
            .expose
            .get(block)?
            .body
            .attributes;
        let unit = attributes.iter().find(|it| &*it.name.text == "unit")?;
        Some(self.sources.place(unit.name.span))
    }

    /// Returns of which kind a declared service is.
    pub(crate) fn kind_of(&self, service: &gobs_model::Address) -> Option<ServiceKind> {
        let gobs_model::Address::Service { machine, service } = service else {
            return None;
        };
        let machine = self.machines.get(&machine.name)?;
        Some(machine.services.get(service)?.kind)
    }

    /// Returns the limits that a binding asks for and a kind of service cannot enforce, as
    /// mistakes.
    pub(crate) fn unenforceable(&self, binding: &Name, kind: ServiceKind) -> Vec<Diagnostic> {
        let limits = self
            .bindings
            .get(binding)
            .and_then(|it| it.attenuate.as_ref());
        let wrong = limits.into_iter().flatten().filter_map(|it| {
            let why = super::service::unenforceable(kind.as_str(), &it.name.text)?;
            let error = Diagnostic::error("Unenforceable attenuation", why)
                .at(self.sources.place(it.name.span));
            Some(error.hint(super::service::enforceable(kind.as_str())))
        });
        wrong.collect()
    }
}

/// What a machine's `hob` block says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HobValues {
    /// Whether the machine has an agent.
    pub enabled: bool,
    /// Where the agent listens, where the block says it.
    pub listen: Option<String>,
    /// How others reach it: attributes of the machine, or literal addresses.
    pub advertise: Vec<String>,
    /// Who opens the first connection.
    pub dial: Dial,
    /// How long its first connection may take.
    pub deadline: Duration,
    /// Where the machine gets the agent from, where its user data installs it.
    pub source: HobSource,
    /// As which user the agent runs, where user data installs it.
    pub user: HobUser,
    /// Whether the agent must call from an address that the provider says is the machine's.
    pub require_address: bool,
}

/// Where a machine gets its agent from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HobSource {
    /// From the boss, which serves its own.
    #[default]
    Boss,
    /// From this address; what comes is run only if it has this SHA-256.
    Url {
        /// The address.
        url: String,
        /// In 64 digits of lower-case hexadecimal.
        sha256: String,
    },
    /// The machine's image has it.
    Image,
}

/// As which user an agent runs that user data installs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HobUser {
    /// One of its own, `gobs`, with the few capabilities that it needs.
    #[default]
    Own,
    /// `root`: it may restart units.
    Root,
}

/// Who opens the first connection between a hob and the boss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dial {
    /// The hob dials the boss.
    #[default]
    Hob,
    /// The boss dials the hob.
    Boss,
}

impl HobValues {
    /// How long an agent's first connection may take where nothing says it: slow clouds need
    /// minutes to boot an image.
    pub const DEADLINE_DEFAULT: Duration = Duration::from_mins(30);

    /// The longest that it may take: so long provisioning can keep a claim open.
    pub const DEADLINE_MAX: Duration = Duration::from_hours(2);

    /// Returns the settings as rows keep them.
    pub fn to_value(&self) -> Value {
        let listen = self.listen.as_deref().map_or(Value::NULL, Value::from);
        let dial = match self.dial {
            Dial::Hob => "hob",
            Dial::Boss => "boss",
        };
        let mut entries = vec![
            ("enabled", Value::from(self.enabled)),
            ("listen", listen),
            (
                "advertise",
                Value::list(self.advertise.iter().map(|text| text.as_str().into())),
            ),
            ("dial", dial.into()),
            (
                "deadline",
                format!("{}s", self.deadline.as_secs()).as_str().into(),
            ),
        ];
        // What most machines do not say is not kept for each of them.
        match &self.source {
            HobSource::Boss => {}
            HobSource::Url { url, sha256 } => {
                entries.push(("url", url.as_str().into()));
                entries.push(("sha256", sha256.as_str().into()));
            }
            HobSource::Image => entries.push(("install", "image".into())),
        }
        if self.user == HobUser::Root {
            entries.push(("user", "root".into()));
        }
        if self.require_address {
            entries.push(("require_address", true.into()));
        }
        Value::object(entries)
    }

    /// Returns the settings that a row keeps.
    pub fn of_value(value: &Value) -> Self {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let flag = |name: &str| value.get(name).and_then(Value::as_bool);
        let advertise = value.get("advertise").and_then(Value::as_elements);
        let advertise = advertise.into_iter().flatten().filter_map(Value::as_str);
        let deadline = text("deadline").and_then(|text| super::address::duration(text).ok());
        Self {
            enabled: flag("enabled") != Some(false),
            listen: text("listen").map(str::to_owned),
            advertise: advertise.map(str::to_owned).collect(),
            dial: match text("dial") {
                Some("boss") => Dial::Boss,
                _ => Dial::Hob,
            },
            deadline: deadline.unwrap_or(Self::DEADLINE_DEFAULT),
            source: match (text("url"), text("sha256"), text("install")) {
                (Some(url), Some(sha256), _) => HobSource::Url {
                    url: url.into(),
                    sha256: sha256.into(),
                },
                (_, _, Some("image")) => HobSource::Image,
                _ => HobSource::Boss,
            },
            user: match text("user") {
                Some("root") => HobUser::Root,
                _ => HobUser::Own,
            },
            require_address: flag("require_address") == Some(true),
        }
    }

    /// Returns where the agent listens: where nothing says it, on loopback beside gobs, and on
    /// all addresses elsewhere, at the port that is gobs' own there.
    pub fn listens_on(&self, elsewhere: bool) -> &str {
        match &self.listen {
            Some(listen) => listen,
            None if elsewhere => "[::]:7463",
            None => "127.0.0.1:0",
        }
    }
}

impl Default for HobValues {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            advertise: Vec::new(),
            dial: Dial::Hob,
            deadline: Self::DEADLINE_DEFAULT,
            source: HobSource::Boss,
            user: HobUser::Own,
            require_address: false,
        }
    }
}

/// What one instance of a machine is to be.
#[derive(Clone, Debug)]
pub struct MachineValues {
    /// The provider's configuration: `dummy` or `dummy.alias`.
    pub provider: String,
    /// An object, complete by the provider's schema: defaults filled in, what is optional and not
    /// set is `null`, what only the provider computes is absent.
    pub attributes: Value,
    /// Its agent's settings.
    pub hob: HobValues,
    /// Its services by name.
    pub services: BTreeMap<Name, ServiceValues>,
    /// What `lifecycle` says.
    pub lifecycle: Lifecycle,
    /// The machines and bindings whose attributes were looked at, sorted; one without a key stands
    /// for all instances of its block.
    pub reads: Arc<[gobs_model::Address]>,
}

/// What a service of a machine is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceValues {
    /// What a row keeps and a hob is told: `{tcp = "127.0.0.1:5432"}`.
    pub spec: Value,
    /// How long to wait until it answers.
    pub ready: Duration,
}

impl ServiceValues {
    /// How long to wait for a service where nothing says it: a database may first recover.
    pub const READY_DEFAULT: Duration = Duration::from_mins(5);
}

/// What one instance of a binding is to be.
#[derive(Clone, Debug)]
pub struct BindingValues {
    /// The service that is given, or the binding that it is given on from.
    pub from: gobs_model::Address,
    /// Where `from` is a sturdyref: the service that `from` then is, which the hob of the
    /// receiving machine offers for this binding.
    pub object: Option<ServiceValues>,
    /// The machine that gets it.
    pub to: gobs_model::Address,
    /// Under which name the machine finds it.
    pub name: Name,
    /// How long the streams of a grant that is replaced may go on.
    pub drain: Duration,
    /// An object of the limits asked for, or `null`.
    pub attenuate: Value,
    /// A list of objects, each with `unix` or `tcp`.
    pub expose: Value,
    /// The machines and bindings whose attributes were looked at, as in [`MachineValues`]. The
    /// ends of the binding are not among them for being its ends.
    pub reads: Arc<[gobs_model::Address]>,
}

impl BindingValues {
    /// How long live streams may go on where nothing says it: a request, not a session.
    pub const DRAIN_DEFAULT: Duration = Duration::from_secs(30);
}

/// The instances of a block.
#[derive(Clone, Debug)]
pub struct Expansion {
    /// In the order of their keys.
    pub instances: Vec<gobs_model::Instance>,
    /// `each.value` of each instance, where the block has `for_each`.
    pub(crate) each: BTreeMap<Arc<str>, Value>,
    /// What a reference to the whole block shows.
    pub(crate) value: Value,
}
