//! Definitions and instances as the buckets hold them.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::join_all;
use jetstream::{ApiError, PublishError, StoredMessage};
use schemas::function::EnsureRequest;
use schemas::{Code, Function, FunctionName, Instance, header};

use crate::{CallError, Caller, not_found};

/// Records asked for at a time.
const PAGE: usize = 500;
/// How often a change is tried over those of others.
const TRIES: usize = 20;

/// A function as it is defined.
#[derive(Clone, Debug, PartialEq)]
pub struct Defined {
    /// Its name.
    pub name: FunctionName,
    /// Its definition.
    pub function: Function,
    /// Revision of the definition in its bucket.
    pub revision: u64,
}

/// An instance's record with its revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The record.
    pub instance: Instance,
    /// Its revision in the bucket.
    pub revision: u64,
}

/// What became of a definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// As it stands now.
    pub defined: Defined,
    /// It is another one than before, or new.
    pub changed: bool,
    /// Instances are replaced: what they are made from is another.
    pub rolls: bool,
}

impl Caller {
    /// One definition.
    pub async fn definition(&self, name: &FunctionName) -> Result<Option<Defined>, CallError> {
        let found = self.js.last(&self.names.functions_stream(), &self.names.function_subject(name)).await?;
        match found {
            Some(message) => read_definition(name, &message),
            None => Ok(None),
        }
    }

    /// The same where there must be one.
    pub async fn defined(&self, name: &FunctionName) -> Result<Defined, CallError> {
        self.definition(name).await?.ok_or_else(|| not_found(name))
    }

    /// The same where this caller may use it.
    pub async fn admitted(&self, name: &FunctionName) -> Result<Defined, CallError> {
        let defined = self.defined(name).await?;
        self.check_owner(&defined)?;
        Ok(defined)
    }

    /// Every definition that can be read, by name.
    pub async fn definitions(&self) -> Result<Vec<Defined>, CallError> {
        let mut found = Vec::new();
        for message in self.pages(&self.names.functions_stream(), &self.names.functions_subjects()).await? {
            let name = message.subject.rsplit('.').next().and_then(|token| token.parse::<FunctionName>().ok());
            let Some(name) = name else { continue };
            match read_definition(&name, &message) {
                Ok(defined) => found.extend(defined),
                Err(error) => tracing::warn!(function = %name, %error, "a definition that cannot be read is left out"),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Writes a definition, tells it, and wishes for what it wants kept warm or replaced. Another owner's is refused.
    pub async fn apply(&self, name: &FunctionName, function: Function) -> Result<Applied, CallError> {
        function.check().map_err(|error| CallError::new(Code::InvalidArgument, error.to_string()))?;
        let payload = Bytes::from(serde_json::to_vec(&function).expect("our own types are JSON"));
        for _ in 0..TRIES {
            let (before, revision) = self.definition_anyway(name).await?;
            if let Some(before) = &before {
                self.check_owner(before)?;
                if before.function == function {
                    return Ok(Applied { defined: before.clone(), changed: false, rolls: false });
                }
            }
            let subject = self.names.function_subject(name);
            match self.js.compare_and_set(subject, revision, HeaderMap::new(), payload.clone()).await {
                Ok(revision) => {
                    self.tell(self.names.function_event_subject(name), payload.clone()).await;
                    let rolls = before.is_some_and(|before| before.function.spec() != function.spec());
                    let defined = Defined { name: name.clone(), function, revision };
                    for index in 0..defined.function.min {
                        // It is defined all the same; dispatchers wish again.
                        if let Err(error) = self.wish(&defined, index, &EnsureRequest::default()).await {
                            tracing::debug!(function = %name, index, %error, "not wished for");
                        }
                    }
                    return Ok(Applied { defined, changed: true, rolls });
                }
                Err(PublishError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::new(Code::Conflict, format!("the function `{name}` is being changed by others")))
    }

    /// Deletes a definition; its instances are stopped by their workers. `false`: there was none.
    pub async fn delete(&self, name: &FunctionName) -> Result<bool, CallError> {
        for _ in 0..TRIES {
            let Some(message) =
                self.js.last(&self.names.functions_stream(), &self.names.function_subject(name)).await?
            else {
                return Ok(false);
            };
            if message.is_marker() {
                return Ok(false);
            }
            // One that cannot be read belongs to nobody who could be asked.
            if let Ok(Some(defined)) = read_definition(name, &message) {
                self.check_owner(&defined)?;
            }
            match self
                .js
                .compare_and_set(self.names.function_subject(name), message.sequence, purge(), Bytes::new())
                .await
            {
                Ok(_) => {
                    self.tell(self.names.function_event_subject(name), Bytes::new()).await;
                    return Ok(true);
                }
                Err(PublishError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CallError::new(Code::Conflict, format!("the function `{name}` is being changed by others")))
    }

    /// The records of all instances, of one function or of all, by function and index.
    pub async fn instances(&self, function: Option<&FunctionName>) -> Result<Vec<Known>, CallError> {
        let subjects = self.names.instances_subjects(function);
        let messages = match function {
            // All of one function in one read.
            Some(_) => self.js.newest(&self.names.instances_stream(), &[subjects]).await?,
            None => self.pages(&self.names.instances_stream(), &subjects).await?,
        };
        let mut found: Vec<Known> = messages.iter().filter_map(read_instance).collect();
        found.sort_by(|a, b| (&a.instance.function, a.instance.index).cmp(&(&b.instance.function, b.instance.index)));
        Ok(found)
    }

    /// One instance's record from the leader, and the revision to write over it with: 0 where there never was one.
    pub async fn instance(&self, function: &FunctionName, index: u32) -> Result<(Option<Instance>, u64), CallError> {
        let subject = self.names.instance_subject(function, index);
        let found = self.js.last(&self.names.instances_stream(), &subject).await?;
        Ok(found.map_or((None, 0), |message| (read_instance(&message).map(|known| known.instance), message.sequence)))
    }

    /// Writes an instance's record if its revision is still `revision`, and tells it. `None`: another write came first.
    pub async fn put_instance(&self, instance: &Instance, revision: u64) -> Result<Option<u64>, CallError> {
        let payload = Bytes::from(serde_json::to_vec(instance).expect("our own types are JSON"));
        self.write_instance(&instance.function, instance.index, revision, HeaderMap::new(), payload).await
    }

    /// Removes an instance's record in the same way.
    pub async fn remove_instance(
        &self,
        function: &FunctionName,
        index: u32,
        revision: u64,
    ) -> Result<Option<u64>, CallError> {
        self.write_instance(function, index, revision, purge(), Bytes::new()).await
    }

    async fn write_instance(
        &self,
        function: &FunctionName,
        index: u32,
        revision: u64,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Option<u64>, CallError> {
        let subject = self.names.instance_subject(function, index);
        match self.js.compare_and_set(subject.clone(), revision, headers, payload.clone()).await {
            Ok(revision) => {
                self.tell(self.names.instance_event_subject(function, index), payload).await;
                Ok(Some(revision))
            }
            Err(PublishError::Conflict { .. }) => {
                // Our own write may have been the first: its acknowledgement was lost.
                match self.js.last(&self.names.instances_stream(), &subject).await? {
                    Some(message) if message.sequence > revision && message.payload == payload => {
                        Ok(Some(message.sequence))
                    }
                    _ => Ok(None),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Wishes for one instance. `false`: somebody's wish for it is under way already.
    pub async fn wish(&self, defined: &Defined, index: u32, request: &EnsureRequest) -> Result<bool, CallError> {
        let subject = self.names.ensure_subject(&defined.function.pool, &defined.name, index);
        let payload = serde_json::to_vec(request).expect("our own types are JSON");
        match self.js.publish(subject, HeaderMap::new(), payload.into()).await {
            Ok(_) => Ok(true),
            Err(PublishError::Locked) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A definition and the revision to write over, also where it is deleted or cannot be read.
    async fn definition_anyway(&self, name: &FunctionName) -> Result<(Option<Defined>, u64), CallError> {
        let found = self.js.last(&self.names.functions_stream(), &self.names.function_subject(name)).await?;
        Ok(found.map_or((None, 0), |message| (read_definition(name, &message).ok().flatten(), message.sequence)))
    }

    /// News for whoever listens; who does not hear it reads.
    async fn tell(&self, subject: String, payload: Bytes) {
        let client = self.js.client();
        let (told, sent) = (client.publish(subject, payload).await, client.flush().await);
        if told.is_err() || sent.is_err() {
            tracing::debug!("a change could not be told; it will be read");
        }
    }

    async fn pages(&self, stream: &str, subjects: &str) -> Result<Vec<StoredMessage>, ApiError> {
        let (mut found, mut from) = (Vec::new(), 1);
        loop {
            let page = self.js.page(stream, subjects, from, PAGE).await?;
            from = page.messages.last().map_or(from, |message| message.sequence + 1);
            found.extend(page.messages);
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// Definition and instances at once.
    pub(crate) async fn look(&self, name: &FunctionName) -> Result<(Defined, Vec<Known>), CallError> {
        // Both in one round trip; a function that was never defined costs no more.
        let (streams, subjects) = (
            [self.names.functions_stream(), self.names.instances_stream()],
            [self.names.function_subject(name), self.names.instances_subjects(Some(name))],
        );
        let reads = streams
            .iter()
            .zip(&subjects)
            .map(|(stream, subject)| self.js.newest(stream, std::slice::from_ref(subject)));
        let mut reads = join_all(reads).await.into_iter();
        let (definitions, instances) = (reads.next().expect("two reads")?, reads.next().expect("two reads")?);
        let defined = definitions.first().map(|message| read_definition(name, message)).transpose()?.flatten();
        let defined = match defined {
            Some(defined) => defined,
            // A replica may be late: the leader decides.
            None => self.defined(name).await?,
        };
        let mut instances: Vec<Known> = instances.iter().filter_map(read_instance).collect();
        instances.sort_by_key(|known| known.instance.index);
        Ok((defined, instances))
    }
}

fn purge() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::KV_OPERATION, "PURGE");
    headers.insert("Nats-Rollup", "sub");
    headers
}

fn read_definition(name: &FunctionName, message: &StoredMessage) -> Result<Option<Defined>, CallError> {
    if message.is_marker() || message.payload.is_empty() {
        return Ok(None);
    }
    let function = Function::decode(&message.payload).map_err(|error| {
        CallError::new(Code::InvalidArgument, format!("the definition of the function `{name}` is not valid: {error}"))
    })?;
    Ok(Some(Defined { name: name.clone(), function, revision: message.sequence }))
}

fn read_instance(message: &StoredMessage) -> Option<Known> {
    if message.is_marker() || message.payload.is_empty() {
        return None;
    }
    match serde_json::from_slice(&message.payload) {
        Ok(instance) => Some(Known { instance, revision: message.sequence }),
        Err(error) => {
            tracing::warn!(subject = message.subject, %error, "an instance's record cannot be read");
            None
        }
    }
}
