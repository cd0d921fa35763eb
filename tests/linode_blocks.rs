//! What belongs to a machine at Linode, through whole runs: a firewall that follows the bindings,
//! a record that follows the machine, and a volume that outlives it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::account::{Account, assert_answers, serve_line};
use crate::support::{Project, free_port};

/// Returns a project in which the machine db gives its service to others.
fn configuration(generation: &str, ports: [u16; 3], importers: &[&str]) -> String {
    let [orders, hob, first] = ports;
    let machine = |name: &str, more: &str| {
        format!(
            "machine \"{name}\" {{
               provider        = linode
               region          = \"eu-central\"
               type            = \"g6-nanode-1\"
               image           = \"linode/debian13\"
               authorized_keys = [\"ssh-ed25519 AAAA test\"]
               {more}
             }}\n"
        )
    };
    let db = format!(
        "interface_generation = \"{generation}\"
         hob {{
           listen    = \"127.0.0.1:{hob}\"
           advertise = [\"127.0.0.1\"]
         }}
         firewall {{ derived = true }}
         dns {{
           domain = \"example.net\"
           name   = \"db\"
         }}
         volume \"data\" {{ size = 10 }}
         service \"orders\" {{ tcp = \"127.0.0.1:{orders}\" }}"
    );
    let mut text = machine("db", &db);
    for (at, name) in ["app", "web"].into_iter().enumerate() {
        text += &machine(name, "hob { listen = \"127.0.0.1:0\" }");
        if importers.contains(&name) {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "binding \"{name}\" {{
                   from = machine.db.service.orders
                   to   = machine.{name}
                   expose {{ tcp = \"127.0.0.1:{}\" }}
                 }}\n",
                usize::from(first) + at
            );
        }
    }
    text + "output \"address\" { value = machine.app.address }
            output \"volume\" { value = machine.db.volume[\"data\"].id }\n"
}

fn all(account: &Account, path: &str) -> Vec<Value> {
    let found = account.double.ask("GET", path, &Value::Null);
    found.expect("listed")["data"]
        .as_array()
        .expect("a list")
        .clone()
}

/// Returns the instance of a machine.
fn instance(account: &Account, name: &str) -> Value {
    let label = format!("gobs-{name}-");
    let instances = account.double.instances();
    let is = |it: &&Value| {
        it["label"]
            .as_str()
            .is_some_and(|it| it.starts_with(&label))
    };
    instances.iter().find(is).expect("it is there").clone()
}

/// Asserts that the firewall lets in these machines, at the hob's port, and nobody else.
#[track_caller]
fn assert_lets_in(account: &Account, port: u16, names: &[&str]) {
    let firewalls = all(account, "/networking/firewalls");
    assert_eq!(firewalls.len(), 1);
    let rules = &firewalls[0]["rules"];
    assert_eq!(rules["inbound_policy"], "DROP");
    let sorted = |addresses: Vec<String>| {
        let mut addresses = addresses;
        addresses.sort();
        addresses
    };
    let of = |field: fn(&Value) -> String| {
        sorted(
            names
                .iter()
                .map(|it| field(&instance(account, it)))
                .collect(),
        )
    };
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    let seen = |family: &str| {
        let all = rules["inbound"][0]["addresses"][family].as_array();
        sorted(all.into_iter().flatten().map(text).collect())
    };
    assert_eq!(rules["inbound"].as_array().map(Vec::len), Some(1));
    assert_eq!(rules["inbound"][0]["ports"], port.to_string());
    let v4 = |it: &Value| format!("{}/32", it["ipv4"][0].as_str().unwrap_or_default());
    let v6 = |it: &Value| it["ipv6"].as_str().unwrap_or_default().to_owned();
    assert_eq!(seen("ipv4"), of(v4));
    assert_eq!(seen("ipv6"), of(v6));
}

#[test]
fn what_belongs_to_a_machine_follows_it_at_linode() {
    let ports = [serve_line(), free_port(), free_port()];
    let account = Account::start(Project::empty(), 77);
    let (project, double) = (&account.project, &account.double);
    let domain = double.ask("POST", "/domains", &json!({"domain": "example.net"}));
    let records = format!("/domains/{}/records", domain.expect("made")["id"]);
    let write = |generation, importers: &[&str]| {
        project.write(
            "main.gobs.hcl",
            &configuration(generation, ports, importers),
        );
    };
    let apply = || project.gobs(&["apply", "--auto-approve"]).ok().stdout;
    let settled = || {
        let again = project.gobs(&["plan"]).ok().stdout;
        let nothing = "No changes. Your infrastructure matches the configuration.";
        assert!(again.contains(nothing), "{again}");
    };

    write("linode", &["app", "web"]);
    apply();
    assert_lets_in(&account, ports[1], &["app", "web"]);
    let db = instance(&account, "db");
    assert_eq!(all(&account, &records)[0]["target"], db["ipv4"][0]);
    assert_eq!(all(&account, "/volumes")[0]["linode_id"], db["id"]);
    assert_answers(&format!("127.0.0.1:{}", ports[2]));
    settled();

    // Whoever is not given it any more is shut out, and the others go on.
    write("linode", &["app"]);
    let plan = project.gobs(&["plan"]).ok().stdout;
    assert!(plan.contains("~ firewall {"), "{plan}");
    apply();
    assert_lets_in(&account, ports[1], &["app"]);
    assert_answers(&format!("127.0.0.1:{}", ports[2]));
    settled();

    // Another machine takes the place, and has the volume.
    write("legacy_config", &["app"]);
    let plan = project.gobs(&["plan"]).ok().stdout;
    assert!(plan.contains("is kept, for the new machine"), "{plan}");
    apply();
    let next = instance(&account, "db");
    assert_ne!(next["id"], db["id"]);
    assert_eq!(all(&account, &records)[0]["target"], next["ipv4"][0]);
    let volumes = all(&account, "/volumes");
    assert_eq!((volumes.len(), &volumes[0]["linode_id"]), (1, &next["id"]));
    assert_lets_in(&account, ports[1], &["app"]);
    assert_answers(&format!("127.0.0.1:{}", ports[2]));
    settled();

    let plan = project.gobs(&["plan", "--destroy"]).ok().stdout;
    assert!(plan.contains("is kept; nothing manages it then"), "{plan}");
    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 4, "after destroy");
    let left = ["/networking/firewalls", "/volumes", &records].map(|it| all(&account, it).len());
    assert_eq!(left, [0, 1, 0]);
    assert_eq!(double.stats().volumes_created, 1);
}
