//! What `/proc` tells of the machine, its processes and its interfaces. Pure.

use super::{Interface, Memory};
use jiff::Timestamp;

/// The interfaces of `/proc/net/dev`, in its order, but those that carry nothing from outside (as cAdvisor: the loopback
/// device, and pairs that lead to containers, whose traffic would count twice).
pub(super) fn interfaces(text: &str) -> Vec<Interface> {
    let one = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            counters[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some(Interface {
            name,
            rx_bytes,
            rx_errors,
            rx_packets,
            rx_dropped,
            tx_bytes,
            tx_errors,
            tx_packets,
            tx_dropped,
        })
    };
    let from_outside = |i: &Interface| i.name != "lo" && !["veth", "docker"].iter().any(|kind| i.name.starts_with(kind));
    text.lines().filter_map(one).filter(from_outside).collect()
}

/// The interface of the default route, by `/proc/net/route`.
pub(super) fn default_interface(text: &str) -> Option<&str> {
    text.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        (words.next()? == "00000000").then_some(name)
    })
}

/// The machine's memory by `/proc/meminfo` and `/proc/vmstat`; and swap: in use, and all of it.
pub(super) fn memory(meminfo: &str, vmstat: &str) -> Option<(Memory, (u64, u64))> {
    let value = |key: &str| {
        let rest = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let counted = |key: &str| {
        let value = |line: &str| line.split_once(' ').filter(|(k, _)| *k == key)?.1.trim().parse::<u64>().ok();
        vmstat.lines().find_map(value).unwrap_or(0)
    };
    let of = |key| value(key).unwrap_or(0);
    let (total, free) = (value("MemTotal")?, value("MemFree")?);
    let usage = total.saturating_sub(free);
    let memory = Memory {
        usage,
        // As the eviction's signal: what is neither free nor quickly dropped.
        working_set: usage.saturating_sub(of("Inactive(file)")),
        rss: of("AnonPages"),
        limit: Some(total),
        peak: None,
        cache: of("Cached"),
        mapped: of("Mapped"),
        failures: 0,
        page_faults: counted("pgfault"),
        major_page_faults: counted("pgmajfault"),
    };
    let swap = of("SwapTotal");
    Some((memory, (swap.saturating_sub(of("SwapFree")), swap)))
}

/// CPU time of the machine in nanoseconds, by `/proc/stat`: what was neither idle nor waited for disks; a tick has
/// `tick_ns`.
pub(super) fn cpu(stat: &str, tick_ns: u64) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq: guests are in user already.
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else { return None };
    let busy = [user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add);
    Some(busy.saturating_mul(tick_ns))
}

/// When the machine was started, by `/proc/stat`.
pub(super) fn boot(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The number of tasks in `/proc/loadavg` (`0.1 0.2 0.3 1/234 5678`).
pub(super) fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Of a process' `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// CPU time by programs, in ticks.
    pub user: u64,
    /// CPU time by the kernel, in ticks.
    pub system: u64,
    /// Threads.
    pub threads: u64,
    /// When it was started, in ticks since the boot.
    pub started: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
}

/// Reads `/proc/<pid>/stat`; the name in it may hold anything.
pub(super) fn process(stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let at = |index: usize| words.get(index)?.parse::<u64>().ok();
    // The third field of proc(5) is the first here.
    Some(Process {
        minor_faults: at(7)?,
        major_faults: at(9)?,
        user: at(11)?,
        system: at(12)?,
        threads: at(17)?,
        started: at(19)?,
    })
}

/// Bytes after a key of `/proc/<pid>/status` or `smaps_rollup`, which are in `kB`.
pub(super) fn kib(status: &str, key: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn interfaces_and_their_default() {
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets errs|bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n\
                    veth12: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n  eth0:1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let seen = interfaces(text);
        assert_eq!(seen.len(), 1);
        let eth0 = &seen[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped), ("eth0", 1, 2, 3, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (5, 6, 7, 8));
        let routes = "Iface\tDestination\tGateway\nbr0\t0000A8C0\t0\nens3\t00000000\t0100A8C0\n";
        assert_eq!(default_interface(routes), Some("ens3"));
    }

    #[test]
    fn the_machine() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 100 kB\nInactive(file): 50 kB\nAnonPages: 300 kB\nSwapTotal: 9 kB\nSwapFree: 4 kB\n";
        let (memory, swap) = memory(meminfo, "pgfault 7\npgmajfault 2\n").expect("memory");
        assert_eq!((memory.usage, memory.working_set, memory.rss), (900 << 10, 850 << 10, 300 << 10));
        assert_eq!((memory.page_faults, memory.major_page_faults, swap), (7, 2, (5 << 10, 9 << 10)));
        let stat = "cpu  10 1 5 1000 50 2 3 0 0 0\ncpu0 1\nbtime 1700000000\n";
        assert_eq!(cpu(stat, 10_000_000), Some(210_000_000));
        assert_eq!(boot(stat).map(|at| at.as_second()), Some(1_700_000_000));
        assert_eq!(tasks("0.00 0.01 0.05 2/345 6789\n"), Some(345));
        let own = process("7 (a) b (c) S 1 2 3 4 5 6 70 8 90 10 11 12 13 14 15 16 17 18 19 20\n").expect("a process");
        assert_eq!((own.minor_faults, own.user, own.system, own.threads, own.started), (70, 11, 12, 17, 19));
        assert_eq!(kib("VmRSS:\t  12 kB\n", "VmRSS"), Some(12 << 10));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,80}") {
            let _ = (interfaces(&text), default_interface(&text).is_some(), memory(&text, &text), cpu(&text, 1));
            let _ = (boot(&text), tasks(&text), process(&text), kib(&text, "a"));
        }
    }
}
