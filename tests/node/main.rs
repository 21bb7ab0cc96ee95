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
//! | port-forward: many at once, half-close, refusals, servers that do not read | [`forward`] |
//! | environment, files of variables | [`lifecycle`]: `environment_…`; [`pods`]: `names_…`, `variables_come_…` |
//! | names, hosts, DNS, sysctls, groups | [`pods`]: `names_…`; [`lifecycle`]: `network_files_…` |
//! | users, capabilities, masks, seccomp, AppArmor, SELinux, devices | [`lifecycle`]: `users_…`, `a_container_is_confined_…`, `security_contexts_…`; [`devices`] |
//! | namespaces, user namespaces | [`pods`]; [`userns`] |
//! | ConfigMaps and Secrets: variables, files and how they follow, credentials, secrecy | [`objects`]; [`volumes`]: `files_made_from_objects_…` |
//! | volumes: modes, owners, subPath, propagation, flags | [`volumes`]; [`fields`]: `what_a_pod_says_…`; [`lifecycle`]: `host_paths_…`, `empty_dirs_…` |
//! | manifests from URLs | [`url`]; signed, with objects, by TLS in 1970: [`url_trust`] |
//! | power cuts, clocks that are wrong and are set, no network at all | [`power`] |
//! | revisions, rollbacks by hand and by the gate | [`history`] |
//! | what is used: metrics, summary, `top` | [`usage`] |
//! | several sources, and objects that pods wait for | [`merge`] |
//! | all of it together, as others publish it | [`published`]; kubeadm's control plane for real: [`control_plane`], [`cluster::bootstrap`] |
//! | clusters: everything against a real control plane | [`cluster`] |
//! | the status page, in a browser | [`page`] |
//! | crictl and kubeadm's preflight on `cri.sock` | [`crictl`] |
//! | configuration and its drop-ins, `coracle run`, the systemd units | [`bootstrap`] |
//!
//! And of images:
//!
//! | Subject | Tests |
//! |---|---|
//! | archives of every dialect and packing, layouts, streams | [`images`]: `a_docker_archive_…`, `oci_archives_…`; [`airgap`]: `packed_archives_…`, `archives_go_in_by_standard_input_…`; [`packed`] |
//! | the drop-in folder, pull lists, pins | [`images`]: `archives_dropped_in_…`; [`airgap`]: `images_stay_…`, `an_image_that_was_lost_…`, `lists_name_…` |
//! | export | [`airgap`]: `…_come_out_by_export` |
//! | what a tree of layers amounts to: whiteouts, links, attributes, sparse files | [`images`]: `entries_arrive_…`, `trees_are_what_tar_unpacks`; against umoci: [`shapes`], [`unlisted`], and out of registries [`pulled_shapes`] |
//! | registries: ways in, dialects, mirrors, which machine's image | [`registry`]; [`shapes`]: `of_several_machines_…` |
//! | pull policy, back-off, turns, sharing, cancelling, events, `image pull` | [`pulls`], [`pull_rules`] |
//! | signatures and policies: registries, keys, archives | [`trust`], [`signatures`] |
//! | garbage collection, `image rm`, `image prune`, full disks | [`collect`]; [`crash`]: `a_full_disk_…`; [`airgap`]: `an_error_about_space_…` |
//! | crashes and disk errors while images are imported and pulled | [`crash`]; [`images`]: `kill_9_…`, `what_a_crash_leaves_…` |
//! | damage in the image store, healing, `image verify` | [`damage`] |
//! | what hostile images try | [`hostile_images`], [`hostile_archives`]; [`images`]: `hostile_…`, `bombs_…`, `random_layers_…`; [`airgap`]: `hostile_archives_…` |
//! | what hostile registries, proxies and mirrors try | [`hostile_registry`]; [`registry`]: `a_registry_that_is_away_or_damaged_…` |
//! | what hostile containers and servers try | [`hostile`] |

mod access;
mod airgap;
mod attach;
mod bootstrap;
mod cli;
mod cluster;
mod collect;
mod containers;
mod control_plane;
mod damage;
mod copy;
mod crash;
mod crictl;
mod devices;
mod faults;
mod fields;
mod forward;
mod gate;
mod harness;
mod history;
mod hostile;
mod hostile_archives;
mod hostile_images;
mod hostile_registry;
mod images;
mod kubectl;
mod kubectl_list;
mod lifecycle;
mod merge;
mod net;
mod objects;
mod packed;
mod page;
mod pods;
mod power;
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
mod signatures;
mod signed;
mod sources;
mod timeline;
mod trust;
mod unlisted;
mod url;
mod url_server;
mod url_trust;
mod usage;
mod userns;
mod volumes;
