//! The language as a whole: texts in, declarations, values and messages out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gobs::lang::{
    Assignment, BlockId, Config, Evaluator, Files, Given, Inputs, Loaded, Origin, Schemas, Source,
    check, load, parse_vars,
};
use gobs_model::{
    Address, Attribute, Block, Change, Diagnostic, Instance, Name, NestedBlock, Nesting, Type,
    Value,
};
use gobs_provider::Provider;
use gobs_provider_dummy::{Dummy, DummyHost};

fn schemas() -> Schemas {
    let provider = Dummy::new(DummyHost {
        root: "dummy".into(),
        agent: Vec::new(),
        runtime_root: "run".into(),
    });
    let schema = provider.schema().clone();
    BTreeMap::from([(schema.name.clone(), schema)])
}

fn source(text: &str) -> Source {
    Source::new("main.gobs.hcl", text)
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|it| format!("{it}\n")).collect()
}

/// Returns what is declared, which must be without a mistake.
#[track_caller]
fn right(text: &str) -> Config {
    let Loaded {
        config,
        mut diagnostics,
    } = load(&[source(text)]);
    diagnostics.extend(check(&config, &schemas()));
    diagnostics.retain(Diagnostic::is_error);
    assert_eq!(lines(&diagnostics), "");
    config
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn instance(text: &str) -> Instance {
    text.parse().expect("an instance")
}

/// Every kind of wrong text with all its messages. What the test makes of it is written into the
/// target's directory, to be read and copied after a change of words.
#[test]
fn wrong_texts_are_explained() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lang/errors.txt");
    let golden = std::fs::read_to_string(&path).expect("the golden file");
    let mut now = String::new();
    let mut cases = 0;
    for case in golden.split("=== ").skip(1) {
        let (title, rest) = case.split_once('\n').expect("a title");
        let (text, _) = rest.split_once("--- \n").unwrap_or((rest, ""));
        let loaded = load(&[source(text)]);
        let mut diagnostics = loaded.diagnostics;
        diagnostics.extend(check(&loaded.config, &schemas()));
        assert!(
            diagnostics.iter().all(|it| it.place.is_some()),
            "{title}: {diagnostics:?}"
        );
        now += &format!("=== {title}\n{text}--- \n{}", lines(&diagnostics));
        cases += 1;
    }
    assert!(cases > 20, "{cases} cases");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("errors.txt");
    std::fs::write(&made, &now).expect("written");
    assert!(
        now == golden,
        "{} differs from {}",
        made.display(),
        path.display()
    );
}

const APP: &str = r#"
variable "zones" {
  type    = map(string)
  default = { blue = "a", green = "b" }
}
locals {
  prefix = "app"
  sizes  = { for k, m in machine.app : k => m.size }
}
machine "db" {
  provider = dummy
  size     = "small"
  service "orders" {
    tcp   = "127.0.0.1:5432"
    ready = "30s"
  }
  service "metrics" { unix = "/run/m.sock" }
}
machine "app" {
  for_each = var.zones
  provider = dummy
  size     = "${local.prefix}-${each.key}"
  zone     = each.value
  image    = machine.db.id
}
machine "web" {
  count    = 2
  provider = dummy
  size     = count.index
  hob {
    listen    = "[::]:7463"
    advertise = ["ipv4"]
    deadline  = "10m"
  }
}
binding "db" {
  for_each = machine.app
  from     = machine.db.service.orders
  to       = each.value
  attenuate { connections_max = 20 }
  expose {
    unix  = "/run/${each.key}.sock"
    user  = "app"
    group = 1000
    mode  = "0660"
    unit  = "app@${each.key}.service"
    env   = { DATABASE_URL = "uri" }
  }
  expose { tcp = "127.0.0.1:5433" }
}
binding "metrics" {
  from = machine.db.service.metrics
  to   = machine.web[0]
  as   = "m"
}
output "addresses" { value = { for k, b in binding.db : k => b.address } }
output "sizes" { value = local.sizes }
output "ids" { value = machine.web[*].id }
output "which" { value = true ? machine.db : machine.web[1] }
"#;

#[test]
fn declarations_become_values() {
    let config = right(APP);
    let (inputs, schemas) = (Inputs::default(), schemas());
    let mut evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");

    let app = evaluator.expand_machine(&name("app")).expect("known");
    assert_eq!(
        format!("{:?}", app.instances),
        r#"[app["blue"], app["green"]]"#
    );
    let db = evaluator.machine(&instance("db")).expect("right");
    assert_eq!(db.provider, "dummy");
    assert_eq!(
        format!("{:?}", db.attributes),
        r#"{"fault": null, "image": null, "password": (sensitive value), "run": null, "size": "small", "zone": null}"#
    );
    let orders = &db.services[&name("orders")];
    assert_eq!(format!("{:?}", orders.spec), r#"{"tcp": "127.0.0.1:5432"}"#);
    assert_eq!(orders.ready.as_secs(), 30);

    // While db is planned its id is unknown; then it is not.
    let address: Address = "machine.db".parse().expect("an address");
    let planned = Value::object([("id", Value::unknown(Type::String))]);
    evaluator.set_object(address.clone(), planned);
    let blue = evaluator
        .machine(&instance("app[\"blue\"]"))
        .expect("right");
    assert!(blue.attributes.get("image").expect("there").is_unknown());
    assert_eq!(blue.attributes.get("size"), Some(&"app-blue".into()));
    assert_eq!(blue.attributes.get("zone"), Some(&"a".into()));
    evaluator.set_object(address, Value::object([("id", "d1".into())]));
    let blue = evaluator
        .machine(&instance("app[\"blue\"]"))
        .expect("right");
    assert_eq!(blue.attributes.get("image"), Some(&"d1".into()));

    let web = evaluator.machine(&instance("web[1]")).expect("right");
    assert_eq!(web.attributes.get("size"), Some(&"1".into()));
    assert_eq!(web.hob.deadline.as_secs(), 600);
    assert_eq!(web.hob.advertise, ["ipv4"]);
    assert!(evaluator.machine(&instance("web[2]")).is_err());
    assert!(evaluator.machine(&instance("web")).is_err());

    let binding = evaluator
        .binding(&instance("db[\"green\"]"))
        .expect("right");
    assert_eq!(binding.from.to_string(), "machine.db.service.orders");
    assert_eq!(binding.to.to_string(), "machine.app[\"green\"]");
    assert_eq!(binding.name.as_str(), "db");
    assert_eq!(
        format!("{:?}", binding.attenuate),
        r#"{"connections_max": 20}"#
    );
    assert_eq!(
        format!("{:?}", binding.expose),
        r#"[{"env": {"DATABASE_URL": "uri"}, "group": "1000", "mode": "0660", "unit": "app@green.service", "unix": "/run/green.sock", "user": "app"}, {"tcp": "127.0.0.1:5433"}]"#
    );
    let metrics = evaluator.binding(&instance("metrics")).expect("right");
    assert_eq!(
        (metrics.name.as_str(), metrics.attenuate),
        ("m", Value::NULL)
    );
    assert_eq!(metrics.to.to_string(), "machine.web[0]");
}

#[test]
fn locals_follow_what_was_set_last() {
    let config = right(APP);
    let (inputs, schemas) = (Inputs::default(), schemas());
    let mut evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");
    let sizes = |evaluator: &Evaluator<'_>| {
        format!("{:?}", evaluator.output(&name("sizes")).expect("right"))
    };
    assert_eq!(
        sizes(&evaluator),
        r#"{"blue": (unknown string), "green": (unknown string)}"#
    );
    let green: Address = "machine.app[\"green\"]".parse().expect("an address");
    evaluator.set_object(green, Value::object([("size", "xl".into())]));
    assert_eq!(
        sizes(&evaluator),
        r#"{"blue": (unknown string), "green": "xl"}"#
    );
    let which = evaluator.output(&name("which")).expect("right");
    assert_eq!(
        which.as_ref_address().map(Address::to_string).as_deref(),
        Some("machine.db")
    );
}

#[test]
fn dependencies_go_through_locals() {
    let config = right(APP);
    let shown = |block: BlockId| -> Vec<String> {
        let found = config.dependencies(&block);
        found
            .iter()
            .map(|it| format!("{} {}", it.on, it.span.start.line))
            .collect()
    };
    assert_eq!(shown(BlockId::Machine(name("app"))), ["machine.db 24"]);
    assert_eq!(shown(BlockId::Output(name("sizes"))), ["machine.app 8"]);
    assert_eq!(
        shown(BlockId::Binding(name("db"))),
        ["machine.app 37", "machine.db 38"]
    );
}

fn given(name: &str, text: &str, origin: Origin) -> Assignment {
    Assignment {
        name: name.into(),
        value: Given::Text(text.into()),
        origin,
        span: None,
    }
}

#[test]
fn later_values_of_variables_win() {
    let config = right(
        r#"
variable "name" { type = string }
variable "list" { type = list(number) }
variable "free" {}
variable "object" {
  type    = object({ a = string, b = optional(number, 7) })
  default = { a = 1 }
}
variable "strict" {
  nullable = false
  default  = "d"
}
"#,
    );
    let (file, errors) = parse_vars(&Source::new(
        "gobs.gobsvars",
        "name = \"file\"\nlist = [1]\nfree = { x = true }\nstrict = null\nother = 1\n",
    ));
    assert_eq!(lines(&errors), "");
    let mut variables = vec![given("name", "env", Origin::Environment)];
    variables.push(given("unheard", "of", Origin::Environment));
    variables.extend(file);
    variables.push(given("list", "[1, \"2\"]", Origin::CommandLine));
    let inputs = Inputs {
        variables,
        ..Inputs::default()
    };
    let schemas = schemas();
    let evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");
    let shown = |variable: &str| format!("{:?}", evaluator.variable(&name(variable)).expect("set"));
    assert_eq!(shown("name"), "\"file\"");
    assert_eq!(shown("list"), "[1, 2]");
    assert_eq!(shown("free"), "{\"x\": true}");
    assert_eq!(shown("object"), "{\"a\": \"1\", \"b\": 7}");
    assert_eq!(shown("strict"), "\"d\"");
    assert_eq!(
        lines(evaluator.warnings()),
        "gobs.gobsvars:5:9: Value for undeclared variable: gobs.gobsvars gives a value for \
         \"other\", but no such variable is declared.\n"
    );
}

#[test]
fn wrong_values_of_variables_are_explained() {
    let config = right(
        r#"
variable "missing" {}
variable "port" {
  type = number
  validation {
    condition     = var.port > 1024
    error_message = "A port is above 1024, and ${var.port} is not."
  }
}
variable "list" { type = list(number) }
variable "token" {
  type      = number
  sensitive = true
}
"#,
    );
    let schemas = schemas();
    let mut inputs = Inputs {
        variables: vec![
            given("list", "[1,", Origin::CommandLine),
            given("prot", "1", Origin::CommandLine),
            given("port", "80", Origin::Environment),
            given("token", "hunter2", Origin::CommandLine),
        ],
        ..Inputs::default()
    };
    let errors = Evaluator::new(&config, &inputs, &schemas).expect_err("wrong");
    assert_eq!(
        lines(&errors),
        "Value for undeclared variable: --var gives a value for \"prot\", but no such variable is \
         declared. Did you mean \"port\"?\n\
         Invalid value for variable: The value for \"list\" from --var is not right: Found the end \
         of the file, but expected `]`. The variable's type is list(number).\n\
         main.gobs.hcl:2:1: No value for variable: The variable \"missing\" has no default, and no \
         value was given for it. Give one with --var 'missing=…', or set GOBS_VAR_missing.\n\
         Invalid value for variable: The value for \"token\" from --var is not right: the value is \
         sensitive, so the reason is not shown. The variable's type is number.\n"
    );
    inputs.variables = vec![
        given("missing", "x", Origin::CommandLine),
        given("list", "[]", Origin::CommandLine),
        given("token", "1", Origin::CommandLine),
        given("port", "80", Origin::Environment),
    ];
    let errors = Evaluator::new(&config, &inputs, &schemas).expect_err("wrong");
    assert_eq!(
        lines(&errors),
        "main.gobs.hcl:6:21: Invalid value for variable: A port is above 1024, and 80 is not.\n"
    );
    assert_eq!(
        errors[0].values,
        [("var.port".to_owned(), "is 80".to_owned())]
    );
}

struct OneFile;

impl Files for OneFile {
    fn read(&self, path: &Path) -> Result<Arc<[u8]>, String> {
        match path.to_str() {
            Some("./hello.txt") => Ok(Arc::from(&b"hello\n"[..])),
            _ => Err("no such file".into()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        path == Path::new("./hello.txt")
    }
}

#[test]
fn files_come_through_the_inputs() {
    let config = right(
        r#"
output "a" { value = chomp(file("${path.module}/hello.txt")) }
output "b" { value = fileexists("./bye.txt") }
output "c" { value = file("./bye.txt") }
output "d" { value = gobs.workspace }
"#,
    );
    let inputs = Inputs {
        files: Arc::new(OneFile),
        ..Inputs::default()
    };
    let schemas = schemas();
    let evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");
    assert_eq!(evaluator.output(&name("a")), Ok("hello".into()));
    assert_eq!(evaluator.output(&name("b")), Ok(false.into()));
    assert_eq!(evaluator.output(&name("d")), Ok("default".into()));
    let errors = evaluator.output(&name("c")).expect_err("missing");
    assert_eq!(
        lines(&errors),
        "main.gobs.hcl:4:27: Invalid function argument: Invalid value for \"path\" of file(path): \
         cannot read \"./bye.txt\": no such file.\n"
    );
}

#[test]
fn what_must_be_known_before_apply_is_said() {
    let text = r#"
machine "a" {
  provider = dummy
  service "s" { tcp = "127.0.0.1:1" }
}
machine "b" {
  provider = dummy
  count    = length(machine.a.id)
}
machine "c" {
  provider = dummy
  for_each = toset([machine.a.id])
}
binding "x" {
  from = machine.a.service.s
  to   = machine.a.id == "x" ? machine.a : machine.d
  as   = machine.a.id
}
machine "d" { provider = dummy }
"#;
    let config = right(text);
    let (inputs, schemas) = (Inputs::default(), schemas());
    let evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");
    let count = evaluator.expand_machine(&name("b")).expect_err("unknown");
    let for_each = evaluator.expand_machine(&name("c")).expect_err("unknown");
    let binding = evaluator.binding(&instance("x")).expect_err("unknown");
    let later = "it depends on what is known only after apply, so it cannot be said now how many \
                 instances there are";
    assert_eq!(
        lines(&count) + &lines(&for_each) + &lines(&binding),
        format!(
            "main.gobs.hcl:8:14: Invalid count argument: This \"count\" cannot be used: {later}.\n\
             main.gobs.hcl:12:14: Invalid for_each argument: This \"for_each\" cannot be used: \
             {later}.\n\
             main.gobs.hcl:16:10: Invalid binding end: This must be a machine, as machine.app, and \
             known before apply; which one it is, is not.\n\
             main.gobs.hcl:17:10: Invalid value: \"as\" must be known before apply.\n"
        )
    );
    assert_eq!(
        count[0].values,
        [(
            "machine.a.id".to_owned(),
            "is a string, known only after apply".to_owned()
        )]
    );
}

#[test]
fn a_long_chain_of_locals_needs_no_stack() {
    let mut text = String::from("locals {\n  l0 = 1\n");
    for at in 1..5_000 {
        text += &format!("  l{at} = local.l{} + 1\n", at - 1);
    }
    text += "}\noutput \"o\" { value = local.l4999 }\n";
    let config = right(&text);
    let (inputs, schemas) = (Inputs::default(), schemas());
    let evaluator = Evaluator::new(&config, &inputs, &schemas).expect("right");
    assert_eq!(evaluator.output(&name("o")), Ok(5_000.into()));
}

#[test]
fn growth_by_doubling_is_stopped() {
    for (first, next) in [
        ("\"x\"", "\"${local.P}${local.P}\""),
        ("[1]", "[local.P, local.P]"),
    ] {
        let mut text = format!("locals {{\n  l0 = {first}\n");
        for at in 1..60 {
            let next = next.replace("local.P", &format!("local.l{}", at - 1));
            text += &format!("  l{at} = {next}\n");
        }
        text += "}\noutput \"o\" { value = local.l59 }\n";
        let loaded = load(&[source(&text)]);
        let errors = check(&loaded.config, &schemas());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].summary.ends_with("too large") || errors[0].summary.ends_with("too long")
        );
    }
}

/// The dummy's schema with what other providers have beside: a required argument, `user_data`, and
/// blocks of every nesting.
fn rich_schemas() -> Schemas {
    let mut schemas = schemas();
    let machine = &mut schemas.get_mut("dummy").expect("there").machine;
    let text = || Attribute::optional(Type::String, Change::InPlace, "");
    let region = Attribute::required(Type::String, Change::Replace, "");
    machine.attributes.insert("region".into(), region);
    machine.attributes.insert("user_data".into(), text());
    for (name, nesting) in [
        ("boot", Nesting::Single),
        ("nic", Nesting::List),
        ("volume", Nesting::Labelled),
    ] {
        let size = Attribute::optional(Type::Number, Change::InPlace, "").with_default(1);
        let nested = NestedBlock::new(nesting, Change::InPlace, Block::of([("size", size)]));
        machine.blocks.insert(name.into(), nested);
    }
    schemas
}

#[test]
fn blocks_follow_the_schema() {
    let loaded = load(&[source(
        r#"
machine "a" {
  provider = dummy
  region   = "x"
  boot { size = "2" }
  nic {}
  nic { size = 3 }
  volume "data" { size = 4 }
}
"#,
    )]);
    let (inputs, schemas) = (Inputs::default(), rich_schemas());
    assert_eq!(lines(&loaded.diagnostics), "");
    assert_eq!(lines(&check(&loaded.config, &schemas)), "");
    let evaluator = Evaluator::new(&loaded.config, &inputs, &schemas).expect("right");
    let values = evaluator.machine(&instance("a")).expect("right").attributes;
    let shown = |name: &str| format!("{:?}", values.get(name).expect("there"));
    assert_eq!(shown("boot"), r#"{"size": 2}"#);
    assert_eq!(shown("nic"), r#"[{"size": 1}, {"size": 3}]"#);
    assert_eq!(shown("volume"), r#"{"data": {"size": 4}}"#);
}

#[test]
fn blocks_that_break_the_schema_are_explained() {
    let loaded = load(&[source(
        r#"
machine "a" {
  provider  = dummy
  user_data = "token=${sensitive("x")}"
  boot {}
  boot {}
  volume {}
  volume "a" {}
  volume "a" { sise = 1 }
  nic = []
  lifecycle { ignore_changes = [regoin] }
}
"#,
    )]);
    assert_eq!(
        lines(&check(&loaded.config, &rich_schemas())),
        "main.gobs.hcl:2:1: Missing required argument: The argument \"region\" is required in a \
         machine of provider \"dummy\", but it is not set.\n\
         main.gobs.hcl:2:1: Invalid ignore_changes: ignore_changes names \"regoin\", but a machine of \
         provider \"dummy\" has no such attribute. Did you mean \"region\"?\n\
         main.gobs.hcl:4:15: Sensitive value in user_data: Every process on a machine can read its \
         user data, so it must hold no secret. Give the machine a binding to a service of kind \
         \"secret\" instead: only the program that needs it gets it, and it can be taken back.\n\
         main.gobs.hcl:6:3: Duplicate block: There can be one \"boot\" block only.\n\
         main.gobs.hcl:7:3: Wrong labels for block: A \"volume\" block has one label, its name.\n\
         main.gobs.hcl:9:10: Duplicate block: There are two such blocks with the label \"a\".\n\
         main.gobs.hcl:9:16: Unsupported argument: A \"volume\" block has no argument named \
         \"sise\". Did you mean \"size\"?\n\
         main.gobs.hcl:10:3: Unsupported argument: \"nic\" is a block, not an argument. Write nic \
         { … }, without an equals sign.\n"
    );
}

#[test]
fn known_instances_are_checked_as_they_are() {
    let loaded = load(&[source(
        r#"
machine "a" {
  for_each = { x = 1 }
  provider = dummy
}
binding "b" {
  for_each = machine.a
  from     = machine.a["y"].service.s
  to       = each.value.adress
}
variable "v" {
  validation {
    condition     = var.v > local.nothing
    error_message = "x"
  }
}
"#,
    )]);
    assert_eq!(
        lines(&check(&loaded.config, &schemas())),
        "main.gobs.hcl:8:24: Invalid index: The given key \"y\" does not identify an element in this \
         object.\n\
         main.gobs.hcl:9:25: Unsupported attribute: A machine of provider \"dummy\" has no attribute \
         named \"adress\". Did you mean \"address\"?\n\
         main.gobs.hcl:13:29: Reference to undeclared local value: No local value named \"nothing\" is \
         declared.\n"
    );
}
