//! Answers, and refusals in the API's own words.

use serde_json::{Value, json};

/// Why a request is refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    reasons: Vec<(Option<String>, String)>,
}

impl Refusal {
    pub(crate) fn of(status: u16, field: Option<&str>, reason: &str) -> Self {
        let reasons = vec![(field.map(str::to_owned), reason.to_owned())];
        Self { status, reasons }
    }

    pub(crate) fn not_found() -> Self {
        Self::of(404, None, "Not found")
    }

    pub(crate) fn busy() -> Self {
        Self::of(400, None, "Linode busy.")
    }

    /// Returns a refusal of all these fields at once; nothing where there are none. A reason that
    /// is about no field has an empty one.
    pub(crate) fn of_fields(wrong: Vec<(&str, String)>) -> Result<(), Self> {
        if wrong.is_empty() {
            return Ok(());
        }
        let reasons = wrong
            .into_iter()
            .map(|(field, why)| (Some(field.to_owned()).filter(|it| !it.is_empty()), why));
        Err(Self {
            status: 400,
            reasons: reasons.collect(),
        })
    }

    pub(crate) fn body(&self) -> Value {
        let error = |(field, reason): &(Option<String>, String)| match field {
            Some(field) => json!({"field": field, "reason": reason}),
            None => json!({"reason": reason}),
        };
        json!({"errors": self.reasons.iter().map(error).collect::<Vec<_>>()})
    }
}

/// What goes back over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
    /// How long it waits, on the host's clock.
    pub(crate) wait: std::time::Duration,
    /// How long its body takes to arrive, on the host's clock.
    pub(crate) trickle: std::time::Duration,
    /// What happens to it on its way.
    pub(crate) fate: Fate,
}

/// Whether an answer arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Whole.
    Arrives,
    /// Its second half is missing.
    Truncated,
    /// The connection is reset instead.
    Reset,
}

impl Reply {
    pub(crate) fn text(status: u16, content_type: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content_type,
            body: body.into(),
            wait: std::time::Duration::ZERO,
            trickle: std::time::Duration::ZERO,
            fate: Fate::Arrives,
        }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }

    /// Returns what a proxy in front of the API says.
    pub(crate) fn html(status: u16) -> Self {
        let body = format!("<html><head><title>{status}</title></head><body>nginx</body></html>");
        let mut reply = Self::text(status, "text/html", body);
        reply.headers.push(("Server", "nginx".into()));
        reply
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::json(refusal.status, &refusal.body())
    }
}
