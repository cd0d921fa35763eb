//! Volumes: they outlive their machine, and are found again by their mark.

use std::time::Duration;

use gobs_model::{Known, Number, Value};
use gobs_provider::{Error, Objection, Progress};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::api::Fail;
use crate::blocks::{Owner, about, entries, is_doubted, is_id, label_of, text, with};
use crate::machine::{LOOK_EVERY, Machines};
use crate::marks::Mark;
use crate::observe::{is_same_region, tags};
use crate::pace::Class;
use crate::schema::LIST_LAG;

/// What marks a volume as a machine's.
pub(crate) const MARK: &str = "gobs-volume:";

/// How long a label of a volume may be.
const LABEL_CHARS_MAX: usize = 32;

/// How long a volume, or the machine that is to have it, may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(1_800);

impl Machines {
    /// Gives a machine its volumes, and takes from it those that it is not to have any more.
    pub(crate) async fn volumes(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<Value, Error> {
        let mut volumes = Vec::new();
        for (name, asked) in entries(owner.wanted, "volume") {
            progress(format!("looks after volume {name}"));
            let id = self.volume(owner, name, asked).await?;
            volumes.push((name.clone(), with(asked, [("id", id.into())])));
        }
        let wanted = entries(owner.wanted, "volume");
        for (name, was) in entries(owner.was, "volume") {
            if !wanted.contains_key(name) {
                let found = self.find_volume(owner, name).await?;
                if let Some(volume) = found {
                    progress(format!("takes volume {name} away"));
                    // Of a volume that nobody saw made, only what was seen last says it.
                    let seen = entries(owner.seen, "volume").get(name);
                    let deletes = is_deleted(was) || is_unsaid(was) && seen.is_some_and(is_deleted);
                    self.release_volume(&volume, owner.id, deletes).await?;
                }
            }
        }
        Ok(Value::map(volumes))
    }

    /// Refuses what no volume can do, before anything is done.
    pub(crate) async fn check_volumes(&self, owner: &Owner<'_>) -> Result<(), Error> {
        match self.unfit_volumes(owner).await?.into_iter().next() {
            None => Ok(()),
            Some(Objection { message, hint, .. }) => Err(rejected(format!("{message}: {hint}"))),
        }
    }

    /// Returns what no volume can do, of what is asked for.
    pub(crate) async fn unfit_volumes(&self, owner: &Owner<'_>) -> Result<Vec<Objection>, Error> {
        let mut unfit = Vec::new();
        for (name, asked) in entries(owner.wanted, "volume") {
            let found = self.find_volume(owner, name).await?;
            if let Some((message, hint)) = unfit_volume(owner, name, asked, found.as_ref()) {
                unfit.push(Objection::new("volume", message, hint).labelled(name));
            }
        }
        Ok(unfit)
    }

    /// Returns the identifier of a volume that is as asked, attached to its machine.
    async fn volume(&self, owner: &Owner<'_>, name: &str, asked: &Value) -> Result<String, Error> {
        let volume = match self.find_volume(owner, name).await? {
            Some(volume) => volume,
            None => {
                let mark = owner.mark.thing(MARK, name);
                let body = body(owner, name, asked, &mark);
                let sought = (&*mark, false);
                self.api
                    .ensure("/volumes", Class::Volume, sought, &body)
                    .await?
            }
        };
        let id = volume["id"].to_string();
        let path = format!("/volumes/{id}");
        self.set_volume(owner, name, asked, &volume).await?;
        self.attach_volume(owner, name, &path).await?;
        let size = asked
            .get("size")
            .and_then(Value::as_i64)
            .unwrap_or_default();
        self.grow_volume(name, &path, size).await?;
        Ok(id)
    }

    /// Detaches the volumes that a machine holds and its configuration profile does not, as after
    /// a rebuild: it would boot without them. Attached again, they are in it.
    pub(crate) async fn release_loose_volumes(&self, owner: &Owner<'_>) -> Result<(), Error> {
        let asked = entries(owner.wanted, "volume").keys();
        let ids: Vec<&str> = asked.filter_map(|name| known_id(owner, name)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let (_, profile) = self.profile_of(owner.id).await?;
        let devices = profile["devices"].as_object().into_iter().flatten();
        let held: Vec<&Json> = devices.map(|(_, it)| &it["volume_id"]).collect();
        for id in ids
            .into_iter()
            .filter(|id| !held.iter().any(|it| is_id(it, id)))
        {
            if let Some(volume) = self.api.look(&format!("/volumes/{id}")).await?
                && is_id(&volume["linode_id"], owner.id)
            {
                self.release_volume(&volume, owner.id, false).await?;
            }
        }
        Ok(())
    }

    /// Finds a volume by its identifier, by its mark, or by the label that only it would have.
    async fn find_volume(&self, owner: &Owner<'_>, name: &str) -> Result<Option<Json>, Error> {
        if let Some(id) = known_id(owner, name)
            && let Some(found) = self.api.look(&format!("/volumes/{id}")).await?
        {
            return Ok(Some(found));
        }
        let mark = owner.mark.thing(MARK, name);
        let label = label_of(owner.address, name, &mark, LABEL_CHARS_MAX);
        let filter = json!({"+or": [{"tags": mark}, {"label": label}]});
        let doubted = owner.doubts(entries(owner.seen, "volume").get(name));
        let until = Instant::now() + self.api.time.here(LIST_LAG);
        loop {
            let tells = !doubted || Instant::now() >= until;
            let found = self.api.list("/volumes", Some(&filter)).await?;
            let marked = found.iter().find(|it| tags(it).any(|tag| tag == mark));
            // Somebody may have taken its mark off; the label has a hash of it.
            let named = || found.iter().find(|it| it["label"] == *label);
            if let Some(found) = marked.or_else(named) {
                return Ok(Some(found.clone()));
            }
            if tells {
                return Ok(None);
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
    }

    /// Sets what is set at once: label and tags.
    async fn set_volume(
        &self,
        owner: &Owner<'_>,
        name: &str,
        asked: &Value,
        volume: &Json,
    ) -> Result<(), Error> {
        let asked = body(owner, name, asked, &owner.mark.thing(MARK, name));
        let sorted = |tags: &Json| {
            let tags = tags
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Json::as_str);
            let mut tags: Vec<String> = tags.map(str::to_ascii_lowercase).collect();
            tags.sort();
            tags
        };
        let mut change = json!({});
        // A label that nobody asks for stays as it is: programs may know the volume by it.
        let is_asked = entries(owner.wanted, "volume").get(name);
        let is_asked = is_asked.and_then(|it| text(it, "label")).is_some();
        if is_asked && asked["label"] != volume["label"] {
            change["label"] = asked["label"].clone();
        }
        if sorted(&asked["tags"]) != sorted(&volume["tags"]) {
            change["tags"] = asked["tags"].clone();
        }
        if change != json!({}) {
            let path = format!("/volumes/{}", volume["id"]);
            self.api
                .put(&path, &change)
                .await
                .map_err(|fail| about("volume", fail))?;
        }
        Ok(())
    }

    async fn attach_volume(&self, owner: &Owner<'_>, name: &str, path: &str) -> Result<(), Error> {
        let linode: u64 = owner.id.parse().unwrap_or_default();
        let until = Instant::now() + self.api.time.limit(READY_WITHIN);
        loop {
            let volume = self.there_volume(name, path).await?;
            let is_active = volume["status"] == "active";
            let why = match volume["linode_id"].as_u64() {
                Some(on) if on == linode && is_active => return Ok(()),
                Some(on) if on == linode => "it is still being made".to_owned(),
                Some(on) => {
                    let why = format!("it is attached to Linode {on}");
                    let other = self.api.look(&format!("/linode/instances/{on}")).await?;
                    // A machine that goes lets go of it.
                    if other.is_some_and(|it| it["status"] != "deleting") {
                        let why = format!("volume {name} cannot be attached: {why}");
                        return Err(rejected(why));
                    }
                    why
                }
                None => {
                    let body = json!({"linode_id": linode});
                    let attach = format!("{path}/attach");
                    match self.api.post(&attach, Class::Other, &body).await {
                        // What was lost is seen by the next look.
                        Ok(_) | Err(Fail::Lost(_)) => "it is being attached".to_owned(),
                        Err(Fail::Busy) => "another job runs on this Linode".to_owned(),
                        // It may say that it is attached already.
                        Err(Fail::Refused(_)) if !self.is_free(path).await? => continue,
                        Err(fail) => return Err(about("volume", fail)),
                    }
                }
            };
            if Instant::now() >= until {
                return Err(rejected(format!("volume {name} cannot be attached: {why}")));
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
    }

    async fn grow_volume(&self, name: &str, path: &str, size: i64) -> Result<(), Error> {
        let until = Instant::now() + self.api.time.limit(READY_WITHIN);
        loop {
            let volume = self.there_volume(name, path).await?;
            let has = volume["size"].as_i64().unwrap_or_default();
            if has > size {
                return Err(rejected(format!(
                    "volume {name} has {has} GB, and volumes never shrink"
                )));
            }
            match volume["status"].as_str() {
                Some("active") if has == size => return Ok(()),
                Some("active") => {
                    let resize = format!("{path}/resize");
                    match self
                        .api
                        .post(&resize, Class::Other, &json!({"size": size}))
                        .await
                    {
                        Ok(_) | Err(Fail::Lost(_) | Fail::Busy) => {}
                        Err(fail) => return Err(about("volume", fail)),
                    }
                }
                _ if Instant::now() >= until => {
                    let status = &volume["status"];
                    let why = format!("volume {name} does not settle: it is {status}");
                    return Err(Error::InDoubt(why));
                }
                _ => {}
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
    }

    async fn there_volume(&self, name: &str, path: &str) -> Result<Json, Error> {
        let found = self.api.look(path).await?;
        found.ok_or_else(|| rejected(format!("volume {name} is gone")))
    }

    /// Detaches a volume from its machine, and destroys it where that is asked for. Where another
    /// machine has it by now, it is that one's.
    async fn release_volume(
        &self,
        volume: &Json,
        machine: &str,
        deletes: bool,
    ) -> Result<(), Error> {
        let path = format!("/volumes/{}", volume["id"]);
        let until = Instant::now() + self.api.time.limit(READY_WITHIN);
        loop {
            let Some(volume) = self.api.look(&path).await? else {
                return Ok(());
            };
            let on = &volume["linode_id"];
            if on.is_null() {
                break;
            }
            if !is_id(on, machine) {
                let why = format!(
                    "volume {} is attached to Linode {on}, which is not this machine: it is not \
                     destroyed",
                    volume["label"]
                );
                return if deletes { Err(rejected(why)) } else { Ok(()) };
            }
            if Instant::now() >= until {
                let why = format!("volume {} is still attached", volume["label"]);
                return Err(Error::InDoubt(why));
            }
            let detach = format!("{path}/detach");
            match self.api.post(&detach, Class::Other, &json!({})).await {
                Ok(_) | Err(Fail::Lost(_) | Fail::Busy | Fail::Gone) => {}
                // It may say that it is detached already.
                Err(Fail::Refused(_)) if self.is_free(&path).await? => {}
                Err(fail) => return Err(about("volume", fail)),
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
        if deletes {
            self.api
                .remove(&path)
                .await
                .map_err(|fail| about("volume", fail))?;
        }
        Ok(())
    }

    async fn is_free(&self, path: &str) -> Result<bool, Fail> {
        let volume = self.api.look(path).await?;
        Ok(volume.is_none_or(|it| it["linode_id"].is_null()))
    }

    /// Returns whether a machine has volumes that go with it.
    pub(crate) fn has_doomed_volumes(last: &Known) -> bool {
        entries(last, "volume").values().any(is_deleted)
    }

    /// Destroys the volumes that are to go with their machine.
    pub(crate) async fn delete_doomed_volumes(
        &self,
        machine: &str,
        last: &Known,
        mark: Option<&Mark>,
    ) -> Result<(), Error> {
        let volumes = entries(last, "volume").iter();
        for (name, volume) in volumes.filter(|(_, it)| is_deleted(it)) {
            let known = entries(last, "volume_ids").get(name);
            let id = text(volume, "id").or_else(|| known?.as_str());
            let found = match (id, mark) {
                (Some(id), _) => self.api.look(&format!("/volumes/{id}")).await?,
                (None, Some(mark)) => {
                    let mark = mark.thing(MARK, name);
                    self.api.sought("/volumes", &mark, true).await?
                }
                (None, None) => None,
            };
            if let Some(found) = found {
                self.release_volume(&found, machine, true).await?;
            }
        }
        Ok(())
    }

    /// Gives the volumes that outlive their machine their marks back, where somebody took them:
    /// by nothing else does the next machine find them.
    pub(crate) async fn mark_kept_volumes(
        &self,
        machine: &str,
        last: &Known,
        mark: &Mark,
    ) -> Result<(), Error> {
        let kept = entries(last, "volume").iter();
        let kept: Vec<_> = kept
            .filter(|(_, it)| !is_deleted(it))
            .filter_map(|(name, it)| Some((text(it, "id")?, mark.thing(MARK, name))))
            .collect();
        if kept.is_empty() {
            return Ok(());
        }
        let path = format!("/linode/instances/{machine}/volumes");
        let attached = match self.api.list(&path, None).await {
            Err(Fail::Gone) => Vec::new(),
            other => other?,
        };
        for (id, mark) in kept {
            let volume = attached.iter().find(|it| is_id(&it["id"], id));
            let Some(volume) = volume.filter(|it| tags(it).all(|tag| tag != mark)) else {
                continue;
            };
            let others = tags(volume).map(str::to_owned);
            let all: Vec<String> = others.chain([mark]).collect();
            let change = json!({"tags": all});
            let done = self.api.put(&format!("/volumes/{id}"), &change).await;
            done.map_err(|fail| about("volume", fail))?;
        }
        Ok(())
    }

    /// Returns the volumes that are attached, of those that were there last.
    pub(crate) async fn observe_volumes(&self, id: &str, set: &Known) -> Result<Value, Error> {
        let last = entries(set, "volume");
        if last.is_empty() {
            return Ok(Value::map::<std::sync::Arc<str>>([]));
        }
        let path = format!("/linode/instances/{id}/volumes");
        let attached = match self.api.list(&path, None).await {
            Err(Fail::Gone) => Vec::new(),
            other => other?,
        };
        let seen = last.iter().filter_map(|(name, was)| {
            if is_doubted(was) && was.get("size").is_some() {
                // It may be there, and is looked for by whoever changes it.
                return Some((name.clone(), was.clone()));
            }
            let id = text(was, "id")?;
            let volume = attached
                .iter()
                .find(|it| it["id"].as_u64() == id.parse().ok())?;
            let number = |it: &Json| {
                it.as_i64()
                    .map_or(Value::NULL, |it| Number::from(it).into())
            };
            let text = |it: &Json| it.as_str().map_or(Value::NULL, Value::from);
            let tags = volume["tags"].as_array().into_iter().flatten();
            let tags = tags
                .filter_map(Json::as_str)
                .filter(|tag| !tag.starts_with(MARK));
            let shown = Value::object([
                ("size", number(&volume["size"])),
                ("label", text(&volume["label"])),
                ("delete", was.get("delete").cloned().unwrap_or(Value::NULL)),
                ("tags", Value::set(tags.map(Value::from))),
                ("encryption", text(&volume["encryption"])),
                ("id", id.into()),
                ("path", text(&volume["filesystem_path"])),
            ]);
            Some((name.clone(), shown))
        });
        Ok(Value::map(seen))
    }
}

/// Returns what a volume is made with.
fn body(owner: &Owner<'_>, name: &str, asked: &Value, mark: &str) -> Json {
    let label = text(asked, "label").map(str::to_owned);
    let label = label.unwrap_or_else(|| label_of(owner.address, name, mark, LABEL_CHARS_MAX));
    let tags = asked
        .get("tags")
        .and_then(Value::as_elements)
        .unwrap_or_default();
    let mut tags: Vec<&str> = tags.iter().filter_map(Value::as_str).collect();
    tags.push(mark);
    let mut body = json!({
        "label": label, "region": owner.instance["region"],
        "size": asked.get("size").and_then(Value::as_i64), "tags": tags,
    });
    if let Some(encryption) = text(asked, "encryption") {
        body["encryption"] = encryption.into();
    }
    body
}

/// Returns why a volume cannot be what is asked for, and what to do.
fn unfit_volume(
    owner: &Owner<'_>,
    name: &str,
    asked: &Value,
    found: Option<&Json>,
) -> Option<(String, &'static str)> {
    let Some(volume) = found else {
        let seen = entries(owner.seen, "volume").get(name);
        // What goes with its machine may be gone with it.
        let id = known_id(owner, name).filter(|_| !seen.is_some_and(is_deleted))?;
        let message = format!("volume {name} (Linode's volume {id}) is gone, with its data");
        let hint = "no empty one is put in its place unasked: to have that, take the block out \
                    and apply, then declare it again";
        return Some((message, hint));
    };
    let size = asked.get("size").and_then(Value::as_i64);
    let has = volume["size"].as_i64().unwrap_or_default();
    if size.is_some_and(|size| size < has) {
        let message = format!("volume {name} has {has} GB, and volumes never shrink");
        return Some((message, "declare at least the size that it has"));
    }
    let region = owner.wanted.get("region").and_then(Value::as_str);
    let at = volume["region"].as_str().unwrap_or_default();
    if region.is_some_and(|it| !is_same_region(it, at)) {
        let message =
            format!("volume {name} is in {at}, and volumes do not move to another region");
        let hint = "keep the machine where its volume is, or take the volume's block out";
        return Some((message, hint));
    }
    None
}

/// Returns the identifier that a volume was seen with, attached or not.
fn known_id<'a>(owner: &Owner<'a>, name: &str) -> Option<&'a str> {
    let seen = entries(owner.seen, "volume").get(name);
    let seen = seen.and_then(|it| text(it, "id"));
    seen.or_else(|| entries(owner.seen, "volume_ids").get(name)?.as_str())
}

/// Returns whether nobody said what is to become of a volume.
fn is_unsaid(volume: &Value) -> bool {
    volume.get("delete").is_none_or(Value::is_null)
}

fn is_deleted(volume: &Value) -> bool {
    volume.get("delete").and_then(Value::as_bool) == Some(true)
}

fn rejected(message: String) -> Error {
    Error::Rejected {
        message,
        attribute: Some("volume".into()),
    }
}
