//! The distribution registry (the program of the image `registry:3`) on a port of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use aws_lc_rs::digest::{SHA256, digest};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use url::Url;

use crate::pki::write_self_signed;
use crate::process::{Process, ProcessSpec, Started, start, start_on_ports};
use crate::run_dir::run_dir;
use crate::tools::tool;
use crate::wait::try_eventually;

const START_DEADLINE: Duration = Duration::from_secs(60);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A tar archive without files: two blocks of zeros.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// A running registry. What is pushed stays over [`Registry::stop`] and [`Registry::start_again`]; dropping it ends
/// it. All requests are made with a client of their own, so it can be shared between tests.
pub struct Registry {
    process: Option<Process>,
    spec: ProcessSpec,
    port: u16,
    user: Option<(String, String)>,
    certificate: Option<String>,
}

impl Registry {
    /// Plain http, no credentials.
    pub async fn open() -> Result<Self> {
        Self::launch(None, false).await
    }

    /// Plain http with Basic authentication.
    pub async fn htpasswd(user: &str, password: &str) -> Result<Self> {
        Self::launch(Some((user, password)), false).await
    }

    /// https with a self-signed certificate, no credentials.
    pub async fn tls() -> Result<Self> {
        Self::launch(None, true).await
    }

    /// https with a self-signed certificate and Basic authentication.
    pub async fn tls_htpasswd(user: &str, password: &str) -> Result<Self> {
        Self::launch(Some((user, password)), true).await
    }

    async fn launch(user: Option<(&str, &str)>, tls: bool) -> Result<Self> {
        crate::install_crypto_provider();
        let folder = run_dir()?.folder("registry")?;
        let certificate = if tls { Some(write_self_signed(&folder)?) } else { None };
        if let Some((user, password)) = user {
            // The least cost that bcrypt knows: the registry checks the password at each request.
            fs::write(folder.join("htpasswd"), format!("{user}:{}\n", bcrypt::hash(password, 4)?))?;
        }
        let config_file = write_config(&folder, user.is_some(), tls)?;
        let program = tool("registry")?;
        let spec = |port: u16| {
            let mut spec = ProcessSpec::new("registry", program.clone(), &folder).arg("serve").arg(&config_file);
            spec.env = vec![
                ("REGISTRY_HTTP_ADDR".to_owned(), format!("127.0.0.1:{port}")),
                ("OTEL_TRACES_EXPORTER".to_owned(), "none".to_owned()),
            ];
            spec
        };
        let (process, [port]) =
            start_on_ports(START_DEADLINE, |[port]| spec(port), async |process, _| listening(process)).await?;
        let user = user.map(|(user, password)| (user.to_owned(), password.to_owned()));
        Ok(Self { process: Some(process), spec: spec(port), port, user, certificate })
    }

    /// Host and port, as in an image reference: `127.0.0.1:12345`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An image reference without tag: `127.0.0.1:12345/app`.
    pub fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host())
    }

    /// The self-signed certificate, as PEM; none for plain http.
    pub fn certificate_pem(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The `.dockerconfigjson` of a Secret with these credentials for this registry.
    pub fn docker_config(&self, user: &str, password: &str) -> String {
        json!({"auths": {self.host(): {"username": user, "password": password}}}).to_string()
    }

    /// SIGKILL: connections are refused from now on.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port, with what was pushed before.
    pub async fn start_again(&mut self) -> Result<()> {
        self.stop();
        let spec = &self.spec;
        let restart = async || match start(START_DEADLINE, spec, async |process: &Process| listening(process)).await {
            Ok(Started::PortTaken) => Err(anyhow!("its port is taken")),
            Ok(Started::Ready(process)) => Ok(Ok(process)),
            Err(error) => Ok(Err(error)),
        };
        self.process = Some(try_eventually(START_DEADLINE, "the registry starts again", restart).await??);
        Ok(())
    }

    /// Pushes a tiny image and returns its digest. Each push has a content of its own, so pushing a tag again moves
    /// it.
    pub async fn push(&self, repository: &str, tag: &str) -> Result<String> {
        self.push_for(repository, tag, "amd64").await
    }

    /// The same for another architecture than that of the cluster's Nodes.
    pub async fn push_for(&self, repository: &str, tag: &str, architecture: &str) -> Result<String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let client = self.client()?;
        let layer = self.push_blob(&client, repository, &EMPTY_TAR).await?;
        let config = json!({
            "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
            "config": {"Labels": {"push": format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))}},
        })
        .to_string();
        let config_digest = self.push_blob(&client, repository, config.as_bytes()).await?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": layer, "size": EMPTY_TAR.len()}],
        })
        .to_string();
        let sha = sha256(manifest.as_bytes());
        let path = format!("{repository}/manifests/{tag}");
        let put = self.request(&client, Method::PUT, &path)?.header(header::CONTENT_TYPE, MANIFEST).body(manifest);
        expect(put.send().await?, &[StatusCode::CREATED], &path).await?;
        Ok(sha)
    }

    /// Pushes one image for each tag.
    pub async fn push_all(&self, repository: &str, tags: &[&str]) -> Result<()> {
        for tag in tags {
            self.push(repository, tag).await?;
        }
        Ok(())
    }

    /// The tags as the registry lists them, sorted; none if it does not know the repository.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let path = format!("{repository}/tags/list");
        let answer = self.request(&self.client()?, Method::GET, &path)?.send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let body: Value = expect(answer, &[StatusCode::OK], &path).await?.json().await?;
        let mut tags = strings(&body["tags"]);
        tags.sort();
        Ok(tags)
    }

    /// Deletes one tag; the image stays under its digest. Given a digest, the image itself goes with all its tags.
    pub async fn delete_tag(&self, repository: &str, tag: &str) -> Result<()> {
        let path = format!("{repository}/manifests/{tag}");
        let answer = self.request(&self.client()?, Method::DELETE, &path)?.send().await?;
        expect(answer, &[StatusCode::ACCEPTED], &path).await.map(drop)
    }

    /// Deletes every tag of every repository.
    pub async fn delete_all(&self) -> Result<()> {
        let answer = self.request(&self.client()?, Method::GET, "_catalog")?.query(&[("n", "1000")]).send().await?;
        let catalog: Value = expect(answer, &[StatusCode::OK], "_catalog").await?.json().await?;
        for repository in strings(&catalog["repositories"]) {
            for tag in self.tags(&repository).await? {
                self.delete_tag(&repository, &tag).await?;
            }
        }
        Ok(())
    }

    /// Lets it run on after this process, as [`crate::Cluster::leave_running`] does; the same script ends it.
    pub fn leave_running(mut self) -> Result<PathBuf> {
        let script = run_dir()?.leave()?;
        if let Some(process) = self.process.take() {
            process.leave_running();
        }
        Ok(script)
    }

    /// Not kept: a client belongs to the runtime of its first request.
    fn client(&self) -> Result<Client> {
        let certificates = self.certificate.iter().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()));
        let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
        Ok(Client::builder().tls_certs_only(certificates).no_proxy().timeout(Duration::from_secs(10)).build()?)
    }

    fn request(&self, client: &Client, method: Method, path: &str) -> Result<RequestBuilder> {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{}/v2/{path}", self.host()))?;
        Ok(self.with_credentials(client.request(method, url)))
    }

    fn with_credentials(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.user {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    async fn push_blob(&self, client: &Client, repository: &str, content: &[u8]) -> Result<String> {
        let sha = sha256(content);
        let path = format!("{repository}/blobs/uploads/");
        let answer = self.request(client, Method::POST, &path)?.send().await?;
        let answer = expect(answer, &[StatusCode::ACCEPTED], &path).await?;
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let mut upload = answer.url().join(location.context("an upload without Location")?)?;
        upload.query_pairs_mut().append_pair("digest", &sha);
        let put = client.put(upload).header(header::CONTENT_TYPE, "application/octet-stream").body(content.to_vec());
        expect(self.with_credentials(put).send().await?, &[StatusCode::CREATED], &path).await?;
        Ok(sha)
    }
}

fn write_config(folder: &Path, htpasswd: bool, tls: bool) -> Result<String> {
    let mut config = json!({
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": folder.join("data")}, "delete": {"enabled": true},
            "maintenance": {"uploadpurging": {"enabled": false}}},
        "http": {"secret": "shared by nobody"},
    });
    if htpasswd {
        config["auth"] = json!({"htpasswd": {"realm": "testbed", "path": folder.join("htpasswd")}});
    }
    if tls {
        config["http"]["tls"] = json!({"certificate": folder.join("server.crt"), "key": folder.join("server.key")});
    }
    let path = folder.join("config.yaml"); // JSON is YAML
    fs::write(&path, config.to_string())?;
    Ok(path.display().to_string())
}

/// By its own log: an answer on the port could be another process's.
fn listening(process: &Process) -> Result<()> {
    if process.log_text().contains("listening on 127.0.0.1:") { Ok(()) } else { bail!("it does not listen yet") }
}

fn sha256(content: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in digest(&SHA256, content).as_ref() {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn expect(answer: Response, wanted: &[StatusCode], path: &str) -> Result<Response> {
    let status = answer.status();
    if !wanted.contains(&status) {
        bail!("the registry answered {status} to {path}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(answer)
}
