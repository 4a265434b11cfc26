//! Which digest a tag has, and where its image runs: one request to the registry, two for an image without an index.

use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, error::Elapsed};
use url::Url;

use super::{
    Client, Inner,
    document::{self, ConfigBlob, Document, DocumentError},
    error::{Cap, RegistryError},
    http::{Answer, Outgoing, Session},
    keyring::Keyring,
    login::Login,
    origin::{self, host_text},
    registries::Endpoint,
    turns::Turns,
};
use crate::policy::{Digest, Platform, Repository, is_legal_tag};

/// The manifests that Kubernetes' container runtimes run (OCI image specification, and docker's).
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
/// Bytes of a manifest or index; registries need not take larger ones (OCI distribution specification, "Push").
const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Bytes of an image's config.
const MAX_CONFIG: usize = 8 * 1024 * 1024;
const DIGEST_HEADER: &str = "docker-content-digest";

/// Which manifest to ask for, and as whom.
#[derive(Clone, Debug)]
pub struct ManifestRequest {
    /// The repository, normalised.
    pub repository: Repository,
    /// A tag, or a digest: `1.4.2`, `sha256:…`.
    pub tag: String,
    /// The Image's credentials.
    pub keyring: Keyring,
    /// Accept any certificate of the registry itself; its token host elsewhere is verified all the same.
    pub insecure_skip_tls_verify: bool,
}

/// What a registry has for a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Of the index, if the image is for several platforms.
    pub digest: Digest,
    /// What the image is built for, once each. Attestations are left out. `None` if it does not tell: an artifact, docker's
    /// schema 1, an index or config without platforms.
    pub platforms: Option<Vec<Platform>>,
}

impl Client {
    /// The digest that a tag has now, or whether a digest is there: one HEAD once a token is cached, and a GET where the
    /// answer has no usable `Docker-Content-Digest`.
    ///
    /// Safe to drop at any await point.
    pub async fn digest(&self, request: &ManifestRequest) -> Result<Digest, RegistryError> {
        Ok(self.inquire(request, What::Digest).await?.digest)
    }

    /// The digest and platforms that a tag has now: one GET once a token is cached, and for an image without an index
    /// another one for its config. What comes is verified against its digest.
    ///
    /// Safe to drop at any await point.
    pub async fn manifest(&self, request: &ManifestRequest) -> Result<Manifest, RegistryError> {
        self.inquire(request, What::Manifest).await
    }

    async fn inquire(&self, request: &ManifestRequest, what: What) -> Result<Manifest, RegistryError> {
        let endpoints = self.0.endpoints(&request.repository, request.insecure_skip_tls_verify)?;
        let mut turns = Turns::new(endpoints, Instant::now() + self.0.limits.deadline, &self.0.failing);
        while let Some((endpoint, until)) = turns.next() {
            let Endpoint { repository, skip_verify } = endpoint;
            let request = ManifestRequest { repository, insecure_skip_tls_verify: skip_verify, ..request.clone() };
            let mut inquiry = Inquiry::begin(&self.0, &request, until)?;
            let outcome = tokio::time::timeout_at(until, inquiry.answer(what)).await;
            let outcome = inquiry.finish(outcome);
            if let Some(outcome) = turns.settle(outcome, |error| error) {
                return outcome;
            }
        }
        Err(Turns::none_left())
    }
}

/// What is asked of a manifest.
#[derive(Clone, Copy)]
enum What {
    /// Its digest alone, without platforms.
    Digest,
    Manifest,
}

/// The requests about one manifest.
struct Inquiry<'a> {
    inner: &'a Inner,
    request: &'a ManifestRequest,
    /// The digest that was asked for, if it was one.
    wanted: Option<Digest>,
    url: Url,
    session: Session<'a>,
    login: Login<'a>,
}

impl<'a> Inquiry<'a> {
    fn begin(inner: &'a Inner, request: &'a ManifestRequest, deadline: Instant) -> Result<Self, RegistryError> {
        let ManifestRequest { repository, tag, keyring, insecure_skip_tls_verify } = request;
        let wanted = Digest::parse(tag).ok();
        if wanted.is_none() && !is_legal_tag(tag) {
            let cause = format!("what is asked of {repository} is neither a tag nor a sha256 or sha512 digest");
            return Err(RegistryError::Config { cause });
        }
        let url = origin::repository_url(repository, &inner.plain_http, &format!("manifests/{tag}"))?;
        let (_, session, login) = inner.begin(repository, keyring, *insecure_skip_tls_verify, &url, deadline)?;
        Ok(Self { inner, request, wanted, url, session, login })
    }

    fn finish<T>(&self, outcome: Result<Result<T, RegistryError>, Elapsed>) -> Result<T, RegistryError> {
        let late = |_| Err(RegistryError::Timeout { host: host_text(&self.url), after: self.inner.limits.deadline });
        let outcome = outcome.unwrap_or_else(late).map_err(|error| self.session.scrub(error));
        let (repository, tag, requests) = (&self.request.repository, &self.request.tag, self.session.requests());
        match &outcome {
            Ok(_) => tracing::debug!(%repository, tag, requests, "asked for a manifest"),
            Err(error) => tracing::debug!(%repository, tag, requests, %error, "asking for a manifest failed"),
        }
        outcome
    }

    async fn answer(&mut self, what: What) -> Result<Manifest, RegistryError> {
        match what {
            What::Digest => Ok(Manifest { digest: self.digest().await?, platforms: None }),
            What::Manifest => self.manifest().await,
        }
    }

    async fn digest(&mut self) -> Result<Digest, RegistryError> {
        let url = self.url.clone();
        let answer = self
            .ask(&Outgoing { head: true, accept: Some(ACCEPT), ..Outgoing::get(&url, None, 0, Cap::ManifestBytes) })
            .await?;
        match (answer.status, told_digest(&answer.headers)) {
            (StatusCode::OK, Some(told)) => match &self.wanted {
                None => return Ok(told),
                Some(wanted) if *wanted == told => return Ok(told),
                Some(wanted) if wanted.algorithm() == told.algorithm() => {
                    return Err(self.wrong_digest(&answer, wanted));
                }
                Some(_) => {}
            },
            (StatusCode::OK, None) | (StatusCode::METHOD_NOT_ALLOWED, _) => {}
            _ => return Err(self.failure(&answer)),
        }
        Ok(self.fetch().await?.0)
    }

    async fn manifest(&mut self) -> Result<Manifest, RegistryError> {
        let (digest, document) = self.fetch().await?;
        let platforms = match document {
            Document::Index(platforms) => platforms,
            Document::Image(config) => self.config_platform(&config).await?.map(|platform| vec![platform]),
            Document::Schema1 | Document::Other => None,
        };
        Ok(Manifest { digest, platforms })
    }

    /// GET, verified.
    async fn fetch(&mut self) -> Result<(Digest, Document), RegistryError> {
        let url = self.url.clone();
        let answer = self
            .ask(&Outgoing { accept: Some(ACCEPT), ..Outgoing::get(&url, None, MAX_MANIFEST, Cap::ManifestBytes) })
            .await?;
        if answer.status != StatusCode::OK {
            return Err(self.failure(&answer));
        }
        let host = || host_text(&answer.url);
        let document = document::read(&answer.body).map_err(|error| match error {
            DocumentError::TooMuch(cap) => RegistryError::TooMuch { host: host(), cap },
            DocumentError::Errors => self.failure(&answer),
            DocumentError::Malformed(cause) => RegistryError::Malformed { host: host(), cause },
        })?;
        let digest = self.verified_digest(&answer, &document)?;
        Ok((digest, document))
    }

    /// The digest that was asked for, or told, if the body has it; computed if there is neither.
    fn verified_digest(&self, answer: &Answer, document: &Document) -> Result<Digest, RegistryError> {
        let told = told_digest(&answer.headers);
        if *document == Document::Schema1 {
            // Only the registry knows which part of it was digested.
            let told = told.filter(|told| self.wanted.as_ref().is_none_or(|wanted| wanted == told));
            return told.ok_or_else(|| {
                let cause = "it is of docker's schema 1, without its digest: push the image again".to_owned();
                RegistryError::Malformed { host: host_text(&answer.url), cause }
            });
        }
        for digest in self.wanted.iter().chain(&told) {
            if !digest.is_of(&answer.body) {
                return Err(self.wrong_digest(answer, digest));
            }
        }
        Ok(self.wanted.clone().or(told).unwrap_or_else(|| Digest::sha256_of(&answer.body)))
    }

    async fn config_platform(&mut self, config: &ConfigBlob) -> Result<Option<Platform>, RegistryError> {
        let ConfigBlob { digest, size } = config;
        if *size > MAX_CONFIG as u64 {
            return Err(RegistryError::TooMuch { host: host_text(&self.url), cap: Cap::ManifestBytes(MAX_CONFIG) });
        }
        let repository = &self.request.repository;
        let url = origin::repository_url(repository, &self.inner.plain_http, &format!("blobs/{digest}"))?;
        let answer = self.ask(&Outgoing::get(&url, None, MAX_CONFIG, Cap::ManifestBytes)).await?;
        let host = host_text(&answer.url);
        match answer.status.as_u16() {
            200 if digest.is_of(&answer.body) => Ok(document::config_platform(&answer.body)),
            200 => {
                let cause = format!("the config of manifest {} does not have its digest", self.request.tag);
                Err(RegistryError::Malformed { host, cause })
            }
            404 => {
                let cause = format!("manifest {} has no config, it cannot be pulled: push it again", self.request.tag);
                Err(RegistryError::Malformed { host, cause })
            }
            _ => Err(self.failure(&answer)),
        }
    }

    /// Sends until credentials are accepted or there are no more; the session's budget bounds how often.
    async fn ask(&mut self, request: &Outgoing<'_>) -> Result<Answer, RegistryError> {
        self.session.begin_page();
        loop {
            let header = self.login.header(&mut self.session).await?;
            let request = Outgoing { authorization: header.as_ref(), form: None, ..*request };
            let answer = self.session.follow(&request).await?;
            if !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                if answer.status == StatusCode::OK {
                    self.login.accepted();
                }
                return Ok(answer);
            }
            self.login.denied(&mut self.session, &answer).await?;
        }
    }

    /// What an answer means that is no manifest.
    fn failure(&self, answer: &Answer) -> RegistryError {
        let host = host_text(&answer.url);
        let repository = self.request.repository.path().to_owned();
        let has = |code| document::has_code(&answer.body, code);
        match answer.status.as_u16() {
            _ if has("MANIFEST_UNKNOWN") => {
                RegistryError::NoManifest { host, repository, manifest: self.request.tag.clone() }
            }
            _ if has("NAME_UNKNOWN") => RegistryError::NotFound { host, repository },
            404 => RegistryError::NoManifest { host, repository, manifest: self.request.tag.clone() },
            200 => {
                let cause = "it reports errors with status 200".to_owned();
                RegistryError::Malformed { host, cause }
            }
            status @ 201..=399 => {
                let cause = format!("status {status} to a request for a manifest");
                RegistryError::Malformed { host, cause }
            }
            status => RegistryError::Server { host, status },
        }
    }

    fn wrong_digest(&self, answer: &Answer, digest: &Digest) -> RegistryError {
        let cause = format!("manifest {} does not have its digest {digest}", self.request.tag);
        RegistryError::Malformed { host: host_text(&answer.url), cause }
    }
}

/// `Docker-Content-Digest`, if there is exactly one and it is a digest.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    let mut values = headers.get_all(DIGEST_HEADER).iter();
    let digest = Digest::parse(values.next()?.to_str().ok()?.trim()).ok()?;
    values.next().is_none().then_some(digest)
}
