//! An S3 server in this process that keeps its objects in memory: atomic conditions, versions, retention, and switches per bucket
//! for everything that servers and networks do wrong. One for all tests of the process, a fresh bucket for each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use restante::storage::{S3Credentials, S3Location};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio_rustls::TlsAcceptor;

pub const ACCESS_KEY: &str = "AKTEST";
pub const SECRET_KEY: &str = "a-secret-that-must-never-be-shown";

/// What a bucket of this server does wrong. All off by default.
#[derive(Default)]
pub struct Switches {
    /// `If-None-Match` is not looked at: 200, and the object is replaced (Garage).
    pub ignores_conditions: bool,
    /// Retention is accepted and forgotten (Garage).
    pub ignores_retention: bool,
    /// So many requests are answered with 503 SlowDown.
    pub slow_down: u32,
    /// So many writes of objects are answered with 409 ConditionalRequestConflict.
    pub conflict: u32,
    /// So many writes are done, and the connection is closed without an answer.
    pub lose_put_answers: u32,
    /// The bodies of so many answers break off after so many bytes.
    pub cut_bodies: Option<(u32, usize)>,
    /// Answers hold only so many bytes, and say that this is all.
    pub shorten_bodies: Option<usize>,
    /// `Range` is not looked at: 200 and everything.
    pub ignores_ranges: bool,
    /// Listings know only these.
    pub stale_list: Option<BTreeSet<String>>,
    /// Listings are in descending order.
    pub list_backwards: bool,
    /// The bucket lives in another region.
    pub redirect_to_region: Option<&'static str>,
    /// Every request is refused so: status, code.
    pub refuse: Option<(u16, &'static str)>,
    /// The words that go with it.
    pub says: &'static str,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    etag: String,
    modified: SystemTime,
    retention: Option<(ObjectLockMode, Timestamp)>,
}

#[derive(Default)]
pub struct Bucket {
    pub switches: Switches,
    /// Object lock, and with it versioning, is on.
    pub locked: bool,
    /// Objects in a page of a listing; 1000 if 0.
    pub page_size: usize,
    /// Requests that reached the server, the SDK's repetitions included.
    pub requests: u32,
    /// The most requests that were under way at the same time.
    pub most_at_once: u32,
    now: u32,
    objects: BTreeMap<String, Stored>,
    /// What was replaced or deleted while versions are kept.
    old_versions: Vec<Stored>,
    writes: u64,
}

#[derive(Clone, Default)]
struct Memory {
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.buckets.lock().unwrap()
    }

    fn with<T>(&self, bucket: &str, work: impl FnOnce(&mut Bucket) -> S3Result<T>) -> S3Result<T> {
        match self.lock().get_mut(bucket) {
            Some(bucket) => work(bucket),
            None => Err(s3_error!(NoSuchBucket)),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let PutObjectInput {
            bucket, key, body, if_none_match, object_lock_mode, object_lock_retain_until_date, ..
        } = request.input;
        let mut bytes = Vec::new();
        if let Some(mut body) = body {
            while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
                bytes.extend_from_slice(&chunk);
            }
        }
        self.with(&bucket, |bucket| {
            if if_none_match.is_some() && !bucket.switches.ignores_conditions && bucket.objects.contains_key(&key) {
                return Err(s3_error!(PreconditionFailed));
            }
            let retention = object_lock_mode.zip(object_lock_retain_until_date);
            if retention.is_some() && !bucket.locked && !bucket.switches.ignores_retention {
                return Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"));
            }
            bucket.writes += 1;
            let etag = format!("{:032x}", bucket.writes);
            let retention = retention.filter(|_| !bucket.switches.ignores_retention);
            let stored = Stored { bytes: bytes.into(), etag: etag.clone(), modified: SystemTime::now(), retention };
            if let Some(old) = bucket.objects.insert(key, stored)
                && bucket.locked
            {
                bucket.old_versions.push(old);
            }
            Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(etag)), ..Default::default() }))
        })
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let GetObjectInput { bucket, key, range, if_match, .. } = request.input;
        self.with(&bucket, |bucket| {
            let stored = bucket.objects.get(&key).ok_or_else(|| s3_error!(NoSuchKey))?;
            let etag = ETag::Strong(stored.etag.clone());
            if if_match.is_some_and(|wanted| wanted != ETagCondition::ETag(etag.clone())) {
                return Err(s3_error!(PreconditionFailed));
            }
            let size = stored.bytes.len() as u64;
            let range = range.filter(|_| !bucket.switches.ignores_ranges);
            let (bytes, content_range) = match range {
                None => (stored.bytes.clone(), None),
                Some(range) => {
                    let range = range.check(size)?;
                    let bytes = stored.bytes.slice(range.start as usize..range.end as usize);
                    (bytes, Some(format!("bytes {}-{}/{size}", range.start, range.end - 1)))
                }
            };
            Ok(S3Response::new(GetObjectOutput {
                content_length: Some(bytes.len() as i64),
                body: Some(StreamingBlob::from(s3s::Body::from(bytes))),
                content_range,
                e_tag: Some(etag),
                last_modified: Some(stored.modified.into()),
                ..Default::default()
            }))
        })
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.with(&request.input.bucket, |bucket| {
            let stored = bucket.objects.get(&request.input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
            Ok(S3Response::new(HeadObjectOutput {
                content_length: Some(stored.bytes.len() as i64),
                e_tag: Some(ETag::Strong(stored.etag.clone())),
                last_modified: Some(stored.modified.into()),
                ..Default::default()
            }))
        })
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let ListObjectsV2Input { bucket, prefix, continuation_token, .. } = request.input;
        let prefix = prefix.unwrap_or_default();
        self.with(&bucket, |bucket| {
            let after = continuation_token.unwrap_or_default();
            let stale = bucket.switches.stale_list.as_ref();
            let page_size = if bucket.page_size == 0 { 1000 } else { bucket.page_size };
            let mut contents: Vec<Object> = bucket
                .objects
                .iter()
                .filter(|(key, _)| {
                    key.starts_with(&prefix) && **key > after && stale.is_none_or(|known| known.contains(*key))
                })
                .take(page_size + 1)
                .map(|(key, stored)| Object {
                    key: Some(key.clone()),
                    size: Some(stored.bytes.len() as i64),
                    last_modified: Some(stored.modified.into()),
                    ..Default::default()
                })
                .collect();
            let more = contents.len() > page_size;
            contents.truncate(page_size);
            let next_continuation_token = contents.last().filter(|_| more).and_then(|object| object.key.clone());
            if bucket.switches.list_backwards {
                contents.reverse();
            }
            Ok(S3Response::new(ListObjectsV2Output {
                key_count: Some(contents.len() as i32),
                contents: Some(contents),
                is_truncated: Some(more),
                next_continuation_token,
                ..Default::default()
            }))
        })
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.with(&request.input.bucket, |bucket| {
            // With versions, deleting is a marker over what stays; so retention does not hinder it.
            if let Some(old) = bucket.objects.remove(&request.input.key)
                && bucket.locked
            {
                bucket.old_versions.push(old);
            }
            Ok(S3Response::new(DeleteObjectOutput::default()))
        })
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.with(&request.input.bucket, |bucket| {
            let status = bucket.locked.then(|| BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED));
            Ok(S3Response::new(GetBucketVersioningOutput { status, ..Default::default() }))
        })
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        self.with(&request.input.bucket, |bucket| {
            if !bucket.locked {
                let code = s3s::S3ErrorCode::Custom("ObjectLockConfigurationNotFoundError".into());
                let mut error = s3s::S3Error::new(code);
                error.set_status_code(hyper::StatusCode::NOT_FOUND);
                return Err(error);
            }
            let object_lock_enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
            let object_lock_configuration = Some(ObjectLockConfiguration { object_lock_enabled, ..Default::default() });
            Ok(S3Response::new(GetObjectLockConfigurationOutput { object_lock_configuration }))
        })
    }

    async fn get_object_retention(
        &self,
        request: S3Request<GetObjectRetentionInput>,
    ) -> S3Result<S3Response<GetObjectRetentionOutput>> {
        self.with(&request.input.bucket, |bucket| {
            let stored = bucket.objects.get(&request.input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
            let retention = stored.retention.clone().map(|(mode, until)| ObjectLockRetention {
                mode: Some(ObjectLockRetentionMode::from(mode.as_str().to_owned())),
                retain_until_date: Some(until),
            });
            Ok(S3Response::new(GetObjectRetentionOutput { retention }))
        })
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// What the bucket answers before the request is looked at.
fn refusal(bucket: &mut Bucket, writes: bool) -> Option<Response<Body>> {
    let says = if bucket.switches.says.is_empty() { "says the test" } else { bucket.switches.says };
    let answer = |status: u16, code: &str| {
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{says}</Message></Error>");
        Response::builder().status(status).header("content-type", "application/xml").body(whole(xml)).unwrap()
    };
    let counted = |count: &mut u32| (*count > 0).then(|| *count -= 1).is_some();
    let switches = &mut bucket.switches;
    if counted(&mut switches.slow_down) {
        return Some(answer(503, "SlowDown"));
    }
    if writes && counted(&mut switches.conflict) {
        return Some(answer(409, "ConditionalRequestConflict"));
    }
    if let Some(region) = switches.redirect_to_region {
        let mut answer = answer(301, "PermanentRedirect");
        answer.headers_mut().insert("x-amz-bucket-region", region.parse().unwrap());
        return Some(answer);
    }
    switches.refuse.map(|(status, code)| answer(status, code))
}

/// The S3 service with the network's troubles around it. An error closes the connection without an answer.
async fn answer(memory: Memory, s3: S3Service, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (bucket, key) = {
        let mut segments = request.uri().path().splitn(3, '/').skip(1).map(str::to_owned);
        (segments.next().unwrap_or_default(), segments.next().unwrap_or_default())
    };
    let (reads, writes) =
        (request.method() == Method::GET && !key.is_empty(), request.method() == Method::PUT && !key.is_empty());
    if let Some(bucket) = memory.lock().get_mut(&bucket) {
        bucket.requests += 1;
        bucket.now += 1;
        bucket.most_at_once = bucket.most_at_once.max(bucket.now);
        if let Some(refused) = refusal(bucket, writes) {
            bucket.now -= 1;
            return Ok(refused);
        }
    }
    let response =
        s3.call(request.map(s3s::Body::from)).await.map_err(|error| io::Error::other(format!("{error:?}")))?;
    let (mut head, body) = response.into_parts();
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    // Requests that could run together do: each lets the others begin before it ends.
    tokio::task::yield_now().await;

    let mut buckets = memory.lock();
    let Some(Bucket { switches, now, .. }) = buckets.get_mut(&bucket) else {
        return Ok(Response::from_parts(head, whole(bytes)));
    };
    *now -= 1;
    let done = head.status.is_success();
    if writes && done && switches.lose_put_answers > 0 {
        switches.lose_put_answers -= 1;
        return Err(io::Error::other("the answer is lost"));
    }
    if reads && done {
        if let Some((times, after)) = switches.cut_bodies.filter(|(times, after)| *times > 0 && *after < bytes.len()) {
            switches.cut_bodies = Some((times - 1, after));
            let frames = [Ok(Frame::data(bytes.slice(..after))), Err(io::Error::other("the connection is cut"))];
            // Hyper sends what it has only when the next frame is not there at once.
            let frames = stream::iter(frames).then_yielding();
            return Ok(Response::from_parts(head, StreamBody::new(frames).boxed_unsync()));
        }
        if let Some(keep) = switches.shorten_bodies.filter(|keep| *keep < bytes.len()) {
            head.headers.insert(CONTENT_LENGTH, keep.into());
            return Ok(Response::from_parts(head, whole(bytes.slice(..keep))));
        }
    }
    Ok(Response::from_parts(head, whole(bytes)))
}

trait ThenYielding: futures_util::Stream + Sized {
    /// Lets the runtime do other work before each item.
    fn then_yielding(self) -> impl futures_util::Stream<Item = Self::Item> {
        use futures_util::StreamExt;
        self.then(async |item| {
            tokio::task::yield_now().await;
            item
        })
    }
}
impl<S: futures_util::Stream> ThenYielding for S {}

async fn listen(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, memory: Memory, s3: S3Service) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        // Without it small answers wait 40 ms for the client's delayed acknowledgement.
        connection.set_nodelay(true).unwrap();
        let (memory, s3, tls) = (memory.clone(), s3.clone(), tls.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(memory.clone(), s3.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            // Cut connections and refused certificates end with an error: they are meant to.
            match tls {
                None => drop(http.serve_connection(TokioIo::new(connection), service).await),
                Some(tls) => {
                    let Ok(connection) = tls.accept(connection).await else { return };
                    drop(http.serve_connection(TokioIo::new(connection), service).await);
                }
            }
        });
    }
}

fn certificate() -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(include_bytes!("tls/server.pem")).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

pub struct S3Server {
    pub address: SocketAddr,
    /// The same over TLS, with a certificate for `localhost` that only `tests/it/tls/authority.pem` vouches for.
    pub tls_address: SocketAddr,
    memory: Memory,
}

/// The server of this process, on a runtime of its own because each test's ends with the test.
pub fn server() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let memory = Memory::default();
        let mut service = S3ServiceBuilder::new(memory.clone());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let [plain, tls] = std::array::from_fn(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, tls_address] = [&plain, &tls].map(|listener| listener.local_addr().unwrap());
        let shared = memory.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::join!(
                    listen(plain, None, shared.clone(), service.clone()),
                    listen(tls, Some(certificate()), shared.clone(), service.clone())
                )
            });
        });
        S3Server { address, tls_address, memory }
    })
}

impl S3Server {
    /// A new empty bucket, and how it is reached.
    pub fn fresh_bucket(&self) -> S3Location {
        let mut buckets = self.memory.lock();
        let name = format!("bucket-{}", buckets.len());
        buckets.insert(name.clone(), Bucket::default());
        self.location(&name)
    }

    /// How a bucket of this name is reached, whether there is one or not.
    pub fn location(&self, bucket: &str) -> S3Location {
        let mut location = S3Location::new(bucket);
        location.endpoint = Some(format!("http://{}", self.address));
        location.region = Some("us-east-1".into());
        location.path_style = true;
        location.credentials = Some(S3Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() });
        location
    }

    /// Looks into a bucket or turns its switches.
    pub fn bucket<T>(&self, location: &S3Location, work: impl FnOnce(&mut Bucket) -> T) -> T {
        work(self.memory.lock().get_mut(&location.bucket).unwrap())
    }
}

impl Bucket {
    pub fn keys(&self) -> BTreeSet<String> {
        self.objects.keys().cloned().collect()
    }

    /// How many versions lie beneath those that a `GET` sees.
    pub fn old_versions(&self) -> usize {
        self.old_versions.len()
    }

    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.objects.get(key).map(|stored| stored.bytes.clone())
    }

    /// The second until which the object is kept.
    pub fn retained_until(&self, key: &str) -> Option<Timestamp> {
        self.objects.get(key)?.retention.as_ref().map(|(_, until)| until.clone())
    }
}
