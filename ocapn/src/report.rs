//! Failures whose detail stays here, with a number by which both ends can name them.

use std::fmt;

use crate::captp::broken::Broken;

/// Random bytes of a correlation id: enough to tell the failures of years apart.
const ID_BYTES: usize = 8;

impl Broken {
    /// Returns a break for a failure whose cause is nobody else's business.
    ///
    /// The peer gets the code, the message and a random correlation id; `detail` goes to the
    /// local log (`tracing`, level warn, target `ocapn::report`) under the same id.
    ///
    /// ```
    /// # use ocapn::Broken;
    /// let failed = std::fs::read("/nowhere").unwrap_err();
    /// let broken = Broken::reported("store", "the machine cannot read its state", failed);
    /// assert_eq!(broken.code(), Some("store"));
    /// assert!(!format!("{:?}", broken.reason()).contains("No such file"));
    /// assert_eq!(broken.correlation_id().map(str::len), Some(16));
    /// ```
    pub fn reported(code: &str, message: impl Into<String>, detail: impl fmt::Display) -> Self {
        let id = correlation_id();
        tracing::warn!(target: "ocapn::report", code, id, %detail, "a call broke");
        Self::numbered(code, message, &id)
    }
}

fn correlation_id() -> String {
    let mut id = [0; ID_BYTES];
    // Without randomness the failure is told all the same, under a number that others have too.
    let _ = getrandom::fill(&mut id);
    data_encoding::HEXLOWER.encode(&id)
}
