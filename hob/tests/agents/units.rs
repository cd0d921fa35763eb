//! Systemd units that get a binding's environment, with a `systemctl` that writes down what it is
//! told: no host of tests has to be run by systemd.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use hob::protocol::{Expose, UnitStatus};

use crate::support::{Host, Pair, echo, eventually, generation, grant, registration};

/// The `systemctl` of a machine that has `app.service` only, until a file says that it is gone;
/// another one says how it is.
struct Systemctl {
    log: PathBuf,
}

impl Systemctl {
    fn new(host: &Host) -> Self {
        let log = host.layout.dir().join("systemctl.log");
        fs::create_dir(host.bin()).unwrap();
        let path = host.bin().join("systemctl");
        let text = format!(
            "#!/bin/sh\n\
             case $1 in\n\
             show) [ $2 = --property=LoadState ] || exec cat {0}.state\n\
             [ \"$5\" = app.service ] && [ ! -e {0}.gone ] && echo loaded || echo not-found;;\n\
             *) [ ! -e {0}.fails ] || {{ echo 'no bus' >&2; exit 1; }}; echo \"$*\" >> {0};;\n\
             esac\n",
            log.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let systemctl = Self { log };
        systemctl.say("state", "active\nrunning\n");
        systemctl
    }

    /// Makes a file that it looks at.
    fn say(&self, what: &str, text: &str) {
        fs::write(self.log.with_extension(format!("log.{what}")), text).unwrap();
    }

    /// Returns what it was told since it was asked last, once that ends so.
    async fn told(&self, last: &str) -> Vec<String> {
        let read = || fs::read_to_string(&self.log).unwrap_or_default();
        let ends = format!("{last}\n");
        eventually(last, async || read().ends_with(&ends)).await;
        let told = read().lines().map(str::to_owned).collect();
        fs::remove_file(&self.log).unwrap();
        told
    }

    fn assert_told_nothing(&self) {
        assert!(!self.log.exists(), "{:?}", fs::read_to_string(&self.log));
    }
}

fn told_to(unit: &str, variable: &str) -> Expose {
    Expose {
        unit: Some(unit.into()),
        env: BTreeMap::from([(variable.into(), "uri".into())]),
        ..Expose::default()
    }
}

const RESTART: &str = "--no-block restart -- app.service";

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_gets_its_environment_and_is_restarted_when_that_changes() {
    let mut pair = Pair::start(&echo().await).await;
    let systemctl = Systemctl::new(&pair.app);
    let held = pair
        .bind(1, &[told_to("app.service", "DATABASE_URL")])
        .await;
    assert_eq!(systemctl.told(RESTART).await, ["daemon-reload", RESTART]);
    let drop_in = pair.app.units().join("app.service.d/50-gobs.conf");
    let file = pair.app.layout.environment("db");
    let text = fs::read_to_string(&drop_in).unwrap();
    let expected = format!(
        "After=gobs-hob.service\n\n[Service]\nEnvironmentFile={}\n",
        file.display()
    );
    assert!(text.ends_with(&expected), "{text}");
    let environment = fs::read_to_string(&file).unwrap();
    let line = format!("DATABASE_URL=\"{}\"\n", held.address);
    assert!(environment.contains(&line), "{environment}");
    verify(&pair.app);

    // Another grant with the same values, and a hob that is restarted, are nothing to the unit.
    pair.bind(2, &[told_to("app.service", "DATABASE_URL")])
        .await;
    pair.app.kill();
    pair.app.start_again();
    pair.importer = pair.boss.client("machine.app").await;
    systemctl.assert_told_nothing();

    // Other values are; the drop-in names the same file.
    pair.bind(3, &[told_to("app.service", "ORDERS_URL")]).await;
    assert_eq!(systemctl.told(RESTART).await, ["daemon-reload", RESTART]);

    pair.importer.unregister(&generation(3)).await;
    let last = "--no-block try-restart -- app.service";
    assert_eq!(systemctl.told(last).await, ["daemon-reload", last]);
    assert!(!drop_in.parent().unwrap().exists() && !file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_is_not_there_is_said_before_anything_changes() {
    let pair = Pair::start(&echo().await).await;
    let systemctl = Systemctl::new(&pair.app);
    let asked = grant(1, &pair.importer.designator);
    let granted = pair.exporter.grant(&asked).await.unwrap();
    for unit in ["other.service", "../app.service"] {
        let asked = registration(1, &[told_to(unit, "URL")]);
        let refused = pair.importer.register(&asked, &granted).await.unwrap_err();
        assert_eq!(refused.code(), Some("expose"));
        let expected = format!("this machine has no unit {unit}");
        assert!(refused.to_string().contains(&expected), "{refused}");
    }
    assert_eq!(pair.importer.status().await.bindings, []);
    systemctl.assert_told_nothing();
    assert!(!pair.app.units().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_first_boot_may_still_make_is_not_refused_for_good() {
    let pair = Pair::start(&echo().await).await;
    let _systemctl = Systemctl::new(&pair.app);
    let asked = grant(1, &pair.importer.designator);
    let cloud_init = pair.app.units().with_file_name("cloud-init");
    fs::create_dir(&cloud_init).unwrap();
    let mut of_nobody = told_to("app.service", "URL");
    of_nobody.user = Some("gobs-not-there-yet".into());
    for (made, code) in [("enabled", "booting"), ("result.json", "expose")] {
        fs::write(cloud_init.join(made), "").unwrap();
        for exposed in [told_to("late.service", "URL"), of_nobody.clone()] {
            let granted = pair.exporter.grant(&asked).await.unwrap();
            let asked = registration(1, &[exposed]);
            let refused = pair.importer.register(&asked, &granted).await.unwrap_err();
            assert_eq!(refused.code(), Some(code), "{refused}");
            let expected = "this machine has no u";
            assert!(refused.to_string().contains(expected), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_fails_is_made_up_for() {
    let mut pair = Pair::start(&echo().await).await;
    let systemctl = Systemctl::new(&pair.app);
    let fails = systemctl.log.with_extension("log.fails");
    fs::write(&fails, "").unwrap();
    pair.bind(1, &[told_to("app.service", "URL")]).await;
    eventually("it is said", async || {
        pair.app
            .log()
            .contains("systemctl daemon-reload failed: no bus")
    })
    .await;
    eventually("an operator sees it", async || {
        let units = pair.importer.status().await.units;
        let refused = "systemctl daemon-reload failed: no bus";
        matches!(&units[..], [UnitStatus { unit, error }]
            if unit == "app.service" && error == refused)
    })
    .await;
    systemctl.assert_told_nothing();
    fs::remove_file(&fails).unwrap();
    // The hob would try again by itself; the next one does so at once.
    pair.app.kill();
    pair.app.start_again();
    assert_eq!(systemctl.told(RESTART).await, ["daemon-reload", RESTART]);
    pair.importer = pair.boss.client("machine.app").await;
    eventually("nothing is seen of it", async || {
        pair.importer.status().await.units.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_does_not_start_is_told_of_until_it_runs() {
    let pair = Pair::start(&echo().await).await;
    let systemctl = Systemctl::new(&pair.app);
    for state in ["failed\nfailed\n", "activating\nauto-restart\n"] {
        systemctl.say("state", state);
        let generation = 1 + u64::from(state.starts_with('a'));
        let asked = told_to("app.service", &format!("URL_{generation}"));
        pair.bind(generation, &[asked]).await;
        eventually("an operator sees it", async || {
            let units = pair.importer.status().await.units;
            let failed = "it failed when it was restarted with its bindings";
            matches!(&units[..], [UnitStatus { error, .. }] if error.starts_with(failed))
        })
        .await;
        systemctl.say("state", "active\nrunning\n");
        eventually("nothing is seen of it", async || {
            pair.importer.status().await.units.is_empty()
        })
        .await;
        // It was restarted once, whatever became of it.
        assert_eq!(systemctl.told(RESTART).await, ["daemon-reload", RESTART]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_is_gone_needs_nobody_when_its_binding_goes() {
    let pair = Pair::start(&echo().await).await;
    let systemctl = Systemctl::new(&pair.app);
    pair.bind(1, &[told_to("app.service", "URL")]).await;
    systemctl.told(RESTART).await;
    systemctl.say("gone", "");
    pair.importer.unregister(&generation(1)).await;
    assert_eq!(systemctl.told("daemon-reload").await, ["daemon-reload"]);
    assert!(!pair.app.units().join("app.service.d").exists());
    // Another one is as always: the one before is no more thought of.
    pair.bind(2, &[]).await;
    assert!(pair.importer.status().await.units.is_empty());
    systemctl.assert_told_nothing();
}

/// Lets systemd itself read the drop-in, where it is installed.
fn verify(host: &Host) {
    let unit = host.units().join("app.service");
    fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
    let mut command = Command::new("systemd-analyze");
    command
        .args(["verify", "--recursive-errors=no", "--man=no"])
        .arg(&unit);
    let output = command.env("SYSTEMD_UNIT_PATH", host.units()).output();
    fs::remove_file(unit).unwrap();
    match output {
        Ok(output) => {
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!said.contains("50-gobs.conf"), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}
