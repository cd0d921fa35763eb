//! What the account can choose from: a few regions, types and images, shaped as the real ones.

use serde_json::{Value, json};

/// Regions: id, label, country.
const REGIONS: [(&str, &str, &str); 4] = [
    ("us-central", "Dallas, TX", "us"),
    ("us-ord", "Chicago, IL", "us"),
    ("eu-central", "Frankfurt, DE", "de"),
    ("ap-west", "Mumbai, IN", "in"),
];

/// Old names that the API takes and never shows.
const ALIASES: [(&str, &str); 1] = [("us-south", "us-central")];

/// Images, and whether cloud-init reads user data on them.
const IMAGES: [(&str, &str, bool); 5] = [
    ("linode/debian13", "Debian 13", true),
    ("linode/debian12", "Debian 12", true),
    ("linode/ubuntu24.04", "Ubuntu 24.04 LTS", true),
    ("linode/alpine3.23", "Alpine 3.23", true),
    ("linode/kali", "Kali Linux", false),
];

/// A type of instance.
pub(crate) struct Class {
    id: &'static str,
    label: &'static str,
    memory: u64,
    pub(crate) disk: u64,
    vcpus: u64,
    transfer: u64,
}

const CLASSES: [Class; 4] = [
    Class::new("g6-nanode-1", "Nanode 1GB", [1_024, 25_600, 1, 1_000]),
    Class::new("g6-standard-1", "Linode 2GB", [2_048, 51_200, 1, 2_000]),
    Class::new("g6-standard-2", "Linode 4GB", [4_096, 81_920, 2, 4_000]),
    Class::new("g6-standard-4", "Linode 8GB", [8_192, 163_840, 4, 5_000]),
];

impl Class {
    const fn new(id: &'static str, label: &'static str, figures: [u64; 4]) -> Self {
        let [memory, disk, vcpus, transfer] = figures;
        Self {
            id,
            label,
            memory,
            disk,
            vcpus,
            transfer,
        }
    }

    pub(crate) fn specs(&self) -> Value {
        json!({"disk": self.disk, "memory": self.memory, "vcpus": self.vcpus, "gpus": 0,
            "transfer": self.transfer, "accelerated_devices": 0})
    }

    pub(crate) fn show(&self) -> Value {
        json!({"id": self.id, "label": self.label, "class": "standard", "memory": self.memory,
            "disk": self.disk, "vcpus": self.vcpus, "gpus": 0, "transfer": self.transfer,
            "network_out": 1_000, "successor": null, "accelerated_devices": 0,
            "price": {"hourly": 0.0075, "monthly": 5.0}, "region_prices": [],
            "addons": {"backups": {"price": {"hourly": 0.003, "monthly": 2.0},
                "region_prices": []}}})
    }
}

pub(crate) fn class(id: &str) -> Option<&'static Class> {
    CLASSES.iter().find(|class| class.id == id)
}

pub(crate) fn classes() -> Vec<Value> {
    CLASSES.iter().map(Class::show).collect()
}

/// Returns the name that the API shows for a region, if there is such.
pub(crate) fn region(id: &str) -> Option<&'static str> {
    let id = ALIASES
        .iter()
        .find(|(old, _)| *old == id)
        .map_or(id, |(_, new)| new);
    REGIONS.iter().map(|region| region.0).find(|it| *it == id)
}

pub(crate) fn regions() -> Vec<Value> {
    let capabilities = [
        "Linodes",
        "Backups",
        "Block Storage",
        "Cloud Firewall",
        "Metadata",
    ];
    let show = |(id, label, country): &(&str, &str, &str)| {
        json!({"id": id, "label": label, "country": country, "capabilities": capabilities,
            "status": "ok", "resolvers": {"ipv4": "192.0.2.0", "ipv6": "2001:db8::1"},
            "placement_group_limits":
                {"maximum_pgs_per_customer": 100, "maximum_linodes_per_pg": 5},
            "site_type": "core"})
    };
    REGIONS.iter().map(show).collect()
}

pub(crate) fn has_image(id: &str) -> bool {
    IMAGES.iter().any(|image| image.0 == id)
}

pub(crate) fn images() -> Vec<Value> {
    let show = |(id, label, cloud_init): &(&str, &str, bool)| {
        let capabilities: &[&str] = if *cloud_init { &["cloud-init"] } else { &[] };
        json!({"id": id, "label": label, "description": "", "type": "manual", "size": 1_500,
            "is_public": true, "deprecated": false, "status": "available", "vendor": "Linode",
            "capabilities": capabilities, "tags": [], "created": "2025-08-10T00:00:00",
            "updated": "2025-08-10T00:00:00", "created_by": "linode", "expiry": null,
            "eol": null, "total_size": 0, "regions": []})
    };
    IMAGES.iter().map(show).collect()
}
