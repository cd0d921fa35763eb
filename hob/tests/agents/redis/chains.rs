//! S7 as Redis itself has it: what a grant was made from may do all that it may.

use std::collections::BTreeSet;

use hob::protocol::{Attenuate, Grant, code};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::server::{Program, Server};
use crate::support::{Pair, grant};

/// Chains of grants, and the most that one of them has.
const CHAINS: usize = 12;
const LINKS_MAX: usize = 5;

/// Commands with subcommands that are of interest.
const SUBCOMMANDS: &[&str] = &[
    "acl whoami",
    "acl list",
    "client id",
    "client list",
    "config get x",
    "config help",
    "function list",
    "memory usage x",
    "object encoding x",
    "pubsub channels",
    "script flush",
    "script load x",
    "select 0",
    "select 1",
];

fn rights() -> impl Strategy<Value = Attenuate> {
    let some = |all: &[&str]| {
        let all: Vec<String> = all.iter().map(|it| (*it).to_owned()).collect();
        prop::option::of(prop::collection::vec(prop::sample::select(all), 0..4))
    };
    let keys = some(&["*", "x*", "x", "y*", "?", "[x]"]);
    let commands = some(&[
        "@all",
        "@read",
        "@write",
        "@dangerous",
        "@admin",
        "@scripting",
        "get",
        "GET",
        "keys",
        "scan",
        "flushdb",
        "lolwut",
        "acl|whoami",
        "client|list",
        "publish",
    ]);
    let channels = some(&["*", "x*", "x"]);
    (keys, commands, channels).prop_map(|(keys, commands, channels)| Attenuate {
        keys,
        commands,
        channels,
        ..Attenuate::default()
    })
}

/// Returns every command of the server, with as many words as it takes.
async fn commands(admin: &mut Program) -> Vec<Vec<String>> {
    let names = admin.ask(&["COMMAND", "LIST"]).await;
    let names = names.trim_matches(['[', ']']).split(", ");
    let mut all: Vec<Vec<String>> = Vec::new();
    for name in names {
        let info = admin.ask(&["COMMAND", "INFO", name]).await;
        let arity = info.split(", ").nth(1).and_then(|it| it.strip_prefix(':'));
        let arity: i64 = arity.and_then(|it| it.parse().ok()).expect("an arity");
        let mut words = vec![name.to_owned()];
        words.resize(arity.unsigned_abs() as usize, "x".into());
        all.push(words);
    }
    let more = SUBCOMMANDS.iter();
    all.extend(more.map(|it| it.split(' ').map(str::to_owned).collect()));
    all
}

/// Returns which of these a user may.
async fn may<'a>(
    admin: &mut Program,
    user: &str,
    all: &'a [Vec<String>],
) -> BTreeSet<&'a [String]> {
    let mut may = BTreeSet::new();
    for words in all {
        let mut asked = vec!["ACL", "DRYRUN", user];
        asked.extend(words.iter().map(String::as_str));
        if admin.ask(&asked).await == "+OK" {
            may.insert(words.as_slice());
        }
    }
    may
}

#[tokio::test(flavor = "multi_thread")]
async fn s7_a_child_may_nothing_that_its_parent_may_not() {
    let server = Server::start("").await;
    let pair = Pair::of(server.kind()).await;
    let mut admin = Program::connect(&server.socket()).await;
    let all = commands(&mut admin).await;
    let mut runner = TestRunner::deterministic();
    let mut children = 0;
    for chain in 0..CHAINS {
        let links = prop::collection::vec(rights(), 2..=LINKS_MAX).new_tree(&mut runner);
        let mut parent: Option<(Grant, BTreeSet<&[String]>)> = None;
        for (link, attenuate) in links.unwrap().current().into_iter().enumerate() {
            let asked = Grant {
                binding: format!("binding.c{chain}-{link}"),
                attenuate,
                parent: parent.as_ref().map(|(grant, _)| grant.generation()),
                ..grant(1, &pair.importer.designator)
            };
            if let Err(refused) = pair.exporter.grant(&asked).await {
                assert_eq!(refused.code(), Some(code::RIGHTS), "{asked:?}: {refused}");
                continue;
            }
            let name = format!("gobs-c{chain}-{link}-1-");
            let users = server.users().await;
            let user = users.iter().find(|user| user.starts_with(&name)).unwrap();
            let its = may(&mut admin, user, &all).await;
            if let Some((of, parents)) = &parent {
                let more: Vec<_> = its.difference(parents).collect();
                assert!(more.is_empty(), "{asked:?} of {of:?}: {more:?}");
                children += 1;
            }
            parent = Some((asked, its));
        }
    }
    assert!(children >= CHAINS / 2, "{children} were granted");
}
