//! What an earlier boot of this worker left: instances whose record names them are taken up, everything else is removed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use functions::{CallError, Defined, Known};
use schemas::{Code, FunctionName, Instance, InstanceStatus};

use super::Functions;
use super::make::{self, STOP_GRACE, log_key};
use super::seat::Seat;
use crate::logs::{Activity, LogSink};
use crate::runtime::instances::Found;
use crate::runtime::{Runtime, RuntimeError, Status};

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum AdoptError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("calls cannot be heard: {0}")]
    Deaf(#[from] async_nats::SubscribeError),
}

/// Takes up what is there. Returns once every instance is taken up or removed, and every record of this worker's that
/// nothing stands behind is gone; however long engine and server take.
pub async fn adopt(functions: &Arc<Functions>) {
    loop {
        match once(functions).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "what an earlier boot left cannot be taken up yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A worker that keeps no instances any more owns none: nobody must believe what an earlier boot wrote.
pub async fn disown(functions: Arc<Functions>) {
    if let Some(Err(error)) = functions.leaving.run_until_cancelled(once(&functions)).await {
        // A fleet of an older version has no functions at all.
        tracing::debug!(%error, "instances of an earlier boot are not looked for");
    }
}

async fn once(functions: &Arc<Functions>) -> Result<(), AdoptError> {
    let own = &functions.worker.id;
    let records = functions.caller.instances(None).await?.into_iter().filter(|known| known.instance.worker == *own);
    let mut records: HashMap<(FunctionName, u32), Known> =
        records.map(|known| ((known.instance.function.clone(), known.instance.index), known)).collect();
    for runtime in functions.worker.runtimes.values() {
        let Some(instances) = runtime.instances() else { continue };
        for found in instances.instances().await? {
            if functions.has(&found.function, &found.start) {
                records.remove(&(found.function.clone(), found.index));
                continue;
            }
            let slot = (found.function.clone(), found.index);
            let of_it = records.get(&slot).filter(|known| known.instance.start.as_ref() == Some(&found.start));
            let taken = match of_it {
                Some(known) => take_up(functions, runtime, &found, known).await?,
                None => false,
            };
            if taken {
                records.remove(&slot);
            } else {
                tracing::info!(name = found.name, "an instance that no record names is removed");
                make::remove(runtime, &found.id, STOP_GRACE).await;
            }
        }
    }
    for known in records.into_values() {
        disclaim(functions, &known).await?;
    }
    Ok(())
}

/// Removes a record of this worker's that nothing stands behind. Where another write came first it is somebody else's.
async fn disclaim(functions: &Functions, known: &Known) -> Result<(), CallError> {
    let instance = &known.instance;
    let is_held = instance.start.as_ref().is_some_and(|start| functions.has(&instance.function, start));
    if instance.is_there() && !is_held {
        functions.caller.remove_instance(&instance.function, instance.index, known.revision).await?;
    }
    Ok(())
}

/// Looks whether records of this boot say what it does not hold: a write may have been lost, or come too late.
pub async fn mend(functions: &Functions) {
    let (own, boot) = (&functions.worker.id, &functions.worker.instance);
    let mended = async {
        for known in functions.caller.instances(None).await? {
            if known.instance.worker == *own && known.instance.boot == *boot {
                disclaim(functions, &known).await?;
            }
        }
        Ok::<(), CallError>(())
    };
    if let Err(error) = mended.await {
        tracing::debug!(%error, "records are not compared with what is held now");
    }
}

/// Whether it is one of ours again.
async fn take_up(
    functions: &Arc<Functions>,
    runtime: &Arc<dyn Runtime>,
    found: &Found,
    known: &Known,
) -> Result<bool, AdoptError> {
    let record = &known.instance;
    let _making = functions.make(&found.start);
    let is_wanted = matches!(record.status, InstanceStatus::Ready | InstanceStatus::Paused | InstanceStatus::Left);
    let defined = match functions.caller.definition(&found.function).await {
        Ok(Some(defined)) => defined,
        Ok(None) => return Ok(false),
        // One that a newer version wrote: a worker that can read it takes its instances up.
        Err(CallError::Failed(error)) if error.code == Code::InvalidArgument => {
            tracing::warn!(function = %found.function, error = error.message, "its instance is left alone");
            return Ok(true);
        }
        Err(error) => return Err(error.into()),
    };
    let is_paused = found.status == Status::Paused;
    let runs = is_paused || found.status == Status::Running;
    let Some(ip) = found.address.filter(|_| is_wanted && runs && found.index < defined.function.max) else {
        return Ok(false);
    };
    let address = SocketAddr::new(ip, record.port.unwrap_or(defined.function.port));
    if !is_paused && !is_well(functions, &defined, address).await {
        return Ok(false);
    }
    let record = Instance {
        status: if is_paused { InstanceStatus::Paused } else { InstanceStatus::Ready },
        boot: functions.worker.instance.clone(),
        ip_address: Some(ip.to_string()),
        ..record.clone()
    };
    functions.listen(&defined).await?;
    let Some(revision) = functions.caller.put_instance(&record, known.revision).await? else {
        functions.hush(&defined.name);
        return Ok(false);
    };
    tracing::info!(name = found.name, "an instance of an earlier boot is taken up");
    let limit = defined.function.limits.logs.unwrap_or(functions.worker.config.log_limit);
    let (log, output) = LogSink::open(&functions.worker, &log_key(&defined), &found.start, limit, Activity::default());
    tokio::spawn(log);
    functions.copy_output(runtime, &found.id, output).await;
    functions.seat(&defined, Seat::new(record, revision, found.start.clone(), address, runtime.clone())).await?;
    Ok(true)
}

/// One that is busy may be late once.
async fn is_well(functions: &Functions, defined: &Defined, address: SocketAddr) -> bool {
    for _ in 0..3 {
        match make::look(functions, defined, address).await {
            Ok(()) => return true,
            Err(why) => tracing::debug!(why, "an instance of an earlier boot is not well"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}
