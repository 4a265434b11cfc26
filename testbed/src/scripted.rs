//! A registry inside this process that says what a test tells it to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::json;

use crate::fault::{FaultReply, FaultRequest, FaultServer};

/// A plain-http registry on 127.0.0.1 that knows `tags/list`, and an index for linux/amd64 for whatever tag it is asked for. It runs on threads of its own until it is dropped.
pub struct ScriptedRegistry {
    server: FaultServer,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    tags: HashMap<String, Vec<String>>,
    answers: HashMap<String, FaultReply>,
    lists: HashMap<String, usize>,
}

impl ScriptedRegistry {
    pub async fn start() -> Result<Self> {
        let script = Arc::new(Mutex::new(Script::default()));
        let played = Arc::clone(&script);
        let server = FaultServer::http(move |request| lock(&played).answer(request)).await?;
        Ok(Self { server, script })
    }

    /// Host and port, as in an image reference.
    pub fn host(&self) -> String {
        self.server.host()
    }

    /// An image reference without tag.
    pub fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host())
    }

    /// From now on `repository` has these tags, in one page; a repository without tags set is unknown (404).
    pub fn set_tags(&self, repository: &str, tags: &[&str]) {
        let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        let mut script = lock(&self.script);
        script.answers.remove(repository);
        script.tags.insert(repository.to_owned(), tags);
    }

    /// From now on `tags/list` of `repository` is answered so, until [`ScriptedRegistry::set_tags`].
    pub fn set_answer(&self, repository: &str, answer: FaultReply) {
        lock(&self.script).answers.insert(repository.to_owned(), answer);
    }

    /// How often `tags/list` of `repository` was asked for.
    pub fn lists(&self, repository: &str) -> usize {
        lock(&self.script).lists.get(repository).copied().unwrap_or_default()
    }

    /// All requests so far, of any kind.
    pub fn requests(&self) -> Vec<FaultRequest> {
        self.server.requests()
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    fn answer(&mut self, request: &FaultRequest) -> FaultReply {
        let path = request.path();
        let json = |status, body: serde_json::Value| {
            FaultReply::new(status, body.to_string()).header("content-type", "application/json")
        };
        let unknown = || json(404, json!({"errors": [{"code": "NAME_UNKNOWN", "message": "not in the script"}]}));
        if path == "/v2/" {
            return json(200, json!({}));
        }
        if let Some((_, tag)) = path.split_once("/manifests/").filter(|(_, tag)| !tag.contains(':')) {
            return index(tag);
        }
        let Some(name) = path.strip_prefix("/v2/").and_then(|path| path.strip_suffix("/tags/list")) else {
            return unknown();
        };
        *self.lists.entry(name.to_owned()).or_default() += 1;
        match (self.answers.get(name), self.tags.get(name)) {
            (Some(answer), _) => answer.clone(),
            (None, Some(tags)) => json(200, json!({"name": name, "tags": tags})),
            (None, None) => unknown(),
        }
    }
}

/// Each tag has an index of its own.
fn index(tag: &str) -> FaultReply {
    let media_type = "application/vnd.oci.image.index.v1+json";
    let image = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "size": 2,
        "platform": {"os": "linux", "architecture": "amd64"},
    });
    let body = json!({
        "schemaVersion": 2, "mediaType": media_type, "manifests": [image], "annotations": {"tag": tag},
    });
    FaultReply::new(200, body.to_string()).header("content-type", media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_what_it_is_told_and_counts() {
        crate::install_crypto_provider();
        let registry = ScriptedRegistry::start().await.unwrap();
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        let check = async |repository: &str, status: u16, body: &str| {
            let url = format!("http://{}/v2/{repository}/tags/list?n=10", registry.host());
            let answer = client.get(url).bearer_auth("secret").send().await.unwrap();
            assert_eq!(answer.status(), status);
            assert!(answer.text().await.unwrap().contains(body), "{repository}: {body}");
        };
        check("team/app", 404, "NAME_UNKNOWN").await;
        registry.set_tags("team/app", &["1.0.0", "1.1.0"]);
        check("team/app", 200, r#""tags":["1.0.0","1.1.0"]"#).await;
        registry.set_answer("team/app", FaultReply::new(429, "later").header("retry-after", "7"));
        check("team/app", 429, "later").await;
        registry.set_tags("team/app", &[]);
        check("team/app", 200, r#""tags":[]"#).await;
        assert_eq!((registry.lists("team/app"), registry.lists("other")), (4, 0));
        let seen = registry.requests();
        assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("GET", "/v2/team/app/tags/list?n=10"));
        assert_eq!(seen[0].authorization(), "Bearer secret");
    }
}
