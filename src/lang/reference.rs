//! What an expression refers to, without evaluating it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gobs_model::Name;

use super::config::{BlockId, Config, Dependency, Repeat};
use super::source::Span;
use super::syntax::{
    Access, AccessKind, Body, Expr, ExprKind, Key, Part, Reference, SplatEach, Template,
};

/// Calls `found` with every reference of an expression, in its order, and its span; names bound
/// by `for` expressions are none.
pub(crate) fn references(expr: &Expr, found: &mut dyn FnMut(&Reference, Span)) {
    Walk {
        bound: Vec::new(),
        found,
        call: &mut |_| {},
    }
    .expr(expr);
}

/// Calls `call` with every function call of an expression.
pub(crate) fn calls(expr: &Expr, call: &mut dyn FnMut(&super::syntax::Call)) {
    Walk {
        bound: Vec::new(),
        found: &mut |_, _| {},
        call,
    }
    .expr(expr);
}

struct Walk<'w> {
    bound: Vec<Arc<str>>,
    found: &'w mut dyn FnMut(&Reference, Span),
    call: &'w mut dyn FnMut(&super::syntax::Call),
}

impl Walk<'_> {
    fn expr(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Literal(_) | ExprKind::Wrong => {}
            ExprKind::Template(template) => self.template(template),
            ExprKind::Tuple(elements) => elements.iter().for_each(|it| self.expr(it)),
            ExprKind::Object(items) => {
                for (key, value) in items {
                    if let Key::Expr(key) = key {
                        self.expr(key);
                    }
                    self.expr(value);
                }
            }
            ExprKind::Parens(inner) | ExprKind::Not(inner) | ExprKind::Negate(inner) => {
                self.expr(inner);
            }
            ExprKind::Reference(reference) => {
                if !self.bound.contains(&reference.root.text) {
                    (self.found)(reference, expr.span);
                }
                self.path(&reference.path);
            }
            ExprKind::Access(base, path) => {
                self.expr(base);
                self.path(path);
            }
            ExprKind::Splat(splat) => {
                self.expr(&splat.source);
                self.each(&splat.each);
            }
            ExprKind::Call(call) => {
                (self.call)(call);
                call.arguments.iter().for_each(|it| self.expr(it));
            }
            ExprKind::Binary(binary) => {
                self.expr(&binary.left);
                self.expr(&binary.right);
            }
            ExprKind::Conditional(it) => {
                self.expr(&it.condition);
                self.expr(&it.then);
                self.expr(&it.otherwise);
            }
            ExprKind::For(it) => {
                self.expr(&it.collection);
                let depth = self.bound.len();
                self.bound.extend(it.key.iter().map(|key| key.text.clone()));
                self.bound.push(it.value.text.clone());
                let inner = it
                    .key_expr
                    .iter()
                    .chain([&it.value_expr])
                    .chain(&it.condition);
                inner.for_each(|it| self.expr(it));
                self.bound.truncate(depth);
            }
        }
    }

    fn each(&mut self, each: &SplatEach) {
        self.path(&each.path);
        if let Some(then) = &each.then {
            self.each(then);
        }
    }

    fn path(&mut self, path: &[Access]) {
        for access in path {
            if let AccessKind::Index(key) = &access.kind {
                self.expr(key);
            }
        }
    }

    fn template(&mut self, template: &Template) {
        for part in &template.parts {
            match part {
                Part::Text(_) => {}
                Part::Value(expr) => self.expr(expr),
                Part::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    self.expr(condition);
                    self.template(then);
                    self.template(otherwise);
                }
                Part::For {
                    key,
                    value,
                    collection,
                    body,
                } => {
                    self.expr(collection);
                    let depth = self.bound.len();
                    self.bound.extend(key.iter().map(|key| key.text.clone()));
                    self.bound.push(value.text.clone());
                    self.template(body);
                    self.bound.truncate(depth);
                }
            }
        }
    }
}

/// Returns the block that a reference starts with, if it names one: `var.x`, `machine.db`.
pub(crate) fn block_of(reference: &Reference) -> Option<BlockId> {
    let AccessKind::Attribute(name) = &reference.path.first()?.kind else {
        return None;
    };
    let name = Name::new(name).ok()?;
    match &*reference.root.text {
        "var" => Some(BlockId::Variable(name)),
        "local" => Some(BlockId::Local(name)),
        "machine" => Some(BlockId::Machine(name)),
        "binding" => Some(BlockId::Binding(name)),
        _ => None,
    }
}

/// Calls `found` with every expression of a body.
pub(crate) fn body_exprs<'b>(body: &'b Body, found: &mut dyn FnMut(&'b Expr)) {
    body.attributes.iter().for_each(|it| found(&it.expr));
    for block in &body.blocks {
        body_exprs(&block.body, found);
    }
}

impl Config {
    /// Calls `found` with every expression of a block that is evaluated in its scope.
    pub(crate) fn exprs<'c>(&'c self, block: &BlockId, found: &mut dyn FnMut(&'c Expr)) {
        let repeat = |repeat: &'c Repeat, found: &mut dyn FnMut(&'c Expr)| match repeat {
            Repeat::Once => {}
            Repeat::Count(expr) | Repeat::ForEach(expr) => found(expr),
        };
        match block {
            BlockId::Variable(name) => {
                let variable = self.variables.get(name).into_iter();
                for validation in variable.flat_map(|it| &it.validations) {
                    found(&validation.condition);
                    found(&validation.error_message);
                }
            }
            BlockId::Local(name) => {
                if let Some(local) = self.locals.get(name) {
                    found(&local.expr);
                }
            }
            BlockId::Provider(name) => {
                if let Some(provider) = self.providers.get(name) {
                    body_exprs(&provider.body, found);
                }
            }
            BlockId::Machine(name) => {
                if let Some(machine) = self.machines.get(name) {
                    repeat(&machine.repeat, found);
                    body_exprs(&machine.body, found);
                    if let Some(hob) = &machine.hob {
                        body_exprs(&hob.body, found);
                    }
                    for service in machine.services.values() {
                        service.arguments.iter().for_each(|it| found(&it.expr));
                        service
                            .type_name
                            .iter()
                            .chain(&service.ready)
                            .for_each(&mut *found);
                    }
                }
            }
            BlockId::Binding(name) => {
                if let Some(binding) = self.bindings.get(name) {
                    repeat(&binding.repeat, found);
                    found(&binding.from);
                    found(&binding.to);
                    binding
                        .name
                        .iter()
                        .chain(&binding.drain)
                        .chain(&binding.ready)
                        .for_each(&mut *found);
                    let attenuate = binding.attenuate.iter().flatten();
                    attenuate.for_each(|it| found(&it.expr));
                    binding
                        .expose
                        .iter()
                        .for_each(|it| body_exprs(&it.body, found));
                }
            }
            BlockId::Output(name) => {
                if let Some(output) = self.outputs.get(name) {
                    found(&output.value);
                }
            }
        }
    }

    /// Returns the blocks that a block names itself, each with where.
    pub(crate) fn direct(&self, block: &BlockId) -> Vec<(BlockId, Span)> {
        let mut result = Vec::new();
        self.exprs(block, &mut |expr| {
            references(expr, &mut |reference, span| {
                if let Some(id) = block_of(reference) {
                    result.push((id, span));
                }
            });
        });
        let depends_on = match block {
            BlockId::Machine(name) => self.machines.get(name).map(|it| &it.depends_on),
            BlockId::Binding(name) => self.bindings.get(name).map(|it| &it.depends_on),
            BlockId::Output(name) => self.outputs.get(name).map(|it| &it.depends_on),
            _ => None,
        };
        result.extend(depends_on.into_iter().flatten().cloned());
        if let BlockId::Machine(name) = block
            && let Some(machine) = self.machines.get(name)
        {
            let id = BlockId::Provider(machine.provider.clone());
            result.push((id, machine.provider_span));
        }
        result
    }

    /// Returns the locals that depend on each machine and binding, through other locals too.
    pub(crate) fn dependent_locals(&self) -> HashMap<BlockId, Vec<Name>> {
        let mut users: HashMap<BlockId, Vec<Name>> = HashMap::new();
        for name in self.locals.keys() {
            for (id, _) in self.direct(&BlockId::Local(name.clone())) {
                users.entry(id).or_default().push(name.clone());
            }
        }
        let is_object = |id: &&BlockId| matches!(id, BlockId::Machine(_) | BlockId::Binding(_));
        let mut result = HashMap::new();
        for id in users.keys().filter(is_object) {
            let mut seen: BTreeSet<Name> = BTreeSet::new();
            let mut open = users.get(id).cloned().unwrap_or_default();
            while let Some(name) = open.pop() {
                if seen.insert(name.clone())
                    && let Some(more) = users.get(&BlockId::Local(name))
                {
                    open.extend(more.iter().cloned());
                }
            }
            result.insert(id.clone(), seen.into_iter().collect());
        }
        result
    }

    /// Returns the machines and bindings that a block refers to: in its own expressions, in
    /// `depends_on`, through locals, and through its provider's settings. Each stands once, with
    /// the first place that says so.
    pub fn dependencies(&self, block: &BlockId) -> Vec<Dependency> {
        let mut result: Vec<Dependency> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = self.direct(block);
        open.reverse();
        while let Some((id, span)) = open.pop() {
            if !seen.insert(id.clone()) {
                continue;
            }
            match id {
                BlockId::Machine(_) | BlockId::Binding(_) => result.push(Dependency {
                    on: id,
                    span: self.sources.place(span),
                }),
                BlockId::Local(_) | BlockId::Provider(_) => {
                    open.extend(self.direct(&id).into_iter().rev());
                }
                BlockId::Variable(_) | BlockId::Output(_) => {}
            }
        }
        result
    }
}
