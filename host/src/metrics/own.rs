// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics of this program, `balloon_host_*`.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::Scrape;
use super::sample::VM;
use crate::views::HostView;

type Labels = [(&'static str, String); 1];
type Whole = Gauge<u64, AtomicU64>;
type Fraction = Gauge<f64, AtomicU64>;

/// All of them, in OpenMetrics with its end.
pub(super) fn text(scrape: &Scrape, host: &HostView) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("balloon_host");
    build_info(&mut registry, host);
    daemons(&mut registry, scrape);
    memory(&mut registry, host);
    policy(&mut registry, host);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn build_info(registry: &mut Registry, host: &HostView) {
    let info = family::<Whole>(registry, "build_info", "Version of hostd; 1");
    info.get_or_create(&[("version", host.version.clone())]).set(1);
}

fn daemons(registry: &mut Registry, scrape: &Scrape) {
    let up = family::<Whole>(
        registry,
        "daemon_up",
        "Whether the daemon of this VM answered with its metrics within two seconds",
    );
    let refused = family::<Whole>(
        registry,
        "daemon_refused_lines",
        "Lines of the daemon's metrics that are left out, because no daemon writes such lines",
    );
    for (vm, lines) in &scrape.vms {
        let labels = [(VM, vm.clone())];
        up.get_or_create(&labels).set(u64::from(lines.is_some()));
        if let Some(lines) = lines.filter(|lines| *lines > 0) {
            refused.get_or_create(&labels).set(lines as u64);
        }
    }
    let seconds = Fraction::default();
    seconds.set(scrape.seconds);
    let help = "Time that it took to ask all daemons for this page";
    registry.register_with_unit("scrape", help, Unit::Seconds, seconds);
}

fn memory(registry: &mut Registry, host: &HostView) {
    let bytes = [
        ("memory", "Memory of the host, or the limit of its control group", host.total_bytes),
        ("available", "Memory that is available on the host", host.available_bytes),
    ];
    for (name, help, value) in bytes {
        if let Some(value) = value {
            let gauge = Whole::default();
            gauge.set(value);
            registry.register_with_unit(name, help, Unit::Bytes, gauge);
        }
    }
    if let Some(percent) = host.pressure_percent {
        let gauge = Fraction::default();
        gauge.set(percent / 100.0);
        let help = "Share of the last 10 seconds in which some task waited for memory (PSI)";
        registry.register_with_unit("pressure", help, Unit::Other("ratio".to_owned()), gauge);
    }
}

fn policy(registry: &mut Registry, host: &HostView) {
    let state = family::<Whole>(registry, "state", "What hostd does; 1 for the present state");
    state.get_or_create(&[("state", host.state.clone())]).set(1);
    let Some(policy) = &host.policy else { return };
    let gauge = |value: u64| {
        let gauge = Whole::default();
        gauge.set(value);
        gauge
    };
    registry.register(
        "policy_refused",
        "Whether the policy's file was refused when it was read last",
        gauge(policy.refused.is_some().into()),
    );
    registry.register(
        "dry_run",
        "Whether decisions are shown and not sent",
        gauge(host.dry_run.into()),
    );
    let leases = host.guests.iter().filter(|guest| guest.lease_left_seconds.is_some());
    registry.register("leases", "Guests whose target is leased", gauge(leases.count() as u64));
    let count = |value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        counter
    };
    let help = "Times that the guests were asked for statistics and the policy decided";
    registry.register("rounds", help, count(host.rounds));
    let help = "Targets that a daemon refused, or did not answer";
    registry.register("order_failures", help, count(host.order_failures));
    let orders = family::<Counter<u64>>(registry, "orders", "Targets that were set, by reason");
    for (reason, value) in &host.orders {
        orders.get_or_create(&[("reason", reason.clone())]).inc_by(*value);
    }
}

fn family<M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    M: Clone + Default,
    Family<Labels, M>: Metric,
{
    let family = Family::<Labels, M>::default();
    registry.register(name, help, family.clone());
    family
}
