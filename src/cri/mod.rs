//! CRI v1 on `cri.sock`: what crictl and kubeadm's preflight ask of a container runtime. Read-only but for exec, attach,
//! port-forward, and images; what would create or remove containers is `Unimplemented`: manifests do that here.
