//! What a machine is given to start with.

use gobs_model::{Known, ProviderSchema, UserDataForm, Value};
use gobs_provider::UserData;
use gobs_state::NewClaim;

use crate::boot::{self, Install};
use crate::boss::Boss;
use crate::lang::{HobSource, HobUser, HobValues};
use crate::plan::{HOB, Step};

use super::prepare::{Prepared, about, randomness};
use super::{Walk, expected_names, home};

impl Walk<'_> {
    /// Returns what a machine is to start with; `seen` is the machine as it is, where there is one.
    pub(super) fn user_data(
        &self,
        step: &Step,
        provider: &str,
        (wanted, seen): (&Known, Option<&Known>),
        incarnation: u64,
        claim: &mut Option<NewClaim>,
    ) -> Prepared<Option<UserData>> {
        let schema = self.provider(step, provider)?.schema();
        let is_ours = schema.hosts.user_data == UserDataForm::CloudInit;
        let own = wanted.get("user_data").and_then(Value::as_str);
        let own = own.filter(|_| is_ours);
        let hob = HobValues::of_value(wanted.get(HOB).unwrap_or(&Value::NULL));
        if !hob.enabled {
            return Ok(own.map(|own| UserData(own.to_owned())));
        }
        let boss = self.boss(step)?;
        home::expect(&boss, &step.address, incarnation, &hob, schema, None);
        let invitation = boss
            .mint_invitation(
                &step.address,
                incarnation,
                hob.dial,
                hob.listens_on(schema.hosts.elsewhere),
                home::advertised(&hob, schema, seen),
                &expected_names(self.apply.plan, &step.address),
            )
            .map_err(|error| randomness(step, &error))?;
        *claim = Some(invitation.claim);
        let document = invitation.user_data;
        if !is_ours {
            return Ok(Some(UserData(document.encode().as_str().to_owned())));
        }
        let script = boot::script(&install(step, &boss, &hob, schema)?);
        let header = document.to_header();
        let message = boot::message(&header, &script, own, schema.hosts.user_data_bytes_max);
        let message = message.map_err(|error| {
            let detail = format!("{}: {error}.", step.address);
            Box::new(about(step, "User data too large", detail).hint(boot::TOO_LARGE_HINT))
        })?;
        Ok(Some(UserData(message)))
    }
}

/// Returns how a machine gets its hob.
fn install(
    step: &Step,
    boss: &Boss,
    hob: &HobValues,
    schema: &ProviderSchema,
) -> Prepared<Install> {
    let install = match &hob.source {
        HobSource::Boss => boss.install().map_err(|why| {
            let detail = format!(
                "The hob for {} is to come from the boss, which has none to give: {why}.",
                step.address
            );
            let hint = "Set url and sha256 in its hob block, or install = \"image\".";
            Box::new(about(step, "No hob to install", detail).hint(hint))
        })?,
        HobSource::Url { url, sha256 } => Install {
            urls: vec![url.clone()],
            sha256: Some(sha256.clone()),
            ..Install::default()
        },
        HobSource::Image => Install::default(),
    };
    Ok(Install {
        as_root: hob.user == HobUser::Root,
        metadata: schema.hosts.metadata.clone(),
        ..install
    })
}
