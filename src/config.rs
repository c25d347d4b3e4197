//! Settings: one typed tree, from defaults, then a file, then `NESTBOX_*`, then flags.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::domain::rates::{InvalidRate, RateLimits};
use clap::{Args, ValueEnum};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// Read if it is there and no other file is named.
const DEFAULT_FILE: &str = "/etc/nestbox/config.toml";

/// The most of a kind that is kept ready. Each takes memory, a network or both.
const MOST_READY: usize = 256;

/// Seconds that a guest may be given to start.
const BOOT_TIMEOUTS: RangeInclusive<u64> = 1..=3600;

/// Seconds after which a hypervisor counts as hung: with fewer a busy host would end healthy VMs.
const VMM_TIMEOUTS: RangeInclusive<u64> = 5..=86_400;

/// Users of VMs may begin here: those below are people, services and dynamic users of the system.
/// The last one leaves room for one for each slot.
const VM_UIDS: RangeInclusive<u32> = 65_536..=4_000_000_000;

/// Questions for names a second.
const DNS_RATES: RangeInclusive<u32> = 1..=10_000;

/// Which hypervisor to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorChoice {
    /// The best one that works here.
    Auto,
    /// Firecracker, which needs hardware virtualization.
    Firecracker,
    /// QEMU, in software if need be.
    Qemu,
}

/// Whether a hypervisor sees a file system of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JailerChoice {
    /// It does, Firecracker by its jailer, and is not used without.
    On,
    /// It does not: it still has a user, a network and limits of its own, but sees the host's files.
    Off,
}

/// Something that confines a VM and that not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wall {
    /// A limit on memory, by its cgroup.
    Memory,
    /// A limit on processes and threads, by its cgroup.
    Pids,
    /// A limit on processor time, by its cgroup.
    Cpu,
    /// No devices but those it needs, by its cgroup.
    Devices,
    /// A filter of system calls.
    Seccomp,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that can be set. Each field is also an environment variable (`NESTBOX_` and its name
/// in capitals), a flag and a line of the config file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port of the API; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Servers in sandboxes are at `{port}-{id}.{domain}`; nowhere by name if empty.
    pub domain: String,
    /// More names by which people reach this daemon. It answers to no others.
    #[serde(deserialize_with = "names")]
    pub host_names: Vec<String>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// `postgres://...`, or the path of an SQLite file; `nestbox.db` in the data directory if absent.
    pub database_url: Option<String>,
    /// Which hypervisor to use.
    pub hypervisor: HypervisorChoice,
    /// The Firecracker program; the one on `PATH` if absent.
    pub firecracker: Option<PathBuf>,
    /// Whether a hypervisor sees a file system of its own; Firecracker's jailer is looked for beside it.
    pub jailer: JailerChoice,
    /// What VMs may do without where this host does not have it.
    #[serde(deserialize_with = "names")]
    pub allow_missing: Vec<Wall>,
    /// Where images are kept; `images` in the data directory if absent.
    pub image_dir: Option<PathBuf>,
    /// Memory in MiB that sandboxes leave to the host; a twentieth of it, at least 256, if absent.
    pub memory_reserve_mib: Option<u64>,
    /// Whether sandboxes reach private networks without a rule about them.
    pub allow_lan: bool,
    /// Questions for names that are answered to each sandbox with rules about names, a second.
    pub dns_rate: u32,
    /// Bytes that a sandbox reads from its disk and writes to it a second, at most; no limit if absent.
    pub disk_bytes_per_sec: Option<u64>,
    /// Reads and writes of its disk a second, at most; no limit if absent.
    pub disk_ops_per_sec: Option<u64>,
    /// Bytes that it sends, and as many that it receives, a second, at most; no limit if absent.
    pub network_bytes_per_sec: Option<u64>,
    /// Network slots that are kept ready.
    pub slot_pool: usize,
    /// Sandboxes that are ready before anybody asks for them; 0 for none.
    pub standbys: usize,
    /// Firecrackers that wait for a snapshot; 0 for none.
    pub vmm_pool: usize,
    /// The first of the users that VMs run as; each has one of its own, by the number of its slot.
    pub vm_uid_base: u32,
    /// Seconds that a guest has to start.
    pub boot_timeout_sec: u64,
    /// Seconds after which a VM is ended whose hypervisor does not answer; 0 for never.
    pub vmm_timeout_sec: u64,
    /// A step that fails once, for tests, such as `frozen=kill-vm`.
    pub fault: Option<String>,
    /// What is logged, as `tracing` filter directives.
    pub log: String,
    /// How the log is written.
    pub log_format: LogFormat,
    /// The collector that gets traces, such as `http://127.0.0.1:4318`: OTLP over HTTP. None gets
    /// them if absent.
    pub otlp_endpoint: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            domain: "localhost".to_owned(),
            host_names: Vec::new(),
            data_dir: PathBuf::from("/var/lib/nestbox"),
            database_url: None,
            hypervisor: HypervisorChoice::Auto,
            firecracker: None,
            jailer: JailerChoice::On,
            allow_missing: Vec::new(),
            image_dir: None,
            memory_reserve_mib: None,
            allow_lan: false,
            dns_rate: 100,
            disk_bytes_per_sec: None,
            disk_ops_per_sec: None,
            network_bytes_per_sec: None,
            slot_pool: 8,
            standbys: 2,
            vmm_pool: 1,
            vm_uid_base: 700_000,
            boot_timeout_sec: 60,
            vmm_timeout_sec: 120,
            fault: None,
            log: "info,actix_server=warn,actix_http=off,sea_orm_migration=warn".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
        }
    }
}

/// Settings from the command line; what is not given comes from elsewhere.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct ConfigArgs {
    /// Config file (TOML) [default: /etc/nestbox/config.toml, if it is there]
    #[arg(long, env = "NESTBOX_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address and port of the API; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Servers in sandboxes are at {port}-{id}.DOMAIN [default: localhost]
    #[arg(long, value_name = "DOMAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// A name by which people reach this daemon, such as that of a proxy before it; may be repeated
    #[arg(long = "host-name", value_name = "NAME", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_names: Vec<String>,
    /// `postgres://...` or the path of an SQLite file [default: nestbox.db in the data directory]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    /// Which hypervisor to use [default: auto]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<HypervisorChoice>,
    /// The Firecracker program [default: the one on PATH]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firecracker: Option<PathBuf>,
    /// Whether Firecracker runs in its jailer, and QEMU in a root of its own [default: on]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jailer: Option<JailerChoice>,
    /// What VMs may do without where this host does not have it; `nestbox doctor` says what it lacks
    #[arg(long, value_enum, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_missing: Vec<Wall>,
    /// Where images are kept [default: images in the data directory]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dir: Option<PathBuf>,
    /// Memory in MiB that sandboxes leave to the host [default: a twentieth, at least 256]
    #[arg(long, value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reserve_mib: Option<u64>,
    /// Let sandboxes reach private networks (10.0.0.0/8, 192.168.0.0/16 and the like) unless their
    /// policies deny them; else only those that a policy allows [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_lan: Option<bool>,
    /// Questions for names that a sandbox with rules about names may ask a second [default: 100]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_rate: Option<u32>,
    /// Bytes that a sandbox reads from its disk and writes to it a second, at most [default: no limit]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_sec: Option<u64>,
    /// Reads and writes of its disk a second, at most [default: no limit]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_ops_per_sec: Option<u64>,
    /// Bytes that a sandbox sends, and as many that it receives, a second, at most [default: no limit]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_bytes_per_sec: Option<u64>,
    /// Network slots that are kept ready [default: 8, at most 256]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_pool: Option<usize>,
    /// Sandboxes that are ready before anybody asks for them [default: 2, at most 256]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standbys: Option<usize>,
    /// Firecrackers that wait for a snapshot [default: 1, at most 256]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm_pool: Option<usize>,
    /// First of the users that VMs run as, one for each slot [default: 700000]
    #[arg(long, value_name = "UID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_uid_base: Option<u32>,
    /// A step that fails once, for tests
    #[arg(long, value_name = "STEP=ACTION", hide = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Seconds that a guest has to start [default: 60, at most 3600]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_timeout_sec: Option<u64>,
    /// Seconds after which a VM is ended whose hypervisor does not answer; 0 for never [default: 120]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm_timeout_sec: Option<u64>,
    /// What is logged, as `tracing` filter directives [default: info]
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How the log is written [default: text]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Collector that gets traces, OTLP over HTTP, such as http://127.0.0.1:4318 [default: none]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

/// The settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("there is no config file {0}")]
    NoFile(PathBuf),
    /// A value is wrong, or a name unknown; the source says which and where it came from.
    #[error("the settings cannot be read")]
    Read(#[source] Box<figment::Error>),
    /// More are to be kept ready than makes sense.
    #[error("{name} is {count}: at most {MOST_READY} are kept ready")]
    TooMany {
        /// The setting.
        name: &'static str,
        /// What it was set to.
        count: usize,
    },
    /// No guest could start, or nobody would learn that one does not.
    #[error("boot_timeout_sec is {0}: a guest has {min} to {max} seconds to start",
        min = BOOT_TIMEOUTS.start(), max = BOOT_TIMEOUTS.end())]
    BootTimeout(u64),
    /// Healthy VMs would be ended, or hung ones never.
    #[error("vmm_timeout_sec is {0}: it is {min} to {max}, or 0 for never",
        min = VMM_TIMEOUTS.start(), max = VMM_TIMEOUTS.end())]
    VmmTimeout(u64),
    /// Users of VMs would be those of the system.
    #[error("vm_uid_base is {0}: the users of VMs begin from {min} to {max}",
        min = VM_UIDS.start(), max = VM_UIDS.end())]
    VmUidBase(u32),
    /// No `Host` of a request could be this.
    #[error("{0:?} in host_names is no name of a host: give it without scheme, port and slashes")]
    HostName(String),
    /// No name could be looked up, or more than anybody needs.
    #[error("dns_rate is {0}: a sandbox asks for {min} to {max} names a second",
        min = DNS_RATES.start(), max = DNS_RATES.end())]
    DnsRate(u32),
    /// Nobody could work with that, or it cannot be enforced.
    #[error(transparent)]
    Rates(#[from] InvalidRate),
}

impl Config {
    /// Puts the settings together. `data_dir` comes from its own flag, which all verbs have.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting, and where it came from if it cannot be read.
    pub fn load(args: &ConfigArgs, data_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        match &args.config {
            Some(file) if !file.is_file() => return Err(ConfigError::NoFile(file.clone())),
            Some(file) => figment = figment.merge(Toml::file_exact(file)),
            None if Path::new(DEFAULT_FILE).is_file() => {
                figment = figment.merge(Toml::file_exact(DEFAULT_FILE));
            }
            None => {}
        }
        // Only our own names: NESTBOX_URL and NESTBOX_API_KEY are the client's.
        let names: Vec<String> = field_names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        figment = figment.merge(Env::prefixed("NESTBOX_").only(&names));
        figment = figment.merge(Serialized::defaults(args));
        if let Some(dir) = data_dir {
            figment = figment.merge(Serialized::default("data_dir", dir));
        }
        let mut config: Self =
            figment.extract().map_err(|error| ConfigError::Read(Box::new(error)))?;
        config.check()?;
        // Paths are kept beyond the working directory of today.
        config.data_dir = absolute(&config.data_dir);
        config.image_dir = config.image_dir.map(|dir| absolute(&dir));
        config.firecracker = config.firecracker.map(|program| absolute(&program));
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let ready = [
            ("slot_pool", self.slot_pool),
            ("standbys", self.standbys),
            ("vmm_pool", self.vmm_pool),
        ];
        if let Some((name, count)) = ready.into_iter().find(|(_, count)| *count > MOST_READY) {
            return Err(ConfigError::TooMany { name, count });
        }
        if !VM_UIDS.contains(&self.vm_uid_base) {
            return Err(ConfigError::VmUidBase(self.vm_uid_base));
        }
        if let Some(name) = self.host_names.iter().find(|name| !is_host_name(name)) {
            return Err(ConfigError::HostName(name.clone()));
        }
        if !BOOT_TIMEOUTS.contains(&self.boot_timeout_sec) {
            return Err(ConfigError::BootTimeout(self.boot_timeout_sec));
        }
        self.rates()?;
        if self.vmm_timeout_sec != 0 && !VMM_TIMEOUTS.contains(&self.vmm_timeout_sec) {
            return Err(ConfigError::VmmTimeout(self.vmm_timeout_sec));
        }
        match DNS_RATES.contains(&self.dns_rate) {
            true => Ok(()),
            false => Err(ConfigError::DnsRate(self.dns_rate)),
        }
    }

    /// How fast a sandbox is at most.
    ///
    /// # Errors
    ///
    /// [`InvalidRate`].
    pub fn rates(&self) -> Result<RateLimits, InvalidRate> {
        RateLimits::new(self.disk_bytes_per_sec, self.disk_ops_per_sec, self.network_bytes_per_sec)
    }

    /// Where images are kept.
    pub fn image_dir(&self) -> PathBuf {
        self.image_dir.clone().unwrap_or_else(|| self.data_dir.join("images"))
    }

    /// Where the database is.
    pub fn database_location(&self) -> String {
        let default = || self.data_dir.join("nestbox.db").display().to_string();
        self.database_url.clone().unwrap_or_else(default)
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Letters, digits, dots and hyphens: what a DNS name is made of.
fn is_host_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !name.is_empty() && name.bytes().all(plain)
}

/// Names as a list, or in one text with commas between them, as in an environment variable.
fn names<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        Text(String),
        List(Vec<String>),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(list) => list,
        Names::Text(text) => {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        }
    };
    let each = names.into_iter().map(|name| T::deserialize(name.into_deserializer()));
    each.collect::<Result<_, serde::de::value::Error>>().map_err(D::Error::custom)
}

/// The names of all settings, from the type itself.
fn field_names() -> Vec<String> {
    let value = serde_json::to_value(Config::default()).expect("settings are plain data");
    let object = value.as_object().expect("settings are a struct");
    object.keys().cloned().collect()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
