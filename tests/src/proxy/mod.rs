//! Faults between a program and its S3 server, on purpose and counted.
//!
//! The proxy speaks HTTP/1.1 in the clear and passes requests and answers on byte for byte, so signatures stay valid.

mod http;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use self::http::{Head, Pace};

/// What happens to a request instead of, or besides, being answered.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection is reset before the body is read. The server sees nothing.
    ResetBeforeBody,
    /// The connection is reset after half of the body. The server sees nothing.
    ResetDuringBody,
    /// The connection is reset after the whole body. The server sees nothing.
    ResetAfterBody,
    /// The server does what was asked, and its answer is lost by a reset.
    LoseAnswer,
    /// The proxy answers itself, and the server sees nothing.
    Answer {
        /// The status line's code.
        status: u16,
        /// Further header lines, each without its line end.
        headers: Vec<String>,
        /// The body.
        body: String,
    },
    /// The request is read, and no answer ever comes.
    Silence,
    /// The server's answer stops after its header.
    StallAfterHeader,
    /// The server's answer is cut after this many bytes of its body, by a reset.
    CutAnswer(usize),
    /// Body and answer are passed on at this many bytes per second.
    BytesPerSecond(u64),
}

impl Fault {
    /// What S3 answers when it wants fewer requests.
    pub fn slow_down() -> Self {
        Self::s3_error(503, "SlowDown", "Please reduce your request rate.")
    }

    /// An error in S3's XML.
    pub fn s3_error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        Self::Answer { status, headers: vec!["Content-Type: application/xml".to_owned()], body }
    }

    /// A page of somebody who is not an S3 server at all.
    pub fn web_page(status: u16) -> Self {
        let body = "<html><body><h1>It works!</h1></body></html>".to_owned();
        Self::Answer { status, headers: vec!["Content-Type: text/html".to_owned()], body }
    }
}

/// Which requests a fault is for.
#[derive(Debug, Clone)]
#[must_use]
pub struct Rule {
    method: Option<&'static str>,
    path_part: String,
    passing: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Every request meets the fault.
    pub fn all(fault: Fault) -> Self {
        Self { method: None, path_part: String::new(), passing: 0, times: usize::MAX, fault }
    }

    /// Limits it to a method.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Limits it to paths (with their query) that contain this.
    pub fn path(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path_part);
        self
    }

    /// Lets the first matching requests pass.
    pub fn after(mut self, requests: usize) -> Self {
        self.passing = requests;
        self
    }

    /// Limits it to so many requests; later ones pass.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// The fault for this request, if the rule is for it, counting it off.
    fn apply(&mut self, request: &Request) -> Option<Fault> {
        if self.method.is_some_and(|method| method != request.method) || !request.path.contains(&self.path_part) {
            return None;
        }
        if self.passing > 0 {
            self.passing -= 1;
            return None;
        }
        if self.times == 0 {
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}

/// A request the proxy has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// The path, with the query.
    pub path: String,
}

#[derive(Debug, Default)]
struct Script {
    rules: Vec<Rule>,
    requests: Vec<Request>,
    connections: usize,
    at_once: usize,
    most_at_once: usize,
}

/// A running proxy. Dropping it closes every connection.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    script: Arc<Mutex<Script>>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of a server (`http://HOST:PORT`).
    pub fn start(upstream: &str) -> Self {
        let upstream = upstream.strip_prefix("http://").expect("an http:// endpoint").to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let script = Arc::new(Mutex::new(Script::default()));
        runtime.spawn(accept(listener, upstream, Arc::clone(&script)));
        Self { port, script, runtime: Some(runtime) }
    }

    /// Where it listens, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Adds a rule. The oldest rule that is for a request decides.
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Takes all rules away.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        let mut script = self.lock();
        script.requests.clear();
        script.connections = 0;
        script.most_at_once = script.at_once;
    }

    /// Counts requests by method and a part of their path.
    pub fn count(&self, method: &str, path_part: &str) -> usize {
        let matches = |request: &&Request| request.method == method && request.path.contains(path_part);
        self.lock().requests.iter().filter(matches).count()
    }

    /// Counts connections.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// The largest number of requests that were being served at the same time.
    pub fn most_at_once(&self) -> usize {
        self.lock().most_at_once
    }

    /// The number of requests that are being served now.
    pub fn at_once(&self) -> usize {
        self.lock().at_once
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().expect("the script's lock")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn accept(listener: TcpListener, upstream: String, script: Arc<Mutex<Script>>) {
    while let Ok((client, _)) = listener.accept().await {
        script.lock().expect("the script's lock").connections += 1;
        let (upstream, script) = (upstream.clone(), Arc::clone(&script));
        tokio::spawn(async move {
            // A connection that breaks is what this is for; both ends have seen it.
            serve(client, &upstream, &script).await.ok();
        });
    }
}

/// Serves the requests of one connection in turn.
async fn serve(client: TcpStream, upstream: &str, script: &Mutex<Script>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut client = BufStream::new(client);
    while let Some(head) = Head::read(&mut client).await? {
        let request = Request { method: head.word(0).to_owned(), path: head.word(1).to_owned() };
        let fault = {
            let mut script = script.lock().expect("the script's lock");
            let fault = script.rules.iter_mut().find_map(|rule| rule.apply(&request));
            script.requests.push(request.clone());
            script.at_once += 1;
            script.most_at_once = script.most_at_once.max(script.at_once);
            fault
        };
        let served = exchange(&mut client, upstream, &head, fault).await;
        script.lock().expect("the script's lock").at_once -= 1;
        if !served? {
            break;
        }
    }
    Ok(())
}

/// Serves one request; tells whether the connection goes on.
async fn exchange(
    client: &mut BufStream<TcpStream>,
    upstream: &str,
    request: &Head,
    fault: Option<Fault>,
) -> std::io::Result<bool> {
    let body_length = request.content_length().unwrap_or(0);
    let reset = |client: &BufStream<TcpStream>| client.get_ref().set_zero_linger().map(|()| false);
    let mut pace = Pace::unlimited();
    match &fault {
        Some(Fault::ResetBeforeBody) => return reset(client),
        Some(Fault::ResetDuringBody) => {
            http::skip(client, body_length / 2).await?;
            return reset(client);
        }
        Some(Fault::ResetAfterBody) => {
            http::skip(client, body_length).await?;
            return reset(client);
        }
        Some(Fault::Silence) => {
            http::skip(client, body_length).await?;
            std::future::pending::<()>().await;
        }
        Some(Fault::Answer { status, headers, body }) => {
            http::skip(client, body_length).await?;
            http::answer(client, *status, headers, body, request.word(0) == "HEAD").await?;
            return Ok(true);
        }
        Some(Fault::BytesPerSecond(rate)) => pace = Pace::bytes_per_second(*rate),
        Some(Fault::LoseAnswer | Fault::StallAfterHeader | Fault::CutAnswer(_)) | None => {}
    }

    let mut server = BufStream::new(TcpStream::connect(upstream).await?);
    server.write_all(request.bytes()).await?;
    http::copy(client, &mut server, body_length, &pace).await?;
    let Some(response) = Head::read(&mut server).await? else { return reset(client) };
    let length = response.answer_length(request.word(0));
    match fault {
        Some(Fault::LoseAnswer) => return reset(client),
        Some(Fault::StallAfterHeader) => {
            client.write_all(response.bytes()).await?;
            client.flush().await?;
            std::future::pending::<()>().await;
        }
        Some(Fault::CutAnswer(after)) => {
            client.write_all(response.bytes()).await?;
            http::copy(&mut server, client, after, &pace).await?;
            // What lies in the socket's buffer would be thrown away by the reset: let it be read first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return reset(client);
        }
        _ => {}
    }
    client.write_all(response.bytes()).await?;
    match length {
        Some(length) => http::copy(&mut server, client, length, &pace).await?,
        None => http::copy_chunks(&mut server, client, &pace).await?,
    }
    client.flush().await?;
    Ok(true)
}
