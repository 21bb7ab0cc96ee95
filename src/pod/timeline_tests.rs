//! The life of a pod with everything, from its start to its removal, as one list of actions.

use super::world::{World, at, pod};
use super::*;
use expect_test::expect;
use serde_json::json;
use std::collections::BTreeSet;

/// Three init containers, two sidecars, two app containers; hooks and probes.
fn full() -> Spec {
    let lifecycle = |on: &[&str]| {
        let hook = |name: &&str| ((*name).to_owned(), json!({"exec": {"command": ["x"]}}));
        serde_json::Value::Object(on.iter().map(hook).collect())
    };
    let probe = json!({"exec": {"command": ["x"]}});
    pod(
        "u",
        json!({
            "terminationGracePeriodSeconds": 30,
            "initContainers": [
                {"name": "init1", "image": "i"},
                {"name": "proxy", "image": "i", "restartPolicy": "Always", "startupProbe": probe,
                    "lifecycle": lifecycle(&["postStart", "preStop"])},
                {"name": "init2", "image": "i"},
                {"name": "logs", "image": "i", "restartPolicy": "Always", "lifecycle": lifecycle(&["preStop"])},
                {"name": "init3", "image": "i"},
            ],
            "containers": [
                {"name": "web", "image": "i", "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe,
                    "lifecycle": lifecycle(&["postStart", "preStop"])},
                {"name": "db", "image": "i", "livenessProbe": probe},
            ],
        }),
    )
}

/// Runs a pod's life: init containers take a second, hooks half of one, a startup probe passes after one, a container
/// ends 300 ms after its signal; `web` fails its liveness probe once, and the pod is removed after a minute.
/// The agent is replaced before the action number `restart`.
fn live(restart: Option<usize>) -> Vec<(i64, String)> {
    let spec = full();
    let mut world = World::default();
    let mut log = Vec::new();
    let mut due: BTreeSet<(i64, Event)> = BTreeSet::new();
    due.insert((20_000, Event::Unhealthy));
    due.insert((60_000, Event::Removed));
    let (mut now, mut wanted, mut count) = (0, Some(&spec), 0);
    for _ in 0..500 {
        let plan = world.plan(wanted, at(now));
        for action in &plan.actions {
            if restart == Some(count) {
                count += 1;
                world.restart_agent();
                due.retain(|(_, event)| !matches!(event, Event::HookDone(..)));
                break;
            }
            count += 1;
            log.push((now, describe(action)));
            world.execute(wanted, action, at(now));
            due.extend(consequence(&world, action, now));
        }
        if !plan.actions.is_empty() {
            continue;
        }
        if wanted.is_none() && world.seen.present.is_none() {
            return log;
        }
        let wake = plan.wake_at.map(|at_| at_.as_millisecond() - at(0).as_millisecond());
        let next = due.first().map(|(time, _)| *time);
        if let Some(time) = next.filter(|time| wake.is_none_or(|wake| *time <= wake)) {
            now = time.max(now);
            match due.pop_first().unwrap().1 {
                Event::Removed => wanted = None,
                event => happen(&mut world, &event, now),
            }
        } else {
            now = wake.expect("nothing will ever happen again");
        }
    }
    panic!("the pod does not end: {log:?}");
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Exit(String, i32),
    HookDone(String, HookKind),
    Started(String),
    Unhealthy,
    Removed,
}

fn consequence(world: &World, action: &Action, now: i64) -> Option<(i64, Event)> {
    match action {
        Action::Run { container, .. } => {
            let spec = &world.present().spec;
            let probed = spec.container(container).is_some_and(|c| c.startup_probe.is_some());
            match spec.role(container) {
                Some(Role::Init) => Some((now + 1000, Event::Exit(container.clone(), 0))),
                _ if probed => Some((now + 1000, Event::Started(container.clone()))),
                _ => None,
            }
        }
        Action::Hook { id, kind, .. } => Some((now + 500, Event::HookDone(id.clone(), *kind))),
        Action::Stop { container, .. } => Some((now + 300, Event::Exit(container.clone(), 143))),
        _ => None,
    }
}

fn happen(world: &mut World, event: &Event, now: i64) {
    let healthy = Health { started: true, ready: true, unhealthy: None };
    match event {
        Event::Exit(container, code) => world.end(at(now), container, *code),
        Event::HookDone(id, kind) => world.end_hook(id, *kind, HookState::Done),
        Event::Started(container) => world.health(container, healthy),
        Event::Unhealthy => {
            let unhealthy = Some(Unhealthy { probe: StopCause::Liveness, grace_seconds: Some(7) });
            world.health("web", Health { ready: false, unhealthy, ..healthy });
        }
        Event::Removed => unreachable!("the caller's"),
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Run { container, attempt, .. } => format!("Run {container} #{attempt}"),
        Action::BeginStop { container, cause, grace_ms, .. } => format!("BeginStop {container} {cause:?} {grace_ms}"),
        Action::Hook { container, kind, timeout_ms, .. } => format!("Hook {container} {kind:?} {timeout_ms:?}"),
        Action::Stop { container, grace_ms, .. } => format!("Stop {container} {grace_ms}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_pod_with_everything_starts_and_stops_in_this_order() {
    let text: String = live(None).iter().map(|(time, action)| format!("{time:<5} {action}\n")).collect();
    expect![[r#"
        0     CreateSandbox
        0     Run init1 #0
        1000  Run proxy #0
        1000  Hook proxy PostStart None
        2000  Run init2 #0
        3000  Run logs #0
        3000  Run init3 #0
        4000  Run web #0
        4000  Hook web PostStart None
        4500  Run db #0
        20000 BeginStop web Liveness 7000
        20000 Hook web PreStop Some(7000)
        20500 Stop web 6500
        20800 Run web #1
        20800 Hook web PostStart None
        60000 MarkDeleting { grace_seconds: 30 }
        60000 BeginStop proxy Pod 30000
        60000 BeginStop logs Pod 30000
        60000 BeginStop web Pod 30000
        60000 BeginStop db Pod 30000
        60000 Hook proxy PreStop Some(30000)
        60000 Hook logs PreStop Some(30000)
        60000 Hook web PreStop Some(30000)
        60000 Stop db 30000
        60500 Stop web 29500
        60800 Stop logs 29200
        61100 Stop proxy 28900
        61400 StopSandbox
        61400 RemovePod
    "#]]
    .assert_eq(&text);
}

#[test]
fn an_agent_that_is_replaced_between_any_two_actions_changes_nothing_of_the_order() {
    // Times shift and hooks are delivered again; what is done, and in which order, stays. Graces depend on times.
    let order = |log: Vec<(i64, String)>| {
        let mut seen = BTreeSet::new();
        let bare =
            |text: String| text.split(' ').take(3).filter(|w| w.parse::<u64>().is_err()).collect::<Vec<_>>().join(" ");
        log.into_iter().map(|(_, text)| bare(text)).filter(|text| seen.insert(text.clone())).collect::<Vec<_>>()
    };
    let undisturbed = live(None);
    let expected = order(undisturbed.clone());
    for restart in 0..undisturbed.len() {
        assert_eq!(order(live(Some(restart))), expected, "the agent is replaced before action {restart}");
    }
}
