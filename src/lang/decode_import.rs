//! From `import` blocks to declarations.

use gobs_model::{Instance, Key, Name, Type, Value};

use super::config::{Import, Repeat};
use super::decode::Decoder;
use super::syntax::{AccessKind, Block, Expr, ExprKind};

impl Decoder<'_> {
    pub(super) fn import(&mut self, block: &Block) {
        self.no_labels(block);
        let arguments = self.arguments(&block.body, &["to", "id", "for_each"]);
        self.only_blocks(&block.body, &[]);
        let (Some(to), Some(id)) = (arguments.get("to"), arguments.get("id")) else {
            for name in ["to", "id"] {
                if !arguments.contains_key(name) {
                    self.missing(block, name);
                }
            }
            return;
        };
        let for_each = arguments.get("for_each").map(|it| it.expr.clone());
        let (target, example) = match for_each {
            None => {
                let instance = self.imported(&to.expr);
                let example = "machine.db, or machine.web[\"a\"]";
                (instance.map(|it| (it, None)), example)
            }
            Some(for_each) => {
                let keyed = keyed(&to.expr);
                let each = keyed.map(|(name, key)| (Instance { name, key: None }, key));
                let each = each.map(|(to, key)| (to, Some((for_each, key))));
                (each, "machine.web[each.key]")
            }
        };
        let Some((instance, each)) = target else {
            let detail = "An import leads to a machine of this configuration.";
            self.error(to.expr.span, "Invalid import target", detail);
            self.hint(Some(format!("Such as to = {example}.")));
            return;
        };
        let mut before = self.config.imports.iter();
        let is_same = |it: &&Import| it.each.is_none() && each.is_none() && it.to == instance;
        let first = before.find(is_same);
        if let Some(first) = first.map(|it| it.span) {
            let what = format!("An import to machine.{instance}");
            return self.duplicate(to.expr.span, first, &what, "Duplicate import");
        }
        self.config.imports.push(Import {
            to: instance,
            each,
            id: id.expr.clone(),
            span: to.expr.span,
        });
    }

    /// Returns the machine that an expression names, where it is nothing but that.
    fn imported(&mut self, expr: &Expr) -> Option<Instance> {
        let ExprKind::Reference(reference) = &expr.kind else {
            return None;
        };
        let (name, key) = match &reference.path[..] {
            [name] => (name, None),
            [name, key] => (name, Some(key)),
            _ => return None,
        };
        let AccessKind::Attribute(name) = &name.kind else {
            return None;
        };
        let key = match key.map(|it| &it.kind) {
            None => None,
            Some(AccessKind::Index(key)) => {
                let value = self.constant(key, &Type::Any, "the key")?;
                Some(key_of(&value)?)
            }
            Some(_) => return None,
        };
        let name = Name::new(name)
            .ok()
            .filter(|_| &*reference.root.text == "machine")?;
        Some(Instance { name, key })
    }

    /// Says which imports lead to machines that no block declares.
    pub(super) fn imports_to_nothing(&mut self) {
        for import in std::mem::take(&mut self.config.imports) {
            let to = &import.to;
            let hint = match self.config.machines.get(&to.name).map(|it| &it.repeat) {
                None => format!("Declare it: machine \"{}\" {{ … }}.", to.name),
                Some(Repeat::Once) if to.key.is_some() || import.each.is_some() => {
                    format!("It is machine.{}.", to.name)
                }
                Some(Repeat::Count(_) | Repeat::ForEach(_))
                    if to.key.is_none() && import.each.is_none() =>
                {
                    "It has several instances: name one by its key.".into()
                }
                Some(_) => {
                    self.config.imports.push(import);
                    continue;
                }
            };
            let detail = format!("There is no machine.{to} in this configuration.");
            self.error(import.span, "No such machine", detail);
            self.hint(Some(hint));
        }
    }
}

/// Returns the machine that an expression names, and what says its key.
fn keyed(expr: &Expr) -> Option<(Name, Expr)> {
    let ExprKind::Reference(reference) = &expr.kind else {
        return None;
    };
    let [name, key] = &reference.path[..] else {
        return None;
    };
    let (AccessKind::Attribute(name), AccessKind::Index(key)) = (&name.kind, &key.kind) else {
        return None;
    };
    let name = Name::new(name).ok();
    let name = name.filter(|_| &*reference.root.text == "machine")?;
    Some((name, key.clone()))
}

/// Returns a key as instances have it.
pub(super) fn key_of(value: &Value) -> Option<Key> {
    if let Some(text) = value.as_str() {
        return Some(Key::Text(text.into()));
    }
    let index = value.as_i64()?;
    Some(Key::Index(u64::try_from(index).ok()?))
}
