//! Volumes, firewalls, domains and placement groups, asked for past the wire.

use std::time::Duration;

use gobs_linode_double::{Double, Options};
use serde_json::{Value, json};

fn start() -> Double {
    let seed = Some(5);
    let options = Options {
        seed,
        // Nothing comes to pass by itself while a test looks.
        scale: 1,
        ..Options::default()
    };
    Double::start(options).expect("listens")
}

/// Makes a machine that runs.
fn machine(double: &Double, more: Value) -> u64 {
    let mut body = json!({"region": "eu-central", "type": "g6-nanode-1", "image":
        "linode/debian13", "authorized_keys": ["ssh-ed25519 AAAA"]});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let made = double
        .ask("POST", "/linode/instances", &body)
        .expect("made");
    double.advance(Duration::from_secs(600));
    made["id"].as_u64().expect("an id")
}

#[track_caller]
fn ask(double: &Double, method: &str, path: &str, body: Value) -> Value {
    double.ask(method, path, &body).expect("done")
}

#[track_caller]
fn refused(double: &Double, method: &str, path: &str, body: Value, reason: &str) {
    let why = double.ask(method, path, &body).expect_err("refused");
    assert!(why.contains(reason), "{why}");
}

#[tokio::test]
async fn a_volume_is_attached_to_one_machine_of_its_region_at_a_time() {
    let double = start();
    let id = machine(&double, json!({}));
    let made = ask(
        &double,
        "POST",
        "/volumes",
        json!({"label": "v", "region": "eu-central"}),
    );
    assert_eq!(
        (&made["status"], &made["size"]),
        (&json!("creating"), &json!(20))
    );
    let path = format!("/volumes/{}", made["id"]);
    let attached = ask(
        &double,
        "POST",
        &format!("{path}/attach"),
        json!({"linode_id": id}),
    );
    // As recorded: the answer tells where it goes, and that it is still being made.
    assert_eq!(attached["status"], "creating");
    assert_eq!(
        (&attached["linode_id"], &attached["io_ready"]),
        (&json!(id), &json!(false))
    );
    double.advance(Duration::from_secs(60));
    let seen = ask(&double, "GET", &path, Value::Null);
    assert_eq!(
        (&seen["status"], &seen["io_ready"]),
        (&json!("active"), &json!(true))
    );
    let again = json!({"linode_id": id});
    refused(
        &double,
        "POST",
        &format!("{path}/attach"),
        again,
        "already attached",
    );
    let smaller = json!({"size": 15});
    refused(
        &double,
        "POST",
        &format!("{path}/resize"),
        smaller,
        "only be resized up",
    );
    let elsewhere = json!({"region": "us-ord"});
    let migrate = format!("/linode/instances/{id}/migrate");
    refused(&double, "POST", &migrate, elsewhere, "must be detached");
    assert_eq!(
        ask(&double, "POST", &format!("{path}/detach"), json!({})),
        json!({})
    );
    assert_eq!(ask(&double, "GET", &path, Value::Null)["linode_id"], id);
    double.advance(Duration::from_secs(60));
    assert_eq!(
        ask(&double, "GET", &path, Value::Null)["linode_id"],
        Value::Null
    );
    // A machine that goes lets go of what it has.
    ask(
        &double,
        "POST",
        &format!("{path}/attach"),
        json!({"linode_id": id}),
    );
    ask(
        &double,
        "DELETE",
        &format!("/linode/instances/{id}"),
        Value::Null,
    );
    double.advance(Duration::from_secs(60));
    assert_eq!(
        ask(&double, "GET", &path, Value::Null)["linode_id"],
        Value::Null
    );
    let late = json!({"linode_id": id});
    refused(
        &double,
        "POST",
        &format!("{path}/attach"),
        late,
        "Linode is not active",
    );
    assert_eq!(double.events("volume_attach"), 2);
}

fn rules(inbound: Value) -> Value {
    json!({"inbound": inbound, "inbound_policy": "DROP", "outbound": [],
        "outbound_policy": "ACCEPT"})
}

#[tokio::test]
async fn a_firewall_has_rules_and_machines() {
    let double = start();
    let rule = json!({"action": "ACCEPT", "protocol": "TCP", "ports": "22, 8000-8080",
        "label": "ssh", "addresses": {"ipv4": ["192.0.2.1/32"]}});
    let body = json!({"label": "wall", "rules": rules(json!([rule])), "tags": ["a-tag"]});
    let made = ask(&double, "POST", "/networking/firewalls", body.clone());
    assert_eq!(made["rules"]["version"], 1);
    refused(
        &double,
        "POST",
        "/networking/firewalls",
        body,
        "Label must be unique",
    );
    let id = machine(&double, json!({"firewall_id": made["id"]}));
    let path = format!("/networking/firewalls/{}", made["id"]);
    let entities = &ask(&double, "GET", &path, Value::Null)["entities"];
    assert_eq!(
        (&entities[0]["id"], &entities[0]["type"]),
        (&json!(id), &json!("linode"))
    );
    let wrong = [
        (
            json!([{"action": "ACCEPT", "protocol": "TCP", "ports": "22"}]),
            "must have ipv4",
        ),
        (
            json!([{"action": "ACCEPT", "protocol": "ICMP", "ports": "22",
                "addresses": {"ipv4": ["0.0.0.0/0"]}}]),
            "Ports are not allowed for ICMP",
        ),
        (
            json!([{"action": "ACCEPT", "protocol": "TCP", "addresses": {"ipv4": ["192.0.2.1"]}}]),
            "IP/mask format",
        ),
    ];
    for (inbound, why) in wrong {
        refused(
            &double,
            "PUT",
            &format!("{path}/rules"),
            rules(inbound),
            why,
        );
    }
    let set = ask(&double, "PUT", &format!("{path}/rules"), rules(json!([])));
    assert_eq!(set["version"], 2);
    let of = format!("/linode/instances/{id}/firewalls");
    assert_eq!(ask(&double, "GET", &of, Value::Null)["results"], 1);
    ask(&double, "PUT", &of, json!({"firewall_ids": []}));
    assert_eq!(ask(&double, "GET", &of, Value::Null)["results"], 0);
    assert_eq!(
        ask(&double, "GET", &path, Value::Null)["entities"],
        json!([])
    );
    let unknown = json!({"label": "web", "region": "eu-central", "type": "g6-nanode-1",
        "firewall_id": 7});
    refused(
        &double,
        "POST",
        "/linode/instances",
        unknown,
        "firewall_id is not valid",
    );
}

#[tokio::test]
async fn records_round_their_time_to_live() {
    let double = start();
    let domain = ask(
        &double,
        "POST",
        "/domains",
        json!({"domain": "example.net"}),
    );
    let path = format!("/domains/{}/records", domain["id"]);
    let body = json!({"type": "A", "name": "db", "target": "192.0.2.1", "ttl_sec": 31});
    let made = ask(&double, "POST", &path, body.clone());
    assert_eq!(made["ttl_sec"], 120);
    // Nothing makes them unique: a repeat is a second one.
    ask(&double, "POST", &path, body);
    assert_eq!(ask(&double, "GET", &path, Value::Null)["results"], 2);
    let wrong = json!({"type": "AAAA", "name": "db", "target": "192.0.2.1"});
    refused(&double, "POST", &path, wrong, "valid IP address");
}

#[tokio::test]
async fn a_placement_group_is_of_one_region_and_goes_when_empty() {
    let double = start();
    let body = json!({"label": "apart", "region": "eu-central", "placement_group_type":
        "anti_affinity:local", "placement_group_policy": "strict"});
    let group = ask(&double, "POST", "/placement/groups", body);
    let id = machine(&double, json!({"placement_group": {"id": group["id"]}}));
    let path = format!("/placement/groups/{}", group["id"]);
    let members = &ask(&double, "GET", &path, Value::Null)["members"];
    assert_eq!(*members, json!([{"linode_id": id, "is_compliant": true}]));
    refused(&double, "DELETE", &path, Value::Null, "must be empty");
    let elsewhere = machine(&double, json!({"region": "us-ord"}));
    let assign = format!("{path}/assign");
    refused(
        &double,
        "POST",
        &assign,
        json!({"linodes": [elsewhere]}),
        "another region",
    );
    ask(
        &double,
        "POST",
        &format!("{path}/unassign"),
        json!({"linodes": [id]}),
    );
    let shown = ask(
        &double,
        "GET",
        &format!("/linode/instances/{id}"),
        Value::Null,
    );
    assert_eq!(shown["placement_group"], Value::Null);
    assert_eq!(ask(&double, "DELETE", &path, Value::Null), json!({}));
}

#[tokio::test]
async fn interfaces_are_of_one_generation() {
    let double = start();
    let body = |generation: &str, interface: Value| {
        json!({"region": "eu-central", "type": "g6-nanode-1", "interface_generation": generation,
            "interfaces": [interface]})
    };
    let public = json!({"public": {}, "firewall_id": -1});
    let made = ask(
        &double,
        "POST",
        "/linode/instances",
        body("linode", public.clone()),
    );
    assert_eq!(made["interface_generation"], "linode");
    let why = "interface generation";
    let path = "/linode/instances";
    refused(&double, "POST", path, body("legacy_config", public), why);
    refused(
        &double,
        "POST",
        path,
        body("linode", json!({"purpose": "public"})),
        why,
    );
    let open = json!({"public": {}});
    refused(
        &double,
        "POST",
        path,
        body("linode", open),
        "firewall is required",
    );
}

#[tokio::test]
async fn linode_interfaces_are_changed_while_it_is_off() {
    let double = start();
    let public = json!({"public": {}, "firewall_id": -1});
    let more = json!({"interface_generation": "linode", "interfaces": [public]});
    let id = machine(&double, more);
    let path = format!("/linode/instances/{id}/interfaces");
    let vlan = json!({"vlan": {"vlan_label": "inner", "ipam_address": null}});
    refused(&double, "POST", &path, vlan.clone(), "must be shut down");
    let power = |verb: &str| {
        let path = format!("/linode/instances/{id}/{verb}");
        ask(&double, "POST", &path, json!({}));
        double.advance(Duration::from_secs(600));
    };
    power("shutdown");
    let made = ask(&double, "POST", &path, vlan.clone());
    assert_eq!(made["vlan"]["vlan_label"], "inner");
    refused(&double, "POST", &path, vlan, "one interface for each VLAN");
    refused(
        &double,
        "POST",
        &path,
        json!({"vpc": {"subnet_id": 7}}),
        "firewall is required",
    );
    let of_vpc = json!({"vpc": {"subnet_id": 7}, "firewall_id": -1});
    let vpc = ask(&double, "POST", &path, of_vpc);
    let other = json!({"vlan": {"vlan_label": "outer"}});
    refused(&double, "POST", &path, other, "up to three interfaces");
    let at = |it: &Value| format!("{path}/{}", it["id"]);
    let body = json!({"vpc": {"subnet_id": 8}});
    refused(&double, "PUT", &at(&vpc), body, "cannot be changed");
    let body = json!({"vlan": {"vlan_label": "outer"}});
    refused(
        &double,
        "PUT",
        &at(&made),
        body,
        "VLAN interfaces cannot be updated",
    );
    let body = json!({"default_route": {"ipv4": true}});
    let changed = ask(&double, "PUT", &at(&vpc), body);
    assert_eq!(
        (&changed["version"], &changed["default_route"]["ipv4"]),
        (&json!(2), &json!(true))
    );
    let all = ask(&double, "GET", &path, Value::Null);
    assert_eq!(all["interfaces"][0]["default_route"], json!({"ipv6": true}));
    ask(&double, "DELETE", &at(&made), Value::Null);
    power("boot");
    refused(
        &double,
        "DELETE",
        &at(&vpc),
        Value::Null,
        "must be shut down",
    );
    // A profile has none of these, and cannot be given any.
    let configs = format!("/linode/instances/{id}/configs");
    let config = ask(&double, "GET", &configs, Value::Null)["data"][0].clone();
    assert_eq!(config["interfaces"], json!([]));
    let body = json!({"interfaces": [{"purpose": "public"}]});
    let why = "configured to use Linode Interfaces";
    refused(
        &double,
        "PUT",
        &format!("{configs}/{}", config["id"]),
        body,
        why,
    );
    // A device is one of them, never the instance.
    let wall = json!({"label": "wall", "rules": {"inbound_policy": "DROP",
        "outbound_policy": "ACCEPT"}});
    let wall = ask(&double, "POST", "/networking/firewalls", wall);
    let devices = format!("/networking/firewalls/{}/devices", wall["id"]);
    let body = json!({"id": id, "type": "linode"});
    refused(
        &double,
        "POST",
        &devices,
        body,
        "Please apply Cloud Firewall to the interfaces",
    );
    let body = json!({"id": made["id"], "type": "linode_interface"});
    refused(&double, "POST", &devices, body, "id is not valid");
    let body = json!({"id": vpc["id"], "type": "linode_interface"});
    let device = ask(&double, "POST", &devices, body.clone());
    assert_eq!(device["entity"]["parent_entity"]["id"], id);
    refused(
        &double,
        "POST",
        &devices,
        body,
        "already assigned to a firewall",
    );
}

#[tokio::test]
async fn an_account_says_which_interfaces_new_machines_have() {
    let double = start();
    let plain = json!({"region": "eu-central", "type": "g6-nanode-1"});
    let path = "/linode/instances";
    let set = |setting: &str| {
        let body = json!({"interfaces_for_new_linodes": setting});
        ask(&double, "PUT", "/account/settings", body);
    };
    let with = |generation: &str| {
        let mut body = plain.clone();
        body["interface_generation"] = generation.into();
        body
    };
    set("legacy_config_only");
    refused(
        &double,
        "POST",
        path,
        with("linode"),
        "not allowed on this account",
    );
    set("linode_only");
    refused(
        &double,
        "POST",
        path,
        with("legacy_config"),
        "not allowed on this account",
    );
    refused(&double, "POST", path, plain.clone(), "firewall is required");
    let mut private = plain.clone();
    private["private_ip"] = true.into();
    refused(&double, "POST", path, private, "private_ip");
    let body = json!({"interfaces_for_new_linodes": "any"});
    refused(&double, "PUT", "/account/settings", body, "Must be one of");
}
