//! Version constraints: `>= 0.1, < 2.0`.

/// Returns whether a version meets every constraint of a list, or why that cannot be said.
pub(super) fn satisfies(version: &str, constraints: &str) -> Result<bool, String> {
    let (have, _) = parse(version)?;
    let mut all = true;
    for constraint in constraints.split(',') {
        let constraint = constraint.trim();
        let operators = [">=", "<=", "!=", "~>", ">", "<", "="];
        let operator = operators.into_iter().find(|it| constraint.starts_with(it));
        let text = constraint[operator.map_or(0, str::len)..].trim();
        let (want, given) = parse(text)?;
        all &= match operator.unwrap_or("=") {
            ">=" => have >= want,
            "<=" => have <= want,
            "!=" => have != want,
            ">" => have > want,
            "<" => have < want,
            // Only the last part that is written may be higher.
            "~>" => have >= want && have[..given.max(2) - 1] == want[..given.max(2) - 1],
            _ => have == want,
        };
    }
    Ok(all)
}

/// Returns a version's three numbers, and how many of them were written.
fn parse(text: &str) -> Result<([u64; 3], usize), String> {
    let wrong = || format!("{text:?} is not a version such as 1.2.3");
    let mut numbers = [0; 3];
    let mut given = 0;
    for part in text.split('.') {
        let slot = numbers.get_mut(given).ok_or_else(wrong)?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        *slot = part.parse().map_err(|_| wrong())?;
        given += 1;
    }
    Ok((numbers, given))
}

#[cfg(test)]
mod tests {
    use super::satisfies;

    #[test]
    fn constraints_are_met_or_not() {
        for (constraint, met) in [
            (">= 0.1", true),
            ("0.1.0", true),
            ("~> 0.1", true),
            ("~> 0.1.0", true),
            ("~> 1.0", false),
            ("> 0.1, < 0.2", false),
            ("!= 0.1.0", false),
        ] {
            assert_eq!(satisfies("0.1.0", constraint), Ok(met), "{constraint}");
        }
        for wrong in ["", "x", ">= 1.x", "1.2.3.4", ">=", "99999999999999999999"] {
            assert!(satisfies("0.1.0", wrong).is_err(), "{wrong}");
        }
    }
}
