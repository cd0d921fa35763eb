//! Linode interfaces through whole runs: their firewalls, their changes, and what an account does
//! not allow.

use std::time::Duration;

use gobs_linode_double::{Fault, Kind};
use serde_json::{Value, json};

use crate::account::{Account, assert_answers, serve_line};
use crate::support::{Project, Run, eventually, free_port};

/// How long the double takes to boot a machine on a loaded host: a minute of its clock.
const BOOT_WITHIN: Duration = Duration::from_secs(60);

const NOTHING: &str = "No changes. Your infrastructure matches the configuration.";

/// Returns a machine with this in its block.
fn machine(more: &str) -> String {
    format!(
        "machine \"web\" {{
  provider        = linode
  region          = \"eu-central\"
  type            = \"g6-nanode-1\"
  image           = \"linode/debian13\"
  authorized_keys = [\"ssh-ed25519 AAAA test\"]
  {more}
  hob {{ enabled = false }}
}}
"
    )
}

/// Returns what a run says, in words.
#[track_caller]
fn said(run: Run, code: i32) -> String {
    let run = run.code(code);
    let all = format!("{} {}", run.stdout, run.stderr);
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn set(account: &Account, setting: &str) {
    let body = json!({"interfaces_for_new_linodes": setting});
    let done = account.double.ask("PUT", "/account/settings", &body);
    done.expect("set");
}

/// Returns the kinds of the machine's interfaces, and how many firewalls each is under.
fn interfaces(account: &Account) -> Vec<(&'static str, usize)> {
    let ask = |path: &str| {
        let found = account.double.ask("GET", path, &Value::Null);
        found.expect("there")
    };
    let path = format!(
        "/linode/instances/{}/interfaces",
        account.double.instances()[0]["id"]
    );
    let all = ask(&path)["interfaces"].as_array().expect("a list").clone();
    let of = |it: &Value| {
        let kinds = ["public", "vpc", "vlan"];
        let kind = kinds.into_iter().find(|kind| it[*kind].is_object());
        let walls = ask(&format!("{path}/{}/firewalls", it["id"]));
        let walls = walls["data"].as_array().map_or(0, Vec::len);
        (kind.unwrap_or("none"), walls)
    };
    all.iter().map(of).collect()
}

#[test]
fn interfaces_and_their_firewall_change_in_place() {
    let account = Account::start(Project::empty(), 31);
    let project = &account.project;
    let write = |more: &str| project.write("main.gobs.hcl", &machine(more));
    let apply = || said(project.gobs(&["apply", "--auto-approve"]), 0);
    let settled = || {
        let again = said(project.gobs(&["plan"]), 0);
        assert!(again.contains(NOTHING), "{again}");
    };
    // The account makes machines with interfaces of their own, and so it is.
    set(&account, "linode_default_but_legacy_config_allowed");
    write("firewall {}");
    apply();
    assert_eq!(interfaces(&account), [("public", 1)]);
    settled();
    let id = account.double.instances()[0]["id"].clone();

    write(
        "firewall {}
         interface { purpose = \"public\" }
         interface {
           purpose   = \"vpc\"
           subnet_id = 7
         }",
    );
    let plan = said(project.gobs(&["plan"]), 0);
    let cost = "will be updated (downtime: it is shut down and started)";
    assert!(
        plan.contains(cost) && plan.contains("0 to add, 1 to change"),
        "{plan}"
    );
    apply();
    assert_eq!(interfaces(&account), [("public", 1), ("vpc", 1)]);
    settled();

    // Without its firewall, and then under one that is named; it goes on running.
    let shutdowns = account.double.events("linode_shutdown");
    let two = "interface { purpose = \"public\" }
               interface {
                 purpose   = \"vpc\"
                 subnet_id = 7
               }";
    write(two);
    let plan = said(project.gobs(&["plan"]), 0);
    assert!(plan.contains("will be updated in-place"), "{plan}");
    apply();
    assert_eq!(interfaces(&account), [("public", 0), ("vpc", 0)]);
    let rules = json!({"inbound_policy": "DROP", "outbound_policy": "ACCEPT"});
    let wall = json!({"label": "named", "rules": rules});
    let wall = account.double.ask("POST", "/networking/firewalls", &wall);
    write(&format!(
        "firewall_id = {}\n{two}",
        wall.expect("made")["id"]
    ));
    apply();
    assert_eq!(interfaces(&account), [("public", 1), ("vpc", 1)]);
    settled();
    assert_eq!(account.double.events("linode_shutdown"), shutdowns);
    assert_eq!(
        account.double.instances()[0]["id"],
        id,
        "it is the same machine"
    );
    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 1, "after destroy");
}

#[test]
fn a_machine_is_upgraded_to_interfaces_of_its_own_in_place() {
    let account = Account::start(Project::empty(), 33);
    let (project, double) = (&account.project, &account.double);
    let write = |generation: &str, more: &str| {
        let vlan = "interface {
             purpose = \"vlan\"
             label   = \"inner\"
           }
           interface { purpose = \"public\" }
           firewall {}";
        let generation = format!("interface_generation = \"{generation}\"");
        project.write(
            "main.gobs.hcl",
            &machine(&format!("{generation}\n{vlan}\n{more}")),
        );
    };
    let vpc = "interface {
         purpose   = \"vpc\"
         subnet_id = 7
       }";
    write("legacy_config", "");
    said(project.gobs(&["apply", "--auto-approve"]), 0);
    let runs = || double.instances()[0]["status"] == "running";
    eventually("it runs", BOOT_WITHIN, runs);
    let was = double.instances().remove(0);

    // What the account does not allow leaves the machine as it was, and on.
    write("linode", vpc);
    let plan = said(project.gobs(&["plan"]), 0);
    let cost = "will be updated (downtime: it is shut down and started)";
    assert!(plan.contains(cost), "{plan}");
    set(&account, "legacy_config_only");
    let refused = said(project.gobs(&["apply", "--auto-approve"]), 1);
    assert!(
        refused.contains("are not allowed on this account"),
        "{refused}"
    );
    let now = double.instances().remove(0);
    for field in ["status", "interface_generation", "tags"] {
        assert_eq!(now[field], was[field]);
    }

    set(&account, "legacy_config_default_but_linode_allowed");
    let upgrade = "/linode/instances/*/upgrade-interfaces";
    double.fault(Fault::once("POST", upgrade, Kind::ResetAfter));
    said(project.gobs(&["apply", "--auto-approve"]), 0);
    assert_eq!(double.unused_faults(), 0);
    assert_eq!(
        interfaces(&account),
        [("vlan", 0), ("public", 1), ("vpc", 1)]
    );
    let now = double.instances().remove(0);
    assert_eq!(now["interface_generation"], "linode");
    for field in ["id", "ipv4", "status", "tags"] {
        assert_eq!(now[field], was[field]);
    }
    let again = said(project.gobs(&["plan"]), 0);
    assert!(again.contains(NOTHING), "{again}");
    said(project.gobs(&["doctor"]), 0);

    // There is no way back but another machine.
    write("legacy_config", "");
    let plan = said(project.gobs(&["plan"]), 0);
    assert!(
        plan.contains("1 to add, 0 to change, 1 to destroy"),
        "{plan}"
    );
    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 1, "after destroy");
}

#[test]
fn what_the_account_does_not_allow_is_an_error_of_the_plan() {
    let account = Account::start(Project::empty(), 32);
    let project = &account.project;
    let check = |setting: &str, more: &str, expected: &[&str]| {
        set(&account, setting);
        project.write("main.gobs.hcl", &machine(more));
        for command in [&["plan"][..], &["apply", "--auto-approve"]] {
            let said = said(project.gobs(command), 1);
            for text in expected {
                assert!(said.contains(text), "{text:?} is not in\n{said}");
            }
        }
    };
    check(
        "legacy_config_only",
        "interface_generation = \"linode\"",
        &[
            "Impossible machine",
            "main.gobs.hcl line 7",
            "machine.web cannot be so: the account makes new machines with interfaces of \
             configuration profiles only.",
            "Take interface_generation out, or let the account make such machines",
        ],
    );
    check(
        "linode_only",
        "private_ip = true",
        &[
            "main.gobs.hcl line 7",
            "a machine with Linode interfaces, as this one gets, has no private address",
            "Use an interface in a VPC or a VLAN instead.",
        ],
    );
    check(
        "linode_default_but_legacy_config_allowed",
        "interface {\n purpose = \"vlan\"\n label = \"inner\"\n }\n firewall {}",
        &["its interfaces lead to VLANs only, and those are under no firewall"],
    );
    account.assert_machines(0, 0, "after refusals");
}

/// Returns two machines with bindings from one of them to the other; what stands for addresses in
/// a VPC is of loopback, since that is where the hobs of this test really dial each other.
fn in_a_vpc(generation: &str, ports: [u16; 3], is_bound: bool) -> String {
    let [orders, hob, exposed] = ports;
    let machine = |name: &str, host: u8, more: &str| {
        format!(
            "machine \"{name}\" {{
               provider             = linode
               region               = \"eu-central\"
               type                 = \"g6-nanode-1\"
               image                = \"linode/debian13\"
               authorized_keys      = [\"ssh-ed25519 AAAA test\"]
               interface_generation = \"{generation}\"
               interface {{ purpose = \"public\" }}
               interface {{
                 purpose   = \"vpc\"
                 subnet_id = 7
                 ipv4      = \"127.0.1.{host}\"
               }}
               {more}
             }}\n"
        )
    };
    let db = format!(
        "hob {{
           listen    = \"127.0.1.2:{hob}\"
           advertise = [\"127.0.1.2\"]
         }}
         firewall {{ derived = true }}
         service \"orders\" {{ tcp = \"127.0.0.1:{orders}\" }}"
    );
    let binding = format!(
        "binding \"app\" {{
           from = machine.db.service.orders
           to   = machine.app
           expose {{ tcp = \"127.0.0.1:{exposed}\" }}
         }}\n"
    );
    let listens = "hob { listen = \"127.0.0.1:0\" }";
    let app = machine("app", 3, listens);
    let web = machine("web", 4, listens);
    let binding = if is_bound { &*binding } else { "" };
    machine("db", 2, &db) + &app + &web + binding
}

#[test]
fn a_derived_firewall_lets_in_by_the_vpc_where_the_hob_is_dialled_there() {
    for (seed, generation) in [(35, "legacy_config"), (36, "linode")] {
        let account = Account::start(Project::empty(), seed);
        let project = &account.project;
        let ports = [serve_line(), free_port(), free_port()];
        let apply = |is_bound| {
            project.write("main.gobs.hcl", &in_a_vpc(generation, ports, is_bound));
            said(project.gobs(&["apply", "--auto-approve"]), 0);
            let again = said(project.gobs(&["plan"]), 0);
            assert!(again.contains(NOTHING), "{generation}: {again}");
            let found = account
                .double
                .ask("GET", "/networking/firewalls", &Value::Null);
            found.expect("listed")["data"][0]["rules"].clone()
        };
        let rules = apply(true);
        let inbound = rules["inbound"].as_array().expect("a list");
        let seen: Vec<_> = inbound
            .iter()
            .map(|it| (&it["ports"], &it["addresses"]))
            .collect();
        let port = json!(ports[1].to_string());
        assert_eq!(
            seen,
            [(&port, &json!({"ipv4": ["127.0.1.3/32"]}))],
            "{generation}"
        );
        assert_eq!(rules["inbound_policy"], "DROP");
        assert_answers(&format!("127.0.0.1:{}", ports[2]));
        assert_eq!(apply(false)["inbound"], json!([]), "{generation}");
        project.gobs(&["destroy", "--auto-approve"]).ok();
        account.assert_machines(0, 3, "after destroy");
    }
}
