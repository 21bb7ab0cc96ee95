//! Privileged tests: they need root, and drive the kernel and the built binary for real.
//!
//! Every test makes its own private node ([`harness::Node`]) and ends with a leak check; a missing capability fails the
//! test with its name. `CORACLE_TEST_KEEP=1` keeps the folder of a failed test.
//!
//! Where the kubelet's behaviour is proved, by subject:
//!
//! | Subject | Tests |
//! |---|---|
//! | start order, init containers, sidecars | [`timeline`], [`containers`]: `an_init_container_…`, `a_job_with_a_sidecar_…` |
//! | restarts, rules, back-off | [`containers`]: `containers_have_restart_policies_…`, `a_rule_can_…`; [`lifecycle`]: `the_crash_back_off_…` |
//! | stop order, grace, hooks | [`timeline`]; [`containers`]: `the_pre_stop_hook_…`; [`fields`]: `hooks_of_every_kind_…`; [`lifecycle`]: `sigkill_…` |
//! | termination messages | [`pods`]: `containers_tell_why_…`; [`lifecycle`]: `the_termination_message_…` |
//! | states, phases, conditions with their times, events in order | [`fields`]: `a_pod_tells_when_…`; [`timeline`]: `the_status_tells_…`; [`lifecycle`] |
//! | probes: times, thresholds, words, handlers | [`probes`]; what follows from them: [`containers`] |
//! | QoS, cgroup files, oom_score_adj, allocatable | [`resources`]: `cgroups_say_…` |
//! | admission, eviction, memory limits | [`resources`] |
//! | in-place resize | [`resize`]; [`fields`]: `a_resize_…` |
//! | environment, files of variables | [`lifecycle`]: `environment_…`; [`pods`]: `names_…`, `variables_come_…` |
//! | names, hosts, DNS, sysctls, groups | [`pods`]: `names_…`; [`lifecycle`]: `network_files_…` |
//! | users, capabilities, masks, seccomp, AppArmor, SELinux, devices | [`lifecycle`]: `users_…`, `a_container_is_confined_…`, `security_contexts_…`; [`devices`] |
//! | namespaces, user namespaces | [`pods`]; [`userns`] |
//! | volumes: modes, owners, subPath, propagation, flags | [`volumes`]; [`fields`]: `what_a_pod_says_…`; [`lifecycle`]: `host_paths_…`, `empty_dirs_…` |
//! | all of it together, as others publish it | [`published`] |
//! | damage in the image store, `image verify` | [`damage`] |
//! | what hostile containers and servers try | [`hostile`] |
//! | what hostile images try | [`hostile_images`]; [`images`]: `hostile_…`, `bombs_…`, `random_layers_…` |
//! | images of every shape, against another unpacker | [`shapes`]; pulled and running: [`pulled_shapes`] |
//! | pull policies, turns, what ends a pull or its wait | [`pulls`], [`pull_rules`] |
//! | crashes, disk errors and full disks while images come in | [`crash`] |

mod airgap;
mod cli;
mod collect;
mod containers;
mod damage;
mod crash;
mod devices;
mod faults;
mod fields;
mod gate;
mod harness;
mod hostile;
mod hostile_images;
mod images;
mod lifecycle;
mod net;
mod pods;
mod probes;
mod published;
mod pull_rules;
mod pulled_shapes;
mod pulls;
mod registry;
mod registry_server;
mod resize;
mod resources;
mod shapes;
mod shim;
mod sources;
mod timeline;
mod trust;
mod userns;
mod volumes;
