//! A web server of the tests' own, on a port of its own: what it answers is scripted for each path, faults too, and what
//! it was asked is kept. And a proxy that connects through.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What somebody asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub path: String,
    head: String,
}

impl Request {
    /// One header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &&str| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
        self.head.lines().find(line)?.split_once(':').map(|(_, value)| value.trim())
    }

    /// The first byte that is asked for.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How a body is sent.
#[derive(Clone, Copy)]
enum Sends {
    All,
    /// So many bytes, then the connection ends.
    Cut(usize),
    /// So many bytes, and the rest when the server is told to go on.
    Held(usize),
    /// A byte each time.
    Drip(Duration),
    /// The body again and again.
    Endless,
    /// The body, and no head before it.
    Raw,
}

/// What is answered.
#[derive(Clone)]
pub struct Page {
    status: String,
    headers: Vec<String>,
    body: Arc<Vec<u8>>,
    length: Option<u64>,
    ranges: bool,
    sends: Sends,
}

impl Page {
    /// A good one, of a server that knows nothing of ranges.
    pub fn new(body: impl Into<Vec<u8>>) -> Page {
        let body = Arc::new(body.into());
        let length = Some(body.len() as u64);
        Page { status: "200 OK".to_owned(), headers: Vec::new(), body, length, ranges: false, sends: Sends::All }
    }

    /// One without a body worth reading.
    pub fn status(status: &str) -> Page {
        Page { status: status.to_owned(), ..Page::new("<html>no</html>") }
    }

    /// One that leads elsewhere.
    pub fn redirect(status: &str, to: &str) -> Page {
        Page::status(status).header(&format!("location: {to}"))
    }

    /// With this status instead.
    pub fn with_status(self, status: &str) -> Page {
        Page { status: status.to_owned(), ..self }
    }

    /// With this header line.
    pub fn header(mut self, line: &str) -> Page {
        self.headers.push(line.to_owned());
        self
    }

    /// Asked for the rest, it sends only that.
    pub fn ranges(self) -> Page {
        Page { ranges: true, ..self }
    }

    /// Says that it is so long.
    pub fn claims(self, length: u64) -> Page {
        Page { length: Some(length), ..self }
    }

    /// Does not say how long it is.
    pub fn without_length(self) -> Page {
        Page { length: None, ..self }
    }

    /// The connection ends after so many bytes of the body.
    pub fn cut(self, at: usize) -> Page {
        Page { sends: Sends::Cut(at), ..self }
    }

    /// Waits after so many bytes of the body for [`Server::go_on`].
    pub fn held(self, at: usize) -> Page {
        Page { sends: Sends::Held(at), ..self }
    }

    /// Sends a byte, waits, sends a byte, …
    pub fn drips(self, pause: Duration) -> Page {
        Page { sends: Sends::Drip(pause), ..self }
    }

    /// Not what a web server says.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Page {
        Page { sends: Sends::Raw, ..Page::new(bytes) }
    }

    /// Never ends.
    pub fn endless(self) -> Page {
        Page { sends: Sends::Endless, ..self }.without_length()
    }
}

type Script = Arc<dyn Fn(&Request, usize) -> Page + Send + Sync>;

#[derive(Default)]
struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    asked: Mutex<Vec<Request>>,
    /// Whether what is held goes on.
    open: Mutex<bool>,
    opened: Condvar,
}

/// A server of http.
pub struct Server {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Server {
    /// One that knows no path yet.
    pub fn new() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&all);
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Server { port, shared }
    }

    /// One that has this page at `/file`.
    pub fn with(page: Page) -> Server {
        let server = Server::new();
        server.page("/file", page);
        server
    }

    /// What is answered at a path, given what is asked and how often it was asked before.
    pub fn on(&self, path: &str, script: impl Fn(&Request, usize) -> Page + Send + Sync + 'static) {
        self.shared.scripts.lock().unwrap().insert(path.to_owned(), Arc::new(script));
    }

    /// The same page each time.
    pub fn page(&self, path: &str, page: Page) {
        self.on(path, move |_, _| page.clone());
    }

    /// One page after the other; the last one stays.
    pub fn pages(&self, path: &str, pages: Vec<Page>) {
        self.on(path, move |_, n| pages[n.min(pages.len() - 1)].clone());
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The same with a name, a password and a token that must not be shown.
    pub fn secret_url(&self, path: &str) -> String {
        format!("http://user:secret@127.0.0.1:{}{path}?token=secret", self.port)
    }

    /// What was asked of a path so far.
    pub fn asked(&self, path: &str) -> Vec<Request> {
        let all = self.shared.asked.lock().unwrap();
        all.iter().filter(|request| bare(request) == path).cloned().collect()
    }

    /// Sends what was held, and holds nothing any more.
    pub fn go_on(&self) {
        *self.shared.open.lock().unwrap() = true;
        self.shared.opened.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.go_on();
    }
}

fn bare(request: &Request) -> &str {
    request.path.split('?').next().unwrap()
}

/// The head of a request, up to its empty line.
fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
        if head == [0x16] {
            // The beginning of TLS, which this server does not speak.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
            return None;
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn serve(shared: &Shared, mut stream: TcpStream) {
    let Some(head) = head(&mut stream) else { return };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let request = Request { path, head };
    let before = {
        let mut all = shared.asked.lock().unwrap();
        all.push(request.clone());
        all.iter().filter(|r| bare(r) == bare(&request)).count() - 1
    };
    let script = shared.scripts.lock().unwrap().get(bare(&request)).cloned();
    let page = script.map_or_else(|| Page::status("404 Not Found"), |script| script(&request, before));
    // Who asked may go away at any time.
    let _ = send(shared, &mut stream, &request, &page);
    let _ = stream.shutdown(Shutdown::Write);
    // What a closed socket had still to read would take away what was sent.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = stream.read(&mut [0; 64]);
}

fn send(shared: &Shared, stream: &mut TcpStream, request: &Request, page: &Page) -> std::io::Result<()> {
    if matches!(page.sends, Sends::Raw) {
        return stream.write_all(&page.body);
    }
    let whole = page.body.len();
    let from = request.from().filter(|from| page.ranges && *from < whole);
    let body = &page.body[from.unwrap_or(0)..];
    let mut reply = match from {
        Some(from) => format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{whole}\r\n", whole - 1),
        None => format!("HTTP/1.1 {}\r\n", page.status),
    };
    if let Some(length) = page.length {
        reply += &format!("content-length: {}\r\n", length - from.unwrap_or(0) as u64);
    }
    for header in &page.headers {
        reply += &format!("{header}\r\n");
    }
    stream.write_all(format!("{reply}connection: close\r\n\r\n").as_bytes())?;
    match page.sends {
        Sends::All | Sends::Raw => stream.write_all(body),
        Sends::Cut(at) => stream.write_all(&body[..at.min(body.len())]),
        Sends::Held(at) => {
            let at = at.min(body.len());
            stream.write_all(&body[..at])?;
            let open = shared.open.lock().unwrap();
            drop(shared.opened.wait_while(open, |open| !*open).unwrap());
            stream.write_all(&body[at..])
        }
        Sends::Drip(pause) => {
            for byte in body {
                stream.write_all(&[*byte])?;
                let open = shared.open.lock().unwrap();
                drop(shared.opened.wait_timeout_while(open, pause, |open| !*open).unwrap());
            }
            Ok(())
        }
        Sends::Endless => loop {
            stream.write_all(body)?;
        },
    }
}

/// A proxy that connects through to whom it is told.
pub struct Proxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One for anybody.
    pub fn new() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = Arc::clone(&all);
                std::thread::spawn(move || connect_through(&asked, stream));
            }
        });
        Proxy { port, asked }
    }

    /// What it was told so far: the heads of the requests.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn connect_through(asked: &Mutex<Vec<String>>, mut client: TcpStream) -> Option<()> {
    let head = head(&mut client)?;
    asked.lock().unwrap().push(head.clone());
    let mut words = head.split(' ');
    if words.next() != Some("CONNECT") {
        let _ = client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n");
        return None;
    }
    let mut server = TcpStream::connect(words.next()?).ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Write);
    Some(())
}
