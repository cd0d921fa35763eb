//! Texts that stand in many values at once: names of attributes and machines, common settings.
//!
//! A project of 10,000 machines holds a million of them, of which a few hundred differ.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// The longest text that is looked up: longer ones seldom stand twice.
const TEXT_BYTES_MAX: usize = 64;

/// How many texts are kept for the next look-up. When there are more, those before are let go:
/// what holds them keeps them, and memory does not grow with hostile input.
const TEXTS_MAX: usize = 4_096;

thread_local! {
    static TEXTS: RefCell<HashSet<Arc<str>>> = RefCell::default();
}

/// Returns the text, sharing the allocation of an equal one that was asked for lately.
pub(crate) fn shared(text: &str) -> Arc<str> {
    if text.len() > TEXT_BYTES_MAX {
        return text.into();
    }
    TEXTS.with_borrow_mut(|texts| {
        if let Some(known) = texts.get(text) {
            return known.clone();
        }
        if texts.len() >= TEXTS_MAX {
            texts.clear();
        }
        let new: Arc<str> = text.into();
        texts.insert(new.clone());
        new
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_and_the_memory_of_them_is_bounded() {
        assert!(Arc::ptr_eq(&shared("size"), &shared("size")));
        for number in 0..2 * TEXTS_MAX {
            shared(&number.to_string());
        }
        TEXTS.with_borrow(|texts| assert!(texts.len() <= TEXTS_MAX));
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(!Arc::ptr_eq(&shared(&long), &shared(&long)));
    }
}
