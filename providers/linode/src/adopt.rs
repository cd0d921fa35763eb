//! Taking over a machine that gobs did not make.

use gobs_model::Known;
use gobs_provider::{Error, Observed, Token};
use serde_json::json;

use crate::api::Fail;
use crate::machine::{Machines, path_of};
use crate::observe::{observed, owner_tag, tags, token_of};

impl Machines {
    /// Gives a machine the tag of a token, unless it has one; sent twice, it is the same.
    pub(crate) async fn adopt(
        &self,
        id: &str,
        token: &Token,
    ) -> Result<Option<(Token, Observed)>, Error> {
        let path = path_of(id)?;
        let instance = match self.api.get(&path).await {
            Ok(instance) => instance,
            Err(Fail::Gone) => return Ok(None),
            Err(fail) => return Err(fail.into()),
        };
        if let Some(own) = token_of(&instance) {
            return Ok(Some((own, observed(&instance, &Known::empty())?)));
        }
        let mut all: Vec<String> = tags(&instance).map(str::to_owned).collect();
        all.push(owner_tag(token));
        let instance = self.api.put(&path, &json!({"tags": all})).await?;
        Ok(Some((token.clone(), observed(&instance, &Known::empty())?)))
    }
}
