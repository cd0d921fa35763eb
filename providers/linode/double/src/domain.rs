//! Domains and their records.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::account::Account;
use crate::clock::api_time;
use crate::reply::Refusal;

/// The times to live that there are; others are rounded up to one of these.
const TTLS_S: [u64; 15] = [
    0, 30, 120, 300, 3_600, 7_200, 14_400, 28_800, 57_600, 86_400, 172_800, 345_600, 604_800,
    1_209_600, 2_419_200,
];

/// One domain.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    name: String,
    created_ms: u64,
    /// As the API shows them.
    pub(crate) records: BTreeMap<u64, Value>,
}

impl Domain {
    pub(crate) fn show(&self, id: u64) -> Value {
        let created = api_time(self.created_ms);
        json!({"id": id, "type": "master", "domain": self.name, "tags": [], "group": "",
            "status": "active", "errors": "", "description": "",
            "soa_email": "double@example.com", "retry_sec": 0, "master_ips": [], "axfr_ips": [],
            "expire_sec": 0, "refresh_sec": 0, "ttl_sec": 0, "created": created,
            "updated": created})
    }
}

impl Account {
    pub(crate) fn domain(&mut self, id: u64) -> Result<&mut Domain, Refusal> {
        let domains = &mut self.resources.domains;
        domains.get_mut(&id).ok_or_else(Refusal::not_found)
    }

    pub(crate) fn create_domain(&mut self, body: &Value) -> Result<Value, Refusal> {
        let name = body["domain"].as_str().unwrap_or_default().to_owned();
        if !name.contains('.') {
            return Err(Refusal::of(400, Some("domain"), "Domain is not valid."));
        }
        if self.resources.domains.values().any(|it| it.name == name) {
            return Err(Refusal::of(400, Some("domain"), "DNS zone already exists."));
        }
        let id = self.fresh_id();
        let domain = Domain {
            name: name.clone(),
            created_ms: self.clock.now_ms(),
            records: BTreeMap::new(),
        };
        let shown = domain.show(id);
        self.resources.domains.insert(id, domain);
        self.note("dns_zone_create", "domain", id, &name);
        Ok(shown)
    }

    /// Makes a record, however many of its kind there are.
    pub(crate) fn create_record(&mut self, domain: u64, body: &Value) -> Result<Value, Refusal> {
        self.domain(domain)?;
        let (id, created) = (self.fresh_id(), api_time(self.clock.now_ms()));
        let record = json!({"id": id, "type": body["type"], "name":
            body["name"].as_str().unwrap_or_default(), "target": body["target"], "priority": 0,
            "weight": 0, "port": 0, "service": null, "protocol": null,
            "ttl_sec": rounded(body["ttl_sec"].as_u64().unwrap_or(0)), "tag": null,
            "created": created, "updated": created});
        check_record(&record)?;
        self.domain(domain)?.records.insert(id, record.clone());
        self.stats.records_created += 1;
        self.note("dns_record_create", "domain", domain, "");
        Ok(record)
    }

    pub(crate) fn update_record(
        &mut self,
        domain: u64,
        id: u64,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let record = self.domain(domain)?.records.get(&id);
        let mut record = record.cloned().ok_or_else(Refusal::not_found)?;
        for name in ["name", "target"] {
            if let Some(text) = body[name].as_str() {
                record[name] = text.into();
            }
        }
        if let Some(ttl_s) = body["ttl_sec"].as_u64() {
            record["ttl_sec"] = rounded(ttl_s).into();
        }
        check_record(&record)?;
        self.domain(domain)?.records.insert(id, record.clone());
        self.note("dns_record_update", "domain", domain, "");
        Ok(record)
    }
}

fn rounded(ttl_s: u64) -> u64 {
    let found = TTLS_S.iter().find(|it| **it >= ttl_s);
    found.copied().unwrap_or(TTLS_S[TTLS_S.len() - 1])
}

fn check_record(record: &Value) -> Result<(), Refusal> {
    let target = record["target"].as_str().unwrap_or_default();
    let ip = target.parse::<IpAddr>().ok();
    let right = match record["type"].as_str() {
        Some("A") => ip.is_some_and(|it| it.is_ipv4()),
        Some("AAAA") => ip.is_some_and(|it| it.is_ipv6()),
        Some("CNAME" | "TXT" | "MX" | "NS" | "SRV" | "CAA" | "PTR") => !target.is_empty(),
        _ => return Err(Refusal::of(400, Some("type"), "type is not valid")),
    };
    match right {
        true => Ok(()),
        false => Err(Refusal::of(
            400,
            Some("target"),
            "Must be a valid IP address",
        )),
    }
}
