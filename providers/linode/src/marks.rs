//! Marks: by them what belongs to a machine is found, whatever became of the run that made it, and
//! of the machine.

use data_encoding::BASE32_NOPAD;
use gobs_model::{Address, Known, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::observe::tags;

/// What marks a machine as one that something belongs to.
pub(crate) const MARKED: &str = "gobs-mark:";

/// The attribute that keeps a machine's mark, also when the machine itself is gone.
pub(crate) const ATTRIBUTE: &str = "mark";

/// How much of a mark tells whose it is: 60 bits.
const OWN_CHARS: usize = 12;

/// How much of a mark tells the project: 40 bits.
const PROJECT_CHARS: usize = 8;

/// The mark of a machine: of its project and its address, for good. Whatever machine takes the
/// place has the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn of(project: &str, address: &Address) -> Self {
        let own = hash(&format!("gobs mark 2\0{project}\0{address}"));
        Self(format!("{own:.OWN_CHARS$}{}", project_part(project)))
    }

    /// Returns the mark that an instance carries.
    pub(crate) fn on(instance: &Json) -> Option<Self> {
        let text = tags(instance).find_map(|tag| tag.strip_prefix(MARKED))?;
        Self::read(text)
    }

    /// Returns the mark that a machine was seen with.
    pub(crate) fn seen(last: &Known) -> Option<Self> {
        Self::read(last.get(ATTRIBUTE).and_then(Value::as_str)?)
    }

    fn read(text: &str) -> Option<Self> {
        let is_mark = text.len() == OWN_CHARS + PROJECT_CHARS && text.is_ascii();
        is_mark.then(|| Self(text.to_ascii_lowercase()))
    }

    /// Returns the tag of the machine itself.
    pub(crate) fn tag(&self) -> String {
        format!("{MARKED}{}", self.0)
    }

    /// Returns this as the attribute has it.
    pub(crate) fn value(&self) -> Value {
        self.0.as_str().into()
    }

    /// Returns the tag of one thing that belongs to the machine.
    pub(crate) fn thing(&self, prefix: &str, name: &str) -> String {
        let own = hash(&format!("gobs thing 2\0{}\0{prefix}\0{name}", self.0));
        format!("{prefix}{own:.OWN_CHARS$}{}", &self.0[OWN_CHARS..])
    }
}

/// Returns the tag with this prefix that something of a project carries.
pub(crate) fn of_project<'a>(thing: &'a Json, prefix: &str, project: &str) -> Option<&'a str> {
    let part = project_part(project);
    tags(thing).find(|tag| tag.starts_with(prefix) && tag.ends_with(&part))
}

fn project_part(project: &str) -> String {
    let mut part = hash(&format!("gobs project 2\0{project}"));
    part.truncate(PROJECT_CHARS);
    part
}

fn hash(text: &str) -> String {
    BASE32_NOPAD
        .encode(&Sha256::digest(text))
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use gobs_model::Name;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mark_is_of_one_project_machine_and_name() {
        let at = |name: &str| Address::machine(Name::new(name).expect("a name"), None);
        let ours = Mark::of("p", &at("db"));
        let tag = ours.thing("gobs-volume:", "data");
        assert_eq!(tag.len(), "gobs-volume:".len() + OWN_CHARS + PROJECT_CHARS);
        assert_eq!(tag, Mark::of("p", &at("db")).thing("gobs-volume:", "data"));
        for other in [
            Mark::of("q", &at("db")).thing("gobs-volume:", "data"),
            Mark::of("p", &at("web")).thing("gobs-volume:", "data"),
            ours.thing("gobs-firewall:", "data"),
            ours.thing("gobs-volume:", "logs"),
        ] {
            assert_ne!(tag, other);
        }
        let thing = json!({"tags": ["blue", tag]});
        assert_eq!(of_project(&thing, "gobs-volume:", "p"), Some(&*tag));
        assert_eq!(of_project(&thing, "gobs-firewall:", "p"), None);
        assert_eq!(of_project(&thing, "gobs-volume:", "q"), None);
        let instance = json!({"tags": ["gobs:abc", ours.tag()]});
        assert_eq!(Mark::on(&instance), Some(ours));
        assert_eq!(Mark::on(&json!({"tags": ["gobs-mark:short"]})), None);
    }
}
