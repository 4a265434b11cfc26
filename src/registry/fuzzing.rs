//! The parsers of what a registry or a Secret says, for the fuzz targets alone.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::Url;

use super::{
    Keyring, PullSecret, PullSecretError, RegistryError, auth,
    http::{BodySink, MAX_REPORTED_PAUSE},
    link, notice,
    origin::{self, Origin},
    page::Collector,
};

fn headers(name: &HeaderName, values: &[&[u8]]) -> HeaderMap {
    let values = values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok());
    values.map(|value| (name.clone(), value)).collect()
}

/// The realm of the Bearer challenge in these `WWW-Authenticate` headers, and whether this registry may be answered there.
pub fn realm(registry: &Url, values: &[&[u8]]) -> Option<(Url, bool)> {
    let auth::Challenge::Bearer { realm, .. } = auth::challenge(&headers(&header::WWW_AUTHENTICATE, values))? else {
        return None;
    };
    let allowed = origin::check_realm(&Origin::of(registry)?, &[], &realm).is_ok();
    Some((realm, allowed))
}

/// The next page by these `Link` headers of an answer to a request for `first`.
pub fn next_page(first: &Url, values: &[&[u8]]) -> Result<Option<Url>, RegistryError> {
    let Some(registry) = Origin::of(first) else { return Ok(None) };
    link::next_page(&headers(&header::LINK, values), first, &registry, first)
}

/// The pause that is told to the user, by a `Retry-After` header.
pub fn retry_after(value: &[u8]) -> Option<Duration> {
    notice::retry_after(&headers(&header::RETRY_AFTER, &[value])).map(|pause| pause.min(MAX_REPORTED_PAUSE))
}

/// The tags of one page that arrives in these chunks, and the number of illegal ones.
pub fn tag_list<'a>(max_tags: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Option<(Vec<String>, usize)> {
    let mut collector = Collector::new(max_tags, usize::MAX);
    collector.begin();
    for chunk in chunks {
        collector.chunk(chunk).ok()?;
    }
    collector.end_page().ok()?;
    let (tags, dropped) = collector.finish();
    Some((tags.iter().map(str::to_owned).collect(), dropped))
}

/// The credentials of a Secret that holds these bytes.
pub fn docker_config(bytes: &[u8], legacy: bool) -> Result<Keyring, PullSecretError> {
    let (kind, key) = if legacy {
        ("kubernetes.io/dockercfg", ".dockercfg")
    } else {
        ("kubernetes.io/dockerconfigjson", ".dockerconfigjson")
    };
    let data = BTreeMap::from([(key.to_owned(), bytes.to_vec())]);
    Keyring::from_secrets([PullSecret { name: "fuzz", kind, data: &data }])
}
