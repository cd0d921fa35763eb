//! The boss's own `hob`, served to machines that have none.
//!
//! It goes out on the boss's port over HTTPS, to whoever asks for it by its digest: it is no
//! secret. A machine pins the boss's key, and runs what it got only if the digest is right.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use ocapn::PublicStream;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::boot::Install;

use super::Boss;

/// The ALPN of those who fetch it.
pub(super) const ALPN: &[u8] = b"http/1.1";

/// Programs that have shown no key and wait to be answered; more wait in their handshake.
pub(super) const WAITING_MAX: usize = 64;

/// How many machines get it at once: with 256 KiB each in memory, and a share of the line that
/// ends. More wait.
const DOWNLOADS_MAX: usize = 32;

/// How many requests are answered at once, those that wait for their turn among them.
const ANSWERS_MAX: usize = 256;

/// How long a machine may wait for its turn; it comes again.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest head of a request, and how long it may take: it is one line and a few headers.
const HEAD_BYTES_MAX: u64 = 8 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to send it: 10 MB at 17 kB a second.
const SEND_TIMEOUT: Duration = Duration::from_secs(600);

/// How much of it is read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The largest program: one with all that a compiler notes for whoever looks for mistakes.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;

/// The beginning of a program for 64-bit Linux and its byte order (ELF, `e_ident`), and the
/// machine that it is for: x86-64.
const ELF: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
const ELF_MACHINE_AT: std::ops::Range<usize> = 18..20;
const X86_64: [u8; 2] = [62, 0];

/// A program that machines can be given.
#[derive(Debug)]
struct Program {
    file: File,
    bytes: u64,
    sha256: String,
}

/// The boss's own, looked at when it is first needed.
#[derive(Debug, Default)]
pub(super) struct OwnProgram {
    path: Option<PathBuf>,
    found: OnceLock<Result<Arc<Program>, String>>,
}

impl OwnProgram {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            found: OnceLock::new(),
        }
    }

    /// Waits for the disk at the first call.
    fn get(&self) -> Result<Arc<Program>, String> {
        let found = self.found.get_or_init(|| match &self.path {
            None => Err("this boss knows no program that it could serve".into()),
            Some(path) => Program::open(path)
                .map(Arc::new)
                .map_err(|why| format!("{}: {why}", path.display())),
        });
        found.clone()
    }
}

impl Program {
    fn open(path: &Path) -> Result<Self, String> {
        let text = |error: io::Error| error.to_string();
        let mut file = File::open(path).map_err(text)?;
        let bytes = file.metadata().map_err(text)?.len();
        if bytes > PROGRAM_BYTES_MAX {
            return Err(format!("it has {bytes} bytes, which is too much for a hob"));
        }
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut head = Vec::new();
        loop {
            let read = file.read(&mut chunk).map_err(text)?;
            if read == 0 {
                break;
            }
            if head.is_empty() {
                head = chunk[..read].to_vec();
            }
            hash.update(&chunk[..read]);
        }
        if !head.starts_with(&ELF) || head.get(ELF_MACHINE_AT) != Some(&X86_64) {
            return Err("it is no program for Linux on x86-64, which the machines are".into());
        }
        Ok(Self {
            file,
            bytes,
            sha256: HEXLOWER.encode(&hash.finalize()),
        })
    }
}

impl Boss {
    /// Returns how a machine gets this boss's own hob.
    ///
    /// # Errors
    /// When there is no program that a machine could run, with what is wrong.
    pub fn install(&self) -> Result<Install, String> {
        let program = self.0.program.get()?;
        let path = path_of(&program);
        let urls = self.locator().addresses().into_iter();
        let urls = urls.map(|(host, port)| match host.contains(':') {
            true => format!("https://[{host}]:{port}{path}"),
            false => format!("https://{host}:{port}{path}"),
        });
        let key = self.0.identity.subject_public_key_info();
        Ok(Install {
            urls: urls.collect(),
            sha256: Some(program.sha256.clone()),
            pin: Some(format!("sha256//{}", BASE64.encode(&Sha256::digest(key)))),
            ..Install::default()
        })
    }
}

fn path_of(program: &Program) -> String {
    format!("/hob/{}", program.sha256)
}

/// Answers whoever asks for the program, until the boss ends.
pub(super) async fn serve(boss: Boss, mut streams: mpsc::Receiver<PublicStream>) {
    let downloads = Arc::new(Semaphore::new(DOWNLOADS_MAX));
    let answers = Arc::new(Semaphore::new(ANSWERS_MAX));
    while let Some(public) = streams.recv().await {
        // Never closed: it only waits.
        let Ok(place) = Arc::clone(&answers).acquire_owned().await else {
            return;
        };
        let (boss, downloads) = (boss.clone(), Arc::clone(&downloads));
        tokio::spawn(async move {
            let _place = place;
            let address = public.address;
            if let Err(error) = answer(&boss, &downloads, public).await {
                tracing::debug!(%address, %error, "a request was not answered");
            }
        });
    }
}

async fn answer(boss: &Boss, downloads: &Semaphore, public: PublicStream) -> io::Result<()> {
    let PublicStream { address, stream } = public;
    let mut stream = BufReader::new(stream);
    let request = timeout(HEAD_TIMEOUT, read_head(&mut stream)).await??;
    let mut words = request.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    if !matches!(method, Some("GET" | "HEAD")) {
        return say(stream, "405 Method Not Allowed", 0).await.map(drop);
    }
    let own = boss.clone();
    let program = tokio::task::spawn_blocking(move || own.0.program.get());
    let program = match program.await.map_err(io::Error::other)? {
        Ok(program) if path == path_of(&program) => program,
        _ => {
            tracing::info!(%address, "a machine asked for a hob that this boss has not");
            return say(stream, "404 Not Found", 0).await.map(drop);
        }
    };
    if method == Some("HEAD") {
        return say(stream, "200 OK", program.bytes).await.map(drop);
    }
    let Ok(Ok(_turn)) = timeout(TURN_TIMEOUT, downloads.acquire()).await else {
        return say(stream, "503 Service Unavailable", 0).await.map(drop);
    };
    tracing::info!(%address, "a machine fetches the hob");
    timeout(SEND_TIMEOUT, send(stream, program)).await?
}

/// Returns the first line of a request, the rest of its head read too.
async fn read_head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<String> {
    let mut head = stream.take(HEAD_BYTES_MAX);
    let mut request = String::new();
    head.read_line(&mut request).await?;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if line.trim_end().is_empty() {
            return Ok(request);
        }
    }
}

async fn send(stream: impl AsyncWriteExt + Unpin, program: Arc<Program>) -> io::Result<()> {
    let mut stream = say(stream, "200 OK", program.bytes).await?;
    let mut at = 0;
    while at < program.bytes {
        let program = Arc::clone(&program);
        let chunk = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = program.file.read_at(&mut chunk, at)?;
            chunk.truncate(read);
            Ok::<_, io::Error>(chunk)
        });
        let chunk = chunk.await.map_err(io::Error::other)??;
        if chunk.is_empty() {
            // Somebody has cut the file meanwhile.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(&chunk).await?;
        at += chunk.len() as u64;
    }
    stream.shutdown().await
}

async fn say<S: AsyncWriteExt + Unpin>(mut stream: S, status: &str, bytes: u64) -> io::Result<S> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    Ok(stream)
}
