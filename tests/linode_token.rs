//! The token of the account: what it must be for, and where it must not be.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::account::{Account, MACHINE};
use crate::secrecy::{assert_clean, files, forms};
use crate::support::{Project, Run, check};

/// A token that no other text of a run has a part of.
const TOKEN: &str = "kestrel7f3a9c0d4e5b6a1827token";

#[test]
fn x6_a_token_that_only_reads_plans_and_applies_nothing() {
    let account = Account::start(Project::new(MACHINE), 7);
    let (project, double) = (&account.project, &account.double);
    double.set_token("double", Some("linodes:read_only"));
    let missing = "lacks: scope linodes:read_write, scope events:read_only.";
    let plan = ["1 to add", "Rights for an apply are missing", missing];
    check(project.gobs(&["plan", "--out", "p"]), 0, &plan);
    for args in [&["apply", "--auto-approve"][..], &["apply", "p"]] {
        check(
            project.gobs(args),
            1,
            &["Rights are missing", missing, "Nothing was done"],
        );
    }
    account.assert_machines(0, 0, "with a token that only reads");
    double.set_token("double", Some("linodes:read_write events:read_only"));
    project.gobs(&["apply", "p"]).ok();
    // Destroying needs as much as making.
    double.set_token("double", Some("linodes:read_only events:read_only"));
    let missing = "lacks: scope linodes:read_write.";
    check(project.gobs(&["destroy", "--auto-approve"]), 1, &[missing]);
    check(
        project.gobs(&["plan", "--detailed-exitcode"]),
        0,
        &["No changes."],
    );
    account.assert_machines(1, 1, "with a token that only reads again");
    double.set_token("double", Some("*"));
}

/// The machine with a firewall of its own, and a volume that stays.
fn walled() -> String {
    let blocks = "firewall {}\n  volume \"data\" { size = 10 }\n\n  hob {";
    MACHINE.replacen("hob {", blocks, 1)
}

#[test]
fn x6_scopes_are_those_of_what_goes_and_of_what_comes() {
    let account = Account::start(Project::new(&walled()), 7);
    let (project, double) = (&account.project, &account.double);
    let machines = "linodes:read_write events:read_only";
    double.set_token("double", Some(&format!("{machines} volumes:read_write")));
    let firewall = "lacks: scope firewall:read_write.";
    check(
        project.gobs(&["apply", "--auto-approve"]),
        1,
        &["Rights are missing", firewall],
    );
    account.assert_machines(0, 0, "without the scope of its firewall");
    double.set_token("double", Some("*"));
    project.gobs(&["apply", "--auto-approve"]).ok();

    // A block that goes takes as much as one that comes, and so does the machine's end; a volume
    // that stays takes nothing then.
    let reads = "firewall:read_only volumes:read_only";
    double.set_token("double", Some(&format!("{machines} {reads}")));
    let destroy = project.gobs(&["destroy", "--auto-approve"]);
    check(destroy, 1, &[firewall, "Nothing was done"]);
    project.write("main.gobs.hcl", MACHINE);
    let both = "lacks: scope firewall:read_write, scope volumes:read_write.";
    check(project.gobs(&["apply", "--auto-approve"]), 1, &[both]);
    account.assert_machines(1, 1, "without the scopes of its blocks");
    project.write("main.gobs.hcl", &walled());
    let reads = "firewall:read_write volumes:read_only";
    double.set_token("double", Some(&format!("{machines} {reads}")));
    project.gobs(&["destroy", "--auto-approve"]).ok();
    account.assert_machines(0, 1, "after its end");
    double.set_token("double", Some("*"));
}

#[test]
fn x6_a_restricted_user_is_told_which_grants_it_lacks() {
    let account = Account::start(Project::new(MACHINE), 7);
    let (project, double) = (&account.project, &account.double);
    let account_access = "grant account_access read_write, which setting tags takes";
    let add = "grant add_linodes (its user is restricted)";
    double.set_grants(Some(json!({"global": {"account_access": null}})));
    check(
        project.gobs(&["plan"]),
        0,
        &["1 to add", account_access, add],
    );
    check(
        project.gobs(&["apply", "--auto-approve"]),
        1,
        &[
            "Rights are missing",
            account_access,
            add,
            "Nothing was done",
        ],
    );
    account.assert_machines(0, 0, "by a user that may do nothing");

    let global = json!({"account_access": "read_write", "add_linodes": true});
    double.set_grants(Some(json!({"global": global})));
    project.gobs(&["apply", "--auto-approve"]).ok();
    account.assert_machines(1, 1, "by a user that may do so");
    let id = double.instances()[0]["id"].clone();
    let linode = json!([{"id": id, "label": "x", "permissions": "read_only"}]);
    double.set_grants(Some(json!({"global": global, "linode": linode})));
    let missing = format!("lacks: grant read_write for linode {id} (its user is restricted).");
    check(project.gobs(&["destroy", "--auto-approve"]), 1, &[&missing]);
    account.assert_machines(1, 1, "by a user that may only read it");
    double.set_grants(None);
}

#[test]
fn a_token_command_that_fails_is_heard_and_gives_nothing_away() {
    let provider = format!(
        "provider \"linode\" {{
           token_command = [\"sh\", \"-c\", \"echo the vault is locked, not {TOKEN} >&2; exit 3\"]
         }}\n"
    );
    let project = Project::new(&format!("{provider}{MACHINE}"))
        .with_env("GOBS_ALLOW_TREE_COMMANDS", "1")
        .with_env("GOBS_LOG", "trace");
    let run = project.gobs(&["apply", "--auto-approve"]).code(1);
    let said = run.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "token_command sh: it ended with exit status: 3, and said: the vault is \
                    locked, not …";
    assert!(said.contains(expected), "{said}");
    // It stands in the configuration, of which the errors show no line.
    assert!(!said.contains(TOKEN), "{said}");
}

/// Makes a certificate authority, and a certificate of this host by it: `ca.pem`, `key.pem`,
/// `host.pem`.
fn certificates(directory: &Path) {
    let run = |arguments: &str| {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(directory).args(arguments.split(' '));
        let ended = openssl
            .output()
            .expect("openssl, which ca-certificates needs");
        assert!(ended.status.success(), "{arguments}: {ended:?}");
    };
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!(
        "req -x509 {curve} -keyout ca.key -out ca.pem -subj /CN=tests -days 2"
    ));
    run(&format!(
        "req {curve} -keyout key.pem -out host.csr -subj /CN=localhost"
    ));
    let host = "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n";
    std::fs::write(directory.join("host.ext"), host).expect("written");
    run(
        "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile host.ext -out host.pem",
    );
}

/// Serves HTTPS in front of an address; returns its port. It ends with the runtime.
fn serve_https(runtime: &tokio::runtime::Handle, directory: &Path, behind: String) -> u16 {
    let chain = CertificateDer::pem_file_iter(directory.join("host.pem")).expect("a file");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let port = listener.local_addr().expect("an address").port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                // Whoever does not like the certificate hangs up.
                if let Ok(mut inside) = acceptor.accept(stream).await
                    && let Ok(mut outside) = TcpStream::connect(behind).await
                {
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }
            });
        }
    });
    port
}

#[test]
fn x5_the_token_goes_over_https_to_a_host_that_proves_itself_and_is_in_no_artefact() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let account = Account::start(Project::new(MACHINE), 7);
    let (project, double) = (&account.project, &account.double);
    double.set_token(TOKEN, Some("*"));
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path());
    let behind = double.url().replace("http://", "").replace("/v4", "");
    let port = serve_https(runtime.handle(), directory.path(), behind);
    let forms = forms(TOKEN);
    let gobs = |args: &[&str], trusts: bool| {
        let mut command = project.command(args);
        command
            .env("LINODE_TOKEN", TOKEN)
            .env("LINODE_URL", format!("https://localhost:{port}/v4"))
            .env("GOBS_LOG", "trace");
        if trusts {
            command.env("SSL_CERT_FILE", directory.path().join("ca.pem"));
        }
        let run = Run::of(command);
        assert_clean(
            &format!("stdout of {args:?}"),
            run.stdout.as_bytes(),
            &forms,
        );
        assert_clean(
            &format!("stderr of {args:?}"),
            run.stderr.as_bytes(),
            &forms,
        );
        run
    };
    let asked = double.stats().requests;
    let unknown = gobs(&["doctor"], false).code(3).stdout;
    assert!(unknown.contains("certificate"), "{unknown}");
    assert_eq!(
        double.stats().requests,
        asked,
        "it was asked whom nobody trusts"
    );

    gobs(&["plan", "--out", "p"], true).ok();
    gobs(&["apply", "p"], true).ok();
    account.assert_machines(1, 1, "over HTTPS");
    gobs(&["show"], true).ok();
    gobs(&["doctor"], true).ok();
    let mut found = Vec::new();
    files(project.path(), &mut found);
    assert!(found.iter().any(|it| it.ends_with("state.db")), "{found:?}");
    for path in found {
        let bytes = match std::fs::read(&path) {
            // A hob that runs puts files in the place of others.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.expect("a file"),
        };
        assert_clean(&path.display().to_string(), &bytes, &forms);
    }
}
