//! What the stores on the server are made like: shared by worker, dispatcher, `up`, `admin apply` and `queues`.

use clap::Args;
use schemas::stores::{Storage, StoreSettings};
use schemas::{Bytes, HumanDuration};

use super::Error;

/// Settings of streams and buckets.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Stores, where they are made or upgraded")]
pub struct Stores {
    /// Copies of every stream and bucket
    #[arg(long, env = "SHOAL_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,
    /// Where they live: file or memory
    #[arg(long, env = "SHOAL_STORAGE", default_value = "file")]
    pub storage: Storage,
    /// How long log lines stay
    #[arg(long, env = "SHOAL_LOGS_KEPT", default_value = "3d", value_name = "DURATION")]
    pub logs_kept: HumanDuration,
    /// How many bytes of log stay
    #[arg(long, env = "SHOAL_LOGS_BYTES", default_value = "10Gi", value_name = "SIZE")]
    pub logs_bytes: Bytes,
    /// How long dead letters stay
    #[arg(long, env = "SHOAL_DEAD_KEPT", default_value = "30d", value_name = "DURATION")]
    pub dead_kept: HumanDuration,
    /// How long artifacts and large results stay
    #[arg(long, env = "SHOAL_ARTIFACTS_KEPT", default_value = "7d", value_name = "DURATION")]
    pub artifacts_kept: HumanDuration,
    /// Lease of a delivery, in queues not made yet: a lost worker's tasks run elsewhere after this
    #[arg(long, env = "SHOAL_ACK_WAIT", default_value = "15s", value_name = "DURATION")]
    pub ack_wait: HumanDuration,
}

impl Stores {
    /// Checked settings.
    pub fn settings(&self) -> Result<StoreSettings, Error> {
        let second = HumanDuration::seconds(1);
        for (flag, value) in [
            ("--ack-wait", self.ack_wait),
            ("--logs-kept", self.logs_kept),
            ("--dead-kept", self.dead_kept),
            ("--artifacts-kept", self.artifacts_kept),
        ] {
            if value < second {
                return Err(Error::usage(format!("{flag} is {value}; it must be at least 1s"), format!("{flag} 15s")));
            }
        }
        if self.logs_bytes.0 == 0 {
            return Err(Error::usage("--logs-bytes is 0; it must be more", "--logs-bytes 10Gi"));
        }
        Ok(StoreSettings {
            replicas: self.replicas,
            storage: self.storage,
            logs_kept: self.logs_kept,
            logs_bytes: self.logs_bytes,
            dead_kept: self.dead_kept,
            artifacts_kept: self.artifacts_kept,
            ack_wait: self.ack_wait,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        stores: Stores,
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let stores = Probe::try_parse_from(["probe"]).unwrap().stores;
        assert_eq!(stores.settings().unwrap(), StoreSettings::default());
    }

    #[test]
    fn a_lease_below_a_second_is_refused() {
        let stores = Probe::try_parse_from(["probe", "--ack-wait", "500ms"]).unwrap().stores;
        assert!(stores.settings().unwrap_err().to_string().contains("--ack-wait"));
    }
}
