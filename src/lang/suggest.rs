//! "Did you mean …?"

/// How alike two names must be, from 0 to 1: one letter wrong in four, or two swapped.
const ALIKE_MIN: f64 = 0.7;

/// How many names are compared: a file full of mistakes must not take minutes.
const CANDIDATES_MAX: usize = 2_000;

/// Returns a hint with the known name that is most like a wrong one, if one is.
pub(crate) fn did_you_mean<'n>(
    wrong: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<String> {
    nearest(wrong, known).map(|name| format!("Did you mean \"{name}\"?"))
}

/// Returns the known name that is most like a wrong one, if one is.
pub(crate) fn nearest<'n>(
    wrong: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    // A very long name is no typing mistake, and comparing it costs its square.
    if wrong.len() > 100 {
        return None;
    }
    known
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|name| name.len() <= 100)
        .map(|name| {
            let edits = strsim::damerau_levenshtein(wrong, name);
            let longest = wrong.chars().count().max(name.chars().count()).max(1);
            #[expect(clippy::cast_precision_loss, reason = "names have at most 100 letters")]
            let alike = 1.0 - edits as f64 / longest as f64;
            // One mistake in a short word is still a mistake.
            let alike = if edits <= 1 && longest > 1 {
                alike.max(0.75)
            } else {
                alike
            };
            (alike, name)
        })
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.cmp(x)))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_alike_is_suggested() {
        let known = ["size", "image", "zone", "password", "connections_max"];
        for (wrong, expected) in [
            ("siez", Some("size")),
            ("sise", Some("size")),
            ("imag", Some("image")),
            ("connection_max", Some("connections_max")),
            ("x", None),
            ("region", None),
        ] {
            assert_eq!(nearest(wrong, known), expected, "{wrong}");
        }
    }
}
