//! What a `provider "linode"` and its machines may hold, and what a change to it costs.

use std::time::Duration;

use gobs_model::{
    Attribute, Block, Change, Hosts, Needs, NestedBlock, Nesting, Network, ProviderSchema, Type,
    UserDataForm,
};

/// How long a list may not yet show what exists: no lag was ever found, and nothing promises
/// that there is none.
pub(crate) const LIST_LAG: Duration = Duration::from_secs(10);

/// The largest user data, before base64: what cloud-init's source for Linode takes, which is
/// less than the API does.
pub(crate) const USER_DATA_BYTES_MAX: usize = 16_384;

/// Where a machine finds its own metadata.
const METADATA: [&str; 2] = ["http://169.254.169.254", "http://[fd00:a9fe:a9fe::1]"];

/// Returns the schema; `elsewhere` is false for a double on this host, whose machines are here.
pub(crate) fn schema(list_lag: Duration, elsewhere: bool) -> ProviderSchema {
    ProviderSchema {
        name: "linode".into(),
        settings: settings(),
        machine: machine(),
        list_lag,
        hosts: Hosts {
            elsewhere,
            user_data: UserDataForm::CloudInit,
            user_data_bytes_max: Some(USER_DATA_BYTES_MAX),
            metadata: METADATA.map(str::to_owned).into(),
            addresses: ["ipv4", "ipv6"].map(str::to_owned).into(),
            // A firewall is about what comes from the internet and from a VPC, not from a VLAN.
            networks: [
                ("ipv4", "subnet_id", true),
                ("ipam_address", "label", false),
            ]
            .map(|(address, part, filtered)| Network {
                block: "interface".into(),
                address: address.into(),
                part: part.into(),
                route: "primary".into(),
                filtered,
            })
            .into(),
            provisioning: ["provisioning", "booting"].map(str::to_owned).into(),
            // One that is off may be started again by whoever turned it off.
            ended: Vec::new(),
        },
    }
}

fn settings() -> Block {
    Block::of([
        (
            "token_command",
            Attribute::optional(
                Type::list(Type::String),
                Change::InPlace,
                "A command that prints the token; LINODE_TOKEN comes first.",
            ),
        ),
        (
            "url",
            Attribute::optional(
                Type::String,
                Change::InPlace,
                "Where the API is, with its version: https://api.linode.com/v4.",
            ),
        ),
    ])
}

/// Returns what a machine may hold.
pub(crate) fn machine() -> Block {
    let mut machine = attributes();
    let blocks = [
        ("firewall", firewall()),
        ("dns", dns()),
        ("volume", volume()),
        ("interface", interface()),
    ];
    machine.blocks = blocks.map(|(name, it)| (name.to_owned(), it)).into();
    let needs = |with: &str, one_of: &[&str], hint: &str| Needs {
        with: with.into(),
        one_of: one_of.iter().map(|it| (*it).to_owned()).collect(),
        hint: hint.into(),
    };
    machine.needs = vec![
        needs(
            "image",
            &["authorized_keys", "authorized_users", "root_pass"],
            "Linode writes no disk that nobody could log in to. For example: authorized_keys = \
             [file(\"id_ed25519.pub\")].",
        ),
        needs(
            "hob",
            &["image"],
            "Set image, or hob { enabled = false } for a machine without a disk.",
        ),
    ];
    machine
}

fn firewall() -> NestedBlock {
    let text = |about: &str| Attribute::optional(Type::String, Change::InPlace, about);
    let addresses =
        |about: &str| Attribute::optional(Type::list(Type::String), Change::InPlace, about);
    let rule = Block::of([
        ("label", text("What the rule is called.")),
        ("action", text("ACCEPT or DROP.").with_default("ACCEPT")),
        (
            "protocol",
            text("TCP, UDP, ICMP or IPENCAP.").with_default("TCP"),
        ),
        (
            "ports",
            text("Ports and ranges: 22, 8000-8080; all of them where absent."),
        ),
        ("description", text("What the rule is for.")),
        ("ipv4", addresses("Networks: 192.0.2.0/24.")),
        ("ipv6", addresses("Networks: 2001:db8::/32.")),
    ]);
    let rules = || NestedBlock::new(Nesting::List, Change::InPlace, rule.clone());
    let block = Block::of([
        (
            "derived",
            Attribute::optional(
                Type::Bool,
                Change::InPlace,
                "Whether those whom the machine's hob serves are let in, and nobody else for it.",
            )
            .with_default(false),
        ),
        (
            "admits",
            Attribute::admits("Whom it lets in for the machine's hob, by its bindings."),
        ),
        (
            "inbound_policy",
            text("What becomes of what no inbound rule is about: ACCEPT or DROP.")
                .with_default("DROP"),
        ),
        (
            "outbound_policy",
            text("What becomes of what no outbound rule is about: ACCEPT or DROP.")
                .with_default("ACCEPT"),
        ),
        (
            "label",
            Attribute::optional_computed(
                Type::String,
                Change::InPlace,
                "Its name in the account, unique there.",
            ),
        ),
        ("id", Attribute::computed(Type::String, "Its identifier.")),
    ]);
    NestedBlock::new(Nesting::Single, Change::InPlace, block)
        .with_blocks([("inbound", rules()), ("outbound", rules())])
}

fn dns() -> NestedBlock {
    let text = |about: &str| Attribute::optional(Type::String, Change::InPlace, about);
    let block = Block::of([
        (
            "domain",
            Attribute::required(Type::String, Change::InPlace, "A domain of the account."),
        ),
        (
            "name",
            text("The name within the domain; the domain itself where absent.").with_default(""),
        ),
        ("type", text("A or AAAA.").with_default("A")),
        (
            "ttl",
            Attribute::optional(
                Type::Number,
                Change::InPlace,
                "How long it may be remembered, in seconds; Linode rounds it up.",
            ),
        ),
        (
            "target",
            Attribute::computed(Type::String, "The address that it leads to."),
        ),
        ("id", Attribute::computed(Type::String, "Its identifier.")),
    ]);
    NestedBlock::new(Nesting::List, Change::InPlace, block)
}

fn volume() -> NestedBlock {
    let chosen = |about: &str| Attribute::optional_computed(Type::String, Change::InPlace, about);
    let block = Block::of([
        (
            "size",
            Attribute::required(
                Type::Number,
                Change::InPlace,
                "How large it is, in GB; it can grow, and never shrinks.",
            ),
        ),
        (
            "delete",
            Attribute::optional(
                Type::Bool,
                Change::InPlace,
                "Whether it is destroyed with its machine, or when its block goes.",
            )
            .with_default(false),
        ),
        (
            "label",
            chosen("Its name in the account, and in its path on the machine."),
        ),
        (
            "tags",
            Attribute::optional(Type::set(Type::String), Change::InPlace, "Its tags."),
        ),
        (
            "encryption",
            chosen("enabled or disabled; what it is made with stays."),
        ),
        ("id", Attribute::computed(Type::String, "Its identifier.")),
        (
            "path",
            Attribute::computed(Type::String, "Its device on the machine."),
        ),
    ]);
    NestedBlock::new(Nesting::Labelled, Change::InPlace, block).outlives()
}

fn interface() -> NestedBlock {
    let text = |about: &str| Attribute::optional(Type::String, Change::PowerCycle, about);
    let block = Block::of([
        (
            "purpose",
            Attribute::required(Type::String, Change::PowerCycle, "public, vlan or vpc."),
        ),
        ("label", text("The name of the VLAN.")),
        (
            "ipam_address",
            text("The machine's address in the VLAN, with its prefix."),
        ),
        (
            "subnet_id",
            Attribute::optional(Type::Number, Change::PowerCycle, "The subnet of the VPC."),
        ),
        (
            "ipv4",
            text("The machine's address in the VPC; Linode chooses where absent."),
        ),
        (
            "nat_1_1",
            text("The public address that leads to the one in the VPC, or any."),
        ),
        (
            "primary",
            Attribute::optional(
                Type::Bool,
                Change::PowerCycle,
                "Whether the default route goes through it.",
            ),
        ),
    ]);
    NestedBlock::new(Nesting::List, Change::PowerCycle, block)
}

fn attributes() -> Block {
    let text = |change, about: &str| Attribute::optional(Type::String, change, about);
    let texts = |change, about: &str| Attribute::optional(Type::list(Type::String), change, about);
    let flag = |change, about: &str| Attribute::optional(Type::Bool, change, about);
    let number = |change, about: &str| Attribute::optional(Type::Number, change, about);
    let chosen = |ty, change, about: &str| Attribute::optional_computed(ty, change, about);
    let seen = Attribute::computed;
    Block::of([
        (
            "region",
            Attribute::required(
                Type::String,
                Change::Migrate,
                "Where it is: eu-central. A change migrates it, and its addresses change.",
            ),
        ),
        (
            "type",
            Attribute::required(Type::String, Change::Resize, "How big it is: g6-nanode-1."),
        ),
        (
            "image",
            text(
                Change::Rebuild,
                "What its disk is written from: linode/debian13.",
            ),
        ),
        (
            "label",
            chosen(
                Type::String,
                Change::InPlace,
                "Its name in the account, unique there.",
            ),
        ),
        (
            "tags",
            Attribute::optional(
                Type::set(Type::String),
                Change::InPlace,
                "Its tags, whatever their order.",
            ),
        ),
        (
            "authorized_keys",
            texts(Change::Rebuild, "SSH keys that may log in as root."),
        ),
        (
            "authorized_users",
            texts(Change::Rebuild, "Users of the account whose keys may."),
        ),
        (
            "root_pass",
            text(
                Change::PowerCycle,
                "The password of root; it is never read back.",
            )
            .secret(),
        ),
        (
            "user_data",
            text(
                Change::Rebuild,
                "Your own cloud-config or script, beside what starts the hob.",
            ),
        ),
        (
            "private_ip",
            flag(
                Change::InPlace,
                "Whether it has a private address; never removed.",
            ),
        ),
        (
            "backups",
            flag(Change::InPlace, "Whether Linode backs it up, which costs."),
        ),
        (
            "swap_size",
            number(
                Change::PowerCycle,
                "The size of its swap disk in MB; the disk with the system has the rest.",
            ),
        ),
        (
            "booted",
            flag(
                Change::InPlace,
                "Whether it runs; so it does where this is absent.",
            ),
        ),
        (
            "disk_encryption",
            chosen(
                Type::String,
                Change::Rebuild,
                "enabled or disabled; Linode chooses.",
            ),
        ),
        (
            "firewall_id",
            number(Change::InPlace, "The firewall that it is under."),
        ),
        (
            "placement_group",
            number(
                Change::InPlace,
                "The placement group that keeps it apart from others.",
            ),
        ),
        (
            "interface_generation",
            chosen(
                Type::String,
                Change::Replace,
                "legacy_config or linode: which interfaces it has; the account chooses.",
            )
            .becoming("linode", Change::PowerCycle),
        ),
        (
            "maintenance_policy",
            chosen(
                Type::String,
                Change::InPlace,
                "linode/migrate or linode/power_off_on.",
            ),
        ),
        ("id", seen(Type::String, "Its identifier.")),
        (
            "address",
            seen(Type::String, "Its first public IPv4 address."),
        ),
        (
            "ipv4",
            seen(Type::list(Type::String), "Its IPv4 addresses."),
        ),
        (
            "ipv6",
            seen(Type::String, "Its IPv6 address, with its prefix."),
        ),
        (
            "status",
            seen(Type::String, "What it is doing: running, offline, booting."),
        ),
        (
            "created",
            seen(Type::String, "When it was created, in UTC."),
        ),
        ("host_uuid", seen(Type::String, "The host that it is on.")),
        ("memory", seen(Type::Number, "Its memory in MB.")),
        ("disk", seen(Type::Number, "Its disk in MB.")),
        ("vcpus", seen(Type::Number, "How many virtual CPUs it has.")),
        ("gpus", seen(Type::Number, "How many GPUs it has.")),
        (
            "transfer",
            seen(Type::Number, "Its monthly transfer in GB."),
        ),
        (
            "mark",
            seen(
                Type::String,
                "By which its firewall and its volumes are found.",
            ),
        ),
        (
            "volume_ids",
            seen(
                Type::map(Type::String),
                "The identifiers of its volumes by name, attached or not.",
            ),
        ),
    ])
}
