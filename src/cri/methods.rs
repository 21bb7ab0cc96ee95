//! The methods: from a call's path and bytes to its answer. What is not named here is `Unimplemented`, and not even read.

use super::grpc::{Code, Status, frame};
use super::look::{self, Pod};
use super::streams::Streams;
use super::v1::{
    AttachResponse, ContainerStatsRequest, ContainerStatsResponse, ContainerStatusRequest, ContainerStatusResponse,
    ExecResponse, ExecSyncRequest, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListContainerStatsRequest,
    ListContainerStatsResponse, ListContainersRequest, ListContainersResponse, ListImagesRequest, ListImagesResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse,
    PodSandboxStatsRequest, PodSandboxStatsResponse, PodSandboxStatusRequest, PodSandboxStatusResponse,
    PortForwardResponse, PullImageRequest, RemoveImageRequest, RemoveImageResponse, RuntimeConfigRequest,
    StatusRequest, VersionRequest,
};
use super::{about, command, details, images, instant, usage};
use crate::config::Config;
use crate::runtime::Layout;
use crate::server::Node;
use crate::sys::clock;
use hyper::body::Bytes;
use prost::Message;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The services of the CRI.
const SERVICES: [&str; 2] = ["/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"];
/// How old usage may be: clients look twice, a second apart, and what they show is the difference.
const FRESH: Duration = Duration::from_millis(500);
/// How old may be what images take of the disk: each new client asks for it and most throw it away.
const FRESH_ENOUGH: Duration = Duration::from_secs(15);

/// What the methods need.
pub(super) struct Methods {
    node: Arc<dyn Node>,
    config: Arc<Config>,
    layout: Layout,
    streams: Arc<Streams>,
}

type Answered = Result<Bytes, Status>;

impl Methods {
    pub(super) fn new(node: Arc<dyn Node>) -> Methods {
        let config = node.config();
        let layout = Layout {
            root: config.root_dir.clone(),
            run: config.run_dir.clone(),
            pod_logs: config.pod_logs_dir.clone(),
        };
        let streams = Arc::new(Streams::new(config.server.streaming_idle));
        Methods { node, config, layout, streams }
    }

    /// Answers a call.
    pub(super) async fn call(self: &Arc<Self>, path: &str, request: &[u8]) -> Answered {
        let method = SERVICES.iter().find_map(|service| path.strip_prefix(service)).unwrap_or_default();
        match method {
            "Version" => read::<VersionRequest>(request).and_then(|_| frame(&about::version())),
            "Status" => {
                let wanted: StatusRequest = read(request)?;
                frame(&about::status(self.node.as_ref(), wanted.verbose))
            }
            "RuntimeConfig" => read::<RuntimeConfigRequest>(request).and_then(|_| frame(&about::runtime_config())),
            "ListPodSandbox" => self.list_sandboxes(read(request)?).await,
            "PodSandboxStatus" => self.sandbox_status(read(request)?).await,
            "ListContainers" => self.list_containers(read(request)?).await,
            "ContainerStatus" => self.container_status(read(request)?).await,
            "ContainerStats" => self.container_stats(read(request)?).await,
            "ListContainerStats" => self.list_container_stats(read(request)?).await,
            "PodSandboxStats" => self.sandbox_stats(read(request)?).await,
            "ListPodSandboxStats" => self.list_sandbox_stats(read(request)?).await,
            "ExecSync" => self.exec_sync(read(request)?).await,
            "Exec" => {
                let request = read(request)?;
                let order = self.ordered(move |node, pods| command::exec(node, pods, request)).await?;
                self.streams.address(order).await.and_then(|url| frame(&ExecResponse { url }))
            }
            "Attach" => {
                let request = read(request)?;
                let order = self.ordered(move |node, pods| command::attach(node, pods, request)).await?;
                self.streams.address(order).await.and_then(|url| frame(&AttachResponse { url }))
            }
            "PortForward" => {
                let request = read(request)?;
                let order = self.ordered(move |node, pods| command::ports(node, pods, request)).await?;
                self.streams.address(order).await.and_then(|url| frame(&PortForwardResponse { url }))
            }
            "ListImages" => self.list_images(read(request)?).await,
            "ImageStatus" => self.image_status(read(request)?).await,
            "PullImage" => self.pull_image(read(request)?).await,
            "RemoveImage" => self.remove_image(read(request)?).await,
            "ImageFsInfo" => self.image_fs_info(read(request)?).await,
            _ => {
                let text = format!("{path} is not served here: what runs is what the manifests say");
                Err(Status::new(Code::Unimplemented, text))
            }
        }
    }

    /// Looks at all pods, and answers from that, on the blocking pool.
    async fn looked<M: Message + 'static>(
        self: &Arc<Self>,
        answer: impl FnOnce(&Methods, &[Pod]) -> Result<M, Status> + Send + 'static,
    ) -> Answered {
        let methods = Arc::clone(self);
        blocking(move || frame(&answer(&methods, &look::all(&methods.node))?)).await?
    }

    async fn list_sandboxes(self: &Arc<Self>, request: ListPodSandboxRequest) -> Answered {
        let wanted = move |_: &Methods, pods: &[Pod]| {
            let mut items: Vec<_> = pods.iter().map(Pod::listed).collect();
            items.retain(|pod| look::wants_sandbox(request.filter.as_ref(), pod));
            Ok(ListPodSandboxResponse { items })
        };
        self.looked(wanted).await
    }

    async fn sandbox_status(self: &Arc<Self>, request: PodSandboxStatusRequest) -> Answered {
        let status = move |methods: &Methods, pods: &[Pod]| {
            let pod = look::sandbox(pods, &request.pod_sandbox_id)?;
            let info = request.verbose.then(|| details::sandbox_info(pod, &methods.layout));
            Ok(PodSandboxStatusResponse {
                status: Some(details::sandbox(pod)),
                info: info.unwrap_or_default(),
                containers_statuses: Vec::new(),
                timestamp: instant(clock::now()),
            })
        };
        self.looked(status).await
    }

    async fn list_containers(self: &Arc<Self>, request: ListContainersRequest) -> Answered {
        let wanted = move |_: &Methods, pods: &[Pod]| {
            let mut containers: Vec<_> = pods.iter().flat_map(Pod::runs).map(|run| run.listed()).collect();
            containers.retain(|container| look::wants_container(request.filter.as_ref(), container));
            Ok(ListContainersResponse { containers })
        };
        self.looked(wanted).await
    }

    async fn container_status(self: &Arc<Self>, request: ContainerStatusRequest) -> Answered {
        let status = move |methods: &Methods, pods: &[Pod]| {
            let (run, layout) = (look::container(pods, &request.container_id)?, &methods.layout);
            let bundle = details::bundle(run, layout);
            let status = details::container(run, layout, bundle.as_ref());
            let info = request.verbose.then(|| details::container_info(run, layout, bundle));
            Ok(ContainerStatusResponse { status: Some(status), info: info.unwrap_or_default() })
        };
        self.looked(status).await
    }

    async fn container_stats(self: &Arc<Self>, request: ContainerStatsRequest) -> Answered {
        let snapshot = self.node.stats(FRESH).await;
        let stats = move |methods: &Methods, pods: &[Pod]| {
            let run = look::container(pods, &request.container_id)?;
            let stats = usage::container(run, &snapshot, &methods.config.root_dir);
            Ok(ContainerStatsResponse { stats: Some(stats.ok_or_else(|| unmeasured("container"))?) })
        };
        self.looked(stats).await
    }

    async fn list_container_stats(self: &Arc<Self>, request: ListContainerStatsRequest) -> Answered {
        let snapshot = self.node.stats(FRESH).await;
        let stats = move |methods: &Methods, pods: &[Pod]| {
            let runs = pods.iter().flat_map(Pod::runs).filter(|run| look::wants_usage(request.filter.as_ref(), run));
            let stats = runs.filter_map(|run| usage::container(run, &snapshot, &methods.config.root_dir));
            Ok(ListContainerStatsResponse { stats: stats.collect() })
        };
        self.looked(stats).await
    }

    async fn sandbox_stats(self: &Arc<Self>, request: PodSandboxStatsRequest) -> Answered {
        let snapshot = self.node.stats(FRESH).await;
        let stats = move |methods: &Methods, pods: &[Pod]| {
            let pod = look::sandbox(pods, &request.pod_sandbox_id)?;
            let stats = usage::pod(pod, &snapshot, &methods.config.root_dir);
            Ok(PodSandboxStatsResponse { stats: Some(stats.ok_or_else(|| unmeasured("pod sandbox"))?) })
        };
        self.looked(stats).await
    }

    async fn list_sandbox_stats(self: &Arc<Self>, request: ListPodSandboxStatsRequest) -> Answered {
        let snapshot = self.node.stats(FRESH).await;
        let stats = move |methods: &Methods, pods: &[Pod]| {
            let wanted = pods.iter().filter(|pod| look::wants_pod_usage(request.filter.as_ref(), pod));
            let stats = wanted.filter_map(|pod| usage::pod(pod, &snapshot, &methods.config.root_dir));
            Ok(ListPodSandboxStatsResponse { stats: stats.collect() })
        };
        self.looked(stats).await
    }

    /// What is to be streamed, or run at once, from a look at all pods.
    async fn ordered<T: Send + 'static>(
        self: &Arc<Self>,
        order: impl FnOnce(&dyn Node, &[Pod]) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let methods = Arc::clone(self);
        blocking(move || order(methods.node.as_ref(), &look::all(&methods.node))).await?
    }

    async fn exec_sync(self: &Arc<Self>, request: ExecSyncRequest) -> Answered {
        let sync = self.ordered(move |node, pods| command::sync(node, pods, request)).await?;
        frame(&command::run(sync).await?)
    }

    async fn list_images(self: &Arc<Self>, request: ListImagesRequest) -> Answered {
        let (store, wanted) = (self.node.images(), name(request.filter.and_then(|filter| filter.image)));
        blocking(move || frame(&ListImagesResponse { images: images::list(&store, &wanted) })).await?
    }

    async fn image_status(self: &Arc<Self>, request: ImageStatusRequest) -> Answered {
        let (store, wanted) = (self.node.images(), name(request.image));
        blocking(move || frame(&images::status(&store, &wanted, request.verbose)?)).await?
    }

    async fn pull_image(self: &Arc<Self>, request: PullImageRequest) -> Answered {
        if request.auth.is_some_and(|auth| auth != Default::default()) {
            let text = "credentials are not taken here: they belong into the node's config.json, which all pulls read";
            return Err(Status::invalid(text));
        }
        frame(&images::pull(self.node.as_ref(), &name(request.image)).await?)
    }

    async fn remove_image(self: &Arc<Self>, request: RemoveImageRequest) -> Answered {
        let (store, collector, wanted) = (self.node.images(), self.node.collector(), name(request.image));
        blocking(move || images::remove(&store, &collector, &wanted)).await??;
        frame(&RemoveImageResponse {})
    }

    async fn image_fs_info(self: &Arc<Self>, _: ImageFsInfoRequest) -> Answered {
        let snapshot = self.node.stats(FRESH_ENOUGH).await;
        let store: PathBuf = self.config.root_dir.join("store");
        frame(&images::file_systems(&snapshot, &store, &self.config.root_dir))
    }
}

/// What a client names an image by.
fn name(image: Option<ImageSpec>) -> String {
    image.map(|image| image.image).unwrap_or_default()
}

fn unmeasured(what: &str) -> Status {
    Status::not_found(format!("the {what} does not run"))
}

fn read<M: Message + Default>(request: &[u8]) -> Result<M, Status> {
    M::decode(request).map_err(|error| Status::invalid(format!("the request: {error}")))
}

/// Runs blocking work on the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Status::new(Code::Internal, format!("worker failed: {error}")))
}
