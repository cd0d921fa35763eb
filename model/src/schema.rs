//! Schemas: what a block may hold, and what a change to it costs.
//!
//! A schema tells the planner all it needs, so that planning calls no provider.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Type, Value};

/// What a change to an attribute costs, cheapest first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The machine goes on running.
    #[default]
    InPlace,
    /// The machine is shut down and started again.
    PowerCycle,
    /// The machine is moved to another size: minutes of downtime, the disk is kept.
    Resize,
    /// The machine is moved to another place: longer downtime, the disk is kept, its addresses
    /// are not.
    Migrate,
    /// The disk is written anew: a new enrollment and new grants, the address is kept.
    Rebuild,
    /// Another machine takes its place.
    Replace,
}

/// Who sets an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The configuration must.
    Required,
    /// The configuration may; absent means the default, or `null`.
    Optional,
    /// The configuration may; absent means that the provider chooses.
    OptionalComputed,
    /// The provider alone.
    Computed,
    /// gobs alone, in a nested block with a flag `derived`: where that is `true`, who must reach
    /// the machine's hob, as [`ADMITS`] says.
    Admits,
}

/// The type of an attribute of [`Role::Admits`]: whose TCP connections to which port of the
/// machine are to be let in, as far as gobs knows.
pub static ADMITS: std::sync::LazyLock<Type> = std::sync::LazyLock::new(|| {
    let field = |name: &str, ty| {
        let (optional, default) = (false, None);
        let field = crate::ObjectField {
            ty,
            optional,
            default,
        };
        (name.to_owned(), field)
    };
    let fields = [field("address", Type::String), field("port", Type::Number)];
    Type::set(Type::Object(fields.into()))
});

/// One attribute of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// The type that a value is converted to.
    #[serde(rename = "type")]
    pub ty: Type,
    /// Who sets it.
    pub role: Role,
    /// What a change costs.
    #[serde(default)]
    pub change: Change,
    /// What a change to one of these texts costs instead.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub becoming: BTreeMap<String, Change>,
    /// Whether its value is never shown or stored in clear.
    #[serde(default)]
    pub sensitive: bool,
    /// What an absent optional attribute means.
    #[serde(default)]
    pub default: Option<Value>,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
}

/// How often a nested block may stand, and how it is seen in the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nesting {
    /// At most once; the value is an object or `null`.
    Single,
    /// Any number; the value is a list of objects.
    List,
    /// Any number, each with one label; the value is a map of objects.
    Labelled,
}

/// A block within a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NestedBlock {
    /// How often it may stand.
    pub nesting: Nesting,
    /// What it holds.
    pub block: Block,
    /// What adding or removing the block costs.
    #[serde(default)]
    pub change: Change,
    /// Whether it stands for data that outlives the block and the machine: it is destroyed with
    /// them only where its attribute `delete` is `true`.
    #[serde(default)]
    pub outlives: bool,
}

/// What a block may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
    /// Nested blocks by keyword.
    #[serde(default)]
    pub blocks: BTreeMap<String, NestedBlock>,
    /// What cannot be set without something else. Of a machine's own block only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Needs>,
}

/// What cannot be set without something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// The attribute that needs another one; or `hob`, which every machine has that has an agent.
    pub with: String,
    /// The attributes of which one must be set then, and not to an empty list.
    pub one_of: Vec<String>,
    /// What to do about it: one sentence for people.
    #[serde(default)]
    pub hint: String,
}

/// All that gobs knows of a provider before it calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderSchema {
    /// The provider's name: `dummy`, `linode`.
    pub name: String,
    /// What its `provider` block may hold.
    pub settings: Block,
    /// What a `machine` block of this provider may hold beside gobs' own arguments.
    pub machine: Block,
    /// How long a list may not yet show what exists: absence counts only after that.
    pub list_lag: Duration,
    /// Where its machines are, and how their agents come to them.
    pub hosts: Hosts,
}

/// Where a provider's machines are, and how their agents come to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hosts {
    /// Whether they are not on the host that gobs runs on: then nobody reaches the other's
    /// loopback addresses.
    pub elsewhere: bool,
    /// How user data is written.
    pub user_data: UserDataForm,
    /// The most bytes that user data may have.
    pub user_data_bytes_max: Option<usize>,
    /// Where a machine asks for its user data by itself, at services that speak as Linode's do:
    /// `http://169.254.169.254`. They are asked in turn, and kept from all but root and the agent.
    pub metadata: Vec<String>,
    /// The attributes that hold a machine's addresses, the first of which it is dialled at.
    pub addresses: Vec<String>,
    /// The networks that machines may have among themselves.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// The values of the attribute `status` of a machine that has not begun to run.
    pub provisioning: Vec<String>,
    /// The values of `status` of a machine whose agent has ended for good: where it has not called
    /// home by then, it never will.
    pub ended: Vec<String>,
}

/// A network among machines, in which each says by itself where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The nested block that says so: `interface`.
    pub block: String,
    /// The attribute in it that holds the machine's address, with or without a prefix.
    pub address: String,
    /// The attribute in it that says in which part of such a network: two machines that name the
    /// same one meet there.
    pub part: String,
    /// The flag in it that says that the machine's default route goes through it.
    pub route: String,
    /// Whether what comes by it comes through the machine's firewall.
    pub filtered: bool,
}

/// How user data is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserDataForm {
    /// The agent's own document: whoever makes the machine starts its agent too.
    #[default]
    Document,
    /// A MIME message for cloud-init, with a part that installs the agent, and the user's own.
    CloudInit,
}

impl Attribute {
    /// Returns this attribute with another cost of a change to one text.
    #[must_use]
    pub fn becoming(mut self, text: &str, change: Change) -> Self {
        self.becoming.insert(text.into(), change);
        self
    }

    /// Returns what a change to a value costs.
    pub fn change_to(&self, wanted: &Value) -> Change {
        let text = wanted.as_str();
        let cheaper = text.and_then(|text| self.becoming.get(text));
        cheaper.copied().unwrap_or(self.change)
    }

    /// Returns an attribute that the configuration must set.
    pub fn required(ty: Type, change: Change, description: &str) -> Self {
        Self::new(ty, Role::Required, change, description)
    }

    /// Returns an attribute that the configuration may set.
    pub fn optional(ty: Type, change: Change, description: &str) -> Self {
        Self::new(ty, Role::Optional, change, description)
    }

    /// Returns an attribute that only the provider sets.
    pub fn computed(ty: Type, description: &str) -> Self {
        Self::new(ty, Role::Computed, Change::InPlace, description)
    }

    /// Returns an attribute that the provider chooses where the configuration does not.
    pub fn optional_computed(ty: Type, change: Change, description: &str) -> Self {
        Self::new(ty, Role::OptionalComputed, change, description)
    }

    /// Returns the attribute by which gobs says who must reach the machine's hob.
    pub fn admits(description: &str) -> Self {
        Self::new(ADMITS.clone(), Role::Admits, Change::InPlace, description)
    }

    /// Returns this attribute with what its absence means.
    #[must_use]
    pub fn with_default(mut self, value: impl Into<Value>) -> Self {
        self.default = Some(value.into());
        self
    }

    /// Returns this attribute, never shown or stored in clear.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.sensitive = true;
        self
    }

    fn new(ty: Type, role: Role, change: Change, description: &str) -> Self {
        let description = description.into();
        Self {
            ty,
            role,
            change,
            becoming: BTreeMap::new(),
            sensitive: false,
            default: None,
            description,
        }
    }
}

impl NestedBlock {
    /// Returns this block with blocks within it.
    #[must_use]
    pub fn with_blocks<const N: usize>(mut self, blocks: [(&str, Self); N]) -> Self {
        let blocks = blocks.into_iter().map(|(name, it)| (name.to_owned(), it));
        self.block.blocks.extend(blocks);
        self
    }

    /// Returns a nested block that goes with its machine.
    pub fn new(nesting: Nesting, change: Change, block: Block) -> Self {
        Self {
            nesting,
            block,
            change,
            outlives: false,
        }
    }

    /// Returns this block as one that stands for data, which outlives it.
    #[must_use]
    pub fn outlives(mut self) -> Self {
        self.outlives = true;
        self
    }
}

impl Block {
    /// Returns a block of these attributes.
    pub fn of<const N: usize>(attributes: [(&str, Attribute); N]) -> Self {
        let attributes = attributes
            .into_iter()
            .map(|(name, it)| (name.to_owned(), it))
            .collect();
        Self {
            attributes,
            ..Self::default()
        }
    }
}
