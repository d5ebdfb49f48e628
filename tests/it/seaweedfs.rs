//! A real S3 server for the tests of this process: SeaweedFS, started once, a fresh prefix for each test.
//!
//! `scripts/install-test-tools` fetches it. It dies with this process, even by SIGKILL: a shell that holds a pipe to us sees
//! the end of it, kills the server (SIGTERM would take it 27 s) and removes its directory.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use restante::storage::{S3Credentials, S3Location};
use tokio::sync::OnceCell;

const BUCKET: &str = "restante";
/// Has object lock, so versions are kept.
const LOCKED_BUCKET: &str = "restante-locked";
const ACCESS_KEY: &str = "AKTEST";
const SECRET_KEY: &str = "SKTEST";
pub const KEYS: (&str, &str) = (ACCESS_KEY, SECRET_KEY);
/// Starting takes 4 s on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Server {
    endpoint: String,
    /// Holds our end of its pipe, which the kernel closes when this process is gone.
    _leash: Child,
}

/// `None` if the tests were told to do without.
async fn server() -> Option<&'static Server> {
    if std::env::var("RESTANTE_WITHOUT_SEAWEEDFS").is_ok_and(|value| value == "1") {
        println!("skipped: RESTANTE_WITHOUT_SEAWEEDFS=1, so nothing is tried on a real S3 server");
        return None;
    }
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    Some(SERVER.get_or_init(start).await)
}

/// Where nothing lies yet.
pub async fn fresh_prefix() -> Option<S3Location> {
    Some(location(server().await?, BUCKET))
}

/// The same in a bucket with object lock.
pub async fn fresh_locked_prefix() -> Option<S3Location> {
    Some(location(server().await?, LOCKED_BUCKET))
}

/// Of the vendor's library, for what our storage cannot do.
pub async fn client() -> Option<aws_sdk_s3::Client> {
    Some(client_of(&server().await?.endpoint))
}

fn client_of(endpoint: &str) -> aws_sdk_s3::Client {
    aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(endpoint)
            .region(Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
            .build(),
    )
}

fn location(server: &Server, bucket: &str) -> S3Location {
    static PREFIXES: AtomicU32 = AtomicU32::new(0);
    let mut location = S3Location::new(bucket);
    location.prefix = format!("test/{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
    location.endpoint = Some(server.endpoint.clone());
    location.region = Some("us-east-1".into());
    location.path_style = true;
    location.credentials = Some(S3Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() });
    location
}

fn program() -> PathBuf {
    // …/target/ci/deps/it-… → …/target/tools/weed
    let this = std::env::current_exe().unwrap();
    let weed = this.ancestors().nth(3).unwrap().join("tools/weed");
    assert!(
        weed.exists(),
        "{} is missing: run scripts/install-test-tools, or set RESTANTE_WITHOUT_SEAWEEDFS=1 to do without",
        weed.display()
    );
    weed
}

/// A port that is free, as is the one 10000 above it, where SeaweedFS puts its gRPC.
fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if let Some(grpc) = port.checked_add(10_000)
            && TcpListener::bind(("127.0.0.1", grpc)).is_ok()
        {
            return port;
        }
    }
}

async fn start() -> Server {
    let directory = tempfile::Builder::new().prefix("restante-seaweedfs-").tempdir().unwrap().keep();
    let keys = serde_json::json!({"identities": [{
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }]});
    let config = directory.join("s3.json");
    std::fs::write(&config, keys.to_string()).unwrap();
    let [master, volume, filer, s3] = std::array::from_fn(|_| free_port());

    let mut leash = Command::new("sh");
    leash.args(["-c", r#"dir=$1; shift; "$@" & pid=$!; cat >/dev/null; kill -9 $pid; rm -rf "$dir""#, "leash"]);
    leash.arg(&directory).arg(program()).arg("server");
    leash.arg(format!("-dir={}", directory.display())).arg(format!("-s3.config={}", config.display()));
    // Telemetry is on by default and reports to the vendor.
    leash.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"]);
    leash.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=50"]);
    leash.arg(format!("-master.port={master}")).arg(format!("-volume.port={volume}"));
    leash.arg(format!("-filer.port={filer}")).arg(format!("-s3.port={s3}"));
    let log = std::fs::File::create(directory.join("log")).unwrap();
    leash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).current_dir(&directory);
    let server = Server { endpoint: format!("http://127.0.0.1:{s3}"), _leash: leash.spawn().unwrap() };

    let client = client_of(&server.endpoint);
    // Ready is who can store: the parts of the server find each other only after the port is open.
    let give_up = Instant::now() + PATIENCE;
    loop {
        let ready = async {
            for (bucket, locked) in [(BUCKET, false), (LOCKED_BUCKET, true)] {
                let created = client.create_bucket().bucket(bucket).object_lock_enabled_for_bucket(locked).send().await;
                if let Err(error) = created
                    && !error
                        .as_service_error()
                        .is_some_and(|error| error.is_bucket_already_exists() || error.is_bucket_already_owned_by_you())
                {
                    return Err(format!("{error:?}"));
                }
            }
            client.put_object().bucket(BUCKET).key("ready").send().await.map_err(|error| format!("{error:?}"))
        };
        match ready.await {
            Ok(_) => return server,
            Err(error) if Instant::now() > give_up => {
                let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
                panic!("SeaweedFS did not start in {PATIENCE:?}: {error}\n{log}");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
