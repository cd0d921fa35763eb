//! What a user of Redis may do, as rules of `ACL SETUSER`.
//!
//! A grant is of database 0. Whatever it is narrowed to, it is never wider than [`NEVER`] leaves
//! it: the administrator's commands, other databases, and libraries of functions, which would run
//! with the rights of whoever calls them.

use crate::protocol::Attenuate;

/// Patterns or commands in one list: Redis keeps them for each user, and compares one by one.
const LISTED_MAX: usize = 256;

/// Bytes of a pattern or a command's name.
const LISTED_BYTES_MAX: usize = 512;

/// What no grant has. The order matters: the last rule for a command wins.
const NEVER: &[&str] = &[
    "-@admin",
    "-@dangerous",
    "-select",
    "+select|0",
    "-move",
    "-copy",
    "-function",
    "-script|flush",
    "-script|kill",
    "-script|debug",
];

/// The names of what [`NEVER`] takes away, as Redis 7.0 has them: whoever asks for one by its name
/// is told that it is not to be had. A command that has only such subcommands is among them.
#[rustfmt::skip]
const NOBODYS: &[&str] = &[
    "acl|deluser", "acl|dryrun", "acl|getuser", "acl|list", "acl|load", "acl|log", "acl|save",
    "acl|setuser", "acl|users", "bgrewriteaof", "bgsave", "client|kill", "client|list",
    "client|no-evict", "client|pause", "client|unblock", "client|unpause", "cluster|addslots",
    "cluster|addslotsrange", "cluster|bumpepoch", "cluster|count-failure-reports",
    "cluster|delslots", "cluster|delslotsrange", "cluster|failover", "cluster|flushslots",
    "cluster|forget", "cluster|meet", "cluster|replicas", "cluster|replicate", "cluster|reset",
    "cluster|saveconfig", "cluster|set-config-epoch", "cluster|setslot", "cluster|slaves",
    "config", "copy", "debug", "failover", "flushall", "function", "lastsave", "latency",
    "migrate", "module", "monitor", "move", "pfdebug", "pfselftest", "psync", "replconf",
    "replicaof", "reset", "restore", "restore-asking", "role", "save", "script|debug",
    "script|flush", "script|kill", "shutdown", "slaveof", "slowlog", "swapdb", "sync",
];

/// Kinds of commands of which no grant has any.
const NOBODYS_KINDS: &[&str] = &["@admin", "@dangerous"];

/// Commands that Redis calls dangerous, and that do no more than others do to a database which is
/// the grant's own as a whole.
const OWN_DATABASE: &[&str] = &["info", "keys", "sort", "sort_ro", "flushdb"];

/// Kinds of commands that look at the keys they name, for grants of some keys: commands of modules
/// and those that are not known yet may look at others.
const KEYED: &[&str] = &[
    "+@keyspace",
    "+@string",
    "+@hash",
    "+@list",
    "+@set",
    "+@sortedset",
    "+@stream",
    "+@bitmap",
    "+@hyperloglog",
    "+@geo",
    "+@pubsub",
    "+@blocking",
    "+@connection",
    "+@transaction",
    "+@scripting",
    "+time",
    // What shows nothing of the server. Commands that are asked for by name or as `@all` have it,
    // and a grant made from this one must not have more.
    "+lolwut",
    "+acl|whoami",
    "+acl|genpass",
    "+acl|cat",
    "+acl|help",
    "+config|help",
    "+latency|help",
    "+module|help",
    "+slowlog|help",
];

/// Commands that tell of keys or channels whether or not they match.
const TELLING: &[&str] = &[
    "scan",
    "randomkey",
    "dbsize",
    "pubsub",
    "cluster",
    "memory",
    "client|tracking",
    "client|caching",
];

/// Commands that need a channel.
const OF_CHANNELS: &[&str] = &[
    "publish",
    "spublish",
    "subscribe",
    "psubscribe",
    "ssubscribe",
];

/// What a server says of its commands.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// Those that its modules have added.
    pub(super) modules: Vec<String>,
    /// Those that it calls dangerous, or the administrator's.
    pub(super) dangerous: Vec<String>,
}

/// What every client library needs and what shows nothing.
const ALWAYS: &[&str] = &[
    "+ping",
    "+echo",
    "+command",
    "+client|id",
    "+client|info",
    "+client|setname",
    "+client|getname",
];

/// Returns the rules for these rights, without name and password.
///
/// # Errors
/// What cannot be a rule, or would be one without effect, for people.
pub(super) fn rules(rights: &Attenuate, server: &Server) -> Result<Vec<String>, String> {
    let mut rules: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| rules.extend(more.iter().map(|rule| (*rule).to_owned()));
    add(&["resetkeys", "resetchannels", "-@all"]);
    match &rights.commands {
        Some(commands) => {
            for command in checked("commands", commands, is_command)? {
                has_effect(command, rights, server)
                    .map_err(|why| format!("commands cannot have {command:?}: {why}"))?;
                add(&[&format!("+{command}")]);
            }
            add(ALWAYS);
        }
        None if rights.keys.is_some() => add(KEYED),
        None => add(&["+@all"]),
    }
    add(NEVER);
    match &rights.keys {
        Some(keys) => {
            let modules = server.modules.iter().map(String::as_str);
            for command in TELLING.iter().copied().chain(modules) {
                add(&[&format!("-{command}")]);
            }
            for pattern in plain(checked("keys", keys, is_pattern)?) {
                add(&[&format!("~{pattern}")]);
            }
        }
        None => {
            let asked = |command: &&&str| {
                let named = |name: &String| name.eq_ignore_ascii_case(command);
                rights
                    .commands
                    .as_ref()
                    .is_none_or(|all| all.iter().any(named))
            };
            for command in OWN_DATABASE.iter().filter(asked) {
                add(&[&format!("+{command}")]);
            }
            add(&["~*"]);
        }
    }
    match &rights.channels {
        Some(channels) => {
            for pattern in plain(checked("channels", channels, is_pattern)?) {
                add(&[&format!("&{pattern}")]);
            }
        }
        // Some channels tell of what happens to keys.
        None if rights.keys.is_some() => {}
        None => add(&["&*"]),
    }
    Ok(rules)
}

/// Checks rights as far as that goes without a server.
///
/// # Errors
/// What is wrong with them, for people.
pub(crate) fn check_rights(rights: &Attenuate) -> Result<(), String> {
    rules(rights, &Server::default()).map(drop)
}

/// Checks that a command which is asked for by its name would be had.
fn has_effect(command: &str, rights: &Attenuate, server: &Server) -> Result<(), &'static str> {
    let command = command.to_ascii_lowercase();
    let container = command.split('|').next().unwrap_or_default();
    let is_among = |list: &[&str]| list.iter().any(|it| *it == command || *it == container);
    let is_listed = |list: &[String]| list.iter().any(|it| it.eq_ignore_ascii_case(&command));
    let is_own = is_among(OWN_DATABASE);
    if NOBODYS_KINDS.contains(&&*command)
        || is_among(NOBODYS)
        || is_listed(&server.dangerous) && !is_own
    {
        return Err("no binding has it");
    }
    if rights.keys.is_none() {
        return Ok(());
    }
    if is_own || is_among(TELLING) {
        return Err("it tells of all keys, or works on them, and the binding has some with keys");
    }
    if is_listed(&server.modules) {
        return Err("it is a module's, which may look at other keys than those in keys");
    }
    if rights.channels.is_none() && is_among(OF_CHANNELS) {
        return Err("beside keys a binding has no channels but those that channels names");
    }
    Ok(())
}

fn checked<'a>(
    what: &str,
    listed: &'a [String],
    fits: impl Fn(&str) -> bool,
) -> Result<&'a [String], String> {
    if listed.len() > LISTED_MAX {
        return Err(format!("{what} has more than {LISTED_MAX} entries"));
    }
    match listed
        .iter()
        .find(|it| it.len() > LISTED_BYTES_MAX || !fits(it))
    {
        Some(wrong) => Err(format!("{what} cannot have {wrong:?}")),
        None => Ok(listed),
    }
}

/// Returns the patterns without those that Redis refuses since all is matched already.
fn plain(patterns: &[String]) -> &[String] {
    let all = patterns.iter().find(|pattern| *pattern == "*");
    all.map_or(patterns, std::slice::from_ref)
}

/// A name, `name|subcommand` or `@category`.
fn is_command(text: &str) -> bool {
    let plain = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(fits)
    };
    match (text.strip_prefix('@'), text.split_once('|')) {
        (Some(category), None) => plain(category),
        (None, Some((command, sub))) => plain(command) && plain(sub),
        (None, None) => plain(text),
        (Some(_), Some(_)) => false,
    }
}

/// What may follow `~` or `&`.
fn is_pattern(text: &str) -> bool {
    !text.is_empty() && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(|it| (*it).to_owned()).collect())
    }

    #[test]
    fn lists_that_are_no_rules_are_refused() {
        for command in [
            "", "@", "-get", "+get", "get set", "get|", "|get", "@a|b", "get\0", ">x",
        ] {
            let commands = listed(&[command]);
            let rights = Attenuate {
                commands,
                ..Attenuate::default()
            };
            let wrong = rules(&rights, &Server::default()).unwrap_err();
            assert_eq!(wrong, format!("commands cannot have {command:?}"));
        }
        for pattern in ["", "a b", "a\nb", "a\0"] {
            for (keys, channels) in [(listed(&[pattern]), None), (None, listed(&[pattern]))] {
                let rights = Attenuate {
                    keys,
                    channels,
                    ..Attenuate::default()
                };
                assert!(rules(&rights, &Server::default()).is_err(), "{pattern:?}");
            }
        }
        let many = vec!["a"; LISTED_MAX + 1];
        let rights = Attenuate {
            keys: listed(&many),
            ..Attenuate::default()
        };
        assert_eq!(
            rules(&rights, &Server::default()).unwrap_err(),
            "keys has more than 256 entries"
        );
    }

    #[test]
    fn what_a_grant_never_has_comes_after_what_was_asked_for() {
        let rights = Attenuate {
            keys: listed(&["app:*"]),
            commands: listed(&["@all", "GET"]),
            ..Attenuate::default()
        };
        let server = Server {
            modules: vec!["ft.search".to_owned()],
            ..Server::default()
        };
        let rules = rules(&rights, &server).unwrap();
        let at = |rule: &str| rules.iter().rposition(|it| it == rule).unwrap();
        assert!(at("+@all") < at("-@admin") && at("+GET") < at("-@dangerous"));
        assert!(at("+@all") < at("-scan") && at("+@all") < at("-ft.search"));
        assert!(
            !rules
                .iter()
                .any(|rule| rule == "+keys" || rule.starts_with('&'))
        );
    }

    #[test]
    fn what_would_have_no_effect_is_refused_by_its_name() {
        let server = Server {
            modules: vec!["ft.search".to_owned()],
            dangerous: vec!["newer|danger".to_owned(), "sort".to_owned()],
        };
        let check = |command: &str, keys: Option<&[&str]>, expected: &str| {
            let rights = Attenuate {
                commands: listed(&[command]),
                keys: keys.and_then(listed),
                ..Attenuate::default()
            };
            let why = rules(&rights, &server).err().unwrap_or_default();
            let why = why.strip_prefix(&format!("commands cannot have {command:?}: "));
            assert!(
                why.unwrap_or_default().starts_with(expected),
                "{command}: {why:?}"
            );
            assert_eq!(why.is_none(), expected.is_empty(), "{command}: {why:?}");
        };
        let nobodys = [
            "flushall",
            "FLUSHALL",
            "config|get",
            "config",
            "acl|setuser",
            "@admin",
            "@dangerous",
            "reset",
            "move",
            "function|load",
            "script|flush",
            "newer|danger",
        ];
        for command in nobodys {
            check(command, None, "no binding has it");
            check(command, Some(&["a*"]), "no binding has it");
        }
        for command in [
            "scan",
            "KEYS",
            "sort",
            "flushdb",
            "memory|usage",
            "client|tracking",
        ] {
            check(command, None, "");
            check(command, Some(&["a*"]), "it tells of all keys");
        }
        check("ft.search", Some(&["a*"]), "it is a module's");
        check(
            "subscribe",
            Some(&["a*"]),
            "beside keys a binding has no channels",
        );
        for command in [
            "subscribe",
            "ft.search",
            "acl|whoami",
            "select",
            "@read",
            "get",
        ] {
            check(command, None, "");
        }
    }
}
