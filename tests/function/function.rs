//! The function that the tests call: one static program without any crate, in an otherwise empty image
//! (`shoal-test/function:1`, made by `scripts/engine` with `rustc` alone).
//!
//! It speaks the path of the Lambda runtime interface emulator: `POST /2015-03-31/functions/function/invocations`, and
//! the same at `/invoke`; `GET /health` says whether it is ready. What a call does is the word `do` of its JSON body:
//!
//! | `do` | does |
//! | --- | --- |
//! | `echo`, or nothing | gives the body back |
//! | `sleep` | waits `ms` milliseconds first |
//! | `fail` | answers with the HTTP `status` (500) |
//! | `error` | answers as a function that threw: 200, `X-Amz-Function-Error: Unhandled` and Lambda's body |
//! | `big` | answers with `bytes` bytes |
//! | `headers` | gives the request's headers back, names in lower case |
//! | `count` | tells how often this instance was called (this call included), its process and host |
//! | `log` | writes `text` to stdout and `error` to stderr, a line each |
//! | `crash` | exits with 1 in mid-call |
//! | `close` | closes the connection without a response |
//! | `half` | closes it in the middle of the response |
//! | `oom` | uses memory until it is killed |
//!
//! | variable | says |
//! | --- | --- |
//! | `PORT` | where it listens: 8080 |
//! | `SLOW_START_MS` | it listens only then |
//! | `HEALTH` | `ok`; `never`: `/health` says 503 for ever; `late:<ms>`: until so long after the start |
//! | `START` | `exit`: ends at once with 3; `noport`: never listens; `oom`: uses memory until it is killed |
//!
//! TERM ends it with 0.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATHS: [&str; 2] = ["/2015-03-31/functions/function/invocations", "/invoke"];
const JSON: &str = "Content-Type: application/json\r\n";
const SIGTERM: i32 = 15;

static CALLS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(code: i32) -> !;
}

extern "C" fn terminated(_: i32) {
    // SAFETY: may be called in a signal handler.
    unsafe { _exit(0) }
}

fn main() {
    // Process 1 of a container ignores what it does not handle.
    // SAFETY: the handler only ends the process.
    unsafe { signal(SIGTERM, terminated) };
    let began = Instant::now();
    match variable("START").as_str() {
        "" => {}
        "exit" => {
            eprintln!("told to exit");
            std::process::exit(3);
        }
        "noport" => loop {
            std::thread::park();
        },
        "oom" => use_memory(),
        other => usage("START", other),
    }
    if let Some(ms) = number("SLOW_START_MS") {
        std::thread::sleep(Duration::from_millis(ms));
    }
    let ready_after = match variable("HEALTH").as_str() {
        "" | "ok" => Some(Duration::ZERO),
        "never" => None,
        other => match other.strip_prefix("late:").and_then(|ms| ms.parse().ok()) {
            Some(ms) => Some(Duration::from_millis(ms)),
            None => usage("HEALTH", other),
        },
    };
    let port = number("PORT").unwrap_or(8080);
    let port = u16::try_from(port).unwrap_or_else(|_| usage("PORT", &port.to_string()));
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    say(&mut io::stdout(), &format!("listening on {port}"));
    for stream in listener.incoming().flatten() {
        let serve = move || drop(connection(&stream, || ready_after.is_some_and(|after| began.elapsed() >= after)));
        // Without a thread the connection is closed, which its caller sees.
        let _ = std::thread::Builder::new().stack_size(256 * 1024).spawn(serve);
    }
}

/// Who reads it may be gone, which is no reason to panic.
fn say(to: &mut impl Write, line: &str) {
    let _ = to.write_all(format!("{line}\n").as_bytes()).and_then(|()| to.flush());
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    let text = variable(name);
    (!text.is_empty()).then(|| text.parse().unwrap_or_else(|_| usage(name, &text)))
}

fn usage(name: &str, value: &str) -> ! {
    eprintln!("{name}={value} makes no sense");
    std::process::exit(2);
}

fn use_memory() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        // Written to, so that the kernel has to give it.
        all.push(vec![u8::try_from(all.len() % 255).expect("a byte") | 1; 16 << 20]);
    }
}

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    keep_alive: bool,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// One request after the other, until somebody closes.
fn connection(stream: &TcpStream, is_ready: impl Fn() -> bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader, stream)? {
        let (status, extra, body) = match (request.method.as_str(), request.path.as_str()) {
            ("POST", path) if PATHS.contains(&path) => match call(&request, stream)? {
                Some(response) => response,
                None => return Ok(()),
            },
            ("GET" | "HEAD", "/health") if is_ready() => (200, JSON, b"{\"ready\":true}".to_vec()),
            ("GET" | "HEAD", "/health") => (503, JSON, b"{\"ready\":false}".to_vec()),
            (_, path) if path == "/health" || PATHS.contains(&path) => (405, JSON, told("method not allowed")),
            _ => (404, JSON, told("no such path")),
        };
        let body = if request.method == "HEAD" { Vec::new() } else { body };
        let close = if request.keep_alive { "" } else { "Connection: close\r\n" };
        respond(stream, status, &format!("{extra}{close}"), &body, body.len())?;
        if !request.keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

fn respond(mut stream: &TcpStream, status: u64, headers: &str, body: &[u8], length: usize) -> io::Result<()> {
    let mut all = format!("HTTP/1.1 {status} -\r\n{headers}Content-Length: {length}\r\n\r\n").into_bytes();
    all.extend_from_slice(body);
    stream.write_all(&all)
}

fn told(message: &str) -> Vec<u8> {
    format!("{{\"errorMessage\":\"{message}\"}}").into_bytes()
}

/// `None`: the connection is done with.
type Response = (u64, &'static str, Vec<u8>);

fn call(request: &Request, stream: &TcpStream) -> io::Result<Option<Response>> {
    let count = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
    let text = String::from_utf8_lossy(&request.body);
    let fields = fields(&text);
    let of = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let of_number = |name: &str, default: u64| of(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let body = match of("do").unwrap_or("echo") {
        "echo" => request.body.clone(),
        "sleep" => {
            let ms = of_number("ms", 1000);
            std::thread::sleep(Duration::from_millis(ms));
            format!("{{\"slept_ms\":{ms}}}").into_bytes()
        }
        "fail" => return Ok(Some((of_number("status", 500), JSON, told("told to fail")))),
        "error" => {
            let body = b"{\"errorMessage\":\"told to throw\",\"errorType\":\"Told\",\"stackTrace\":[]}".to_vec();
            let headers = "Content-Type: application/json\r\nX-Amz-Function-Error: Unhandled\r\n";
            return Ok(Some((200, headers, body)));
        }
        "big" => {
            let bytes = usize::try_from(of_number("bytes", 1 << 20)).unwrap_or(usize::MAX);
            return Ok(Some((200, "Content-Type: application/octet-stream\r\n", vec![b'x'; bytes])));
        }
        "headers" => {
            let one = |(name, value): &(String, String)| format!("\"{}\":\"{}\"", escaped(name), escaped(value));
            format!("{{{}}}", request.headers.iter().map(one).collect::<Vec<_>>().join(",")).into_bytes()
        }
        "count" => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let (pid, host) = (std::process::id(), escaped(host.trim()));
            format!("{{\"count\":{count},\"pid\":{pid},\"hostname\":\"{host}\"}}").into_bytes()
        }
        "log" => {
            say(&mut io::stdout(), of("text").unwrap_or_default());
            say(&mut io::stderr(), of("error").unwrap_or_default());
            b"{}".to_vec()
        }
        "crash" => std::process::exit(1),
        "close" => {
            stream.shutdown(Shutdown::Both)?;
            return Ok(None);
        }
        "half" => {
            respond(stream, 200, JSON, b"{\"half\":\"", 1000)?;
            stream.shutdown(Shutdown::Both)?;
            return Ok(None);
        }
        "oom" => use_memory(),
        other => return Ok(Some((400, JSON, told(&format!("no such word: {}", escaped(other)))))),
    };
    Ok(Some((200, JSON, body)))
}

/// The next request; `None` when the client has closed.
fn read(reader: &mut BufReader<&TcpStream>, mut stream: &TcpStream) -> io::Result<Option<Request>> {
    let Some(first) = line(reader)? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_new = words.next().is_some_and(|version| version == "HTTP/1.1");
    let mut headers: Vec<(String, String)> = Vec::new();
    loop {
        let line = line(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if header(&headers, "expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    if header(&headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
            let size = size.split(';').next().and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
            let size = size.ok_or(ErrorKind::InvalidData)?;
            exactly(reader, size, &mut body)?;
            if size == 0 {
                // Trailers, and the empty line behind them.
                while line(reader)?.is_some_and(|line| !line.is_empty()) {}
                break;
            }
            line(reader)?;
        }
    } else if let Some(length) = header(&headers, "content-length") {
        exactly(reader, length.parse().map_err(|_| ErrorKind::InvalidData)?, &mut body)?;
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut request = Request { method, path, headers, body, keep_alive: true };
    let connection = request.header("connection").unwrap_or_default().to_ascii_lowercase();
    request.keep_alive = if is_new { connection != "close" } else { connection == "keep-alive" };
    Ok(Some(request))
}

fn line(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim_end().to_owned()))
}

fn exactly(reader: &mut BufReader<&TcpStream>, size: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = reader.by_ref().take(size).read_to_end(body)?;
    if read as u64 == size { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

/// The plain fields of a JSON object, those of objects within it left out. Anything else has none: it is echoed.
fn fields(text: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut chars = text.trim_start().chars().peekable();
    if chars.next() != Some('{') {
        return fields;
    }
    let (mut depth, mut key, mut value) = (1, None, String::new());
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                let text = string(&mut chars);
                if depth == 1 {
                    value = text;
                }
            }
            ':' if depth == 1 => key = Some(std::mem::take(&mut value)),
            ',' | '}' if depth == 1 => {
                if let Some(key) = key.take() {
                    fields.push((key, std::mem::take(&mut value)));
                }
                if c == '}' {
                    break;
                }
            }
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            c if depth == 1 && !c.is_whitespace() => value.push(c),
            _ => {}
        }
    }
    fields
}

/// The rest of a string whose first quote is read.
fn string(chars: &mut impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('u') => {
                    let hex: String = chars.by_ref().take(4).collect();
                    text.push(u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32).unwrap_or('?'));
                }
                Some(other) => text.push(other),
                None => break,
            },
            c => text.push(c),
        }
    }
    text
}
