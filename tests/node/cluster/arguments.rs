//! How the parts of a control plane are started, here and by `cargo xtask cluster up`: files are where `kubeadm init phase
//! certs` and `… kubeconfig` put them, all in one folder.

use std::path::Path;

/// In the order in which they are started.
pub const PARTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Where a control plane is.
pub struct Place<'a> {
    /// Certificates, kubeconfigs, data and logs.
    pub dir: &'a Path,
    /// Where the API server listens.
    pub bind: &'a str,
    /// What the API server calls itself.
    pub advertise: &'a str,
    pub port: u16,
    /// Of etcd; the next one is its peers'.
    pub etcd: u16,
    /// Of the controllers; the next but one is the scheduler's.
    pub controllers: u16,
    /// Addresses of Services.
    pub services: &'a str,
}

/// The arguments of one of the [`PARTS`]; none for others.
pub fn arguments(place: &Place<'_>, part: &str) -> Vec<String> {
    let Place { dir, bind, advertise, port, etcd, controllers, services } = place;
    let (d, peers, scheduler) = (dir.display(), etcd + 1, controllers + 2);
    let text = match part {
        // What it holds lives as long as the process: nothing waits for a disk.
        "etcd" => format!(
            "--name=etcd --data-dir={d}/etcd-data --log-level=warn --unsafe-no-fsync
            --listen-client-urls=http://127.0.0.1:{etcd} --advertise-client-urls=http://127.0.0.1:{etcd}
            --listen-peer-urls=http://127.0.0.1:{peers} --initial-advertise-peer-urls=http://127.0.0.1:{peers}
            --initial-cluster=etcd=http://127.0.0.1:{peers}"
        ),
        "kube-apiserver" => format!(
            "--etcd-servers=http://127.0.0.1:{etcd} --bind-address={bind} --secure-port={port}
            --advertise-address={advertise} --service-cluster-ip-range={services} --allow-privileged=true
            --tls-cert-file={d}/apiserver.crt --tls-private-key-file={d}/apiserver.key --client-ca-file={d}/ca.crt
            --kubelet-client-certificate={d}/apiserver-kubelet-client.crt
            --kubelet-client-key={d}/apiserver-kubelet-client.key
            --kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname
            --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --enable-bootstrap-token-auth=true
            --service-account-issuer=https://kubernetes.default.svc.cluster.local
            --service-account-key-file={d}/sa.pub --service-account-signing-key-file={d}/sa.key
            --audit-policy-file={d}/audit.yaml --audit-log-path={d}/audit.log"
        ),
        "kube-controller-manager" => format!(
            "--kubeconfig={d}/controller-manager.conf --master=https://{bind}:{port} --bind-address=127.0.0.1
            --secure-port={controllers} --leader-elect=false --controllers=*,bootstrapsigner,tokencleaner
            --use-service-account-credentials=true --service-account-private-key-file={d}/sa.key
            --cluster-signing-cert-file={d}/ca.crt --cluster-signing-key-file={d}/ca.key --root-ca-file={d}/ca.crt
            --kube-api-qps=200 --kube-api-burst=400"
        ),
        "kube-scheduler" => format!(
            "--kubeconfig={d}/scheduler.conf --master=https://{bind}:{port} --bind-address=127.0.0.1
            --secure-port={scheduler} --leader-elect=false --kube-api-qps=200 --kube-api-burst=400"
        ),
        _ => String::new(),
    };
    text.split_whitespace().map(str::to_owned).collect()
}

/// The audit policy: everything but what the control plane says to itself.
pub const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ['system:apiserver', 'system:kube-controller-manager', 'system:kube-scheduler']
- level: None
  userGroups: ['system:serviceaccounts:kube-system']
- level: Metadata
";
