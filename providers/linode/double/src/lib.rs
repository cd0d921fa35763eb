//! A local double of the Linode API and its metadata service.
//!
//! It keeps one account in memory: instances with their states, events and jobs, one at a time
//! for each instance; rate limits, scopes, filters and pages; and the faults that the real API
//! has, on demand. Its clock runs faster than the host's, and all chance comes from one seed.
//!
//! Nothing here proves anything about the real API: it says what is known of it, and clients
//! that nobody here wrote check that it says so in the API's own shape.

mod account;
mod admin;
mod catalog;
mod clock;
mod control;
mod disk;
mod domain;
mod fault;
mod filter;
mod firewall;
mod grants;
mod guest;
mod instance;
mod interface;
mod limit;
mod metadata;
mod placement;
mod profile;
mod reply;
mod resources;
mod server;
mod volume;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;

pub use account::Stats;
pub use fault::{Fault, Kind};
pub use guest::Guest;
pub use limit::{Class, Limit, Limits};

use account::Account;
use clock::Clock;
use grants::Grants;
use guest::Guests;
use reply::{Refusal, Reply};
use server::{Asked, Handler, Listener, listen};

/// How often instances are looked at whose guests come and go with them.
const GUESTS_EVERY: Duration = Duration::from_millis(10);

/// Sees every `POST` to the API, its path and body, before it is done; what it says against one
/// is answered as a refusal, and counted.
pub type Witness = Arc<dyn Fn(&str, &Value) -> Result<(), String> + Send + Sync>;

/// How a double starts.
#[derive(Clone)]
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
    /// What runs inside instances; nothing does where absent.
    pub guest: Option<Guest>,
    /// Who sees what is about to be done, such as a test of durable intents.
    pub witness: Option<Witness>,
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
            guest: None,
            witness: None,
        }
    }
}

/// A running double; it ends with its last handle.
#[derive(Clone)]
pub struct Double {
    world: Arc<World>,
    admin: Arc<Listener>,
}

/// The account, and the metadata listeners of its instances.
struct World {
    seed: u64,
    account: Mutex<Account>,
    metadata: Mutex<BTreeMap<u64, Listener>>,
    guests: Option<Mutex<Guests>>,
    witness: Option<Witness>,
    address: OnceLock<SocketAddr>,
    /// Where the API is asked, unless it is down.
    control: Mutex<Option<Listener>>,
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
        let has_guests = options.guest.is_some();
        let world = Arc::new(World {
            seed,
            account: Mutex::new(account),
            metadata: Mutex::default(),
            guests: options.guest.map(Guests::new).map(Mutex::new),
            witness: options.witness,
            address: OnceLock::new(),
            control: Mutex::default(),
        });
        world.listen(options.port)?;
        let admin = listen(options.admin_port, handler(&world, World::admin))?;
        if has_guests {
            tokio::spawn(look_after_guests(Arc::downgrade(&world)));
        }
        Ok(Self {
            world,
            admin: Arc::new(admin),
        })
    }

    /// Returns the base of the API: `http://127.0.0.1:PORT/v4`.
    pub fn url(&self) -> String {
        self.world.url()
    }

    /// Returns the base of the admin's own requests.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address)
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

    /// Sets how many instances the account may have.
    pub fn set_instances_max(&self, max: Option<usize>) {
        self.world.account().instances_max = max;
    }

    /// Sets the scopes of a token, or takes the token away.
    pub fn set_token(&self, token: &str, scopes: Option<&str>) {
        let mut account = self.world.account();
        match scopes {
            Some(scopes) => account.tokens.insert(token.into(), scopes.into()),
            None => account.tokens.remove(token),
        };
    }

    /// Restricts the account's user to these grants, as `GET /profile/grants` shows them; nothing
    /// lifts the restriction.
    pub fn set_grants(&self, grants: Option<Value>) {
        self.world.account().grants = grants.map(Grants::new);
    }

    /// Refuses connections to the API for this long, on the virtual clock. Needs a tokio runtime.
    pub fn go_down(&self, duration: Duration) {
        self.world.go_down(duration);
    }

    /// Does a request as the account's owner, past limits and faults: for what tests need to be
    /// there, and to look at what is.
    ///
    /// # Errors
    /// What the API would say.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut account = self.world.account();
        account.settle();
        control::ask(&mut account, method, path, body)
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

    fn url(&self) -> String {
        let address = self.address.get().map(ToString::to_string);
        format!("http://{}/v4", address.unwrap_or_default())
    }

    /// Listens for the API; a port that is 0 is chosen once.
    fn listen(self: &Arc<Self>, port: u16) -> io::Result<()> {
        let listener = listen(port, handler(self, Self::control))?;
        self.address.get_or_init(|| listener.address);
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
        Ok(())
    }

    fn go_down(self: &Arc<Self>, duration: Duration) {
        let is_up = self
            .control
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (Some(listener), weak) = (is_up, Arc::downgrade(self)) else {
            return;
        };
        let port = listener.address.port();
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let pause = self.account().clock.real(ms);
        tokio::spawn(async move {
            drop(listener);
            tokio::time::sleep(pause).await;
            // Somebody else may have had the port for a moment.
            while let Some(world) = weak.upgrade() {
                match world.listen(port) {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "the API stays down"),
                }
                drop(world);
                tokio::time::sleep(GUESTS_EVERY).await;
            }
        });
    }

    fn settle_guests(&self) {
        let Some(guests) = &self.guests else {
            return;
        };
        let mut account = self.account();
        account.settle();
        let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.settle(&account.instances, |id| self.metadata_url(id));
    }

    /// Asks the witness; returns its refusal.
    fn witnessed(&self, asked: &Asked) -> Option<Reply> {
        let witness = self.witness.as_ref()?;
        let request = &asked.request;
        if request.method != "POST" {
            return None;
        }
        let why = witness(&request.path, &request.body).err()?;
        self.account().stats.unwitnessed += 1;
        Some(Refusal::of(400, None, &why).into())
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
        if let Some(refusal) = self.witnessed(&asked) {
            return refusal;
        }
        let mut account = self.account();
        let reply = control::answer(&mut account, &asked.request);
        let born = std::mem::take(&mut account.born);
        let living: Vec<u64> = account.instances.keys().copied().collect();
        let goes_down_s = account.goes_down_s.take();
        drop(account);
        if let Some(virtual_s) = goes_down_s {
            self.go_down(Duration::from_secs(virtual_s));
        }
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
            let clock = account.clock.clone();
            let instance = match account.instance(id) {
                Ok(instance) => instance.clone(),
                Err(refusal) => return refusal.into(),
            };
            let Account { faults, chance, .. } = &mut *account;
            let (method, path) = (&asked.request.method, &asked.request.path);
            let met = fault::next(faults, chance, method, path, Some(&instance.label));
            drop(account);
            fault::met(met.as_ref(), &clock, || {
                metadata::answer(&instance, &tokens, clock.now_ms(), &asked)
            })
        };
        listen(0, handler(self, answer))
    }
}

/// Settles an account whose instances have guests, until nobody holds it.
async fn look_after_guests(world: Weak<World>) {
    loop {
        let Some(world) = world.upgrade() else {
            return;
        };
        world.settle_guests();
        drop(world);
        tokio::time::sleep(GUESTS_EVERY).await;
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
