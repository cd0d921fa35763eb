//! The syntax tree that is evaluated: hcl-edit's, with spans that hold in the whole file, exact
//! numbers, NFC texts and splats with what they are applied to.

use std::sync::Arc;

use gobs_model::Value;

use super::source::Span;

/// The content of a file or a block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) blocks: Vec<Block>,
}

/// `name = expression`
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub(crate) name: Word,
    pub(crate) expr: Expr,
}

/// `keyword "label" { … }`
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) keyword: Word,
    pub(crate) labels: Vec<Word>,
    pub(crate) body: Body,
}

impl Block {
    /// Returns the span of the keyword and the labels.
    pub(crate) fn header(&self) -> Span {
        let last = self.labels.last().unwrap_or(&self.keyword);
        self.keyword.span.to(last.span)
    }
}

/// An identifier or a label.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) text: Arc<str>,
    pub(crate) span: Span,
}

/// An expression.
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub(crate) kind: ExprKind,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum ExprKind {
    Literal(Value),
    Template(Template),
    Tuple(Vec<Expr>),
    Object(Vec<(Key, Expr)>),
    Parens(Box<Expr>),
    /// A name and what follows it, without splats.
    Reference(Reference),
    /// Another expression and what follows it, without splats.
    Access(Box<Expr>, Vec<Access>),
    Splat(Box<Splat>),
    Call(Box<Call>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Box<Binary>),
    Conditional(Box<Conditional>),
    For(Box<For>),
    /// A piece that was reported already.
    Wrong,
}

#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) root: Word,
    pub(crate) path: Vec<Access>,
}

/// `.name` or `[key]`
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) kind: AccessKind,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum AccessKind {
    Attribute(Arc<str>),
    Index(Expr),
}

/// `source[*]` and what is applied to every element.
#[derive(Clone, Debug)]
pub(crate) struct Splat {
    pub(crate) source: Expr,
    pub(crate) each: SplatEach,
}

/// What a splat applies to every element.
#[derive(Clone, Debug)]
pub(crate) struct SplatEach {
    pub(crate) path: Vec<Access>,
    /// A splat within the splat.
    pub(crate) then: Option<Box<Self>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: Word,
    pub(crate) arguments: Vec<Expr>,
    /// Whether the last argument ends with `...`.
    pub(crate) expand: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Binary {
    pub(crate) operator: Operator,
    pub(crate) left: Expr,
    pub(crate) right: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(Clone, Debug)]
pub(crate) struct Conditional {
    pub(crate) condition: Expr,
    pub(crate) then: Expr,
    pub(crate) otherwise: Expr,
}

#[derive(Clone, Debug)]
pub(crate) struct For {
    pub(crate) key: Option<Word>,
    pub(crate) value: Word,
    pub(crate) collection: Expr,
    /// What makes it an object.
    pub(crate) key_expr: Option<Expr>,
    pub(crate) value_expr: Expr,
    pub(crate) condition: Option<Expr>,
    /// Whether values of one key are gathered.
    pub(crate) group: bool,
}

/// A key in an object expression.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    Word(Word),
    Expr(Expr),
}

/// A text with interpolations and directives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    pub(crate) parts: Vec<Part>,
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Text(Arc<str>),
    Value(Expr),
    If {
        condition: Expr,
        then: Template,
        otherwise: Template,
    },
    For {
        key: Option<Word>,
        value: Word,
        collection: Expr,
        body: Template,
    },
}
