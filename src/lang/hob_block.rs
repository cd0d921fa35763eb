//! The values of a machine's `hob` block.

use gobs_model::Type;

use super::address;
use super::config::{Dial, HobSource, HobUser, HobValues};
use super::eval::Eval;
use super::suggest;
use super::syntax::{Block, Expr};
use super::values::{text, time};

const ARGUMENTS: [&str; 10] = [
    "enabled",
    "listen",
    "advertise",
    "dial",
    "deadline",
    "require_address",
    "install",
    "url",
    "sha256",
    "user",
];

/// Returns what a machine's `hob` block says.
pub(super) fn values(eval: &mut Eval<'_>, block: Option<&Block>) -> HobValues {
    let mut values = HobValues::default();
    let Some(block) = block else { return values };
    let (mut install, mut url, mut sha256) = (None, None, None);
    for attribute in &block.body.attributes {
        let expr = &attribute.expr;
        match &*attribute.name.text {
            "enabled" => {
                if let Some(flag) = flag(eval, expr, "\"enabled\"") {
                    values.enabled = flag;
                }
            }
            "listen" => {
                if let Some(text) = text(eval, expr, "\"listen\"") {
                    if let Err(why) = address::socket(&text, true) {
                        eval.fail(expr, expr.span, "Invalid address", format!("{why}."));
                    }
                    values.listen = Some(text);
                }
            }
            "advertise" => {
                let list = eval.typed(expr, &Type::list(Type::String), "\"advertise\"");
                let texts = list.as_elements().unwrap_or_default().iter();
                values.advertise = texts.filter_map(|it| it.as_str().map(Into::into)).collect();
                if list.contains_unknown()
                    && eval.scope.inputs().is_some()
                    && eval.errors.is_empty()
                {
                    let detail = "\"advertise\" must be known before apply.";
                    eval.fail(expr, expr.span, "Invalid value", detail);
                    if let Some(error) = eval.errors.last_mut() {
                        let hint = "To advertise an address of the machine, name its attribute: \
                                    [\"ipv4\"].";
                        error.hint = Some(hint.into());
                    }
                }
            }
            "dial" => match text(eval, expr, "\"dial\"").as_deref() {
                Some("hob") => values.dial = Dial::Hob,
                Some("boss") => values.dial = Dial::Boss,
                Some(_) => {
                    let detail =
                        "\"dial\" says who opens the first connection: \"hob\" or \"boss\".";
                    eval.fail(expr, expr.span, "Invalid value", detail);
                }
                None => {}
            },
            "deadline" => {
                if let Some(time) = time(eval, expr, "\"deadline\"") {
                    if time > HobValues::DEADLINE_MAX {
                        let detail = "\"deadline\" is two hours at most: what a machine claims \
                                      its place with must not lie about for longer.";
                        eval.fail(expr, expr.span, "Invalid time", detail);
                    }
                    values.deadline = time;
                }
            }
            "require_address" => {
                if let Some(flag) = flag(eval, expr, "\"require_address\"") {
                    values.require_address = flag;
                }
            }
            "install" => match text(eval, expr, "\"install\"").as_deref() {
                Some("image") => install = Some((HobSource::Image, attribute)),
                Some("boss") => install = Some((HobSource::Boss, attribute)),
                Some(_) => {
                    let detail = "\"install\" says where the agent comes from: \"boss\" serves \
                                  its own, an \"image\" has it. Another place is a \"url\".";
                    eval.fail(expr, expr.span, "Invalid value", detail);
                }
                None => {}
            },
            "url" => {
                if let Some(text) = text(eval, expr, "\"url\"") {
                    if let Err(why) = is_url(&text) {
                        eval.fail(expr, expr.span, "Invalid address", format!("{why}."));
                    }
                    url = Some((text, attribute));
                }
            }
            "sha256" => {
                if let Some(text) = text(eval, expr, "\"sha256\"") {
                    let is_digit = |it: u8| it.is_ascii_digit() || (b'a'..=b'f').contains(&it);
                    let text = text.to_ascii_lowercase();
                    if text.len() != 64 || !text.bytes().all(is_digit) {
                        let detail = "\"sha256\" is 64 hexadecimal digits, as sha256sum prints.";
                        eval.fail(expr, expr.span, "Invalid value", detail);
                    }
                    sha256 = Some((text, attribute));
                }
            }
            "user" => match text(eval, expr, "\"user\"").as_deref() {
                Some("gobs") => values.user = HobUser::Own,
                Some("root") => values.user = HobUser::Root,
                Some(_) => {
                    let detail = "The agent runs as \"gobs\", a user of its own, or as \"root\".";
                    eval.fail(expr, expr.span, "Invalid value", detail);
                }
                None => {}
            },
            other => {
                let detail = format!("A \"hob\" block has no argument named \"{other}\".");
                let hint = suggest::did_you_mean(other, ARGUMENTS);
                eval.fail_at(attribute.name.span, "Unsupported argument", detail, hint);
            }
        }
    }
    match (install, url, sha256) {
        (None, None, None) => {}
        (Some((source, _)), None, None) => values.source = source,
        (None, Some((url, _)), Some((sha256, _))) => {
            values.source = HobSource::Url { url, sha256 };
        }
        (Some((_, attribute)), _, _) => {
            let detail = "\"install\" and \"url\" exclude each other: one of them says where the \
                          agent comes from.";
            eval.fail_at(attribute.name.span, "Conflicting arguments", detail, None);
        }
        (None, Some((_, attribute)), None) => {
            let detail = "What comes from a \"url\" runs as the machine's agent, so its \"sha256\" \
                          must be set too.";
            let hint = "sha256sum prints it.".to_owned();
            eval.fail_at(
                attribute.name.span,
                "Missing required argument",
                detail,
                Some(hint),
            );
        }
        (None, None, Some((_, attribute))) => {
            let detail = "\"sha256\" is that of what comes from a \"url\", and there is none.";
            eval.fail_at(
                attribute.name.span,
                "Missing required argument",
                detail,
                None,
            );
        }
    }
    for inner in &block.body.blocks {
        let detail = "A \"hob\" block has no blocks in it.";
        eval.fail_at(inner.keyword.span, "Unsupported block type", detail, None);
    }
    values
}

fn flag(eval: &mut Eval<'_>, expr: &Expr, what: &str) -> Option<bool> {
    let value = eval.typed(expr, &Type::Bool, what);
    if value.as_bool().is_none() && eval.scope.inputs().is_some() && eval.errors.is_empty() {
        let detail = format!("{what} must be true or false, and known before apply.");
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    value.as_bool()
}

/// Returns what is wrong with an address that a machine is to fetch its agent from.
fn is_url(text: &str) -> Result<(), String> {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    // It stands in a script, in single quotes.
    let is_plain = |it: char| it.is_ascii_graphic() && !"'\"\\`<>".contains(it);
    match rest {
        Some(rest) if !rest.is_empty() && rest.chars().all(is_plain) => Ok(()),
        Some(_) => Err(format!(
            "{text:?} has letters that an address has not; write them as %20"
        )),
        None => Err(format!(
            "{text:?} is not an address such as https://example.net/hob"
        )),
    }
}
