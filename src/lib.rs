//! coracle: one static binary that turns any Linux machine into a Kubernetes node.
//!
//! # The walk
//!
//! ```text
//! bytes ─ source ─▶ manifest ─▶ pod::Spec ─▶ plan(desired, observed, now) ─▶ actions ─▶ runtime ─▶ shim ─▶ container
//!                                               ▲                                                    │
//!                                               └───────────── observed ◀── exits, records, disk ────┘
//!                                                                  └▶ status ─▶ CLI · local API · cluster
//! ```
//!
//! # The layers
//!
//! A module imports only from the ones above it in this list; `cargo xtask tidy` reads the `use` graph and fails on a
//! wrong edge. *Pure* modules know no clock, file, process or socket; *blocking* ones are called from worker threads;
//! *async* ones live on the agent's event loop.
//!
//! | Module | Kind | What |
//! |---|---|---|
//! | [`causes`] | pure | errors and their causes in one line |
//! | [`manifest`] | pure | decode · defaults · validate · refuse · identity |
//! | [`config`] | pure | `KubeletConfiguration`, `CoracleConfiguration`, flags: one resolved [`config::Config`] |
//! | [`pod`] | pure | spec · observed · plan · restart · resources · status |
//! | [`bundle`] | pure | Pod + image config → OCI runtime spec |
//! | [`sys`] | blocking | the kernel: files, mounts, namespaces, processes, cgroups, netlink; all unsafe code |
//! | [`store`] | blocking | crash-safe records |
//! | [`http`] | blocking | requests to servers: proxies, authorities, client certificates; one document within limits |
//! | [`minisign`] | blocking | keys and signatures of minisign, for archives and manifests |
//! | [`image`] | blocking | archives · registries · trust · unpack · store · healing · collection |
//! | [`net`] | blocking | bridge · ipam · nftables · resolv.conf and hosts |
//! | [`volume`] | blocking | emptyDir · hostPath · files made from objects · stages of a container's start |
//! | [`shim`] | blocking | one process per pod: libcontainer, stdio, logs, exits |
//! | [`runtime`] | blocking | executes actions, reports observations |
//! | [`stats`] | blocking | what pods, containers and the node use: CPU, memory, network, file systems |
//! | [`probe`] | async | probes and lifecycle hooks: HTTP, TCP, gRPC, exec |
//! | [`source`] | async | directories and URLs → desired pods and objects: last known good, merged, with history |
//! | [`cluster`] | async | the API server: credentials, Node, mirror pods, bound pods and what they need, statuses, events |
//! | [`stream`] | async | exec, attach and port-forward over SPDY and WebSocket |
//! | [`server`] | async | node API · local Kubernetes API · healthz, metrics · status page |
//! | [`cri`] | async | CRI v1 on `cri.sock`, for crictl |
//! | [`agent`] | async | the event loop: one worker per pod; the only place that wires layers |
//! | [`cli`] | async | what a person types |

pub mod causes;
pub mod manifest;
pub mod config;
pub mod pod;
pub mod bundle;
pub mod sys;
pub mod store;
pub mod http;
pub mod minisign;
pub mod image;
pub mod net;
pub mod volume;
pub mod shim;
pub mod runtime;
pub mod stats;
pub mod probe;
pub mod source;
pub mod cluster;
pub mod stream;
pub mod server;
pub mod cri;
pub mod agent;
pub mod cli;
