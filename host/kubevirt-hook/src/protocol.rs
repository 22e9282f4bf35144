// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KubeVirt's hooks on the wire: `proto/kubevirt-hooks.proto` in Rust, and a client. Nothing is generated, so that a
//! build needs no `protoc`.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// The version of the callbacks that this hook has.
pub const VERSION: &str = "v1alpha3";
/// The hook point before the domain is defined.
pub const ON_DEFINE_DOMAIN: &str = "OnDefineDomain";
/// The hook point after QEMU has ended.
pub const SHUTDOWN: &str = "Shutdown";

/// Paths of the calls.
pub mod path {
    /// Who the sidecar is.
    pub const INFO: &str = "/kubevirt.hooks.info.Info/Info";
    /// The domain before it is defined.
    pub const ON_DEFINE_DOMAIN: &str = "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain";
    /// What cloud-init gets.
    pub const PRE_CLOUD_INIT_ISO: &str = "/kubevirt.hooks.v1alpha3.Callbacks/PreCloudInitIso";
    /// QEMU has ended.
    pub const SHUTDOWN: &str = "/kubevirt.hooks.v1alpha3.Callbacks/Shutdown";
}

/// `InfoParams`, `ShutdownParams` and `ShutdownResult`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// `HookPoint`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HookPoint {
    /// Which one.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The higher, the earlier this sidecar's turn.
    #[prost(int32, tag = "2")]
    pub priority: i32,
}

/// `InfoResult`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InfoResult {
    /// Name of the sidecar.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where it wants to be called.
    #[prost(message, repeated, tag = "3")]
    pub hook_points: Vec<HookPoint>,
    /// Versions of the callbacks.
    #[prost(string, repeated, tag = "4")]
    pub versions: Vec<String>,
}

/// `OnDefineDomainParams`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OnDefineDomainParams {
    /// The domain as virt-launcher and the sidecars before this one have made it.
    #[prost(bytes = "vec", tag = "1")]
    pub domain_xml: Vec<u8>,
    /// The VirtualMachineInstance as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub vmi: Vec<u8>,
}

/// `OnDefineDomainResult`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OnDefineDomainResult {
    /// The domain that is defined.
    #[prost(bytes = "vec", tag = "1")]
    pub domain_xml: Vec<u8>,
}

/// `PreCloudInitIsoParams`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PreCloudInitIsoParams {
    /// An older form of `cloud_init_data`.
    #[prost(bytes = "vec", tag = "1")]
    pub cloud_init_no_cloud_source: Vec<u8>,
    /// The VirtualMachineInstance as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub vmi: Vec<u8>,
    /// What cloud-init gets, as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub cloud_init_data: Vec<u8>,
}

/// `PreCloudInitIsoResult`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PreCloudInitIsoResult {
    /// An older form of `cloud_init_data`.
    #[prost(bytes = "vec", tag = "1")]
    pub cloud_init_no_cloud_source: Vec<u8>,
    /// What cloud-init gets, as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub cloud_init_data: Vec<u8>,
}

/// One connection to a sidecar, as virt-launcher has it.
#[derive(Debug)]
pub struct Client(Grpc<Connection>);

impl Client {
    /// Connects to the sidecar's socket. Must be called within a runtime of tokio.
    ///
    /// # Errors
    /// When nothing listens there that speaks HTTP/2.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = TokioIo::new(UnixStream::connect(socket).await?);
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // Ends with the sender.
        tokio::spawn(connection);
        let origin = http::Uri::from_static("http://localhost");
        Ok(Self(Grpc::with_origin(Connection(sender), origin)))
    }

    /// Makes the call at a path of [`path`].
    ///
    /// # Errors
    /// What the sidecar says, or that the connection is broken.
    pub async fn call<A, B>(&mut self, at: &'static str, parameters: A) -> Result<B, Status>
    where
        A: Message + 'static,
        B: Message + Default + 'static,
    {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let at = http::uri::PathAndQuery::from_static(at);
        let answer = self.0.unary(Request::new(parameters), at, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }
}

/// What `tonic` sends through.
#[derive(Debug)]
struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str = include_str!("../proto/kubevirt-hooks.proto");

    /// Numbers of the fields in the bytes of a message; every value here is shorter than 128 bytes.
    fn numbers(message: &impl Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        let (mut numbers, mut rest) = (Vec::new(), &bytes[..]);
        while let [key, value, ..] = *rest {
            numbers.push(key >> 3);
            let is_number = key & 7 == 0;
            rest = &rest[2 + if is_number { 0 } else { usize::from(value) }..];
        }
        numbers
    }

    /// Numbers of the fields in the text.
    fn declared(message: &str) -> Vec<u8> {
        let body = PROTO.split(&format!("message {message} {{")).nth(1).unwrap();
        let fields = body.split('}').next().unwrap().lines();
        let number = |line: &str| line.trim().strip_suffix(';')?.split(" = ").nth(1)?.parse().ok();
        fields.filter_map(number).collect()
    }

    #[test]
    fn messages_have_the_numbers_of_the_proto() {
        let bytes = || vec![1];
        let point = HookPoint { name: "a".to_owned(), priority: 1 };
        let info = InfoResult {
            name: "a".to_owned(),
            hook_points: vec![point.clone()],
            versions: vec!["a".to_owned()],
        };
        let define = OnDefineDomainParams { domain_xml: bytes(), vmi: bytes() };
        let defined = OnDefineDomainResult { domain_xml: bytes() };
        let (source, data) = (bytes(), bytes());
        let init = PreCloudInitIsoParams {
            cloud_init_no_cloud_source: source.clone(),
            vmi: bytes(),
            cloud_init_data: data.clone(),
        };
        let made =
            PreCloudInitIsoResult { cloud_init_no_cloud_source: source, cloud_init_data: data };
        for (name, numbers) in [
            ("InfoParams", numbers(&Empty {})),
            ("ShutdownParams", numbers(&Empty {})),
            ("ShutdownResult", numbers(&Empty {})),
            ("HookPoint", numbers(&point)),
            ("InfoResult", numbers(&info)),
            ("OnDefineDomainParams", numbers(&define)),
            ("OnDefineDomainResult", numbers(&defined)),
            ("PreCloudInitIsoParams", numbers(&init)),
            ("PreCloudInitIsoResult", numbers(&made)),
        ] {
            assert_eq!(numbers, declared(name), "{name}");
        }
    }
}
