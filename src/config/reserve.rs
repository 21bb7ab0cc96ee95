//! What of the node pods do not get, and when the node counts as short of something: `kubeReserved`, `systemReserved`,
//! `evictionHard`, `evictionSoft` and what belongs to them.

use crate::manifest::Quantity;
use std::fmt;
use std::time::Duration;

/// What is set aside for the system (`kubeReserved`, `systemReserved`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// CPU in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Local storage in bytes.
    pub ephemeral_storage: i64,
    /// Process IDs.
    pub pids: i64,
}

impl Reserved {
    /// Adds an amount under the name that `kubeReserved` has for it.
    ///
    /// # Errors
    /// Says what is wrong with the name or the amount.
    pub fn add(&mut self, name: &str, amount: &str) -> Result<(), String> {
        let quantity = Quantity::parse(amount).map_err(|error| format!("{amount:?}: {error}"))?;
        if quantity.is_negative() {
            return Err(format!("{amount:?} is negative"));
        }
        let whole = i64::try_from(quantity.ceil()).unwrap_or(i64::MAX);
        match name {
            "cpu" => self.cpu_milli = i64::try_from(quantity.milli_ceil()).unwrap_or(i64::MAX),
            "memory" => self.memory = whole,
            "ephemeral-storage" => self.ephemeral_storage = whole,
            "pid" => self.pids = whole,
            // As kubelet.
            _ => return Err(format!("cannot reserve {name:?}: want cpu, memory, ephemeral-storage or pid")),
        }
        Ok(())
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Reserved) -> Reserved {
        Reserved {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory: self.memory.saturating_add(other.memory),
            ephemeral_storage: self.ephemeral_storage.saturating_add(other.ephemeral_storage),
            pids: self.pids.saturating_add(other.pids),
        }
    }
}

/// Something the node can run short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that could be had at once.
    MemoryAvailable,
    /// What pods may still take of the memory that they may have together.
    AllocatableMemoryAvailable,
    /// Bytes of the file system with the pods.
    NodefsAvailable,
    /// Inodes of the file system with the pods.
    NodefsInodesFree,
    /// Bytes of the file system with the images.
    ImagefsAvailable,
    /// Inodes of the file system with the images.
    ImagefsInodesFree,
    /// Process IDs.
    PidAvailable,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 7] = [
        Signal::MemoryAvailable,
        Signal::AllocatableMemoryAvailable,
        Signal::NodefsAvailable,
        Signal::NodefsInodesFree,
        Signal::ImagefsAvailable,
        Signal::ImagefsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in `evictionHard`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::AllocatableMemoryAvailable => "allocatableMemory.available",
            Signal::NodefsAvailable => "nodefs.available",
            Signal::NodefsInodesFree => "nodefs.inodesFree",
            Signal::ImagefsAvailable => "imagefs.available",
            Signal::ImagefsInodesFree => "imagefs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much must be left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// In bytes or pieces.
    Absolute(i64),
    /// Share of the capacity, 0.0 to 1.0.
    Share(f64),
}

impl Amount {
    /// Reads a quantity (`100Mi`) or a percentage (`10%`).
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Amount, String> {
        if let Some(percent) = text.strip_suffix('%') {
            let plain = !percent.is_empty() && percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            let value = percent.parse::<f64>().ok().filter(|v| plain && (0.0..=100.0).contains(v));
            return match value {
                Some(value) => Ok(Amount::Share(value / 100.0)),
                None => Err(format!("{text:?} is not a percentage between 0% and 100%")),
            };
        }
        let quantity = Quantity::parse(text).map_err(|error| format!("{text:?}: {error}"))?;
        if quantity.is_negative() {
            return Err(format!("{text:?} is negative"));
        }
        Ok(Amount::Absolute(i64::try_from(quantity.ceil()).unwrap_or(i64::MAX)))
    }

    /// In units, given how many there are in all.
    #[must_use]
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Amount::Absolute(value) => value,
            // As kubelet: rounded down. A capacity beyond 2^53 is no number of bytes or inodes on any machine.
            Amount::Share(share) => (capacity as f64 * share) as i64,
        }
    }

    /// As kubelet: a threshold of 0 or 0% turns the signal off, 100% too.
    fn is_off(self) -> bool {
        match self {
            Amount::Absolute(value) => value == 0,
            Amount::Share(share) => share == 0.0 || share >= 1.0,
        }
    }
}

/// When the node is short of something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// Less than this is too little.
    pub least: Amount,
    /// How long it may be so (`evictionSoftGracePeriod`); `None` for a hard threshold: not at all.
    pub grace: Option<Duration>,
    /// How much more must be free before it is over (`evictionMinimumReclaim`).
    pub reclaim: Option<Amount>,
}

impl Threshold {
    /// A hard one.
    #[must_use]
    pub fn hard(signal: Signal, least: Amount) -> Threshold {
        Threshold { signal, least, grace: None, reclaim: None }
    }
}

/// All about running short.
#[derive(Debug, Clone, PartialEq)]
pub struct Eviction {
    /// Hard ones first.
    pub thresholds: Vec<Threshold>,
    /// How long a node condition stays after its cause has gone.
    pub pressure_transition: Duration,
    /// Longest grace in seconds of a pod that leaves because of a soft threshold.
    pub max_pod_grace_seconds: u64,
}

impl Default for Eviction {
    /// As kubelet on Linux.
    fn default() -> Eviction {
        Eviction {
            thresholds: DEFAULT_HARD.map(|(signal, least)| Threshold::hard(signal, least)).to_vec(),
            pressure_transition: Duration::from_secs(300),
            max_pod_grace_seconds: 0,
        }
    }
}

impl Eviction {
    /// As kubelet where the cgroup of all pods is limited: what has to be left of the machine's memory has to be left of
    /// the pods', too.
    #[must_use]
    pub fn with_memory_of_pods(mut self) -> Eviction {
        let of_pods = |t: &&Threshold| t.signal == Signal::MemoryAvailable && t.grace.is_none();
        let added = self.thresholds.iter().filter(of_pods);
        let added = added.map(|t| Threshold { signal: Signal::AllocatableMemoryAvailable, ..*t });
        self.thresholds.extend(added.collect::<Vec<_>>());
        self
    }
}

const DEFAULT_HARD: [(Signal, Amount); 5] = [
    (Signal::MemoryAvailable, Amount::Absolute(100 << 20)),
    (Signal::NodefsAvailable, Amount::Share(0.10)),
    (Signal::NodefsInodesFree, Amount::Share(0.05)),
    (Signal::ImagefsAvailable, Amount::Share(0.15)),
    (Signal::ImagefsInodesFree, Amount::Share(0.05)),
];

/// The maps of the file: signal name and value, in the file's order. `None`: the field is absent.
#[derive(Debug, Default)]
pub(super) struct Maps<'a> {
    pub hard: Option<Vec<(&'a str, &'a str)>>,
    pub soft: Vec<(&'a str, &'a str)>,
    pub soft_grace: Vec<(&'a str, &'a str)>,
    pub reclaim: Vec<(&'a str, &'a str)>,
    pub merge_defaults: bool,
}

/// The thresholds that the maps describe; the error has the name of the field and of the signal.
pub(super) fn thresholds(maps: &Maps<'_>) -> Result<Vec<Threshold>, (&'static str, String)> {
    let mut all: Vec<Threshold> = Vec::new();
    let given = read(maps.hard.as_deref().unwrap_or_default()).map_err(|e| ("evictionHard", e))?;
    for (signal, least) in DEFAULT_HARD {
        // As kubelet: a map that is there replaces the defaults as a whole, unless asked to be merged with them.
        if (maps.hard.is_none() || maps.merge_defaults) && !given.iter().any(|(s, _)| *s == signal) {
            all.push(Threshold::hard(signal, least));
        }
    }
    all.extend(given.into_iter().map(|(signal, least)| Threshold::hard(signal, least)));
    let soft = read(&maps.soft).map_err(|e| ("evictionSoft", e))?;
    for (signal, least) in soft {
        let grace = maps.soft_grace.iter().find(|(name, _)| *name == signal.as_str());
        let Some((_, text)) = grace else {
            return Err(("evictionSoft", format!("{signal}: evictionSoftGracePeriod has no grace for it")));
        };
        let grace =
            crate::manifest::duration(text).map_err(|e| ("evictionSoftGracePeriod", format!("{signal}: {e}")))?;
        all.push(Threshold { grace: Some(grace), ..Threshold::hard(signal, least) });
    }
    for (name, _) in &maps.soft_grace {
        signal_of(name).map_err(|e| ("evictionSoftGracePeriod", e))?;
    }
    for (signal, amount) in read(&maps.reclaim).map_err(|e| ("evictionMinimumReclaim", e))? {
        for threshold in all.iter_mut().filter(|t| t.signal == signal) {
            threshold.reclaim = Some(amount);
        }
    }
    all.retain(|t| !t.least.is_off());
    Ok(all)
}

fn signal_of(name: &str) -> Result<Signal, String> {
    // As kubelet: containerfs cannot be set by hand; what it says is that of nodefs or imagefs.
    let signal = Signal::ALL.into_iter().find(|s| s.as_str() == name);
    signal.ok_or_else(|| format!("{name:?} is not an eviction signal"))
}

fn read(map: &[(&str, &str)]) -> Result<Vec<(Signal, Amount)>, String> {
    let mut all = Vec::new();
    for (name, text) in map {
        let amount = Amount::parse(text).map_err(|e| format!("{name}: {e}"))?;
        all.push((signal_of(name)?, amount));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts() {
        assert_eq!(Amount::parse("100Mi"), Ok(Amount::Absolute(100 << 20)));
        assert_eq!(Amount::parse("10%").map(|a| a.of(1005)), Ok(100));
        assert_eq!(Amount::parse("0.5%").map(|a| a.of(1000)), Ok(5));
        for bad in ["", "%", "-1%", "101%", "1e1%", "inf%", "-5", "ten"] {
            assert!(Amount::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_partial_map_replaces_the_defaults_unless_merged() {
        let memory = vec![("memory.available", "1Gi")];
        let replaced = thresholds(&Maps { hard: Some(memory.clone()), ..Maps::default() }).unwrap();
        assert_eq!(replaced, [Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(1 << 30))]);
        let merged = thresholds(&Maps { hard: Some(memory), merge_defaults: true, ..Maps::default() }).unwrap();
        assert_eq!(merged.len(), 5);
        assert_eq!(thresholds(&Maps::default()).unwrap(), Eviction::default().thresholds);
        // 0% turns a signal off.
        let off = thresholds(&Maps { hard: Some(vec![("nodefs.available", "0%")]), ..Maps::default() }).unwrap();
        assert_eq!(off, []);
    }

    #[test]
    fn soft_thresholds_need_a_grace() {
        let maps = Maps { soft: vec![("memory.available", "1Gi")], hard: Some(vec![]), ..Maps::default() };
        let (field, reason) = thresholds(&maps).unwrap_err();
        assert_eq!((field, reason.contains("evictionSoftGracePeriod")), ("evictionSoft", true));
        let maps =
            Maps { soft_grace: vec![("memory.available", "90s")], reclaim: vec![("memory.available", "5%")], ..maps };
        let expected = Threshold {
            signal: Signal::MemoryAvailable,
            least: Amount::Absolute(1 << 30),
            grace: Some(Duration::from_secs(90)),
            reclaim: Some(Amount::Share(0.05)),
        };
        assert_eq!(thresholds(&maps), Ok(vec![expected]));
        let unknown = thresholds(&Maps { hard: Some(vec![("memory.free", "1")]), ..Maps::default() });
        assert_eq!(unknown.unwrap_err().1, "\"memory.free\" is not an eviction signal");
    }

    #[test]
    fn what_can_be_reserved() {
        let mut reserved = Reserved::default();
        for (name, amount) in [("cpu", "250m"), ("memory", "1Gi"), ("ephemeral-storage", "2G"), ("pid", "1000")] {
            reserved.add(name, amount).unwrap();
        }
        let expected = Reserved { cpu_milli: 250, memory: 1 << 30, ephemeral_storage: 2_000_000_000, pids: 1000 };
        assert_eq!(reserved, expected);
        assert_eq!(reserved.plus(reserved).cpu_milli, 500);
        assert!(reserved.add("gpu", "1").is_err() && reserved.add("cpu", "-1").is_err());
    }

    #[test]
    fn what_pods_may_still_take_can_be_watched() {
        let hard = Some(vec![("allocatableMemory.available", "5%")]);
        let found = thresholds(&Maps { hard, ..Maps::default() }).unwrap();
        assert_eq!(found, [Threshold::hard(Signal::AllocatableMemoryAvailable, Amount::Share(0.05))]);
        let all = Eviction::default().with_memory_of_pods().thresholds;
        assert_eq!(all.len(), 6);
        assert_eq!(all[5], Threshold::hard(Signal::AllocatableMemoryAvailable, Amount::Absolute(100 << 20)));
    }

    proptest! {
        #[test]
        fn amounts_never_panic(text in "\\PC{0,20}", capacity in any::<i64>()) {
            if let Ok(amount) = Amount::parse(&text) {
                let _ = amount.of(capacity);
            }
        }
    }
}
