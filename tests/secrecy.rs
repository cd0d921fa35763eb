//! Promise X1: what is sensitive stands in no artefact of a whole run, in no common encoding.

use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL_NOPAD, HEXLOWER};

use crate::support::Project;

const SECRET: &str = "kestrel-7f3a9c-%-orchard";

/// Returns a secret as a careless program might write it down.
pub(crate) fn forms(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let mut forms = vec![
        secret.to_owned(),
        HEXLOWER.encode(bytes),
        HEXLOWER.encode(bytes).to_uppercase(),
        secret.replace('%', "%25"),
        BASE32_NOPAD.encode(bytes),
        BASE32_NOPAD.encode(bytes).to_lowercase(),
    ];
    // Base64 of a text within another depends on where it starts: the middle of each is looked
    // for.
    for skipped in 0..3 {
        for encoded in [
            BASE64.encode(&bytes[skipped..]),
            BASE64URL_NOPAD.encode(&bytes[skipped..]),
        ] {
            forms.push(encoded[..encoded.len() - 6].to_owned());
        }
    }
    forms.into_iter().map(String::into_bytes).collect()
}

#[track_caller]
pub(crate) fn assert_clean(what: &str, bytes: &[u8], forms: &[Vec<u8>]) {
    for form in forms {
        let found = bytes.windows(form.len()).any(|window| window == form);
        assert!(
            !found,
            "{what} holds the secret as {:?}",
            String::from_utf8_lossy(form)
        );
    }
}

pub(crate) fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() {
            files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

#[test]
fn x1_a_sensitive_value_is_in_no_artefact_of_a_run() {
    let forms = forms(SECRET);
    let project = Project::new(
        "variable \"password\" {
           type      = string
           sensitive = true
         }
         variable \"size\" {
           type    = string
           default = \"small\"
         }
         machine \"one\" {
           provider = dummy
           password = var.password
           size     = var.size
         }
         machine \"two\" {
           provider = dummy
           size     = \"s-${sha256(var.password)}\"
         }
         output \"password\" {
           value     = var.password
           sensitive = true
         }",
    );
    let runs: &[&[&str]] = &[
        &["validate"],
        &["plan", "--out", "plan.gobsplan"],
        &["apply", "plan.gobsplan"],
        &["plan", "--var", "size=large", "--out", "second.gobsplan"],
        &["apply", "--auto-approve", "--var", "size=large"],
        &["show"],
        &["show", "second.gobsplan"],
        &["state", "list"],
        &["status"],
    ];
    for args in runs {
        let mut command = project.command(args);
        command
            .env("GOBS_VAR_password", SECRET)
            .env("GOBS_LOG", "trace");
        let run = crate::support::Run::of(command).ok();
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
    }
    let mut found = Vec::new();
    files(project.path(), &mut found);
    assert!(
        found.iter().any(|path| path.ends_with("state.db")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|path| path.ends_with("hob.log")),
        "{found:?}"
    );
    for path in found {
        let bytes = match std::fs::read(&path) {
            // A hob that runs puts files in the place of others.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.expect("a file"),
        };
        assert_clean(&path.display().to_string(), &bytes, &forms);
    }
    // It is there all the same: whoever may see it asks for it by name.
    let mut command = project.command(&["output", "--raw", "password"]);
    command.env("GOBS_VAR_password", SECRET);
    assert_eq!(
        crate::support::Run::of(command).ok().stdout.trim_end(),
        SECRET
    );
}
