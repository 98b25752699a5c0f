//! What a scenario costs: etcd by its own `/metrics` and `/proc`, this process by `/proc`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Etcd;

/// Methods of etcd's API that daemons use. A keep-alive and a watch are messages on a stream, so
/// messages are counted, not streams that ended.
const METHODS: [&str; 7] =
    ["Range", "Txn", "Put", "LeaseGrant", "LeaseKeepAlive", "LeaseTimeToLive", "Watch"];

/// What only grows while etcd lives.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counters {
    /// Requests by method.
    pub requests: BTreeMap<&'static str, u64>,
    /// Keys written.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Events sent to watchers, each once per watcher.
    pub events: u64,
    /// Watch messages sent; one may hold many events.
    pub watch_messages: u64,
    /// Bytes sent to clients.
    pub sent_bytes: u64,
    /// Bytes received from clients.
    pub received_bytes: u64,
    /// CPU time of the process.
    pub cpu_seconds: f64,
}

/// How etcd stands at the end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Gauges {
    /// Watchers.
    pub watchers: u64,
    /// Streams that carry them.
    pub watch_streams: u64,
    /// Watchers that lag and read history from the database.
    pub slow_watchers: u64,
    /// Keys.
    pub keys: u64,
    /// Size of the database's file.
    pub database_bytes: u64,
    /// What of it is in use.
    pub database_in_use_bytes: u64,
    /// Memory of the process now.
    pub resident_bytes: u64,
    /// The most it ever was since etcd's last start.
    pub resident_peak_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
}

/// This process: all simulated hosts together, modelled kernels included.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Own {
    /// CPU time.
    pub cpu_seconds: f64,
    /// For how long the thread of all hosts was ready to run and had no CPU: on a busy machine, most of
    /// the time until hosts converge.
    pub waited_seconds: f64,
    /// Memory now.
    pub resident_bytes: u64,
}

/// All of it, from the begin of a scenario to its end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cost {
    /// Seconds.
    pub seconds: f64,
    /// etcd's work, over all its lives in the scenario.
    pub etcd: Counters,
    /// etcd at the end.
    pub etcd_at_end: Gauges,
    /// This process; CPU time in the scenario, memory at its end.
    pub simulator: Own,
}

/// Runs from the begin of a scenario to its end.
#[derive(Debug)]
pub struct Meter {
    begin: tokio::time::Instant,
    etcd: Etcd,
    /// etcd's counters when its present life was first looked at.
    base: Counters,
    /// Its former lives in this scenario.
    former: Counters,
    own: Own,
}

impl Meter {
    /// Begins.
    pub async fn begin(etcd: &Etcd) -> anyhow::Result<Self> {
        let base = sample(etcd).await?.0;
        let begin = tokio::time::Instant::now();
        Ok(Self { begin, etcd: etcd.clone(), base, former: Counters::default(), own: own() })
    }

    /// Requests of all kinds since the begin.
    pub async fn requests(&self) -> anyhow::Result<u64> {
        Ok(sample(&self.etcd).await?.0.minus(&self.base).all_requests())
    }

    /// etcd is about to end: takes what it has counted, and begins anew with its next life.
    pub async fn etcd_ends(&mut self) -> anyhow::Result<()> {
        let now = sample(&self.etcd).await?.0;
        self.former = self.former.plus(&now.minus(&self.base));
        self.base = Counters::default();
        Ok(())
    }

    /// Ends.
    pub async fn end(self) -> anyhow::Result<Cost> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let (counters, etcd_at_end) = sample(&self.etcd).await?;
        let now = own();
        Ok(Cost {
            seconds,
            etcd: self.former.plus(&counters.minus(&self.base)),
            etcd_at_end,
            simulator: Own {
                cpu_seconds: now.cpu_seconds - self.own.cpu_seconds,
                waited_seconds: now.waited_seconds - self.own.waited_seconds,
                resident_bytes: now.resident_bytes,
            },
        })
    }
}

impl Counters {
    /// Requests of all kinds.
    pub fn all_requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// What etcd has written to its log: keys put or deleted, and leases granted.
    pub fn writes(&self) -> u64 {
        self.puts + self.deletes + self.requests.get("LeaseGrant").copied().unwrap_or(0)
    }

    fn merged(&self, other: &Self, with: fn(f64, f64) -> f64) -> Self {
        let whole = |a: u64, b: u64| with(a as f64, b as f64) as u64;
        let of = |c: &Self, method: &str| c.requests.get(method).copied().unwrap_or(0);
        Self {
            requests: METHODS.iter().map(|m| (*m, whole(of(self, m), of(other, m)))).collect(),
            puts: whole(self.puts, other.puts),
            deletes: whole(self.deletes, other.deletes),
            events: whole(self.events, other.events),
            watch_messages: whole(self.watch_messages, other.watch_messages),
            sent_bytes: whole(self.sent_bytes, other.sent_bytes),
            received_bytes: whole(self.received_bytes, other.received_bytes),
            cpu_seconds: with(self.cpu_seconds, other.cpu_seconds),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        self.merged(other, |a, b| a + b)
    }

    fn minus(&self, other: &Self) -> Self {
        self.merged(other, |a, b| a - b)
    }
}

async fn sample(etcd: &Etcd) -> anyhow::Result<(Counters, Gauges)> {
    let text = metrics().await.context("reading etcd's /metrics")?;
    let metrics = Metrics(&text);
    let plain = |name: &str| metrics.sum(name, "") as u64;
    let received = |method: &str| {
        let name = format!("grpc_method=\"{method}\",grpc_service=\"etcdserverpb.");
        metrics.sum("grpc_server_msg_received_total", &name) as u64
    };
    let sent =
        metrics.sum("grpc_server_msg_sent_total", "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.");
    let counters = Counters {
        requests: METHODS.iter().map(|method| (*method, received(method))).collect(),
        puts: plain("etcd_mvcc_put_total"),
        deletes: plain("etcd_mvcc_delete_total"),
        events: plain("etcd_debugging_mvcc_events_total"),
        watch_messages: sent as u64,
        sent_bytes: plain("etcd_network_client_grpc_sent_bytes_total"),
        received_bytes: plain("etcd_network_client_grpc_received_bytes_total"),
        cpu_seconds: metrics.sum("process_cpu_seconds_total", ""),
    };
    let status = etcd.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let gauges = Gauges {
        watchers: plain("etcd_debugging_mvcc_watcher_total"),
        watch_streams: plain("etcd_debugging_mvcc_watch_stream_total"),
        slow_watchers: plain("etcd_debugging_mvcc_slow_watcher_total"),
        keys: plain("etcd_debugging_mvcc_keys_total"),
        database_bytes: plain("etcd_mvcc_db_total_size_in_bytes"),
        database_in_use_bytes: plain("etcd_mvcc_db_total_size_in_use_in_bytes"),
        resident_bytes: plain("process_resident_memory_bytes"),
        resident_peak_bytes: kib_row(&status.unwrap_or_default(), "VmHWM:"),
        open_files: plain("process_open_fds"),
    };
    Ok((counters, gauges))
}

/// `/metrics` of the etcd in this namespace.
async fn metrics() -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((Etcd::ADDRESS, 2379)).await?;
    // HTTP/1.0: the answer is not in chunks, and ends with the connection.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    anyhow::ensure!(answer.starts_with("HTTP/1.0 200"), "{}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}

/// Prometheus' text form: `name{labels} value`.
struct Metrics<'a>(&'a str);

impl Metrics<'_> {
    /// The sum over all rows of a name whose labels contain a text.
    fn sum(&self, name: &str, labels: &str) -> f64 {
        let row = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}')?,
                None => ("", rest),
            };
            let value = value.strip_prefix(' ')?.trim().parse::<f64>().ok()?;
            found.contains(labels).then_some(value)
        };
        self.0.lines().filter_map(row).sum()
    }
}

fn own() -> Own {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Nanoseconds on a CPU, nanoseconds of waiting for one, turns (sched-stats.rst).
    let schedule = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = schedule.split(' ').nth(1).and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
    Own {
        cpu_seconds: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9,
        waited_seconds: waited / 1e9,
        resident_bytes: kib_row(&status, "VmRSS:"),
    }
}

/// Bytes in a row of `/proc/<pid>/status` or `/proc/meminfo`, which count in kB; 0 without such a row.
pub(super) fn kib_row(text: &str, name: &str) -> u64 {
    let row = text.lines().find_map(|line| line.strip_prefix(name));
    let number = row.and_then(|row| row.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_metric_are_summed_by_name_and_label() {
        let metrics = Metrics("# TYPE a counter\na{m=\"x\"} 2\na{m=\"y\"} 3e+00\nab 7\nb 1.5\n");
        assert_eq!((metrics.sum("a", ""), metrics.sum("a", "\"x\""), metrics.sum("b", "")), (5.0, 2.0, 1.5));
    }

    #[test]
    fn a_life_of_etcd_that_ended_still_counts() {
        let life = |puts| Counters { puts, ..Counters::default() };
        assert_eq!(life(9).minus(&life(4)).plus(&life(3)).puts, 8);
    }
}
