//! Hand-overs: the exporter grants, the importer takes; and the way back.

use std::time::{Duration, Instant};

use gobs_model::{Address, Instance, Known, Name, Value};
use hob::protocol::{self, Attenuate, Generation, code, method};
use ocapn::{Broken, Passable};
use tokio::sync::watch;

use super::{Boss, BossError, CALL_TIMEOUT, Key, RETRY_MAX, RETRY_MIN};

/// How long a hob that has registered may be away before a step that needs it fails.
pub(super) const HOB_DEADLINE: Duration = Duration::from_secs(30);

/// How long a machine that ends may take to clear up: its hob may be gone already, and a thousand
/// roles are taken away in less.
const RETIRE_DEADLINE: Duration = Duration::from_secs(15);

/// How long an exporter may be away before a revocation is left pending.
const REVOKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a machine's logs are asked for when something is wrong already.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the streams of a grant that is to end are counted.
const DRAIN_PAUSE: Duration = Duration::from_millis(200);

/// A grant to be made and handed over.
#[derive(Clone, Debug)]
pub struct BindRequest {
    /// The binding.
    pub binding: Address,
    /// Higher than that of any grant that this binding ever had.
    pub generation: u64,
    /// The service's machine, with its incarnation.
    pub exporter: (Instance, u64),
    /// The service's name on it.
    pub service: Name,
    /// The binding that it is made from, and which grant of that; where it is made from one.
    pub parent: Option<(Address, u64)>,
    /// The machine that gets it, with its incarnation.
    pub importer: (Instance, u64),
    /// The name that it gets there.
    pub name: Name,
    /// How it is narrowed.
    pub attenuate: Attenuate,
    /// A list of objects.
    pub expose: Value,
    /// How long the service may take until it answers through the binding.
    pub ready: Duration,
    /// Whether the importer has an earlier grant in use: it is handed this one when the service
    /// answers the exporter.
    pub replaces: bool,
}

/// A binding that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// How a program on the receiving machine reaches it: `unix:/path` or `host:port`.
    pub address: String,
    /// The directory of its servicebinding.io files.
    pub directory: String,
}

/// A grant to be taken back.
#[derive(Clone, Debug)]
pub struct UnbindRequest {
    /// The binding.
    pub binding: Address,
    /// Which grant of it.
    pub generation: u64,
    /// The machine that gave it, with its incarnation; nothing where it is gone.
    pub exporter: Option<(Instance, u64)>,
    /// The machine that has it, likewise.
    pub importer: Option<(Instance, u64)>,
}

/// How a revocation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// Nothing flows any more.
    Done,
    /// The receiver's side is closed as far as it could be reached; the exporter could not be.
    Pending(String),
    /// Nothing flows any more, but something of it is still at the server, a role or a user, which
    /// the exporter's hob goes on to take away.
    Left(String),
}

impl Boss {
    /// Tells a machine's hob of a service; returns when that answers its protocol. Until then
    /// `reason` says why it does not.
    ///
    /// # Errors
    /// When the hob is away or refuses, or the service does not answer in time.
    pub async fn offer(
        &self,
        machine: &(Instance, u64),
        service: &Name,
        spec: &Known,
        ready: Duration,
        reason: &watch::Sender<String>,
    ) -> Result<(), BossError> {
        let name = service.to_string();
        let data = Passable::Struct(
            ocapn::Struct::new()
                .with("service", name.as_str())
                .with("spec", to_passable(spec.value())),
        );
        let key = key(machine);
        self.call(&key, method::OFFER, vec![data], HOB_DEADLINE)
            .await?;
        let probe = protocol::to_passable(&protocol::Probe { service: name });
        let asked = (&key, method::PROBE, probe);
        self.wait_ready(asked, (machine, service), ready, reason)
            .await
    }

    /// Tells a machine's hob that a service is offered no longer.
    ///
    /// # Errors
    /// When the hob is away or refuses.
    pub async fn withdraw(
        &self,
        machine: &(Instance, u64),
        service: &Name,
    ) -> Result<(), BossError> {
        let data = protocol::to_passable(&protocol::Withdraw {
            service: service.to_string(),
        });
        match self
            .call(&key(machine), method::WITHDRAW, vec![data], HOB_DEADLINE)
            .await
        {
            Err(BossError::Refused { code: Some(it), .. }) if it == code::UNKNOWN => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Grants a service and hands it over; returns when the service answers through the binding.
    /// Until then `reason` says why it does not.
    ///
    /// Every call is idempotent by binding and generation, so a lost answer is asked for again.
    ///
    /// # Errors
    /// When a hob is away or refuses, or the service does not answer in time.
    pub async fn bind(
        &self,
        request: BindRequest,
        reason: &watch::Sender<String>,
    ) -> Result<Bound, BossError> {
        let (exporter, importer) = (key(&request.exporter), key(&request.importer));
        for (machine, incarnation) in [&exporter, &importer] {
            self.refuse_contested(machine, *incarnation)?;
        }
        let receiver = self
            .wait_registered(&importer.0, importer.1, HOB_DEADLINE)
            .await?;
        let (begun, mut pause) = (Instant::now(), RETRY_MIN);
        let mut handing = None;
        let held: protocol::Held = loop {
            let grant = protocol::to_passable(&protocol::Grant {
                service: request.service.to_string(),
                binding: request.binding.to_string(),
                generation: request.generation,
                receiver: receiver.designator.clone(),
                attenuate: request.attenuate.clone(),
                parent: request
                    .parent
                    .as_ref()
                    .map(|(binding, of)| generation(binding, *of)),
            });
            let granted = self
                .call(&exporter, method::GRANT, vec![grant], HOB_DEADLINE)
                .await;
            let answer = match granted {
                // The server is down, starts or is full: as when it is offered.
                Err(error) if is_away(&error) && begun.elapsed() < request.ready => {
                    reason.send_replace(error.to_string());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
                Err(BossError::Refused { code, message, .. })
                    if code.as_deref() == Some(code::UNREACHABLE) =>
                {
                    let (machine, service) = (&request.exporter, &request.service);
                    return Err(BossError::NotReady {
                        waited: request.ready,
                        detail: message,
                        machine: machine.0.clone(),
                        log: self.log_of(machine, service).await,
                    });
                }
                answer => answer?,
            };
            if request.replaces {
                let probe = protocol::Probe {
                    service: request.service.to_string(),
                };
                let probe = (&exporter, method::PROBE, protocol::to_passable(&probe));
                let (machine, service) = (&request.exporter, &request.service);
                self.wait_ready(probe, (machine, service), request.ready, reason)
                    .await?;
            }
            let granted = protocol::Granted::from_passable(&answer)
                .map_err(|error| malformed(&exporter, &error))?;
            let args = vec![
                registration(&request),
                granted.grant.into(),
                granted.sturdyref.into(),
            ];
            match self
                .call(&importer, method::REGISTER_BINDING, args, HOB_DEADLINE)
                .await
            {
                Ok(answer) => {
                    break protocol::from_passable("register-binding's answer", &answer)
                        .map_err(|error| malformed(&importer, &error))?;
                }
                // The gift died with a session on the way: a fresh one is granted.
                Err(error)
                    if is_away(&error)
                        && handing.get_or_insert_with(Instant::now).elapsed() < HOB_DEADLINE => {}
                // What the machine is to have may come with its first boot.
                Err(BossError::Refused {
                    code: Some(it),
                    message,
                    ..
                }) if it == code::BOOTING && begun.elapsed() < request.ready => {
                    reason.send_replace(message);
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        };
        self.check(&request, reason).await?;
        Ok(Bound {
            address: held.address,
            directory: held.directory,
        })
    }

    /// Waits until the service answers through a grant that the importer has. Until then `reason`
    /// says why it does not.
    ///
    /// # Errors
    /// When the importer is away or has another one, or the service does not answer in time.
    pub async fn check(
        &self,
        request: &BindRequest,
        reason: &watch::Sender<String>,
    ) -> Result<(), BossError> {
        let check = protocol::to_passable(&generation(&request.binding, request.generation));
        self.wait_ready(
            (&key(&request.importer), method::CHECK_BINDING, check),
            (&request.exporter, &request.service),
            request.ready,
            reason,
        )
        .await
    }

    /// Returns which grant of a binding a machine has in use, and how its programs reach it.
    ///
    /// # Errors
    /// When its hob is away or refuses.
    pub async fn held(
        &self,
        importer: &(Instance, u64),
        binding: &Address,
    ) -> Result<Option<(u64, Bound)>, BossError> {
        let key = key(importer);
        let answer = self
            .call(&key, method::LIST_BINDINGS, Vec::new(), REVOKE_DEADLINE)
            .await?;
        let all: Vec<protocol::BindingStatus> =
            protocol::from_passable("list-bindings's answer", &answer)
                .map_err(|error| malformed(&key, &error))?;
        let name = binding.to_string();
        let held = all.into_iter().find(|it| it.binding == name);
        Ok(held.map(|it| {
            let (address, directory) = (it.address, it.directory);
            (it.generation, Bound { address, directory })
        }))
    }

    /// Lets programs see a binding in another way; the grant stays, and so do its streams. The
    /// exporter has no part in it, unless the importer has lost what it held.
    ///
    /// # Errors
    /// When the hob is away or refuses.
    pub async fn expose(&self, request: BindRequest) -> Result<Bound, BossError> {
        let importer = key(&request.importer);
        self.refuse_contested(&importer.0, importer.1)?;
        let args = vec![registration(&request)];
        let exposed = self
            .call(&importer, method::EXPOSE_BINDING, args, HOB_DEADLINE)
            .await;
        let answer = match exposed {
            Err(BossError::Refused { code: Some(it), .. })
                if it == code::UNKNOWN || it == code::BOOTING =>
            {
                return self.bind(request, &watch::Sender::default()).await;
            }
            answer => answer?,
        };
        let held: protocol::Held = protocol::from_passable("expose-binding's answer", &answer)
            .map_err(|error| malformed(&importer, &error))?;
        Ok(Bound {
            address: held.address,
            directory: held.directory,
        })
    }

    /// Asks a hob again and again whether a service answers, until it does or its time is over.
    async fn wait_ready(
        &self,
        (asked, method, data): (&Key, &str, Passable),
        (exporter, service): (&(Instance, u64), &Name),
        ready: Duration,
        reason: &watch::Sender<String>,
    ) -> Result<(), BossError> {
        let deadline = Instant::now() + ready;
        let mut pause = RETRY_MIN;
        loop {
            let answer = self
                .call(asked, method, vec![data.clone()], HOB_DEADLINE)
                .await?;
            let check: protocol::Check = protocol::from_passable(method_answer(method), &answer)
                .map_err(|error| malformed(asked, &error))?;
            if check.answers {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(BossError::NotReady {
                    waited: ready,
                    detail: check.detail,
                    machine: exporter.0.clone(),
                    log: self.log_of(exporter, service).await,
                });
            }
            reason.send_replace(check.detail);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Returns the end of a machine's logs, if its hob is there to tell.
    async fn log_of(&self, machine: &(Instance, u64), service: &Name) -> String {
        let data = protocol::to_passable(&protocol::Probe {
            service: service.to_string(),
        });
        let answer = self
            .call(&key(machine), method::LOG, vec![data], LOG_TIMEOUT)
            .await;
        let text = answer
            .ok()
            .and_then(|it| it.as_str().map(ToOwned::to_owned));
        text.unwrap_or_default()
    }

    /// Waits until no stream of a grant is open any more, or its time is over, or nobody is there
    /// to tell.
    pub async fn drain(&self, request: &UnbindRequest, within: Duration) {
        let Some(exporter) = &request.exporter else {
            return;
        };
        let data = protocol::to_passable(&generation(&request.binding, request.generation));
        let drained = async {
            loop {
                let args = vec![data.clone()];
                let streams = self
                    .call(&key(exporter), method::STREAMS, args, HOB_DEADLINE)
                    .await;
                match streams {
                    Ok(Passable::Int(streams)) if streams.to_u64() != Some(0) => {}
                    _ => return,
                }
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        };
        // Whoever is not done by then is cut.
        let _ = tokio::time::timeout(within, drained).await;
    }

    /// Takes a grant back: at the exporter, where it counts, and at the receiver.
    ///
    /// # Errors
    /// When a hob refuses; one that is away leaves the revocation pending.
    pub async fn unbind(&self, request: UnbindRequest) -> Result<Unbound, BossError> {
        let data = protocol::to_passable(&generation(&request.binding, request.generation));
        let revoke = async {
            match &request.exporter {
                Some(machine) => {
                    let (key, args) = (key(machine), vec![data.clone()]);
                    self.call(&key, method::REVOKE, args, REVOKE_DEADLINE)
                        .await
                        .map(|_| ())
                }
                None => Ok(()),
            }
        };
        let close = async {
            match &request.importer {
                Some(machine) => {
                    let (key, args) = (key(machine), vec![data.clone()]);
                    self.call(&key, method::UNREGISTER_BINDING, args, REVOKE_DEADLINE)
                        .await
                        .map(|_| ())
                }
                None => Ok(()),
            }
        };
        let (revoked, closed) = tokio::join!(revoke, close);
        let gone = |error: &BossError| match error {
            BossError::Refused { code, .. } => code.as_deref() == Some(code::UNKNOWN),
            _ => false,
        };
        // The exporter's word is what cuts; but a receiver that keeps the name and the listener
        // would be in the way of the next binding, so neither is forgotten.
        match (revoked, closed) {
            (
                Err(BossError::Refused {
                    code: Some(it),
                    message,
                    ..
                }),
                closed,
            ) if it == code::PENDING => match closed {
                Err(BossError::Unreachable {
                    machine, detail, ..
                }) => Ok(Unbound::Pending(format!(
                    "the hob on {machine} is away ({detail})"
                ))),
                Err(error) if !gone(&error) => Err(error),
                _ => Ok(Unbound::Left(message)),
            },
            (
                Err(BossError::Unreachable {
                    machine, detail, ..
                }),
                _,
            )
            | (
                Ok(()),
                Err(BossError::Unreachable {
                    machine, detail, ..
                }),
            ) => Ok(Unbound::Pending(format!(
                "the hob on {machine} is away ({detail})"
            ))),
            (Ok(()), Ok(())) => Ok(Unbound::Done),
            (Ok(()), Err(error)) if gone(&error) => Ok(Unbound::Done),
            (Ok(()), Err(error)) | (Err(error), _) => Err(error),
        }
    }

    /// Takes a grant back that did not come into use. Where it was to take the place of one that
    /// the importer still has, that one stays, and nothing is returned.
    ///
    /// # Errors
    /// When a hob refuses; one that is away leaves the revocation pending.
    pub async fn abandon(&self, request: UnbindRequest) -> Result<Option<Unbound>, BossError> {
        let data = protocol::to_passable(&generation(&request.binding, request.generation));
        if let (Some(exporter), Some(importer)) = (&request.exporter, &request.importer) {
            let args = vec![data.clone()];
            let stays = self
                .call(
                    &key(importer),
                    method::ABANDON_BINDING,
                    args,
                    REVOKE_DEADLINE,
                )
                .await;
            if matches!(stays, Ok(Passable::Bool(true))) {
                let abandoned = self
                    .call(&key(exporter), method::ABANDON, vec![data], REVOKE_DEADLINE)
                    .await;
                return match abandoned {
                    // The exporter's hob goes on to take away what is left at the server.
                    Err(BossError::Refused { code: Some(it), .. }) if it == code::PENDING => {
                        Ok(None)
                    }
                    abandoned => abandoned.map(|_| None),
                };
            }
        }
        self.unbind(request).await.map(Some)
    }

    /// Has a machine that ends take back what its grants have left at servers.
    ///
    /// # Errors
    /// When the hob is away, or something is left.
    pub async fn retire(&self, machine: &(Instance, u64)) -> Result<(), BossError> {
        let key = key(machine);
        self.call(&key, method::RETIRE, Vec::new(), RETIRE_DEADLINE)
            .await
            .map(|_| ())
    }

    /// Calls a method of a machine's hob; a session that breaks on the way is replaced and the
    /// call made again, since every method is idempotent.
    pub(super) async fn call(
        &self,
        key: &Key,
        method: &str,
        args: Vec<Passable>,
        within: Duration,
    ) -> Result<Passable, BossError> {
        let mut detail = "it has not registered".to_owned();
        let answer = self.call_until_answered(key, method, args, &mut detail);
        let machine = key.0.clone();
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(answer)) => {
                self.step();
                Ok(answer)
            }
            Ok(Err(refused)) => Err(BossError::Refused {
                machine,
                code: refused.code().map(ToOwned::to_owned),
                message: refused.to_string(),
            }),
            Err(_) => Err(BossError::Unreachable {
                machine,
                waited: within,
                detail,
            }),
        }
    }

    /// Tries for ever to get an answer; `detail` is what the last try said.
    async fn call_until_answered(
        &self,
        key: &Key,
        method: &str,
        args: Vec<Passable>,
        detail: &mut String,
    ) -> Result<Passable, Broken> {
        let mut registrations = self.0.registrations.subscribe();
        let mut pause = RETRY_MIN;
        loop {
            registrations.mark_unchanged();
            match self.reach(key).await {
                Ok(Some(client)) => {
                    // What is said if the caller's time is over before the answer.
                    "no answer".clone_into(detail);
                    let call = client.call(method, args.clone());
                    match tokio::time::timeout(CALL_TIMEOUT, call).await {
                        Ok(Err(broken)) if broken.is_severed() => *detail = broken.to_string(),
                        Ok(answer) => return answer,
                        Err(_) => {}
                    }
                    self.drop_client(key, &client);
                }
                Ok(None) => {}
                Err(error) => *detail = error,
            }
            // A hob that registers is tried at once.
            let _ = tokio::time::timeout(pause, registrations.changed()).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

/// Returns whether a service, or what is on the way to it, does not answer at this moment.
fn is_away(error: &BossError) -> bool {
    matches!(error, BossError::Refused { code: Some(it), .. } if it == code::UNREACHABLE)
}

pub(super) fn key((instance, incarnation): &(Instance, u64)) -> Key {
    (Address::Machine(instance.clone()), *incarnation)
}

/// Returns what the importer is told of a grant.
fn registration(request: &BindRequest) -> Passable {
    Passable::Struct(
        ocapn::Struct::new()
            .with("name", request.name.as_str())
            .with("binding", request.binding.to_string())
            .with("generation", request.generation)
            .with("expose", to_passable(&request.expose)),
    )
}

fn generation(binding: &Address, generation: u64) -> Generation {
    Generation {
        binding: binding.to_string(),
        generation,
    }
}

fn method_answer(method: &str) -> &'static str {
    match method {
        method::PROBE => "probe's answer",
        _ => "check-binding's answer",
    }
}

pub(super) fn malformed(key: &Key, error: &protocol::Malformed) -> BossError {
    BossError::Refused {
        machine: key.0.clone(),
        code: Some(code::MALFORMED.into()),
        message: error.to_string(),
    }
}

/// Returns a value as it travels in a message: the settings of services and bindings are text,
/// integers, lists and objects. What is `null` is left out: a hob sees what is set.
pub(super) fn to_passable(value: &Value) -> Passable {
    if let Some(entries) = value.as_entries() {
        let set = entries.iter().filter(|(_, value)| !value.is_null());
        let fields = set.map(|(name, value)| (name.to_string(), to_passable(value)));
        return Passable::Struct(fields.collect());
    }
    if let Some(elements) = value.as_elements() {
        return Passable::List(elements.iter().map(to_passable).collect());
    }
    if let Some(text) = value.as_str() {
        return text.into();
    }
    if let Some(number) = value.as_i64() {
        return number.into();
    }
    value.as_bool().map_or(Passable::Null, Passable::Bool)
}
