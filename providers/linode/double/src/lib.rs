//! A local double of the Linode API and its metadata service.
//!
//! It keeps one account in memory: instances with their states, events and jobs, one at a time
//! for each instance; rate limits, scopes, filters and pages; and the faults that the real API
//! has, on demand. Its clock runs faster than the host's, and all chance comes from one seed.
//!
//! Nothing here proves anything about the real API: it says what is known of it, and clients
//! that nobody here wrote check that it says so in the API's own shape.

mod account;
mod catalog;
mod clock;
mod control;
mod fault;
mod filter;
mod instance;
mod limit;
mod metadata;
mod reply;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};

pub use account::Stats;
pub use fault::{Fault, Kind};
pub use limit::{Class, Limit, Limits};

use account::Account;
use clock::Clock;
use reply::{Refusal, Reply};
use server::{Asked, Handler, Listener, listen};

/// How a double starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed of durations, ids and metadata tokens; the moment decides where absent.
    pub seed: Option<u64>,
    /// How much faster than the host's its clock runs.
    pub scale: u32,
    /// Tokens, and the scopes of each: `*`, or such as `linodes:read_write events:read_only`.
    pub tokens: BTreeMap<String, String>,
    /// The port of the API; 0 chooses one.
    pub port: u16,
    /// The port of the admin; 0 chooses one.
    pub admin_port: u16,
}

impl Default for Options {
    /// Returns a clock 1,000 times faster than the host's, and the token `double` for everything.
    fn default() -> Self {
        Self {
            seed: None,
            scale: 1_000,
            tokens: BTreeMap::from([("double".into(), "*".into())]),
            port: 0,
            admin_port: 0,
        }
    }
}

/// A running double; it ends with its last handle.
#[derive(Clone)]
pub struct Double {
    world: Arc<World>,
    listeners: Arc<[Listener; 2]>,
}

/// The account, and the metadata listeners of its instances.
struct World {
    seed: u64,
    account: Mutex<Account>,
    metadata: Mutex<BTreeMap<u64, Listener>>,
}

impl Double {
    /// Starts a double on loopback. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(options: Options) -> io::Result<Self> {
        let seed = options.seed.unwrap_or_else(clock::seed_of_now);
        tracing::info!(seed, "the double begins");
        let account = Account::new(Clock::new(options.scale), seed, options.tokens);
        let (account, metadata) = (Mutex::new(account), Mutex::new(BTreeMap::new()));
        let world = Arc::new(World {
            seed,
            account,
            metadata,
        });
        let control = listen(options.port, handler(&world, World::control))?;
        let admin = listen(options.admin_port, handler(&world, World::admin))?;
        Ok(Self {
            world,
            listeners: Arc::new([control, admin]),
        })
    }

    /// Returns the base of the API: `http://127.0.0.1:PORT/v4`.
    pub fn url(&self) -> String {
        format!("http://{}/v4", self.listeners[0].address)
    }

    /// Returns the base of the admin's own requests.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.listeners[1].address)
    }

    /// Returns the base of an instance's metadata service: `http://127.0.0.1:PORT/v1`.
    pub fn metadata_url(&self, id: u64) -> Option<String> {
        self.world.metadata_url(id)
    }

    /// Returns the seed, for whoever wants to see the same again.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// Adds a fault; faults are tried in the order in which they were added.
    pub fn fault(&self, fault: Fault) {
        self.world.account().faults.push(fault);
    }

    /// Takes every fault away.
    pub fn clear_faults(&self) {
        self.world.account().faults.clear();
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let mut account = self.world.account();
        account.clock.advance(by_ms);
        account.settle();
    }

    /// Returns the virtual time in seconds since 1970.
    pub fn now_s(&self) -> u64 {
        self.world.account().clock.now_ms() / 1_000
    }

    /// Sets the rate limits.
    pub fn set_limits(&self, limits: Limits) {
        self.world.account().limits = limits;
    }

    /// Returns what was asked so far.
    pub fn stats(&self) -> Stats {
        self.world.account().stats
    }

    /// Returns every instance as the API would show it, whatever its faults.
    pub fn instances(&self) -> Vec<Value> {
        let mut account = self.world.account();
        account.settle();
        account.list(0)
    }

    /// Returns how many jobs of an action there were: `linode_rebuild`.
    pub fn events(&self, action: &str) -> usize {
        let account = self.world.account();
        account
            .events
            .iter()
            .filter(|event| event["action"] == action)
            .count()
    }

    /// Returns how many faults have not been met as often as they were to be.
    pub fn unused_faults(&self) -> usize {
        let account = self.world.account();
        account
            .faults
            .iter()
            .filter(|fault| fault.times > 0)
            .count()
    }

    /// Changes or deletes an instance behind its owner's back, by a `PUT` body or nothing.
    ///
    /// # Errors
    /// When there is no such instance, or the change is refused.
    pub fn meddle(&self, id: u64, change: Option<&Value>) -> Result<(), String> {
        let mut account = self.world.account();
        let done = match change {
            Some(body) => account.update(id, body),
            None => account.delete(id, false),
        };
        done.map(drop).map_err(|refusal| refusal.body().to_string())
    }
}

impl World {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metadata_url(&self, id: u64) -> Option<String> {
        let listeners = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        listeners
            .get(&id)
            .map(|it| format!("http://{}/v1", it.address))
    }

    fn control(self: &Arc<Self>, mut asked: Asked) -> Reply {
        let path = asked.request.path.as_str();
        let versions = ["/v4beta", "/v4"];
        let below = versions
            .iter()
            .find_map(|version| path.strip_prefix(version));
        let Some(below) = below.filter(|it| it.starts_with('/')) else {
            return Refusal::not_found().into();
        };
        asked.request.path = below.into();
        let mut account = self.account();
        let reply = control::answer(&mut account, &asked.request);
        let born = std::mem::take(&mut account.born);
        let living: Vec<u64> = account.instances.keys().copied().collect();
        drop(account);
        let mut listeners = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|id, _| living.binary_search(id).is_ok());
        for id in born {
            match self.listen_inside(id) {
                Ok(listener) => {
                    listeners.insert(id, listener);
                }
                Err(error) => tracing::warn!(id, %error, "no metadata service"),
            }
        }
        reply
    }

    /// Starts the metadata service of one instance.
    fn listen_inside(self: &Arc<Self>, id: u64) -> io::Result<Listener> {
        let tokens = metadata::Tokens::new(self.seed ^ id);
        let answer = move |world: &Arc<Self>, asked: Asked| {
            let mut account = world.account();
            account.settle();
            let now_ms = account.clock.now_ms();
            match account.instance(id) {
                Ok(instance) => metadata::answer(instance, &tokens, now_ms, &asked),
                Err(refusal) => refusal.into(),
            }
        };
        listen(0, handler(self, answer))
    }

    /// Answers what only tests ask.
    fn admin(self: &Arc<Self>, asked: Asked) -> Reply {
        let Asked { request, .. } = asked;
        let refused = |why: String| Reply::json(400, &json!({"error": why}));
        let done = Reply::json(200, &json!({}));
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/faults") => match serde_json::from_value::<Fault>(request.body) {
                Ok(fault) => {
                    self.account().faults.push(fault);
                    done
                }
                Err(error) => refused(error.to_string()),
            },
            ("DELETE", "/faults") => {
                self.account().faults.clear();
                done
            }
            ("POST", "/clock") => match request.body["advance_s"].as_u64() {
                Some(by_s) => {
                    let mut account = self.account();
                    account.clock.advance(by_s.saturating_mul(1_000));
                    account.settle();
                    done
                }
                None => refused("advance_s is missing".into()),
            },
            ("GET", "/clock") => {
                let now_ms = self.account().clock.now_ms();
                Reply::json(200, &json!({"now_s": now_ms / 1_000, "seed": self.seed}))
            }
            ("GET", "/stats") => {
                let stats = serde_json::to_value(self.account().stats).unwrap_or_default();
                Reply::json(200, &stats)
            }
            ("GET", "/instances") => {
                let mut account = self.account();
                account.settle();
                let shown = account.list(0);
                drop(account);
                let with_url = shown.into_iter().map(|instance| {
                    let url = instance["id"].as_u64().and_then(|id| self.metadata_url(id));
                    json!({"instance": instance, "metadata_url": url})
                });
                Reply::json(200, &Value::Array(with_url.collect()))
            }
            _ => Reply::json(404, &json!({"error": "no such request"})),
        }
    }
}

/// Returns what answers for a world as long as it lasts; listeners do not keep it alive.
fn handler(
    world: &Arc<World>,
    answer: impl Fn(&Arc<World>, Asked) -> Reply + Send + Sync + 'static,
) -> Handler {
    let world: Weak<World> = Arc::downgrade(world);
    Arc::new(move |asked| match world.upgrade() {
        Some(world) => answer(&world, asked),
        None => Refusal::of(503, None, "The double has ended").into(),
    })
}
