//! Bound pods on their way to a runtime spec.

use crate::pod::resources::{self, Qos};
use crate::{manifest, pod};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn bound(edit: impl FnOnce(&mut Value)) -> Pod {
    let mut value: Value =
        serde_json::from_str(include_str!("../../tests/corpus/bound/node-exporter.json")).expect("JSON");
    edit(&mut value);
    manifest::from_api(&serde_json::from_value(value).expect("pod")).expect("works")
}

#[test]
fn overhead_and_priority_of_a_bound_pod_count() {
    let pod = bound(|pod| {
        pod["spec"]["overhead"] = json!({"cpu": "10m", "memory": "1Mi"});
        pod["spec"]["containers"][0]["resources"]["limits"]["example.com/widget"] = json!("1");
    });
    let total = resources::effective(&pod).expect("amounts");
    assert_eq!((total.requests.cpu_milli, total.requests.memory), (Some(60), Some(33 << 20)));
    assert_eq!(total.limits.memory, Some(65 << 20));
    assert_eq!(resources::qos(&pod), Ok(Qos::Burstable));

    let score = |pod: &Pod| {
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        resources::oom_score_adj(pod, container, 4 << 30).expect("score")
    };
    assert!(resources::is_critical(&pod));
    assert_eq!(score(&pod), -997, "system-node-critical");
    // What admission made of another class, and none.
    let of = |class: Value, priority: i64| {
        bound(|pod| {
            pod["spec"]["priorityClassName"] = class;
            pod["spec"]["priority"] = json!(priority);
        })
    };
    let cluster = of(json!("system-cluster-critical"), 2_000_000_000);
    assert!(resources::is_critical(&cluster));
    assert_eq!(score(&cluster), 993, "as every Burstable pod that requests 32Mi of 4Gi");
    let plain = of(Value::Null, 0);
    assert!(!resources::is_critical(&plain));
    assert_eq!(score(&plain), 993);
    // A name alone makes nobody critical: the API server fills the number in.
    assert!(!resources::is_critical(&of(json!("system-node-critical"), 0)));
    // Nor does an annotation that says where the pod comes from.
    let liar = bound(|pod| {
        pod["spec"]["priority"] = json!(0);
        pod["metadata"]["annotations"]["kubernetes.io/config.source"] = json!("file");
    });
    assert!(pod::is_from_api(&liar) && !resources::is_critical(&liar));
}
