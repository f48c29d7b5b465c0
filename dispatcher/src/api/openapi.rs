//! The calls of HTTP as one table: the router is built from it, and so is `/openapi.json`; neither can have what the other
//! has not. Types are described by the JSON Schemas that they derive anyway.

use axum::http::{Method, StatusCode};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use schemas::http::Problem;
use serde_json::{Map, Value, json};

use super::Api;
use super::problem::PROBLEM_JSON;

type Describe = fn(&mut SchemaGenerator) -> Schema;

/// One call: how it is asked, what it takes, what it answers, and who does it.
pub struct Operation {
    method: Method,
    /// As axum writes it; `{*path}` takes slashes too.
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    notes: &'static str,
    open: bool,
    parameters: Vec<Parameter>,
    bodies: Vec<Content>,
    body_required: bool,
    answers: Vec<Answer>,
    router: MethodRouter<Api>,
}

enum Parameter {
    /// A part of the path.
    Path { name: &'static str, describe: Describe, meaning: &'static str },
    /// All fields of a type, in the query.
    Query(Describe),
    /// A header.
    Header { name: &'static str, meaning: &'static str },
}

struct Content {
    media: &'static str,
    describe: Option<Describe>,
}

struct Answer {
    status: StatusCode,
    meaning: &'static str,
    contents: Vec<Content>,
}

fn of<T: JsonSchema>() -> Describe {
    |schemas| schemas.subschema_for::<T>()
}

/// The media type of JSON.
pub const JSON: &str = "application/json";
/// The media types of YAML; the first is the registered one.
pub const YAML: [&str; 3] = ["application/yaml", "text/yaml", "application/x-yaml"];
/// The media type of one JSON value a line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of server-sent events.
pub const EVENTS: &str = "text/event-stream";
/// The media type of bytes of no known kind.
pub const BYTES: &str = "application/octet-stream";

impl Operation {
    /// A call that `handler` does.
    pub fn new<H, T>(method: &Method, path: &'static str, id: &'static str, summary: &'static str, handler: H) -> Self
    where
        H: axum::handler::Handler<T, Api>,
        T: 'static,
    {
        let filter = MethodFilter::try_from(method.clone()).expect("a standard method");
        Self {
            method: method.clone(),
            path,
            id,
            summary,
            notes: "",
            open: false,
            parameters: Vec::new(),
            bodies: Vec::new(),
            body_required: true,
            answers: Vec::new(),
            router: on(filter, handler),
        }
    }

    /// Further words.
    pub fn notes(mut self, notes: &'static str) -> Self {
        self.notes = notes;
        self
    }

    /// Needs no token.
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Takes a part of the path.
    pub fn path<T: JsonSchema>(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.parameters.push(Parameter::Path { name, describe: of::<T>(), meaning });
        self
    }

    /// Takes the fields of `T` in the query.
    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.parameters.push(Parameter::Query(|schemas| T::json_schema(schemas)));
        self
    }

    /// Takes a header.
    pub fn header(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.parameters.push(Parameter::Header { name, meaning });
        self
    }

    /// Takes a body of one of these types.
    pub fn body<T: JsonSchema>(mut self, media: &[&'static str]) -> Self {
        self.bodies.extend(media.iter().map(|media| Content { media, describe: Some(of::<T>()) }));
        self
    }

    /// The same, which may be left out.
    pub fn optional_body<T: JsonSchema>(self, media: &[&'static str]) -> Self {
        Self { body_required: false, ..self.body::<T>(media) }
    }

    /// Takes bytes of one of these types, or none.
    pub fn optional_bytes_body(mut self, media: &[&'static str]) -> Self {
        self.bodies.extend(media.iter().map(|media| Content { media, describe: None }));
        self.body_required = false;
        self
    }

    /// Answers JSON.
    pub fn answer<T: JsonSchema>(self, status: StatusCode, meaning: &'static str) -> Self {
        self.content(status, meaning, Content { media: JSON, describe: Some(of::<T>()) })
    }

    /// Answers nothing but a status.
    pub fn empty(mut self, status: StatusCode, meaning: &'static str) -> Self {
        self.answers.push(Answer { status, meaning, contents: Vec::new() });
        self
    }

    /// Answers bytes or text of this type.
    pub fn bytes(self, status: StatusCode, media: &'static str, meaning: &'static str) -> Self {
        self.content(status, meaning, Content { media, describe: None })
    }

    /// Answers a stream, each piece of which is a `T`.
    pub fn pieces<T: JsonSchema>(self, status: StatusCode, media: &'static str, meaning: &'static str) -> Self {
        self.content(status, meaning, Content { media, describe: Some(of::<T>()) })
    }

    /// May fail so, beyond what every call may.
    pub fn fails(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let status = StatusCode::from_u16(*status).expect("written as one");
            let contents = vec![Content { media: PROBLEM_JSON, describe: Some(of::<Problem>()) }];
            self.answers.push(Answer { status, meaning: "A problem.", contents });
        }
        self
    }

    fn content(mut self, status: StatusCode, meaning: &'static str, content: Content) -> Self {
        match self.answers.iter_mut().find(|answer| answer.status == status) {
            Some(answer) => answer.contents.push(content),
            None => self.answers.push(Answer { status, meaning, contents: vec![content] }),
        }
        self
    }

    /// Its path as the document writes it.
    fn documented_path(&self) -> String {
        self.path.replace("{*", "{")
    }

    fn describe(&self, schemas: &mut SchemaGenerator) -> Value {
        let mut operation = json!({"operationId": self.id, "summary": self.summary});
        if !self.notes.is_empty() {
            operation["description"] = self.notes.into();
        }
        if self.open {
            operation["security"] = json!([]);
        }
        let parameters: Vec<Value> = self.parameters.iter().flat_map(|parameter| parameter.describe(schemas)).collect();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if !self.bodies.is_empty() {
            operation["requestBody"] =
                json!({"required": self.body_required, "content": contents(&self.bodies, schemas)});
        }
        let mut responses = Map::new();
        for answer in &self.answers {
            let mut response = json!({"description": answer.meaning});
            if !answer.contents.is_empty() {
                response["content"] = contents(&answer.contents, schemas);
            }
            responses.insert(answer.status.as_str().to_owned(), response);
        }
        if !self.open {
            for (status, name) in COMMON {
                responses.entry(status).or_insert_with(|| json!({"$ref": format!("#/components/responses/{name}")}));
            }
        }
        operation["responses"] = responses.into();
        operation
    }
}

/// What the guard, or a server that is away, may answer to any call.
const COMMON: [(&str, &str); 5] = [
    ("401", "Unauthenticated"),
    ("403", "PermissionDenied"),
    ("429", "RateLimited"),
    ("500", "Internal"),
    ("503", "Unavailable"),
];

impl Parameter {
    fn describe(&self, schemas: &mut SchemaGenerator) -> Vec<Value> {
        match self {
            Self::Path { name, describe, meaning } => vec![json!({
                "name": name, "in": "path", "required": true, "description": meaning, "schema": describe(schemas),
            })],
            Self::Header { name, meaning } => vec![json!({
                "name": name, "in": "header", "required": false, "description": meaning, "schema": {"type": "string"},
            })],
            Self::Query(describe) => {
                let schema = describe(schemas).to_value();
                let required: Vec<&str> =
                    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let fields = schema["properties"].as_object().into_iter().flatten();
                fields
                    .map(|(name, field)| {
                        let mut field = field.clone();
                        let meaning = field.as_object_mut().and_then(|field| field.remove("description"));
                        json!({
                            "name": name, "in": "query", "required": required.contains(&name.as_str()),
                            "description": meaning.unwrap_or_default(), "schema": field,
                        })
                    })
                    .collect()
            }
        }
    }
}

fn contents(contents: &[Content], schemas: &mut SchemaGenerator) -> Value {
    let mut map = Map::new();
    for Content { media, describe } in contents {
        let content = match describe {
            Some(describe) => json!({"schema": describe(schemas)}),
            None => json!({}),
        };
        map.insert((*media).to_owned(), content);
    }
    map.into()
}

/// The router of all calls.
pub fn router(operations: Vec<Operation>) -> axum::Router<Api> {
    operations.into_iter().fold(axum::Router::new(), |router, operation| router.route(operation.path, operation.router))
}

/// The document: OpenAPI 3.1.
pub fn document(operations: &[Operation], version: &str) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations {
        let described = operation.describe(&mut schemas);
        let path = paths.entry(operation.documented_path()).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = described;
    }
    let problem = json!({PROBLEM_JSON: {"schema": schemas.subschema_for::<Problem>()}});
    let response = |meaning: &str| json!({"description": meaning, "content": problem});
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": version,
            "description": "A worker fleet on NATS JetStream: submit tasks, watch them, read their results and logs; \
                the registry of agents. Errors are problems (RFC 9457) with a `code` that keeps its meaning.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "responses": {
                "Unauthenticated": response("A token is wanted, or another."),
                "PermissionDenied": response("Pages of this origin, or calls to this host name, are refused."),
                "RateLimited": response("Too many calls from this address."),
                "Internal": response("Something went wrong inside Shoal."),
                "Unavailable": response("NATS cannot be reached now, or there is no room for more streams."),
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}
