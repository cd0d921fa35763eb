//! The command line before clap sees it: Terraform's single-dash long flags, and the arguments
//! that the environment adds.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::Command;

use super::environment::Environment;

/// Arguments added to every command.
const EVERY: &str = "GOBS_CLI_ARGS";

/// Why the environment's arguments cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable} is not a list of words: a quote is not closed, or it is not UTF-8")]
pub(super) struct BadWords {
    variable: String,
}

/// Returns the arguments as clap wants them.
///
/// - `-auto-approve`, `-var x=1`, `-chdir=dir` become `--auto-approve`, …: a long name after one
///   dash is a long flag. Short flags, values and everything after `--` stay.
/// - the words of `GOBS_CLI_ARGS` and of `GOBS_CLI_ARGS_plan` (for `plan`) come right after the
///   command, so that what is typed wins.
/// - what follows `hob` belongs to the agent and stays.
///
/// # Errors
/// When such a variable has an open quote.
pub(super) fn normalise(
    args: impl IntoIterator<Item = OsString>,
    gobs: &Command,
    env: &Environment,
) -> Result<Vec<OsString>, BadWords> {
    let flags = Flags::of(gobs);
    let mut out = Vec::new();
    let mut args = args.into_iter();
    out.extend(args.next());
    let mut command = Some(gobs);
    let mut path = String::new();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        let arg = flags.with_two_dashes(arg);
        if arg.as_encoded_bytes().starts_with(b"-") {
            let takes_next = flags.takes_next(&arg);
            out.push(arg);
            if takes_next {
                out.extend(args.next());
            }
            continue;
        }
        let sub = command.and_then(|it| it.find_subcommand(&arg));
        out.push(arg);
        if let Some(sub) = sub {
            if sub.get_name() == "hob" {
                break;
            }
            path.push('_');
            path += sub.get_name();
            if !sub.has_subcommands() {
                out.extend(added(EVERY, &flags, env)?);
                out.extend(added(&format!("{EVERY}{path}"), &flags, env)?);
            }
        }
        command = sub.filter(|it| it.has_subcommands());
    }
    out.extend(args);
    Ok(out)
}

fn added(variable: &str, flags: &Flags, env: &Environment) -> Result<Vec<OsString>, BadWords> {
    let Some(text) = env.get(variable) else {
        return Ok(Vec::new());
    };
    let words = text
        .to_str()
        .and_then(shlex::split)
        .ok_or_else(|| BadWords {
            variable: variable.into(),
        })?;
    Ok(words
        .into_iter()
        .map(|word| flags.with_two_dashes(word.into()))
        .collect())
}

/// Every flag of every command, and whether it takes a value.
struct Flags {
    long: BTreeMap<String, bool>,
    short: BTreeMap<char, bool>,
}

impl Flags {
    fn of(gobs: &Command) -> Self {
        // clap adds these two only when it parses.
        let long = ["help", "version"].map(|name| (name.to_owned(), false));
        let mut flags = Self {
            long: long.into(),
            short: BTreeMap::new(),
        };
        flags.add(gobs);
        flags
    }

    fn add(&mut self, command: &Command) {
        for arg in command.get_arguments() {
            // A value that needs `=` never stands in the next argument.
            let value = arg.get_action().takes_values() && !arg.is_require_equals_set();
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            self.long
                .extend(names.into_iter().map(|name| (name.to_owned(), value)));
            self.short.extend(arg.get_short().map(|name| (name, value)));
        }
        command.get_subcommands().for_each(|sub| self.add(sub));
    }

    fn with_two_dashes(&self, arg: OsString) -> OsString {
        let is_long = |text: &str| {
            let name = text.split_once('=').map_or(text, |(name, _)| name);
            name.chars().count() > 1 && self.long.contains_key(name)
        };
        match arg.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(name) if is_long(name) => format!("--{name}").into(),
            _ => arg,
        }
    }

    fn takes_next(&self, arg: &OsStr) -> bool {
        let Some(text) = arg.to_str() else {
            return false;
        };
        match text.strip_prefix("--") {
            Some(name) => self.long.get(name).copied().unwrap_or(false),
            None => {
                let mut chars = text.chars().skip(1);
                let flag = chars.next().and_then(|name| self.short.get(&name));
                flag.copied().unwrap_or(false) && chars.next().is_none()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    /// Returns a command line with every kind of flag that matters here.
    fn gobs() -> Command {
        let flag = |name| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name| Arg::new(name).long(name);
        Command::new("gobs")
            .args([flag("no-color"), value("color"), value("chdir").short('C')])
            .subcommand(Command::new("plan").args([
                value("out"),
                value("var"),
                flag("json"),
                flag("detailed-exitcode"),
            ]))
            .subcommand(Command::new("apply").arg(flag("auto-approve")))
            .subcommand(Command::new("output").arg(flag("json")))
            .subcommand(Command::new("state").subcommand(Command::new("list")))
            .subcommand(Command::new("hob"))
    }

    fn check<const N: usize>(args: &[&str], env: [(&str, &str); N], expected: &[&str]) {
        let all = std::iter::once("gobs").chain(args.iter().copied());
        let got = normalise(all.map(OsString::from), &gobs(), &env.into()).expect("words");
        assert_eq!(got[1..], *expected, "{args:?}");
    }

    #[test]
    fn one_dash_before_a_long_name_is_enough() {
        check(
            &[
                "-chdir=x",
                "-no-color",
                "plan",
                "-out=p",
                "-var",
                "a=b",
                "-detailed-exitcode",
            ],
            [],
            &[
                "--chdir=x",
                "--no-color",
                "plan",
                "--out=p",
                "--var",
                "a=b",
                "--detailed-exitcode",
            ],
        );
        check(
            &["-C", "dir", "apply", "-auto-approve"],
            [],
            &["-C", "dir", "apply", "--auto-approve"],
        );
        check(&["-help"], [], &["--help"]);
        check(&["-version"], [], &["--version"]);
    }

    #[test]
    fn values_short_flags_and_the_agents_arguments_stay() {
        check(&["plan", "-var", "-json"], [], &["plan", "--var", "-json"]);
        check(&["-Cdir", "-h"], [], &["-Cdir", "-h"]);
        check(&["output", "--", "-json"], [], &["output", "--", "-json"]);
        check(
            &["-C", "plan", "hob", "-json"],
            [("GOBS_CLI_ARGS", "-x")],
            &["-C", "plan", "hob", "-json"],
        );
        check(&["plan", "-unheard-of"], [], &["plan", "-unheard-of"]);
    }

    #[test]
    fn the_environment_adds_arguments_before_the_typed_ones() {
        let env = [
            ("GOBS_CLI_ARGS", "-no-color"),
            ("GOBS_CLI_ARGS_plan", "-var 'a=b c'"),
            ("GOBS_CLI_ARGS_state_list", "--color=never"),
        ];
        check(
            &["-C", "d", "plan", "-out=p"],
            env,
            &["-C", "d", "plan", "--no-color", "--var", "a=b c", "--out=p"],
        );
        check(
            &["state", "list"],
            env,
            &["state", "list", "--no-color", "--color=never"],
        );
    }

    #[test]
    fn an_open_quote_is_an_error() {
        let env = [(EVERY, "'x")].into();
        let args = ["gobs", "plan"].map(OsString::from);
        let error = normalise(args, &gobs(), &env).expect_err("open");
        assert!(error.to_string().starts_with("GOBS_CLI_ARGS is not"));
    }
}
