//! A client of the Container Runtime Interface, v1: the few calls and fields that tell of a pod's
//! network. Field numbers are those of Kubernetes' `api.proto`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::runtimes::{IMAGE, Runtimes};
use crate::story::SOON;
use crate::{Container, eventually};

/// One call; making a pod waits for the whole chain of plugins.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// The CRI of a host's containerd.
#[derive(Debug)]
pub struct Cri {
    runtimes: Runtimes,
    socket: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<PortMapping>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct PortMapping {
    #[prost(int32, tag = "2")]
    container_port: i32,
    #[prost(int32, tag = "3")]
    host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

/// The answer to RunPodSandbox, and the request of the other three.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// Of the image we only ask whether there is one.
#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Empty>,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Pod {
    /// Its container, the addresses as it sees them itself.
    pub container: Container,
    /// The addresses that the runtime tells Kubernetes.
    pub told: Vec<IpAddr>,
    id: String,
}

impl Cri {
    pub(crate) fn new(runtimes: Runtimes, socket: String) -> Self {
        Self { runtimes, socket }
    }

    fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery =
            format!("/runtime.v1.{service}/{method}").parse().expect("a path of plain words");
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket)).expect("a path");
        let work = async {
            let channel = endpoint.connect().await.map_err(|e| Status::unavailable(format!("{e:?}")))?;
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.map_err(|e| Status::unavailable(format!("{e:?}")))?;
            let answer = client.unary(tonic::Request::new(request), path, ProstCodec::default());
            let answer = tokio::time::timeout(CALL_LIMIT, answer).await;
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(method))).map(|a| a.into_inner())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime on this thread").block_on(work)
    }

    fn runtime<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.call("RuntimeService", method, request)
    }

    /// Whether the runtime's network is ready, else why not, in its own words.
    pub fn network_ready(&self) -> Result<(), String> {
        let answer: StatusResponse = self.runtime("Status", Empty {}).map_err(|e| e.to_string())?;
        let conditions = answer.status.unwrap_or_default().conditions;
        let network = conditions.into_iter().find(|c| c.kind == "NetworkReady").ok_or("no such condition")?;
        if network.status { Ok(()) } else { Err(network.message) }
    }

    /// RunPodSandbox, then what PodSandboxStatus says. `port` is published as the same port of the host.
    #[track_caller]
    pub fn run_pod(&self, name: &str, port: Option<u16>) -> Pod {
        self.try_run_pod(name, port).unwrap_or_else(|e| panic!("pod {name}: {e}"))
    }

    fn try_run_pod(&self, name: &str, port: Option<u16>) -> Result<Pod, String> {
        // containerd tells its CRI of a new image by an event.
        eventually(SOON, "the CRI knows the pause image", || {
            let request = ImageStatusRequest { image: Some(ImageSpec { image: IMAGE.into() }) };
            let answer = self.call::<_, ImageStatusResponse>("ImageService", "ImageStatus", request);
            answer.map_err(|e| e.to_string())?.image.ok_or("no image".to_owned())
        });
        let mapping = |port: u16| PortMapping { container_port: port.into(), host_port: port.into() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
            }),
            hostname: name.into(),
            port_mappings: port.map(mapping).into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: format!("/{}", self.runtimes.cgroup()) }),
        };
        let text = |e: Status| format!("{}: {}", e.code(), e.message());
        let request = RunPodSandbox { config: Some(config) };
        let PodSandboxId { id } = self.runtime("RunPodSandbox", request).map_err(text)?;
        let request = PodSandboxStatusRequest { id: id.clone(), verbose: true };
        let answer: PodSandboxStatusResponse = self.runtime("PodSandboxStatus", request).map_err(text)?;
        let network = answer.status.and_then(|s| s.network).unwrap_or_default();
        let told = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let told = told.map(|ip| ip.parse().map_err(|e| format!("{ip:?}: {e}")));
        let told: Vec<IpAddr> = told.collect::<Result<_, _>>()?;
        let info = answer.info.get("info").ok_or("no details of the pod")?;
        let info: serde_json::Value = serde_json::from_str(info).map_err(|e| e.to_string())?;
        let pid = info["pid"].as_u64().ok_or_else(|| format!("no process in {info}"))?;
        let container = self.runtimes.find(name, pid)?;
        Ok(Pod { container, told, id })
    }

    /// StopPodSandbox and RemovePodSandbox.
    #[track_caller]
    pub fn remove_pod(&self, pod: Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let answer: Result<Empty, Status> = self.runtime(method, PodSandboxId { id: pod.id.clone() });
            answer.unwrap_or_else(|e| panic!("{method} of {}: {}", pod.container.name(), e.message()));
        }
        pod.container.delete();
        let gone: Result<PodSandboxStatusResponse, Status> =
            self.runtime("PodSandboxStatus", PodSandboxId { id: pod.id });
        assert_eq!(gone.map(|_| ()).map_err(|e| e.code()), Err(Code::NotFound), "the pod is gone");
    }
}
