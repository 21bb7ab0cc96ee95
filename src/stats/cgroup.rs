//! What a cgroup uses, from the files of cgroup v1 and v2. The parsers are pure.

use super::{Io, Memory, Pressure, Stall, Throttling, Usage, Waited};
use crate::sys::cgroup::{Cgroups, Version};
use jiff::Timestamp;

/// Limits from here on are none: the kernel's word on v1 is a number.
const UNLIMITED: u64 = 1 << 62;

/// What the group uses as of `time`, without rates; `None` when there is no such group.
pub(super) fn usage(cgroups: &Cgroups, path: &str, time: Timestamp) -> Option<Usage> {
    let read = |controller: &str, file: &str| cgroups.read(controller, path, file);
    match cgroups.version() {
        Version::V1 => v1(&read, time),
        Version::V2 => v2(&read, time),
    }
}

type Read<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

fn v1(read: Read<'_>, time: Timestamp) -> Option<Usage> {
    let value = |controller: &str, file: &str| read(controller, file).as_deref().and_then(number);
    let stat = read("memory", "memory.stat");
    let usage = value("memory", "memory.usage_in_bytes");
    let memory = stat.as_deref().zip(usage).map(|(stat, usage)| {
        let of = |key| keyed(stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: working_set(usage, of("total_inactive_file"), of("total_rss")),
            rss: of("total_rss"),
            limit: value("memory", "memory.limit_in_bytes").filter(|limit| *limit < UNLIMITED),
            peak: value("memory", "memory.max_usage_in_bytes"),
            cache: of("total_cache"),
            mapped: of("total_mapped_file"),
            failures: value("memory", "memory.failcnt").unwrap_or(0),
            page_faults: of("total_pgfault"),
            major_page_faults: of("total_pgmajfault"),
        }
    });
    let cpu = value("cpuacct", "cpuacct.usage");
    if cpu.is_none() && memory.is_none() {
        return None;
    }
    let both = value("memory", "memory.memsw.limit_in_bytes");
    let swap_limit = both.zip(memory.and_then(|m| m.limit)).map(|(both, alone)| both.saturating_sub(alone));
    let quota = value("cpu", "cpu.cfs_quota_us").filter(|quota| *quota > 0);
    let bytes = read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let operations = read("blkio", "blkio.throttle.io_serviced_recursive");
    Some(Usage {
        time: Some(time),
        cpu_nanoseconds: cpu,
        cpu_user_nanoseconds: value("cpuacct", "cpuacct.usage_user"),
        cpu_system_nanoseconds: value("cpuacct", "cpuacct.usage_sys"),
        cpu_nano_cores: None,
        throttling: quota.zip(read("cpu", "cpu.stat")).map(|(quota_us, stat)| Throttling {
            quota_us,
            period_us: value("cpu", "cpu.cfs_period_us").unwrap_or(0),
            periods: keyed(&stat, "nr_periods").unwrap_or(0),
            throttled_periods: keyed(&stat, "nr_throttled").unwrap_or(0),
            throttled_nanoseconds: keyed(&stat, "throttled_time").unwrap_or(0),
        }),
        memory,
        // What is counted only where swap is accounted for.
        swap_bytes: stat.as_deref().and_then(|stat| keyed(stat, "total_swap")),
        swap_limit: swap_limit.filter(|limit| *limit < UNLIMITED),
        oom_kills: read("memory", "memory.oom_control").as_deref().and_then(|text| keyed(text, "oom_kill")),
        io: bytes.as_deref().zip(operations.as_deref()).map(|(bytes, operations)| Io {
            read_bytes: of_devices(bytes, "Read"),
            written_bytes: of_devices(bytes, "Write"),
            reads: of_devices(operations, "Read"),
            writes: of_devices(operations, "Write"),
        }),
        pressure: None,
        processes: value("pids", "pids.current"),
    })
}

fn v2(read: Read<'_>, time: Timestamp) -> Option<Usage> {
    let value = |controller: &str, file: &str| read(controller, file).as_deref().and_then(number);
    let stat = read("memory", "memory.stat");
    let usage = value("memory", "memory.current");
    let events = read("memory", "memory.events");
    let event = |key| events.as_deref().and_then(|text| keyed(text, key));
    let memory = stat.as_deref().zip(usage).map(|(stat, usage)| {
        let of = |key| keyed(stat, key).unwrap_or(0);
        Memory {
            usage,
            working_set: working_set(usage, of("inactive_file"), of("anon")),
            rss: of("anon"),
            limit: value("memory", "memory.max"),
            peak: value("memory", "memory.peak"),
            cache: of("file"),
            mapped: of("file_mapped"),
            failures: event("max").unwrap_or(0),
            page_faults: of("pgfault"),
            major_page_faults: of("pgmajfault"),
        }
    });
    let cpu = read("cpu", "cpu.stat");
    let micros = |key| cpu.as_deref().and_then(|text| keyed(text, key)).map(|us| us.saturating_mul(1000));
    if cpu.is_none() && memory.is_none() {
        return None;
    }
    let limit = read("cpu", "cpu.max");
    let quota = limit.as_deref().and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some((number(quota)?, number(period)?))
    });
    let stall = |resource: &str| read(resource, &format!("{resource}.pressure")).map(|text| stall(&text));
    Some(Usage {
        time: Some(time),
        cpu_nanoseconds: micros("usage_usec"),
        cpu_user_nanoseconds: micros("user_usec"),
        cpu_system_nanoseconds: micros("system_usec"),
        cpu_nano_cores: None,
        throttling: quota.zip(cpu.as_deref()).map(|((quota_us, period_us), stat)| Throttling {
            quota_us,
            period_us,
            periods: keyed(stat, "nr_periods").unwrap_or(0),
            throttled_periods: keyed(stat, "nr_throttled").unwrap_or(0),
            throttled_nanoseconds: keyed(stat, "throttled_usec").unwrap_or(0).saturating_mul(1000),
        }),
        memory,
        swap_bytes: value("memory", "memory.swap.current"),
        swap_limit: value("memory", "memory.swap.max"),
        oom_kills: event("oom_kill"),
        io: read("io", "io.stat").map(|text| Io {
            read_bytes: of_all(&text, "rbytes"),
            written_bytes: of_all(&text, "wbytes"),
            reads: of_all(&text, "rios"),
            writes: of_all(&text, "wios"),
        }),
        pressure: match (stall("cpu"), stall("memory"), stall("io")) {
            (Some(cpu), Some(memory), Some(io)) => Some(Pressure { cpu, memory, io }),
            _ => None,
        },
        processes: value("pids", "pids.current"),
    })
}

/// As cAdvisor: memory without file pages that nobody used lately; but anonymous memory is in use, whatever counters that
/// are not of one moment make of it.
fn working_set(usage: u64, inactive: u64, anonymous: u64) -> u64 {
    usage.saturating_sub(inactive).max(anonymous.min(usage))
}

/// The number in a file of one value; `None` for `max` and the like.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after a key in a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key).and_then(|(_, v)| number(v)))
}

/// Of `8:0 Read 4096` lines, those of an operation added up over all devices.
fn of_devices(text: &str, operation: &str) -> u64 {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        words.next()?.split_once(':')?;
        words.next().filter(|word| *word == operation)?;
        number(words.next()?)
    };
    text.lines().filter_map(value).fold(0, u64::saturating_add)
}

/// Of `8:0 rbytes=1 wbytes=2` lines, the values of a key added up over all devices.
fn of_all(text: &str, key: &str) -> u64 {
    let value = |word: &str| number(word.split_once('=').filter(|(k, _)| *k == key)?.1);
    text.split_whitespace().filter_map(value).fold(0, u64::saturating_add)
}

/// A `*.pressure` file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full …`.
fn stall(text: &str) -> Stall {
    let of = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key| value(key).and_then(|v| v.parse().ok()).filter(|v: &f64| v.is_finite()).unwrap_or(0.0);
        Waited {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total_us: value("total").and_then(number).unwrap_or(0),
        }
    };
    Stall { some: of("some "), full: of("full ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn files(of: &'static [(&'static str, &'static str)]) -> impl Fn(&str, &str) -> Option<String> {
        move |_, file| of.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn version_1_is_read() {
        let read = files(&[
            ("cpuacct.usage", "5000000000\n"),
            ("cpuacct.usage_user", "3000000000\n"),
            ("cpuacct.usage_sys", "2000000000\n"),
            ("cpu.cfs_quota_us", "50000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 77\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 400\ntotal_rss 500\ntotal_pgfault 9\ntotal_swap 3\n"),
            ("memory.oom_control", "oom_kill_disable 0\noom_kill 2\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("pids.current", "3\n"),
        ]);
        let seen = v1(&read, Timestamp::UNIX_EPOCH).expect("a group");
        assert_eq!((seen.cpu_nanoseconds, seen.cpu_system_nanoseconds), (Some(5_000_000_000), Some(2_000_000_000)));
        let memory = seen.memory.expect("memory");
        assert_eq!((memory.usage, memory.working_set, memory.rss, memory.limit), (1000, 600, 500, None));
        assert_eq!((memory.page_faults, seen.swap_bytes, seen.processes, seen.oom_kills), (9, Some(3), Some(3), Some(2)));
        assert_eq!(seen.throttling.map(|t| (t.quota_us, t.period_us, t.throttled_periods)), Some((50_000, 100_000, 4)));
        assert_eq!(seen.io, Some(Io { read_bytes: 11, written_bytes: 20, reads: 1, writes: 2 }));
        // No limit, no throttling; no group, nothing.
        let read = files(&[("cpuacct.usage", "1\n"), ("cpu.cfs_quota_us", "-1\n"), ("cpu.stat", "nr_periods 0\n")]);
        assert_eq!(v1(&read, Timestamp::UNIX_EPOCH).expect("a group").throttling, None);
        assert_eq!(v1(&files(&[]), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn version_2_is_read() {
        let pressure = "some avg10=1.50 avg60=0.20 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let read: &dyn Fn(&str, &str) -> Option<String> = &|_, file| {
            let text = match file {
                "cpu.stat" => "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\nnr_throttled 1\nthrottled_usec 2\n",
                "cpu.max" => "20000 100000\n",
                "memory.current" => "1000\n",
                "memory.max" => "4096\n",
                "memory.stat" => "anon 700\nfile 300\ninactive_file 400\npgfault 8\n",
                "memory.events" => "max 6\noom_kill 1\n",
                "memory.swap.current" => "0\n",
                "memory.swap.max" => "max\n",
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n",
                "cpu.pressure" | "memory.pressure" | "io.pressure" => pressure,
                "pids.current" => "2\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let seen = v2(read, Timestamp::UNIX_EPOCH).expect("a group");
        assert_eq!((seen.cpu_nanoseconds, seen.cpu_user_nanoseconds), (Some(5000), Some(3000)));
        let memory = seen.memory.expect("memory");
        // Counters of two moments: anonymous memory is in use all the same.
        assert_eq!((memory.working_set, memory.limit, memory.cache, memory.failures), (700, Some(4096), 300, 6));
        assert_eq!((seen.swap_bytes, seen.swap_limit, seen.oom_kills), (Some(0), None, Some(1)));
        assert_eq!(seen.io, Some(Io { read_bytes: 11, written_bytes: 20, reads: 2, writes: 2 }));
        let cpu = seen.pressure.expect("pressure").cpu;
        assert_eq!((cpu.some.total_us, cpu.full.total_us), (1234, 5));
        assert!((cpu.some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!(seen.throttling.map(|t| (t.quota_us, t.throttled_nanoseconds)), Some((20_000, 2000)));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,80}") {
            let read: &dyn Fn(&str, &str) -> Option<String> = &|_, _| Some(text.clone());
            let _ = (v1(read, Timestamp::UNIX_EPOCH), v2(read, Timestamp::UNIX_EPOCH));
        }
    }
}
