//! The evaluator against the results of HCL's reference implementation, and against any text.

use std::collections::BTreeMap;

use gobs_model::{Address, Diagnostic, Kind, ObjectField, Type, Value};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::access::AccessError;
use super::eval::{Eval, Scope};
use super::inputs::Inputs;
use super::parse;
use super::source::{Source, Sources};
use super::syntax::Reference;

struct Variables {
    values: BTreeMap<String, Value>,
    sources: Sources,
    inputs: Inputs,
}

impl Scope for Variables {
    fn resolve(&self, reference: &Reference) -> Result<(Value, usize), Vec<Diagnostic>> {
        match self.values.get(&*reference.root.text) {
            Some(value) => Ok((value.clone(), 0)),
            None => {
                let span = reference.root.span;
                Err(vec![self.sources.error(
                    span,
                    "Unknown variable",
                    "There is no such variable.",
                )])
            }
        }
    }

    fn attribute(&self, of: &Address, name: &str) -> Result<Value, AccessError> {
        Err(AccessError::new(
            "Unsupported attribute",
            format!("{of} has no {name}."),
        ))
    }

    fn inputs(&self) -> Option<&Inputs> {
        Some(&self.inputs)
    }
}

/// Evaluates an expression; returns its value and what is wrong.
pub(super) fn evaluate(
    text: &str,
    values: BTreeMap<String, Value>,
    template: bool,
) -> (Option<Value>, Vec<Diagnostic>) {
    let sources = Sources::new(&[Source::new("test", text)]);
    let mut errors = Vec::new();
    let expr = if template {
        parse::template(&sources, 0, &mut errors)
    } else {
        parse::expression(&sources, 0, &mut errors)
    };
    let scope = Variables {
        values,
        sources: sources.clone(),
        inputs: Inputs::default(),
    };
    let mut eval = Eval::new(&scope, &sources);
    let value = expr.map(|expr| eval.eval(&expr));
    errors.append(&mut eval.errors);
    (value, errors)
}

fn ty(json: &Json) -> Type {
    let Json::Array(parts) = json else {
        return match json.as_str() {
            Some("string") => Type::String,
            Some("number") => Type::Number,
            Some("bool") => Type::Bool,
            _ => Type::Any,
        };
    };
    let of = &parts[1];
    match parts[0].as_str() {
        Some("list") => Type::list(ty(of)),
        Some("set") => Type::set(ty(of)),
        Some("map") => Type::map(ty(of)),
        Some("tuple") => Type::Tuple(of.as_array().into_iter().flatten().map(ty).collect()),
        _ => {
            let fields = of.as_object().into_iter().flatten().map(|(name, json)| {
                let field = ObjectField {
                    ty: ty(json),
                    optional: false,
                    default: None,
                };
                (name.clone(), field)
            });
            Type::Object(fields.collect())
        }
    }
}

fn value(json: &Json, ty: &Type) -> Value {
    let elements = || json.as_array().into_iter().flatten();
    let entries = || json.as_object().into_iter().flatten();
    match (ty, json) {
        (_, Json::Null) => Value::NULL,
        (Type::List(of), _) => Value::list(elements().map(|it| value(it, of))),
        (Type::Set(of), _) => Value::set(elements().map(|it| value(it, of))),
        (Type::Tuple(types), _) => {
            Value::tuple(elements().zip(types).map(|(it, ty)| value(it, ty)))
        }
        (Type::Map(of), _) => Value::map(entries().map(|(k, it)| (k.as_str(), value(it, of)))),
        (Type::Object(fields), _) => {
            Value::object(entries().map(|(k, it)| (k.as_str(), value(it, &fields[k.as_str()].ty))))
        }
        (_, Json::Bool(it)) => (*it).into(),
        (_, Json::Number(it)) => it
            .to_string()
            .parse::<gobs_model::Number>()
            .expect("number")
            .into(),
        (_, Json::String(it)) => it.as_str().into(),
        (_, other) => panic!("no value: {other}"),
    }
}

fn described(json: &Json) -> Value {
    let ty = ty(&json["type"]);
    let plain = match json.get("value") {
        Some(it) if json["known"] == true => value(it, &ty),
        _ => Value::unknown(ty),
    };
    plain.sensitive_if(json["marked"] == true)
}

/// Whether a value may have a type of the reference implementation, which knows the element type
/// of an empty list and the type of a null.
fn has_type(value: &Value, ty: &Type) -> bool {
    match (&value.kind, ty) {
        (Kind::Null, _) => true,
        (Kind::Unknown(have), want) => have == want,
        (Kind::List(it), Type::List(of)) | (Kind::Set(it), Type::Set(of)) => {
            it.iter().all(|it| has_type(it, of))
        }
        (Kind::Tuple(it), Type::Tuple(types)) => {
            it.len() == types.len() && it.iter().zip(types).all(|(it, ty)| has_type(it, ty))
        }
        (Kind::Map(it), Type::Map(of)) => it.values().all(|it| has_type(it, of)),
        (Kind::Object(it), Type::Object(fields)) => {
            it.len() == fields.len()
                && it
                    .iter()
                    .all(|(k, it)| fields.get(&**k).is_some_and(|f| has_type(it, &f.ty)))
        }
        _ => value.type_of() == *ty,
    }
}

/// Where we differ from the reference implementation: the case's number in the file, and why.
const DIVERGENCES: &[(usize, &str)] = &[
    (
        97,
        "the test's own function foo::upper; gobs' functions have no namespaces",
    ),
    (98, "the same"),
    (
        178,
        "unknown values have no refinements, so this one may be null",
    ),
    (182, "the same"),
    (
        188,
        "a null has no type, so that it is a null list cannot be told",
    ),
    (
        190,
        "a list may hold tuples of several lengths, so this has a value",
    ),
    (
        203,
        "unknown values have no refinements, so this one may be null",
    ),
    (211, "the test's own function negate"),
];

#[test]
fn the_reference_implementation_agrees() {
    let cases = include_str!("../../tests/lang/hcl-cases.jsonl");
    let mut wrong = Vec::new();
    let mut count = 0;
    for (number, line) in cases.lines().enumerate() {
        count += 1;
        let case: Json = serde_json::from_str(line).expect("JSON");
        let input = case["input"].as_str().expect("text");
        let expected = &case["got"];
        let fails = case["parse_err"] == true || case["eval_err"] == true;
        let variables = case["vars"].as_object().into_iter().flatten();
        let variables = variables
            .map(|(name, it)| (name.clone(), described(it)))
            .collect();
        let (value, errors) = match case["suite"].as_str() {
            Some("config") => {
                let sources = Sources::new(&[Source::new("test", input)]);
                let mut errors = Vec::new();
                parse::body(&sources, 0, &mut errors);
                (None, errors)
            }
            suite => evaluate(input, variables, suite == Some("template")),
        };
        let mut why = String::new();
        if errors.is_empty() == fails {
            why = format!("errors: {errors:?}");
        } else if let Some(value) = value.filter(|_| !fails) {
            let want = described(expected);
            if value.contains_unknown() == (expected["known"] == true) {
                why = format!("known: {value:?}");
            } else if value.contains_sensitive() != want.sensitive {
                why = format!("sensitive: {value:?}");
            } else if expected["known"] == true && !value.same(&want) {
                why = format!("{value:?} is not {want:?}");
            } else if !has_type(&value, &ty(&expected["type"])) && expected["known"] == true {
                why = format!("type of {value:?} is not {}", ty(&expected["type"]));
            } else if expected["known"] != true && value.type_of() != ty(&expected["type"]) {
                why = format!("{} is not {}", value.type_of(), ty(&expected["type"]));
            }
        }
        let known = DIVERGENCES.iter().any(|(it, _)| *it == number);
        match (why.is_empty(), known) {
            (false, false) => wrong.push(format!("{number}: {input:?}: {why}")),
            (true, true) => wrong.push(format!("{number}: {input:?}: no longer differs")),
            _ => {}
        }
    }
    assert_eq!(count, 331);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the value of an expression as text, or what is wrong with it.
fn show(text: &str) -> String {
    let (value, errors) = evaluate(text, BTreeMap::new(), false);
    if let Some(error) = errors.first() {
        return format!("error: {error}");
    }
    value.map_or_else(String::new, |value| format!("{value:?}"))
}

#[track_caller]
fn yields(cases: &[(&str, &str)]) {
    let got: Vec<_> = cases.iter().map(|(text, _)| (*text, show(text))).collect();
    for ((text, expected), (_, got)) in cases.iter().zip(&got) {
        assert_eq!(got, expected, "{text}");
    }
}

#[test]
fn numbers_keep_their_digits() {
    yields(&[
        ("0.1 + 0.2", "0.3"),
        ("9007199254740993 + 0", "9007199254740993"),
        ("1e3", "1000"),
        ("- 2.50", "-2.5"),
        (
            "123456789012345678901234567890.5 * 2",
            "246913578024691357802469135781",
        ),
        ("7 % 3", "1"),
        ("-7 % 3", "-1"),
        ("7.5 % 2", "1.5"),
    ]);
    assert!(
        show("1 / 0").contains("Division by zero"),
        "{}",
        show("1 / 0")
    );
}

#[test]
fn texts_are_in_nfc() {
    assert_eq!(show("\"e\u{301}\" == \"\u{e9}\""), "true");
    assert_eq!(show("length(\"e\u{301}\")"), "1");
}

#[test]
fn functions_of_numbers() {
    yields(&[
        ("abs(-1.5)", "1.5"),
        ("ceil(1.2)", "2"),
        ("floor(-1.2)", "-2"),
        ("max(1, 3, 2)", "3"),
        ("min([4, 2]...)", "2"),
        ("signum(-3)", "-1"),
        ("pow(2, 64)", "18446744073709551616"),
        ("pow(2, -1)", "0.5"),
        ("log(100, 10)", "2"),
        ("parseint(\"ff\", 16)", "255"),
        ("parseint(\"-1Z\", 62)", "-123"),
        ("sum([1, 2.5])", "3.5"),
        ("range(3)", "[0, 1, 2]"),
        ("range(4, 1)", "[4, 3, 2]"),
        ("range(0, 1, 0.5)", "[0, 0.5]"),
    ]);
}

#[test]
fn functions_of_texts() {
    yields(&[
        (r#"chomp("a\r\n\n")"#, r#""a""#),
        (r#"endswith("abc", "bc")"#, "true"),
        (r#"startswith("abc", "b")"#, "false"),
        (r#"strcontains("abc", "b")"#, "true"),
        (r#"indent(2, "a\nb")"#, r#""a\n  b""#),
        (r#"join("-", ["a"], ["b", "c"])"#, r#""a-b-c""#),
        (r#"lower("ÄB")"#, r#""äb""#),
        (r#"title("hello wo'rld")"#, r#""Hello Wo'rld""#),
        (r#"regex("[a-z]+", "12ab")"#, r#""ab""#),
        (r#"regex("(\\d)(x)?", "1")"#, r#"["1", null]"#),
        (r#"regex("(?P<d>\\d)", "a1")"#, r#"{"d": "1"}"#),
        (r#"regexall("\\d", "1a2")"#, r#"["1", "2"]"#),
        (r#"replace("hello", "l", "L")"#, r#""heLLo""#),
        (r#"replace("hello", "/(l+)/", "<$1>")"#, r#""he<ll>o""#),
        (r#"split(",", "a,b,")"#, r#"["a", "b", ""]"#),
        (r#"strrev("abc")"#, r#""cba""#),
        (r#"substr("hello", 1, 3)"#, r#""ell""#),
        (r#"substr("hello", -3, -1)"#, r#""llo""#),
        (r#"trim("?!hi?!", "!?")"#, r#""hi""#),
        (r#"trimprefix("abc", "a")"#, r#""bc""#),
        (r#"trimsuffix("abc", "c")"#, r#""ab""#),
        (r#"trimspace(" a\n")"#, r#""a""#),
        (
            r#"format("%s-%05.1f-%d-%v-%q-%%", "a", 3.14159, 42, [1], "x")"#,
            r#""a-003.1-42-[1]-\"x\"-%""#,
        ),
        (
            r#"format("%-4s|%4s|%04d|%x|%X|%b", "a", "b", -7, 255, 255, 5)"#,
            r#""a   |   b|-007|ff|FF|101""#,
        ),
        (r#"format("%[2]s %[1]s", "a", "b")"#, r#""b a""#),
        (
            r#"format("%e %g %g", 1234.5, 0.00001, 100)"#,
            r#""1.234500e+03 1e-05 100""#,
        ),
        (r#"formatlist("%s:%d", ["a", "b"], 1)"#, r#"["a:1", "b:1"]"#),
    ]);
}

#[test]
fn functions_of_collections() {
    yields(&[
        ("alltrue([true, false])", "false"),
        ("anytrue([])", "false"),
        ("chunklist([1, 2, 3], 2)", "[[1, 2], [3]]"),
        (r#"coalesce(null, "", "a")"#, r#""a""#),
        ("coalescelist([], [1])", "[1]"),
        (r#"compact(["", "a", null])"#, r#"["a"]"#),
        ("concat([1], [true])", "[1, true]"),
        (r#"contains(["a"], "a")"#, "true"),
        ("distinct([1, 2, 1])", "[1, 2]"),
        ("element([1, 2, 3], 4)", "2"),
        ("element([1, 2, 3], -1)", "3"),
        ("flatten([[1, [2]], 3])", "[1, 2, 3]"),
        (r#"index(["a", "b"], "b")"#, "1"),
        ("keys({ b = 1, a = 2 })", r#"["a", "b"]"#),
        ("values({ b = 1, a = 2 })", "[2, 1]"),
        (r#"length("héé")"#, "3"),
        (r#"lookup({ a = 1 }, "b", 2)"#, "2"),
        (
            "merge({ a = 1 }, null, { a = 2, b = 3 })",
            r#"{"a": 2, "b": 3}"#,
        ),
        ("merge()", "{}"),
        ("one([])", "null"),
        ("reverse([1, 2])", "[2, 1]"),
        ("slice([1, 2, 3], 1, 2)", "[2]"),
        (r#"sort(["b", "a"])"#, r#"["a", "b"]"#),
        (
            r#"transpose({ a = ["x", "y"], b = ["x"] })"#,
            r#"{"x": ["a", "b"], "y": ["a"]}"#,
        ),
        (r#"zipmap(["a", "b"], [1, 2])"#, r#"{"a": 1, "b": 2}"#),
        ("setintersection([1, 2], [2, 3])", "{2}"),
        ("setunion([1], [2])", "{1, 2}"),
        ("setsubtract([1, 2], [2])", "{1}"),
        (r#"setproduct(["a"], [1, 2])"#, r#"[["a", 1], ["a", 2]]"#),
        (r#"toset(["b", "a", "b"])"#, r#"{"a", "b"}"#),
        (r#"tolist(["1", 2])"#, r#"["1", "2"]"#),
        ("tomap({ a = 1 })", r#"{"a": 1}"#),
    ]);
}

#[test]
fn functions_that_convert() {
    yields(&[
        (r#"base64encode("hi")"#, r#""aGk=""#),
        (r#"base64decode("aGk=")"#, r#""hi""#),
        (
            r#"jsonencode({ b = [1, true, null], a = "<&>" })"#,
            r#""{\"a\":\"\\u003c\\u0026\\u003e\",\"b\":[1,true,null]}""#,
        ),
        (
            r#"jsondecode("{\"a\": [1.5, \"x\"]}")"#,
            r#"{"a": [1.5, "x"]}"#,
        ),
        (r#"urlencode("a b/ü")"#, r#""a+b%2F%C3%BC""#),
        (
            r#"sha256("")"#,
            r#""e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
        ),
        (r#"tonumber("1.50")"#, "1.5"),
        (r#"tobool("true")"#, "true"),
        ("tostring(1.0)", r#""1""#),
        ("type([1, \"a\"])", r#""tuple([number, string])""#),
        (r#"can(tonumber("x"))"#, "false"),
        (r#"try(tonumber("x"), 7)"#, "7"),
        ("sensitive(\"x\")", "(sensitive value)"),
        ("nonsensitive(sensitive(\"x\"))", r#""x""#),
        ("issensitive(sensitive(1))", "true"),
        ("plantimestamp()", r#""1970-01-01T00:00:00Z""#),
    ]);
}

#[test]
fn a_wrong_call_names_the_signature() {
    for (text, expected) in [
        (
            "upper()",
            "test:1:1: Not enough function arguments: Too few arguments: upper(text).",
        ),
        (
            "upper(1, 2)",
            "test:1:1: Too many function arguments: Too many arguments: upper(text).",
        ),
        (
            "substr(\"a\", \"x\", 1)",
            "test:1:13: Invalid function argument: Invalid value for \"offset\" of substr(text, \
             offset, length): a number is required.",
        ),
        (
            "uper(1)",
            "test:1:1: Call to unknown function: There is no function named \"uper\". Did you mean \
             \"upper\"?",
        ),
    ] {
        assert_eq!(show(text), format!("error: {expected}"), "{text}");
    }
}

#[test]
fn a_secret_is_in_no_message() {
    for text in [
        "tonumber(sensitive(\"hunter2\"))",
        "{ a = 1 }[sensitive(\"hunter2\")]",
        "regex(sensitive(\"(hunter2\"), \"x\")",
        "jsondecode(sensitive(\"hunter2\"))",
        "1 + sensitive(\"hunter2\")",
        "parseint(sensitive(\"hunter2\"), 10)",
        "{ for x in [1, 2] : sensitive(\"hunter2\") => x }",
    ] {
        let (_, errors) = evaluate(text, BTreeMap::new(), false);
        assert!(!errors.is_empty(), "{text}");
        for error in errors {
            assert!(!error.detail.contains("hunter2"), "{text}: {error}");
            assert!(
                error
                    .values
                    .iter()
                    .all(|(_, value)| !value.contains("hunter2")),
                "{text}"
            );
        }
    }
}

#[test]
fn errors_show_what_references_were() {
    let values = BTreeMap::from([
        ("size".to_owned(), Value::from("huge")),
        ("token".to_owned(), Value::from("hunter2").sensitive()),
    ]);
    let (_, errors) = evaluate("[for x in [1] : size + token + x]", values, false);
    let shown: Vec<_> = errors.iter().map(|error| error.values.clone()).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert_eq!(shown[0], [("size".to_owned(), "is \"huge\"".to_owned())]);
    assert_eq!(
        shown[1],
        [("token".to_owned(), "has a sensitive value".to_owned())]
    );
}

#[test]
fn a_result_that_is_too_long_is_refused_before_it_is_made() {
    let line = "\\n".repeat(1_000);
    let long = format!("join(\"\", [for x in range(100) : \"{line}\"])");
    for text in [
        format!("replace({long}, \"\", {long})"),
        format!("replace({long}, \"/(?s)./\", {long})"),
        format!("join({long}, range(1000))"),
        format!("indent(1000, {long})"),
    ] {
        assert!(show(&text).contains("more than 16 MiB"), "{}", text.len());
    }
}

#[test]
fn strip_markers_in_heredocs_end_with_their_line() {
    let text = "<<-EOT\n  %{ for x in [1, 2] ~}\n  - ${x}\n  %{ endfor ~}\n  end\n  EOT\n";
    assert_eq!(show(text), "\"  - 1\\n  - 2\\n  end\\n\"");
    let text = "<<-EOT\n  a\n    %{ if true }b%{ endif }\n\n  c $${d}\n  EOT\n";
    assert_eq!(show(text), "\"a\\n  b\\n\\nc ${d}\\n\"");
}

#[test]
fn deep_input_is_refused_and_not_a_crash() {
    for (open, close) in [
        ("[", "]"),
        ("(", ")"),
        ("!", ""),
        ("{a=", "}"),
        ("\"${", "}\""),
        ("[for x in ", ": x]"),
    ] {
        let text = format!("{}1{}", open.repeat(2_000), close.repeat(2_000));
        let (_, errors) = evaluate(&text, BTreeMap::new(), false);
        assert!(!errors.is_empty(), "{open}");
    }
    // As deep as the parser lets through.
    for (open, close) in [
        ("[", "]"),
        ("(", ")"),
        ("{a=", "}"),
        ("\"${", "}\""),
        ("[for x in [1] : ", "]"),
    ] {
        let text = format!(
            "{}1{}{}",
            open.repeat(60),
            " + 1".repeat(100),
            close.repeat(60)
        );
        let (_, errors) = evaluate(&text, BTreeMap::new(), false);
        assert!(
            errors.iter().all(|it| it.summary != "Expression too deep"),
            "{open}: {errors:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        evaluate(&text, BTreeMap::new(), false);
        evaluate(&text, BTreeMap::new(), true);
        super::load(&[Source::new("a", text)]);
    }

    #[test]
    fn no_words_of_the_language_panic(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "machine", "\"a\"", "{", "}", "[", "]", "(", ")", "=", "for", "in", ":", "=>", "...",
                "if", "x", "1", "\"${", "}\"", "%{", "~}", "<<E\n", "\nE\n", "\n", ".", "*", "?", "+",
                "local", "null", "true", "!", "-", ",", "var", "0.5", "try(", "format(", "\"%s\"",
            ]),
            0..24,
        ),
        spaced in any::<bool>(),
    ) {
        let text = words.join(if spaced { " " } else { "" });
        let (first, errors) = evaluate(&text, BTreeMap::new(), false);
        let (second, again) = evaluate(&text, BTreeMap::new(), false);
        prop_assert_eq!(first, second);
        prop_assert_eq!(errors, again);
        super::load(&[Source::new("a", text)]);
    }
}
