//! Asking before anything is done.

use gobs_model::Diagnostic;

use super::view::text::{BOLD, styled};
use super::{Context, Failure};

/// Whether something may be done without asking, and what to ask.
pub(super) enum Question {
    /// `apply`
    Apply,
    /// `destroy`
    Destroy,
}

impl Question {
    fn text(&self) -> String {
        let (question, explanation) = match self {
            Self::Apply => (
                "Do you want to perform these actions?",
                "  gobs will perform the actions described above.\n  \
                 Only 'yes' will be accepted to approve.",
            ),
            Self::Destroy => (
                "Do you really want to destroy all resources?",
                "  gobs will destroy all your managed machines and bindings, as shown above.\n  \
                 There is no undo. Only 'yes' will be accepted to confirm.",
            ),
        };
        let value = styled(BOLD, "Enter a value:");
        format!("\n{}\n{explanation}\n\n  {value} ", styled(BOLD, question))
    }

    fn command(&self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Destroy => "Destroy",
        }
    }
}

/// Returns whether somebody says yes; only `yes` is one.
///
/// # Errors
/// When nobody can be asked.
pub(super) fn approve(context: &mut Context, question: &Question) -> Result<bool, Failure> {
    if !context.input || !context.terminal.can_ask() {
        let why = if context.input {
            "stdin and stderr are not a terminal"
        } else {
            "input is switched off"
        };
        let detail = format!("Nobody can be asked to approve the plan: {why}. Nothing was done.");
        let hint = "Look at the plan with gobs plan --out FILE and apply that file, or use \
                    --auto-approve.";
        return Err(Diagnostic::error("No approval", detail).hint(hint).into());
    }
    let answer = context.terminal.ask(&question.text());
    let approved = answer.as_deref() == Some("yes");
    context.terminal.err("\n");
    if !approved {
        let cancelled = format!("{} cancelled.\n", question.command());
        context.terminal.err(&cancelled);
    }
    Ok(approved)
}
