//! The verbs: each looks before it repeats, and ends only when what it asked for is so.

use std::time::Duration;

use data_encoding::BASE64;
use gobs_model::{Change, Known, Value};
use gobs_provider::{CreateRequest, Error, Observed, Progress, Token, UpdateRequest, UserData};
use serde_json::{Map, Value as Json, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::api::{Api, Fail};
use crate::blocks::{Owner, Turns, elements, entries, with};
use crate::disks::swap_of;
use crate::interfaces::Defaults;
use crate::jobs::Job;
use crate::marks::Mark;
use crate::observe::{
    OWNER, REBUILT, disk, is_own, is_same_region, json_of, observed, owner_tag, put, tags, token_of,
};
use crate::offers::Offers;
use crate::pace::Class;
use crate::schema::{LIST_LAG, USER_DATA_BYTES_MAX};

/// How often a create is sent, each time after a look that found nothing.
const CREATES_MAX: u32 = 4;

/// How often something that should show soon is looked for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a delete may take, and whatever else a machine is doing.
pub(crate) const DELETE_WITHIN: Duration = Duration::from_secs(600);

/// How much of a label is left to the machine's own name: labels have 64 characters.
const LABEL_NAME_CHARS: usize = 40;

/// How much of a token makes a label unique: 60 bits.
const LABEL_TOKEN_CHARS: usize = 12;

/// How much of a token tells one rebuild from another: what a tag has room for.
const REBUILD_TOKEN_CHARS: usize = 20;

/// The machines of one account.
pub(crate) struct Machines {
    pub(crate) api: Api,
    /// Whose machines they are, in an account that several may use.
    pub(crate) project: String,
    pub(crate) turns: Turns,
    /// What the account has for machines that say nothing, once it was asked.
    pub(crate) defaults: OnceCell<Defaults>,
    pub(crate) offers: Offers,
}

impl Machines {
    pub(crate) async fn create(
        &self,
        request: &CreateRequest,
        progress: &Progress,
    ) -> Result<Observed, Error> {
        let mark = Mark::of(&self.project, &request.address);
        let mut body = create_body(request, &mark)?;
        let _turn = self.turns.at(&request.address).await;
        let wanted = &request.wanted;
        let region = json!({"region": json_of(wanted, "region")});
        // What belonged to a machine that is gone belongs to this one, or goes.
        let before = request.before.as_ref().map(|it| &it.attributes);
        let nothing = Known::empty();
        let was = before.map_or_else(Known::empty, belongings_of);
        let mut owner = Owner {
            address: &request.address,
            mark,
            id: "",
            instance: &region,
            wanted,
            was: &was,
            seen: before.unwrap_or(&nothing),
            adopted: false,
        };
        if request.user_data.is_some() {
            self.check_user_data(wanted).await?;
        }
        self.check_volumes(&owner).await?;
        let generation = self.generation(wanted).await?;
        // The firewall comes first, so that the machine is never without it.
        let own = self.ensure_firewall(&owner).await?;
        self.put_network(&mut body, wanted, generation.as_deref(), own)
            .await?;
        let made = self.made(request, &Json::Object(body), progress).await;
        let (instance, adopted) = match made {
            Err(error @ (Error::Rejected { .. } | Error::Denied(_))) => {
                if own.is_some() {
                    self.remove_firewall(&owner).await?;
                }
                return Err(error);
            }
            made => made?,
        };
        if !has_belongings(wanted) && !has_belongings(&was) {
            return observed(&instance, wanted);
        }
        let id = instance["id"].to_string();
        (owner.id, owner.instance, owner.adopted) = (&id, &instance, adopted);
        let finished = async {
            let set = self.belongings(&owner, progress).await?;
            self.observe(&self.there(&id).await?, &set).await
        };
        finished.await.map_err(|error| match error {
            // The machine itself is there, so this is no refusal of it.
            Error::Rejected { message, .. } | Error::Denied(message) => Error::InDoubt(message),
            other => other,
        })
    }

    /// Makes the machine itself, and returns it as the API shows it; and whether an earlier try,
    /// whose end nobody saw, had made it.
    async fn made(
        &self,
        request: &CreateRequest,
        body: &Json,
        progress: &Progress,
    ) -> Result<(Json, bool), Error> {
        let label = body["label"].as_str().unwrap_or_default().to_owned();
        let mut doubt = String::new();
        for _ in 0..CREATES_MAX {
            match self
                .api
                .post("/linode/instances", Class::Create, body)
                .await
            {
                Ok(instance) => return Ok((instance, false)),
                Err(Fail::Refused(reasons)) if is_taken(&reasons) => {
                    doubt = format!("the label {label} is taken, and nothing shows by whom");
                }
                Err(Fail::Lost(why)) => doubt = why,
                Err(fail) if doubt.is_empty() => return Err(fail.into()),
                // A refusal says nothing about the one before it, which may still be on its way.
                Err(fail) => doubt = format!("{doubt}, and then: {}", fail.into_error()),
            }
            progress(format!("looks whether {label} was made: {doubt}"));
            match self.look_for(&label, &request.token).await? {
                Look::Ours(instance) => return Ok((instance, true)),
                Look::Foreign(id) => {
                    return Err(Error::Rejected {
                        message: format!("the label {label} is that of Linode {id}, not of gobs"),
                        attribute: Some("label".into()),
                    });
                }
                // The label is unique: whatever arrives late refuses the next one, or is refused.
                Look::Nothing => {}
            }
        }
        Err(Error::InDoubt(doubt))
    }

    /// Looks for a machine by its label for as long as a list may lag.
    async fn look_for(&self, label: &str, token: &Token) -> Result<Look, Error> {
        let until = Instant::now() + self.api.time.here(LIST_LAG);
        let filter = json!({"label": label});
        loop {
            let tells = Instant::now() >= until;
            let found = self.api.list("/linode/instances", Some(&filter)).await;
            // Reading failed, so what was asked before is as doubtful as it was.
            let found = found.map_err(|fail| Error::InDoubt(fail.into_error().to_string()))?;
            if let Some(instance) = found.into_iter().next() {
                return Ok(match token_of(&instance) {
                    Some(owner) if owner == *token => Look::Ours(instance),
                    _ => Look::Foreign(instance["id"].to_string()),
                });
            }
            if tells {
                return Ok(Look::Nothing);
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        let filter = json!({"tags": owner_tag(token)});
        let found = self.api.list("/linode/instances", Some(&filter)).await?;
        let ours = found
            .into_iter()
            .find(|it| token_of(it).as_ref() == Some(token));
        ours.map(|instance| observed(&instance, &Known::empty()))
            .transpose()
    }

    pub(crate) async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        match self.get(&last.id).await? {
            Some(instance) => Ok(Some(self.observe(&instance, &last.attributes).await?)),
            None => Ok(None),
        }
    }

    /// Returns a machine with what belongs to it; what the API does not show comes from `set`.
    async fn observe(&self, instance: &Json, set: &Known) -> Result<Observed, Error> {
        let seen = observed(instance, set)?;
        let more = self.observe_belongings(instance, set).await?;
        let attributes = Known::try_from(with(seen.attributes.value(), more));
        let attributes = attributes.map_err(|error| Error::InDoubt(error.to_string()))?;
        Ok(Observed { attributes, ..seen })
    }

    pub(crate) async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        let all = self.api.list("/linode/instances", None).await?;
        let ours = all.iter().filter_map(|it| Some((token_of(it)?, it)));
        ours.map(|(token, it)| Ok((token, observed(it, &Known::empty())?)))
            .collect()
    }

    pub(crate) async fn update(
        &self,
        request: &UpdateRequest,
        progress: &Progress,
    ) -> Result<Observed, Error> {
        let id = request.before.id.as_str();
        let (wanted, was) = (&request.wanted, &request.was_wanted);
        if request.change > Change::Rebuild {
            return Err(Error::rejected(
                "another machine is a create, not an update",
            ));
        }
        let user_data = encoded(request.user_data.as_ref())?;
        let instance = self.there(id).await?;
        check_tags(wanted)?;
        let mut owner = Owner {
            address: &request.address,
            mark: Mark::of(&self.project, &request.address),
            id,
            instance: &instance,
            wanted,
            was,
            seen: &request.before.attributes,
            adopted: false,
        };
        if request.change == Change::Rebuild && user_data.is_some() {
            self.check_user_data(wanted).await?;
        }
        self.check_volumes(&owner).await?;
        self.set(&owner).await?;
        let at = instance["region"].as_str().unwrap_or_default();
        let region = wanted.get("region").and_then(Value::as_str);
        let stays = region.is_none_or(|it| is_same_region(it, at));
        if stays {
            self.place_in_group(&owner).await?;
        }
        if request.change >= Change::Resize {
            self.resize(id, wanted, progress).await?;
        }
        if request.change >= Change::Migrate {
            self.migrate(id, wanted, progress).await?;
        }
        if request.change == Change::Rebuild {
            self.rebuild(id, request, user_data.as_deref(), progress)
                .await?;
        } else if differs(wanted, was, "root_pass") && request.change >= Change::PowerCycle {
            self.set_password(id, wanted, progress).await?;
        }
        let rebuilt = request.change == Change::Rebuild;
        // A rebuild writes the disks anew, the one to swap to in its usual size.
        if differs(wanted, was, "swap_size") || rebuilt && swap_of(wanted).is_some() {
            self.set_swap(id, wanted, progress).await?;
        }
        let has_interfaces = !elements(wanted, "interface").is_empty();
        let upgraded = match differs(wanted, was, "interface_generation") {
            true => self.upgrade_interfaces(&owner, progress).await?,
            false => None,
        };
        if let Some(upgraded) = &upgraded {
            owner.instance = upgraded;
        }
        let differs_there = differs(wanted, was, "interface") || upgraded.is_some();
        if differs_there || rebuilt && has_interfaces {
            self.set_interfaces(&owner, progress).await?;
        }
        let instance = self.there(id).await?;
        owner.instance = &instance;
        if !stays {
            // A migration takes it into the group of its new region; this is to be sure.
            self.place_in_group(&owner).await?;
        }
        if rebuilt {
            self.release_loose_volumes(&owner).await?;
        }
        let set = match has_belongings(wanted)
            || has_belongings(was)
            || differs(wanted, was, "firewall_id")
        {
            true => self.belongings(&owner, progress).await?,
            false => wanted.clone(),
        };
        let on = wanted.get("booted").and_then(Value::as_bool);
        if let Some(on) = on.or((rebuilt && is_profiled(wanted)).then_some(true)) {
            self.power(id, on, progress).await?;
        }
        self.observe(&self.there(id).await?, &set).await
    }

    /// Sets what can be set at once; each of these may be sent twice.
    async fn set(&self, owner: &Owner<'_>) -> Result<(), Error> {
        let (id, instance, wanted) = (owner.id, owner.instance, owner.wanted);
        let path = path_of(id)?;
        let mut body = Map::new();
        for name in ["label", "maintenance_policy"] {
            if json_of(wanted, name).is_some_and(|it| it != instance[name]) {
                put(&mut body, wanted, name, name);
            }
        }
        let was_set = owner.was.get("tags").is_some_and(|it| !it.is_null());
        let asked = json_of(wanted, "tags").or_else(|| was_set.then(|| json!([])));
        // What is about to belong to it is found by its mark, so that comes first.
        let mark = owner.mark.tag();
        let unmarked = has_belongings(wanted) && tags(instance).all(|it| it != mark);
        let as_is = || tags(instance).filter(|it| !is_own(it)).collect();
        let asked = asked.or_else(|| unmarked.then(as_is));
        if let Some(asked) = asked {
            let mut all: Vec<&str> = asked
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Json::as_str)
                .collect();
            all.extend(tags(instance).filter(|it| is_own(it)));
            all.extend(unmarked.then_some(&*mark));
            if !is_same_set(&all, &tags(instance).collect::<Vec<_>>()) {
                body.insert("tags".into(), json!(all));
            }
        }
        if !body.is_empty() {
            self.api.put(&path, &Json::Object(body)).await?;
        }
        let flag = |name| wanted.get(name).and_then(Value::as_bool);
        let has_private = observed(instance, &Known::empty())?;
        let has_private = has_private
            .attributes
            .get("private_ip")
            .and_then(Value::as_bool);
        match flag("private_ip") {
            Some(true) if has_private != Some(true) => self.add_private_address(id).await?,
            Some(false) if has_private == Some(true) => {
                return Err(Error::Rejected {
                    message: "Linode takes no private address away".into(),
                    attribute: Some("private_ip".into()),
                });
            }
            _ => {}
        }
        let has_backups = instance["backups"]["enabled"] == true;
        match flag("backups") {
            Some(on) if on != has_backups => {
                let verb = if on { "enable" } else { "cancel" };
                let path = format!("{path}/backups/{verb}");
                match self.api.post(&path, Class::Other, &json!({})).await {
                    Ok(_) => Ok(()),
                    Err(Fail::Lost(why)) => {
                        let now = self.there(id).await?["backups"]["enabled"] == true;
                        if now == on {
                            Ok(())
                        } else {
                            Err(Error::InDoubt(why))
                        }
                    }
                    Err(fail) => Err(fail.into()),
                }
            }
            _ => Ok(()),
        }
    }

    async fn add_private_address(&self, id: &str) -> Result<(), Error> {
        let path = format!("{}/ips", path_of(id)?);
        let body = json!({"type": "ipv4", "public": false});
        match self.api.post(&path, Class::Other, &body).await {
            Ok(_) => Ok(()),
            Err(Fail::Lost(why)) => {
                let now = observed(&self.there(id).await?, &Known::empty())?;
                let has_one = now.attributes.get("private_ip").and_then(Value::as_bool);
                if has_one == Some(true) {
                    Ok(())
                } else {
                    Err(Error::InDoubt(why))
                }
            }
            Err(fail) => Err(fail.into()),
        }
    }

    /// Writes the disk anew, once for each request however often that comes.
    async fn rebuild(
        &self,
        id: &str,
        request: &UpdateRequest,
        user_data: Option<&str>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut body = disk(&request.wanted, user_data);
        put(&mut body, &request.wanted, "booted", "booted");
        if is_profiled(&request.wanted) {
            // It starts once its new profile has what the old one had.
            body.insert("booted".into(), false.into());
        }
        if body.get("image").is_none() {
            return Err(no_image());
        }
        let job = Job {
            id,
            verb: "rebuild",
            body: Json::Object(body),
            event: "linode_rebuild",
        };
        let marker = format!("{REBUILT}{:.*}:", REBUILD_TOKEN_CHARS, request.token.0);
        let instance = self.there(id).await?;
        let marked = tags(&instance).find_map(|tag| tag.strip_prefix(&marker)?.parse().ok());
        let before = match marked {
            Some(before) => before,
            None => {
                // Which rebuild is this request's is durable before it is asked for.
                let before = self.api.newest_event(id).await?;
                let kept = tags(&instance).filter(|tag| !tag.starts_with(REBUILT));
                let mut all: Vec<String> = kept.map(str::to_owned).collect();
                all.push(format!("{marker}{before}"));
                self.api.put(&path_of(id)?, &json!({"tags": all})).await?;
                before
            }
        };
        if self.api.event_after(id, job.event, before).await?.is_none() {
            self.api.begin(&job, before, progress).await?;
        }
        self.api.finish(&job, before, progress).await
    }

    /// Sets the password of root, which needs the machine to be off.
    async fn set_password(
        &self,
        id: &str,
        wanted: &Known,
        progress: &Progress,
    ) -> Result<(), Error> {
        let Some(password) = json_of(wanted, "root_pass") else {
            return Ok(());
        };
        let ran = self.pause(id, progress).await?;
        let path = format!("{}/password", path_of(id)?);
        let body = json!({"root_pass": password});
        let done = match self.api.post(&path, Class::Other, &body).await {
            // The same password twice is the same password.
            Err(Fail::Lost(_)) => self.api.post(&path, Class::Other, &body).await,
            done => done,
        };
        // Whatever came of it, the machine is not left off.
        let on = wanted.get("booted").and_then(Value::as_bool);
        let resumed = self.resume(id, on.unwrap_or(ran), progress).await;
        done.map(drop).map_err(Error::from).and(resumed)
    }

    pub(crate) async fn get(&self, id: &str) -> Result<Option<Json>, Error> {
        match self.api.get(&path_of(id)?).await {
            Ok(instance) => Ok(Some(instance)),
            Err(Fail::Gone) => Ok(None),
            Err(fail) => Err(fail.into()),
        }
    }

    pub(crate) async fn there(&self, id: &str) -> Result<Json, Error> {
        let instance = self.get(id).await?;
        instance.ok_or_else(|| Error::rejected(format!("Linode {id} is gone")))
    }
}

/// Returns a machine's attributes that are of what belongs to it, and nothing else.
fn belongings_of(seen: &Known) -> Known {
    let entries = ["firewall", "dns", "volume"].map(|name| {
        let value = seen.get(name).cloned();
        (name, value.unwrap_or(Value::NULL))
    });
    // A part of what is known is known.
    Known::try_from(Value::object(entries)).unwrap_or_else(|_| Known::empty())
}

/// Returns whether a machine has something beside itself that is looked after.
pub(crate) fn has_belongings(wanted: &Known) -> bool {
    wanted.get("firewall").is_some_and(|it| !it.is_null())
        || !elements(wanted, "dns").is_empty()
        || !entries(wanted, "volume").is_empty()
}

/// Returns whether a machine has what its configuration profile holds, which a rebuild deletes, or
/// a swap disk of its own size.
fn is_profiled(wanted: &Known) -> bool {
    !elements(wanted, "interface").is_empty()
        || !entries(wanted, "volume").is_empty()
        || swap_of(wanted).is_some()
}

/// What a look for a label found.
enum Look {
    Ours(Json),
    Foreign(String),
    Nothing,
}

pub(crate) fn path_of(id: &str) -> Result<String, Error> {
    match id.parse::<u64>() {
        Ok(number) => Ok(format!("/linode/instances/{number}")),
        Err(_) => Err(Error::rejected(format!("{id:?} is not the id of a Linode"))),
    }
}

fn is_taken(reasons: &[crate::api::Reason]) -> bool {
    // Refused for another reason too, it was not refused because it is already there.
    matches!(reasons, [only] if only.text.starts_with("Label must be unique"))
}

fn create_body(request: &CreateRequest, mark: &Mark) -> Result<Map<String, Json>, Error> {
    let wanted = &request.wanted;
    check_tags(wanted)?;
    let user_data = encoded(request.user_data.as_ref())?;
    let mut body = disk(wanted, user_data.as_deref());
    if user_data.is_some() && body.get("image").is_none() {
        return Err(no_image());
    }
    let fields = [
        "region",
        "type",
        "label",
        "private_ip",
        "swap_size",
        "booted",
    ];
    for name in fields {
        put(&mut body, wanted, name, name);
    }
    put(
        &mut body,
        wanted,
        "maintenance_policy",
        "maintenance_policy",
    );
    put(&mut body, wanted, "backups", "backups_enabled");
    if let Some(id) = json_of(wanted, "placement_group") {
        body.insert("placement_group".into(), json!({"id": id}));
    }
    let label = body.entry("label");
    label.or_insert_with(|| label_of(&request.address.to_string(), &request.token).into());
    let mut tags = match json_of(wanted, "tags") {
        Some(Json::Array(tags)) => tags,
        _ => Vec::new(),
    };
    tags.push(owner_tag(&request.token).into());
    if has_belongings(wanted) {
        tags.push(mark.tag().into());
    }
    body.insert("tags".into(), Json::Array(tags));
    Ok(body)
}

/// Returns a label that says which machine it is, and that no other create has.
fn label_of(address: &str, token: &Token) -> String {
    let mut name = String::from("gobs-");
    for letter in address
        .trim_start_matches("machine.")
        .chars()
        .take(LABEL_NAME_CHARS)
    {
        // Nothing but letters and digits may stand twice in a row, and little else at all.
        if letter.is_ascii_alphanumeric() {
            name.push(letter);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_end_matches('-');
    format!("{name}-{:.*}", LABEL_TOKEN_CHARS, token.0)
}

/// Returns user data as the API takes it.
fn encoded(user_data: Option<&UserData>) -> Result<Option<String>, Error> {
    match user_data {
        Some(data) if data.0.len() > USER_DATA_BYTES_MAX => Err(Error::rejected(format!(
            "its user data has {} bytes, and Linode machines take {USER_DATA_BYTES_MAX}",
            data.0.len()
        ))),
        data => Ok(data.map(|data| BASE64.encode(data.0.as_bytes()))),
    }
}

fn check_tags(wanted: &Known) -> Result<(), Error> {
    let tags = wanted
        .get("tags")
        .and_then(Value::as_elements)
        .into_iter()
        .flatten();
    match tags.filter_map(Value::as_str).find(|tag| is_own(tag)) {
        None => Ok(()),
        Some(tag) => Err(Error::Rejected {
            message: format!("tags that begin with {OWNER} are gobs' own, such as {tag}"),
            attribute: Some("tags".into()),
        }),
    }
}

fn no_image() -> Error {
    Error::Rejected {
        message: "a machine with an agent needs an image that starts it".into(),
        attribute: Some("image".into()),
    }
}

fn differs(wanted: &Known, was: &Known, name: &str) -> bool {
    let value = |of: &Known| of.get(name).cloned().unwrap_or(Value::NULL);
    !value(wanted).same(&value(was))
}

/// Returns whether tags are the same, whatever their order and case.
fn is_same_set(a: &[&str], b: &[&str]) -> bool {
    let set = |tags: &[&str]| -> std::collections::BTreeSet<String> {
        tags.iter().map(|tag| tag.to_ascii_lowercase()).collect()
    };
    set(a) == set(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_that_linode_takes() {
        let token = Token("abcdefghijklmnopqrstuvwxyz".into());
        let check = |address: &str, expected: &str| {
            assert_eq!(
                label_of(address, &token),
                format!("{expected}-abcdefghijkl")
            );
        };
        check("machine.web", "gobs-web");
        check("machine.web[0]", "gobs-web-0");
        check("machine.web[\"eu__1\"]", "gobs-web-eu-1");
        check("machine._", "gobs");
        let long = label_of(&format!("machine.{}", "x".repeat(90)), &token);
        assert!(long.len() <= 64, "{long}");
    }
}
