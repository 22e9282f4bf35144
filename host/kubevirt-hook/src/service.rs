// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The hook points, as gRPC on one connection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::Service;
use prost::Message;
use tokio::sync::Notify;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::daemon::Supervisor;
use crate::domain;
use crate::options::Options;
use crate::protocol::{
    self, Empty, HookPoint, InfoResult, OnDefineDomainParams, OnDefineDomainResult,
    PreCloudInitIsoParams, PreCloudInitIsoResult, path,
};

/// The largest message that is read, in bytes. A domain has some 20 KiB.
const MOST_BYTES: usize = 4 << 20;

/// Name of the sidecar, for virt-launcher's log.
pub(crate) const NAME: &str = "vhost-device-balloon";

/// What virt-launcher may ask for.
#[derive(Debug)]
pub(crate) struct Hook {
    /// The daemon's socket as QEMU sees it.
    pub(crate) vmm_socket: String,
    /// Runs the daemon.
    pub(crate) daemon: Supervisor,
    /// Told when QEMU has ended.
    pub(crate) ended: Notify,
}

impl Hook {
    /// The domain with the balloon, whose daemon listens by then.
    async fn define(&self, asked: OnDefineDomainParams) -> Result<OnDefineDomainResult, Status> {
        let refused = |error: &dyn std::error::Error| {
            eprintln!("OnDefineDomain refused: {error}");
            Status::invalid_argument(error.to_string())
        };
        let options = Options::read(&asked.vmi).map_err(|error| refused(&error))?;
        if !options.enabled {
            eprintln!("OnDefineDomain: the VM's annotations ask for no balloon");
            return Ok(OnDefineDomainResult { domain_xml: asked.domain_xml });
        }
        let changed = domain::attach(&asked.domain_xml, &self.vmm_socket, &options)
            .map_err(|error| refused(&error))?;
        let arguments = options.daemon_arguments(changed.has_passthrough);
        self.daemon.start(arguments).await.map_err(|error| {
            eprintln!("OnDefineDomain failed: {error}");
            Status::unavailable(error.to_string())
        })?;
        eprintln!("OnDefineDomain: {} has a balloon at {}", options.name, self.vmm_socket);
        Ok(OnDefineDomainResult { domain_xml: changed.xml.into_bytes() })
    }

    /// QEMU has ended: so does the daemon, and then this process.
    async fn shutdown(&self) -> Empty {
        eprintln!("Shutdown: the VM has ended");
        self.daemon.stop().await;
        self.ended.notify_one();
        Empty {}
    }

    async fn answer(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        match request.uri().path() {
            path::INFO => unary(request, |_: Empty| async { Ok(info()) }).await,
            path::ON_DEFINE_DOMAIN => {
                unary(request, |asked| async move { self.define(asked).await }).await
            }
            path::PRE_CLOUD_INIT_ISO => {
                unary(request, |asked| async { Ok(cloud_init(asked)) }).await
            }
            path::SHUTDOWN => {
                unary(request, |_: Empty| async move { Ok(self.shutdown().await) }).await
            }
            other => Status::unimplemented(format!("no such call: {other}")).into_http(),
        }
    }
}

/// `PreCloudInitIso` is not among the hook points: virt-launcher takes the answer of one sidecar only.
fn info() -> InfoResult {
    let point = |name: &str| HookPoint { name: name.to_owned(), priority: 0 };
    InfoResult {
        name: NAME.to_owned(),
        hook_points: [protocol::ON_DEFINE_DOMAIN, protocol::SHUTDOWN].map(point).to_vec(),
        versions: vec![protocol::VERSION.to_owned()],
    }
}

/// What came, for a caller that asks all the same.
fn cloud_init(asked: PreCloudInitIsoParams) -> PreCloudInitIsoResult {
    PreCloudInitIsoResult {
        cloud_init_no_cloud_source: asked.cloud_init_no_cloud_source,
        cloud_init_data: asked.cloud_init_data,
    }
}

async fn unary<A, B, F, R>(request: http::Request<Incoming>, call: F) -> http::Response<Body>
where
    A: Message + Default + 'static,
    B: Message + 'static,
    F: FnOnce(A) -> R,
    R: Future<Output = Result<B, Status>> + Send + 'static,
{
    let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MOST_BYTES);
    grpc.unary(Once(Some(call), std::marker::PhantomData), request).await
}

/// A call that is made once.
struct Once<A, F>(Option<F>, std::marker::PhantomData<A>);

impl<A, B, F, R> UnaryService<A> for Once<A, F>
where
    F: FnOnce(A) -> R,
    R: Future<Output = Result<B, Status>> + Send + 'static,
{
    type Response = B;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, Status>> + Send>>;

    fn call(&mut self, request: Request<A>) -> Self::Future {
        match self.0.take() {
            Some(call) => {
                let answer = call(request.into_inner());
                Box::pin(async { answer.await.map(Response::new) })
            }
            None => Box::pin(async { Err(Status::internal("called twice")) }),
        }
    }
}

/// One connection's view of the hook.
#[derive(Clone, Debug)]
pub(crate) struct Calls(pub(crate) Arc<Hook>);

impl Service<http::Request<Incoming>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let hook = Arc::clone(&self.0);
        Box::pin(async { Ok(hook.answer(request).await) })
    }
}
