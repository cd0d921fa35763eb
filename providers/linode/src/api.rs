//! The API over HTTPS: one request after the other, each repeated only where that is safe.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gobs_provider::Error;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value as Json;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::pace::{Class, Pace, Time, retry_after};

/// How long an answer may take: the API's own proxies give up after about a minute.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// The least that an answer is given where the API's time runs faster than this host's.
const ANSWER_WITHIN_MIN: Duration = Duration::from_secs(2);

/// How often a request is sent that had no effect, or that may safely have it twice.
const TRIES_MAX: u32 = 6;

/// How often one request waits for its rate limit: others may use the same token.
const LIMITED_MAX: u32 = 30;

/// The first pause between tries; each next one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a 429 that says nothing is waited out: the window of creates.
const LIMITED_PAUSE: Duration = Duration::from_secs(15);

/// When to ask again under maintenance.
const MAINTENANCE_PAUSE: Duration = Duration::from_secs(60);

/// The largest page: fewest requests, and fewest seams for a list to shift at.
const PAGE_SIZE: usize = 500;

/// How often a list is read again that changed between its pages.
const LISTS_MAX: u32 = 3;

/// How many pages are read: 500,000 entries.
const PAGES_MAX: u64 = 1_000;

/// The largest answer: a page of the longest entries, many times over.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a request came to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Fail {
    /// The API says what is wrong with it; nothing was changed.
    Refused(Vec<Reason>),
    /// The token does not allow it; nothing was changed.
    Denied(String),
    /// There is no such thing.
    Gone,
    /// Another job runs on this instance; nothing was changed.
    Busy,
    /// It never had an effect, however often it was tried.
    Unsent(String),
    /// Nobody knows whether it had an effect.
    Lost(String),
}

/// One reason of a refusal.
#[derive(Clone, Debug)]
pub(crate) struct Reason {
    pub(crate) field: Option<String>,
    pub(crate) text: String,
}

impl Fail {
    /// Returns what gobs should do about it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Refused(reasons) => {
                let attribute = reasons.iter().find_map(|it| it.field.clone());
                let mut message = String::from("Linode says: ");
                for (at, reason) in reasons.iter().enumerate() {
                    let gap = if at > 0 { "; " } else { "" };
                    let text = reason.text.trim_end_matches('.');
                    // Writing to a string cannot fail.
                    let _ = match &reason.field {
                        Some(field) => write!(message, "{gap}{field}: {text}"),
                        None => write!(message, "{gap}{text}"),
                    };
                }
                let attribute = attribute.map(|it| it.split('.').next().unwrap_or("").into());
                Error::Rejected { message, attribute }
            }
            Self::Denied(why) => Error::Denied(why),
            Self::Gone => Error::rejected("Linode says: Not found"),
            Self::Busy => Error::Busy {
                message: "another job runs on this Linode".into(),
                after: PAUSE * 10,
            },
            Self::Unsent(message) => Error::Busy {
                message,
                after: MAINTENANCE_PAUSE,
            },
            Self::Lost(why) => Error::InDoubt(why),
        }
    }
}

impl From<Fail> for Error {
    fn from(fail: Fail) -> Self {
        fail.into_error()
    }
}

/// The API, with one token.
pub(crate) struct Api {
    client: Client,
    base: String,
    token: Zeroizing<String>,
    pace: Pace,
    /// What the token may do, as the last answer told.
    scopes: Mutex<Option<String>>,
    /// What the token's user was granted, once that was asked; nothing where it is no matter.
    pub(crate) granted: OnceCell<Option<Json>>,
    pub(crate) time: Time,
}

/// What a request asks for.
struct Ask<'a> {
    method: Method,
    class: Class,
    path: &'a str,
    filter: Option<&'a Json>,
    body: Option<&'a Json>,
}

impl Api {
    pub(crate) fn new(base: &str, token: Zeroizing<String>, time: Time) -> Result<Self, Error> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another thread may have been first; then there is one, which is what is wanted.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let within = time.here(ANSWER_WITHIN).max(ANSWER_WITHIN_MIN);
        let client = Client::builder()
            .user_agent(concat!("gobs/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(within)
            .build()
            .map_err(|error| Error::rejected(format!("no HTTPS client: {}", chain(&error))))?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self {
            client,
            base,
            token,
            pace: Pace::new(time),
            scopes: Mutex::default(),
            granted: OnceCell::new(),
            time,
        })
    }

    /// Returns what the token may do, as the last answer told; nothing where none did.
    pub(crate) fn scopes(&self) -> Option<String> {
        self.scopes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Json, Fail> {
        self.send(Method::GET, Class::Other, path, None).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Json) -> Result<Json, Fail> {
        self.send(Method::PUT, Class::Other, path, Some(body)).await
    }

    pub(crate) async fn post(&self, path: &str, class: Class, body: &Json) -> Result<Json, Fail> {
        self.send(Method::POST, class, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Json, Fail> {
        self.send(Method::DELETE, Class::Other, path, None).await
    }

    async fn send(
        &self,
        method: Method,
        class: Class,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Json, Fail> {
        self.ask(Ask {
            method,
            class,
            path,
            filter: None,
            body,
        })
        .await
    }

    /// Returns the first page of a list, no longer than the API's shortest.
    pub(crate) async fn first(&self, path: &str, filter: &Json) -> Result<Vec<Json>, Fail> {
        let path = format!("{path}?page=1&page_size=25");
        let (method, filter) = (Method::GET, Some(filter));
        let ask = Ask {
            method,
            class: Class::Other,
            path: &path,
            filter,
            body: None,
        };
        Ok(items(&self.ask(ask).await?))
    }

    /// Returns a list whole, each entry once.
    pub(crate) async fn list(&self, path: &str, filter: Option<&Json>) -> Result<Vec<Json>, Fail> {
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..LISTS_MAX {
            let (mut page, mut results) = (1, None);
            let is_steady = loop {
                let path = format!("{path}?page={page}&page_size={PAGE_SIZE}");
                let method = Method::GET;
                let ask = Ask {
                    method,
                    class: Class::List,
                    path: &path,
                    filter,
                    body: None,
                };
                let answer = match self.ask(ask).await {
                    Ok(answer) => answer,
                    // The list became shorter than this page.
                    Err(Fail::Gone) if page > 1 => break false,
                    Err(fail) => return Err(fail),
                };
                for item in items(&answer) {
                    seen.insert(item["id"].to_string(), item);
                }
                let first = results.get_or_insert_with(|| answer["results"].clone());
                if *first != answer["results"] {
                    break false;
                }
                if page >= answer["pages"].as_u64().unwrap_or(1).min(PAGES_MAX) {
                    break true;
                }
                page += 1;
            };
            if is_steady {
                break;
            }
        }
        Ok(seen.into_values().collect())
    }

    /// Sends a request until it has an answer that counts.
    async fn ask(&self, ask: Ask<'_>) -> Result<Json, Fail> {
        let is_repeatable = ask.method != Method::POST;
        let (mut tries, mut limited, mut pause) = (1, 0, PAUSE);
        loop {
            match self.try_once(&ask).await {
                Tried::Answered(answer) => return answer,
                Tried::Limited(wait) if limited < LIMITED_MAX => {
                    limited += 1;
                    self.pace.hold(ask.class, wait.max(PAUSE));
                    continue;
                }
                Tried::Limited(_) => {
                    return Err(Fail::Unsent("the rate limit leaves no room".into()));
                }
                Tried::Unsent(why) if tries >= TRIES_MAX => return Err(Fail::Unsent(why)),
                Tried::Lost(why) if tries >= TRIES_MAX || !is_repeatable => {
                    return Err(Fail::Lost(why));
                }
                Tried::Unsent(why) | Tried::Lost(why) => {
                    tracing::debug!(method = %ask.method, path = ask.path, why, "again");
                }
            }
            tries += 1;
            self.time.sleep(pause).await;
            pause *= 2;
        }
    }

    async fn try_once(&self, ask: &Ask<'_>) -> Tried {
        let mut permit = self.pace.permit(ask.class).await;
        let url = format!("{}{}", self.base, ask.path);
        let mut request = self.client.request(ask.method.clone(), url);
        request = request
            .bearer_auth(self.token.as_str())
            .header("Accept", "application/json");
        if let Some(filter) = ask.filter {
            request = request.header("X-Filter", filter.to_string());
        }
        // Where nothing is said, the API's own document has no body at all.
        let is_said = |body: &&Json| body.as_object().is_none_or(|it| !it.is_empty());
        if let Some(body) = ask.body.filter(is_said) {
            request = request
                .header("Content-Type", "application/json")
                .body(body.to_string());
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => {
                return Tried::Answered(Err(Fail::Denied(chain(&error))));
            }
            Err(error) if error.is_connect() => return Tried::Unsent(chain(&error)),
            Err(error) => return Tried::Lost(chain(&error)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        permit.told(&headers);
        if let Some(scopes) = headers
            .get("x-oauth-scopes")
            .and_then(|it| it.to_str().ok())
        {
            *self.scopes.lock().unwrap_or_else(PoisonError::into_inner) = Some(scopes.into());
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => {
                    body.extend_from_slice(&chunk);
                }
                Ok(None) => break,
                Ok(Some(_)) => return Tried::Lost("the answer is too long".into()),
                Err(error) => return Tried::Lost(chain(&error)),
            }
        }
        judge(status, &headers, &body)
    }
}

/// What one try came to.
enum Tried {
    /// An answer that counts.
    Answered(Result<Json, Fail>),
    /// Over the rate limit: nothing was done.
    Limited(Duration),
    /// Nothing was done.
    Unsent(String),
    /// Something may have been done.
    Lost(String),
}

/// Judges an answer by what it means, which its status alone does not say.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Tried {
    let text = |name| {
        headers
            .get(name)
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default()
    };
    if status == StatusCode::NO_CONTENT {
        return Tried::Answered(Ok(Json::Null));
    }
    if status.is_success() {
        return match serde_json::from_slice(body) {
            Ok(answer) => Tried::Answered(Ok(answer)),
            Err(error) => Tried::Lost(format!("the answer is cut off: {error}")),
        };
    }
    let answer = serde_json::from_slice::<Json>(body);
    let is_cut_off = answer.is_err();
    let answer = answer.unwrap_or_default();
    let errors = answer["errors"].as_array().into_iter().flatten();
    let reasons: Vec<Reason> = errors
        .filter_map(|error| {
            let field = error["field"].as_str().map(str::to_owned);
            Some(Reason {
                field,
                text: error["reason"].as_str()?.to_owned(),
            })
        })
        .collect();
    let said = reasons
        .first()
        .map_or_else(|| status.to_string(), |it| it.text.clone());
    match status.as_u16() {
        429 => Tried::Limited(retry_after(headers).unwrap_or(LIMITED_PAUSE)),
        // The proxy in front did not understand the request; the API never saw it.
        400 if text("content-type").starts_with("text/html") => Tried::Unsent(said),
        503 if headers.contains_key("x-maintenance-mode") => {
            Tried::Answered(Err(Fail::Unsent("Linode is under maintenance".into())))
        }
        401 | 403 => {
            let (has, needs) = (text("x-oauth-scopes"), text("x-accepted-oauth-scopes"));
            let scopes = match has {
                "" => String::new(),
                has => format!(" (the token has {has}, this needs {needs})"),
            };
            let said = said.trim_end_matches('.');
            Tried::Answered(Err(Fail::Denied(format!("Linode says: {said}{scopes}"))))
        }
        404 => Tried::Answered(Err(Fail::Gone)),
        408 => Tried::Lost("Linode took too long".into()),
        // It was refused, but why did not arrive.
        400..=499 if is_cut_off => Tried::Unsent(said),
        400 if said == "Linode busy." => Tried::Answered(Err(Fail::Busy)),
        400..=499 if reasons.is_empty() => {
            let text = format!("an answer without a reason, {status}");
            Tried::Answered(Err(Fail::Refused(vec![Reason { field: None, text }])))
        }
        400..=499 => Tried::Answered(Err(Fail::Refused(reasons))),
        _ => Tried::Lost(format!("Linode answered {said}")),
    }
}

fn items(answer: &Json) -> Vec<Json> {
    answer["data"].as_array().cloned().unwrap_or_default()
}

/// Returns an error with its causes; none of them has the token, which is in a header.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}
