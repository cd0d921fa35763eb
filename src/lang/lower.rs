//! From hcl-edit's tree to ours; the only code that knows both. It refuses what HCL refuses and
//! the parser lets through.

use std::ops::Range;
use std::sync::Arc;

use gobs_model::{Diagnostic, Kind, Number, Value};
use hcl::edit::expr::{
    self as hx, BinaryOperator, Expression, ObjectKey, TraversalOperator, UnaryOperator,
};
use hcl::edit::structure::{self as hs, BlockLabel, Structure};
use hcl::edit::template::{Directive, Element, Strip};
use hcl::edit::{Decorated, Ident, Span as _, Spanned};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::source::{Sources, Span, narrow};
use super::syntax::{
    Access, AccessKind, Attribute, Binary, Block, Body, Call, Conditional, Expr, ExprKind, For,
    Key, Operator, Part, Reference, Splat, SplatEach, Template, Word,
};

/// Turns the tree of one piece of a source into ours.
pub(super) struct Lower<'s> {
    sources: &'s Sources,
    source: u32,
    /// Where the piece starts in its source.
    base: u32,
    errors: &'s mut Vec<Diagnostic>,
}

/// Returns a text in NFC.
pub(crate) fn nfc(text: &str) -> Arc<str> {
    if is_nfc(text) {
        text.into()
    } else {
        text.nfc().collect::<String>().into()
    }
}

impl<'s> Lower<'s> {
    pub(super) fn new(
        sources: &'s Sources,
        source: u32,
        base: u32,
        errors: &'s mut Vec<Diagnostic>,
    ) -> Self {
        Self {
            sources,
            source,
            base,
            errors,
        }
    }

    pub(super) fn body(&mut self, body: &hs::Body) -> Body {
        let mut result = Body::default();
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => {
                    let name = self.word(&attribute.key);
                    let expr = self.expr(&attribute.value);
                    result.attributes.push(Attribute { name, expr });
                }
                Structure::Block(block) => {
                    let block = self.block(block);
                    result.blocks.push(block);
                }
            }
        }
        result
    }

    fn block(&mut self, block: &hs::Block) -> Block {
        let keyword = self.word(&block.ident);
        let mut labels = Vec::new();
        for label in &block.labels {
            labels.push(match label {
                BlockLabel::Ident(word) => self.word(word),
                BlockLabel::String(text) => {
                    let span = self.span(text.span(), keyword.span);
                    self.refuse_newline(span);
                    Word {
                        text: nfc(text.value()),
                        span,
                    }
                }
            });
        }
        Block {
            body: self.body(&block.body),
            keyword,
            labels,
        }
    }

    pub(super) fn expr(&mut self, expr: &Expression) -> Expr {
        let at = expr.span();
        let span = self.span(at.clone(), Span::default());
        let kind = match expr {
            Expression::Null(_) => ExprKind::Literal(Value::NULL),
            Expression::Bool(value) => ExprKind::Literal((*value.value()).into()),
            Expression::Number(_) => self.number(span),
            Expression::String(text) => {
                self.refuse_newline(span);
                ExprKind::Literal(Kind::String(nfc(text.value())).into())
            }
            Expression::Array(array) => {
                ExprKind::Tuple(array.iter().map(|element| self.expr(element)).collect())
            }
            Expression::Object(object) => self.object(object),
            Expression::StringTemplate(template) => {
                for element in template.iter() {
                    if let Element::Literal(text) = element {
                        let span = self.span(text.span(), span);
                        self.refuse_newline(span);
                    }
                }
                self.template_kind(template.iter().collect(), false)
            }
            Expression::HeredocTemplate(heredoc) => {
                let elements = heredoc.template.iter().collect();
                let mut template = self.template(elements, false, false, true);
                if self.sources.text(span).starts_with("<<-") {
                    dedent(&mut template);
                }
                ExprKind::Template(template)
            }
            Expression::Parenthesis(inner) => ExprKind::Parens(Box::new(self.expr(inner.inner()))),
            Expression::Variable(name) => ExprKind::Reference(Reference {
                root: self.word(name),
                path: Vec::new(),
            }),
            Expression::Conditional(it) => ExprKind::Conditional(Box::new(Conditional {
                condition: self.expr(&it.cond_expr),
                then: self.expr(&it.true_expr),
                otherwise: self.expr(&it.false_expr),
            })),
            Expression::FuncCall(call) => self.call(call, span),
            Expression::Traversal(traversal) => return self.traversal(traversal, span),
            Expression::UnaryOp(op) => {
                let inner = Box::new(self.expr(&op.expr));
                match op.operator.value() {
                    UnaryOperator::Neg => ExprKind::Negate(inner),
                    UnaryOperator::Not => ExprKind::Not(inner),
                }
            }
            Expression::BinaryOp(op) => {
                let left = self.expr(&op.lhs_expr);
                let right = self.expr(&op.rhs_expr);
                let operator = operator(*op.operator.value());
                let span = left.span.to(right.span);
                let binary = Box::new(Binary {
                    operator,
                    left,
                    right,
                });
                return Expr {
                    kind: ExprKind::Binary(binary),
                    span,
                };
            }
            Expression::ForExpr(it) => self.for_expr(it, span),
        };
        Expr { kind, span }
    }

    #[cfg(test)]
    pub(super) fn bare_template(&mut self, template: &hcl::edit::template::Template) -> Expr {
        let length = self.sources.whole(self.source).map_or(0, str::len);
        Expr {
            kind: self.template_kind(template.iter().collect(), true),
            span: self.span(Some(0..length), Span::default()),
        }
    }

    fn number(&mut self, span: Span) -> ExprKind {
        // The parser's number is a float; the text still has every digit.
        let text: String = self.sources.text(span).split_whitespace().collect();
        match text.parse::<Number>() {
            Ok(number) => ExprKind::Literal(number.into()),
            Err(error) => self.wrong(span, "Invalid number", format!("This is {error}.")),
        }
    }

    fn object(&mut self, object: &hx::Object) -> ExprKind {
        let mut items = Vec::new();
        for (key, value) in object {
            let value = self.expr(value.expr());
            let key = match key {
                ObjectKey::Ident(name) => Key::Word(Word {
                    text: nfc(name.value().as_str()),
                    span: self.span(name.span(), value.span),
                }),
                ObjectKey::Expression(expr @ Expression::Null(_)) => Key::Word(Word {
                    text: "null".into(),
                    span: self.span(expr.span(), value.span),
                }),
                ObjectKey::Expression(expr @ Expression::Traversal(_)) => {
                    let span = self.span(expr.span(), value.span);
                    let detail = "If this is a reference, put it in parentheses; if it is a name \
                                  with a dot, put it in quotes.";
                    self.wrong(span, "Ambiguous attribute key", detail);
                    continue;
                }
                ObjectKey::Expression(expr) => Key::Expr(self.expr(expr)),
            };
            items.push((key, value));
        }
        ExprKind::Object(items)
    }

    fn call(&mut self, call: &hx::FuncCall, span: Span) -> ExprKind {
        let mut name = String::new();
        for part in &call.name.namespace {
            name.push_str(part.as_str());
            name.push_str("::");
        }
        name.push_str(call.name.name.as_str());
        let first = call.name.namespace.first().unwrap_or(&call.name.name);
        let first = self.span(first.span(), span);
        let last = self.span(call.name.name.span(), span);
        ExprKind::Call(Box::new(Call {
            name: Word {
                text: name.into(),
                span: first.to(last),
            },
            arguments: call.args.iter().map(|it| self.expr(it)).collect(),
            expand: call.args.expand_final(),
        }))
    }

    fn for_expr(&mut self, it: &hx::ForExpr, span: Span) -> ExprKind {
        let is_object = self.sources.text(span).starts_with('{');
        if is_object && it.key_expr.is_none() {
            let detail = "A \"for\" expression in braces builds an object: it needs a key, as in \
                          { for k, v in x : k => v }.";
            return self.wrong(span, "Invalid \"for\" expression", detail);
        }
        if !is_object && it.key_expr.is_some() {
            let detail = "A \"for\" expression in brackets builds a tuple, which has no keys; use \
                          braces to build an object.";
            return self.wrong(span, "Invalid \"for\" expression", detail);
        }
        if !is_object && it.grouping {
            let detail =
                "Only a \"for\" expression in braces can gather values by key with \"...\".";
            return self.wrong(span, "Invalid \"for\" expression", detail);
        }
        ExprKind::For(Box::new(For {
            key: it.intro.key_var.as_ref().map(|name| self.word(name)),
            value: self.word(&it.intro.value_var),
            collection: self.expr(&it.intro.collection_expr),
            key_expr: it.key_expr.as_ref().map(|expr| self.expr(expr)),
            value_expr: self.expr(&it.value_expr),
            condition: it.cond.as_ref().map(|it| self.expr(&it.expr)),
            group: it.grouping,
        }))
    }

    fn traversal(&mut self, traversal: &hx::Traversal, span: Span) -> Expr {
        let mut base = self.expr(&traversal.expr);
        let mut path = Vec::new();
        let mut operators = traversal.operators.iter().peekable();
        while let Some(operator) = operators.next() {
            let at = self.span(operator.span(), span);
            match operator.value() {
                TraversalOperator::AttrSplat(star) => {
                    let star = self.span(star.span(), at);
                    let mut each = Vec::new();
                    while let Some(next) = operators.next_if(|next| {
                        matches!(
                            next.value(),
                            TraversalOperator::GetAttr(_)
                                | TraversalOperator::LegacyIndex(_)
                                | TraversalOperator::AttrSplat(_)
                        )
                    }) {
                        if matches!(next.value(), TraversalOperator::AttrSplat(_)) {
                            let detail = "Within \".*\" there can be no second one; use \"[*]\".";
                            self.wrong(star, "Nested splat expression", detail);
                            continue;
                        }
                        self.access(next, at, &mut each);
                    }
                    base = Self::splat(finish(base, &mut path), each, None, star);
                }
                TraversalOperator::FullSplat(star) => {
                    let star = self.span(star.span(), at);
                    // Everything that follows applies to each element.
                    let mut levels = vec![(star, Vec::new())];
                    for next in operators.by_ref() {
                        let at = self.span(next.span(), span);
                        if let TraversalOperator::FullSplat(star)
                        | TraversalOperator::AttrSplat(star) = next.value()
                        {
                            levels.push((self.span(star.span(), at), Vec::new()));
                        } else if let Some((_, path)) = levels.last_mut() {
                            self.access(next, at, path);
                        }
                    }
                    let mut then = None;
                    while levels.len() > 1 {
                        let Some((_, path)) = levels.pop() else {
                            break;
                        };
                        then = Some(Box::new(SplatEach { path, then }));
                    }
                    let (star, each) = levels.pop().unwrap_or_default();
                    base = Self::splat(finish(base, &mut path), each, then, star);
                }
                _ => self.access(operator, at, &mut path),
            }
        }
        let mut whole = finish(base, &mut path);
        whole.span = span;
        whole
    }

    fn splat(source: Expr, path: Vec<Access>, then: Option<Box<SplatEach>>, span: Span) -> Expr {
        Expr {
            span: source.span.to(span),
            kind: ExprKind::Splat(Box::new(Splat {
                source,
                each: SplatEach { path, then },
            })),
        }
    }

    fn access(
        &mut self,
        operator: &Decorated<TraversalOperator>,
        at: Span,
        path: &mut Vec<Access>,
    ) {
        let span = self.span(operator.span(), at);
        let (kind, span) = match operator.value() {
            TraversalOperator::GetAttr(name) => {
                let name = self.word(name);
                (AccessKind::Attribute(name.text), name.span)
            }
            TraversalOperator::Index(expr) => {
                let expr = self.expr(expr);
                let span = expr.span;
                (AccessKind::Index(expr), span)
            }
            TraversalOperator::LegacyIndex(index) => {
                let span = self.span(index.span(), span);
                let chained = path.last().is_some_and(|last| {
                    matches!(&last.kind, AccessKind::Index(_))
                        && !self.sources.text(last.span.to(span)).contains('[')
                        && self.sources.text(last.span.to(span)).contains('.')
                        && !self.sources.text(last.span.to(span)).contains(']')
                });
                if chained {
                    let detail = "Two indexes with dots cannot follow each other; write [0][1].";
                    self.wrong(span, "Invalid legacy index", detail);
                }
                let number = ExprKind::Literal(Number::from(*index.value()).into());
                (AccessKind::Index(Expr { kind: number, span }), span)
            }
            TraversalOperator::AttrSplat(_) | TraversalOperator::FullSplat(_) => return,
        };
        path.push(Access { kind, span });
    }

    fn template_kind(&mut self, elements: Vec<&Element>, lines: bool) -> ExprKind {
        if let [Element::Interpolation(single)] = elements.as_slice() {
            return ExprKind::Parens(Box::new(self.expr(&single.expr)));
        }
        ExprKind::Template(self.template(elements, false, false, lines))
    }

    /// `from_start` and `to_end`: whether what stands around strips into this template. `lines`:
    /// whether a marker strips within its line only, as it does in heredocs.
    fn template(
        &mut self,
        elements: Vec<&Element>,
        from_start: bool,
        to_end: bool,
        lines: bool,
    ) -> Template {
        let mut parts = Vec::new();
        for (at, element) in elements.iter().enumerate() {
            match element {
                Element::Literal(text) => {
                    let before = at
                        .checked_sub(1)
                        .map_or(from_start, |at| strips(elements[at]).1);
                    let after = elements.get(at + 1).map_or(to_end, |next| strips(next).0);
                    if lines {
                        self.lines(text, before, after, &mut parts);
                        continue;
                    }
                    let mut text = text.value().as_str();
                    if before {
                        text = text.trim_start();
                    }
                    if after {
                        text = text.trim_end();
                    }
                    parts.push(Part::Text(nfc(text)));
                }
                Element::Interpolation(it) => parts.push(Part::Value(self.expr(&it.expr))),
                Element::Directive(directive) => parts.push(self.directive(directive, lines)),
            }
        }
        Template { parts }
    }

    /// Adds a heredoc's literal line by line: a marker strips within its line alone. The text is
    /// the source's, since the parser's has lost its indentation at some places and not at others.
    fn lines(&self, text: &Spanned<String>, before: bool, after: bool, parts: &mut Vec<Part>) {
        let raw = match text.span() {
            Some(range) => self.sources.text(self.span(Some(range), Span::default())),
            None => text.value().as_str(),
        };
        let raw = raw.replace("$${", "${").replace("%%{", "%{");
        let count = raw.split_inclusive('\n').count();
        for (at, line) in raw.split_inclusive('\n').enumerate() {
            let mut line = line;
            if before && at == 0 {
                line = line.trim_start();
            }
            if after && at + 1 == count {
                line = line.trim_end();
            }
            parts.push(Part::Text(nfc(line)));
        }
    }

    fn directive(&mut self, directive: &Directive, lines: bool) -> Part {
        match directive {
            Directive::If(it) => {
                let (opens, ends) = (it.if_expr.strip, it.endif_expr.strip);
                let middle = it.else_expr.as_ref().map_or(ends, |it| it.strip);
                let then = it.if_expr.template.iter().collect();
                Part::If {
                    condition: self.expr(&it.if_expr.cond_expr),
                    then: self.template(then, opens.strip_end(), middle.strip_start(), lines),
                    otherwise: it.else_expr.as_ref().map_or_else(Template::default, |it| {
                        let elements = it.template.iter().collect();
                        self.template(elements, it.strip.strip_end(), ends.strip_start(), lines)
                    }),
                }
            }
            Directive::For(it) => {
                let (opens, ends) = (it.for_expr.strip, it.endfor_expr.strip);
                let body = it.for_expr.template.iter().collect();
                Part::For {
                    key: it.for_expr.key_var.as_ref().map(|name| self.word(name)),
                    value: self.word(&it.for_expr.value_var),
                    collection: self.expr(&it.for_expr.collection_expr),
                    body: self.template(body, opens.strip_end(), ends.strip_start(), lines),
                }
            }
        }
    }

    fn word(&self, name: &Decorated<Ident>) -> Word {
        Word {
            text: nfc(name.value().as_str()),
            span: self.span(name.span(), Span::default()),
        }
    }

    fn span(&self, range: Option<Range<usize>>, otherwise: Span) -> Span {
        let Some(range) = range else {
            return Span {
                source: self.source,
                ..otherwise
            };
        };
        Span {
            source: self.source,
            start: self.base.saturating_add(narrow(range.start)),
            end: self.base.saturating_add(narrow(range.end)),
        }
    }

    /// The parser takes a newline within quotes; HCL does not.
    fn refuse_newline(&mut self, span: Span) {
        if let Some(at) = self.sources.text(span).find('\n') {
            let start = span.start + narrow(at);
            let line = Span { end: start, ..span };
            let detail = "A string in quotes must end on the line where it starts.";
            self.wrong(line, "Unclosed string", detail);
            if let Some(error) = self.errors.last_mut() {
                error.hint = Some("For text of several lines, use a heredoc: <<EOT.".into());
            }
        }
    }

    fn wrong(&mut self, span: Span, summary: &str, detail: impl Into<String>) -> ExprKind {
        self.errors.push(self.sources.error(span, summary, detail));
        ExprKind::Wrong
    }
}

/// Applies what was gathered to the expression before it.
fn finish(base: Expr, path: &mut Vec<Access>) -> Expr {
    let mut path = std::mem::take(path);
    let Some(last) = path.last() else {
        return base;
    };
    let span = base.span.to(last.span);
    let kind = match base.kind {
        ExprKind::Reference(mut reference) => {
            reference.path.append(&mut path);
            ExprKind::Reference(reference)
        }
        kind => {
            let span = base.span;
            ExprKind::Access(Box::new(Expr { kind, span }), path)
        }
    };
    Expr { kind, span }
}

/// Whether an element strips what stands before it, and what stands after it.
fn strips(element: &Element) -> (bool, bool) {
    let both = |opens: Strip, ends: Strip| (opens.strip_start(), ends.strip_end());
    match element {
        Element::Literal(_) => (false, false),
        Element::Interpolation(it) => both(it.strip, it.strip),
        Element::Directive(directive) => match &**directive {
            Directive::If(it) => both(it.if_expr.strip, it.endif_expr.strip),
            Directive::For(it) => both(it.for_expr.strip, it.endfor_expr.strip),
        },
    }
}

enum Token<'t> {
    Text(&'t mut Arc<str>),
    Other,
}

fn tokens<'t>(template: &'t mut Template, out: &mut Vec<Token<'t>>) {
    for part in &mut template.parts {
        match part {
            Part::Text(text) => out.push(Token::Text(text)),
            Part::Value(_) => out.push(Token::Other),
            Part::If {
                then, otherwise, ..
            } => {
                out.push(Token::Other);
                tokens(then, out);
                out.push(Token::Other);
                tokens(otherwise, out);
                out.push(Token::Other);
            }
            Part::For { body, .. } => {
                out.push(Token::Other);
                tokens(body, out);
                out.push(Token::Other);
            }
        }
    }
}

/// Takes the indentation that all lines share, as the reference implementation does: after the
/// markers have stripped, and over all directives.
fn dedent(template: &mut Template) {
    let mut all = Vec::new();
    tokens(template, &mut all);
    let mut least = usize::MAX;
    let mut starts: Vec<&mut Arc<str>> = Vec::new();
    let mut at_start = true;
    for token in all {
        let was_start = std::mem::replace(&mut at_start, false);
        match token {
            Token::Text(text) => {
                at_start = text.ends_with('\n');
                let trimmed = text.trim_start();
                let is_blank = trimmed.is_empty() && at_start;
                if was_start && !is_blank {
                    least = least.min(text[..text.len() - trimmed.len()].chars().count());
                    starts.push(text);
                }
            }
            Token::Other if was_start => least = 0,
            Token::Other => {}
        }
    }
    for text in starts {
        let cut = text
            .char_indices()
            .nth(least)
            .map_or(text.len(), |(at, _)| at);
        *text = text[cut..].into();
    }
}

fn operator(operator: BinaryOperator) -> Operator {
    match operator {
        BinaryOperator::Eq => Operator::Equal,
        BinaryOperator::NotEq => Operator::NotEqual,
        BinaryOperator::LessEq => Operator::LessOrEqual,
        BinaryOperator::GreaterEq => Operator::GreaterOrEqual,
        BinaryOperator::Less => Operator::Less,
        BinaryOperator::Greater => Operator::Greater,
        BinaryOperator::Plus => Operator::Add,
        BinaryOperator::Minus => Operator::Subtract,
        BinaryOperator::Mul => Operator::Multiply,
        BinaryOperator::Div => Operator::Divide,
        BinaryOperator::Mod => Operator::Remainder,
        BinaryOperator::And => Operator::And,
        BinaryOperator::Or => Operator::Or,
    }
}
