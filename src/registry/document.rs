//! Reads manifests, indexes and image configs (OCI image specification and docker's image manifest, version 2): only
//! what tells where an image runs. Pure.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::error::Cap;
use crate::policy::{Digest, Platform};

/// Images of one index; real ones have a few dozen.
const MAX_ENTRIES: usize = 1000;
/// Media types of a config blob that describes an image. Others (charts, signatures) say nothing of platforms.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const ATTESTATION: &str = "unknown";

/// The body of a manifest request, told apart by its content: registries get the Content-Type wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Document {
    /// An index, with the platforms of its images once each; `None` if an image in it names none.
    Index(Option<Vec<Platform>>),
    /// A single image, with the config blob that names its platform.
    Image(ConfigBlob),
    /// Docker's first schema: its digest is not that of the body, but of a part of it.
    Schema1,
    /// Something without a platform: an artifact.
    Other,
}

/// Where the config of an image is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConfigBlob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Why a body is no document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DocumentError {
    TooMuch(Cap),
    /// An error in the place of a manifest.
    Errors,
    /// Says where, never quotes the answer.
    Malformed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Entries>,
    config: Option<Descriptor>,
    layers: Option<IgnoredAny>,
    errors: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    artifact_type: Option<IgnoredAny>,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl RawPlatform {
    fn legal(&self) -> Option<Platform> {
        Platform::new(self.os.as_deref()?, self.architecture.as_deref()?, self.variant.as_deref())
    }
}

/// The images of an index, reduced to their platforms while they are read: an empty entry has three bytes.
#[derive(Default)]
struct Entries {
    count: usize,
    unclear: bool,
    platforms: Vec<Platform>,
}

impl Entries {
    fn push(&mut self, entry: &Entry) {
        match &entry.platform {
            // A runtime would look into it, unless it is an artifact.
            None => self.unclear |= entry.artifact_type.is_none(),
            Some(platform) => {
                let legal = platform.legal().filter(|p| p.os != ATTESTATION && p.architecture != ATTESTATION);
                self.platforms.extend(legal.filter(|platform| !self.platforms.contains(platform)));
            }
        }
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of descriptors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while entries.count < MAX_ENTRIES {
                    let Some(entry) = list.next_element::<Entry>()? else { return Ok(entries) };
                    entries.count += 1;
                    entries.push(&entry);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {
                    entries.count += 1;
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_seq(EntriesVisitor)
    }
}

/// Reads the body of a 200.
pub(super) fn read(body: &[u8]) -> Result<Document, DocumentError> {
    let malformed = |cause: &str| DocumentError::Malformed(cause.to_owned());
    // serde would take a list for an object, too.
    match body.trim_ascii_start().first() {
        Some(b'{') => {}
        Some(b'<') => return Err(malformed("it is a web page, no manifest: check the registry's name and port")),
        _ => return Err(malformed("it is no manifest")),
    }
    // serde_json's own text may quote the answer.
    let raw: Raw = serde_json::from_slice(body).map_err(|error| {
        DocumentError::Malformed(format!("it is no manifest (line {}, column {})", error.line(), error.column()))
    })?;
    if raw.errors.is_some() {
        return Err(DocumentError::Errors);
    }
    match (raw.manifests, raw.config) {
        _ if raw.schema_version == Some(1) => Ok(Document::Schema1),
        // Two readers of one digest must not see two images (CVE-2021-41190).
        (Some(_), Some(_)) => Err(malformed("it is an index and an image at once")),
        (Some(_), None) if raw.layers.is_some() => Err(malformed("it is an index and an image at once")),
        (Some(entries), None) if entries.count > MAX_ENTRIES => Err(DocumentError::TooMuch(Cap::Entries(MAX_ENTRIES))),
        (Some(entries), None) => Ok(Document::Index(if entries.unclear { None } else { Some(entries.platforms) })),
        (None, Some(config)) => image(&config),
        (None, None) if raw.schema_version == Some(2) || raw.media_type.is_some() => Ok(Document::Other),
        (None, None) => Err(malformed("it is no manifest")),
    }
}

fn image(config: &Descriptor) -> Result<Document, DocumentError> {
    if !config.media_type.as_deref().is_some_and(|kind| IMAGE_CONFIGS.contains(&kind)) {
        return Ok(Document::Other);
    }
    let illegal = |_| DocumentError::Malformed("the digest of its config is neither sha256 nor sha512".to_owned());
    Ok(Document::Image(ConfigBlob { digest: Digest::parse(&config.digest).map_err(illegal)?, size: config.size }))
}

/// The platform that a config blob names.
pub(super) fn config_platform(body: &[u8]) -> Option<Platform> {
    serde_json::from_slice::<RawPlatform>(body).ok()?.legal()
}

/// Whether an error's body has this code (OCI distribution specification, "Error Codes").
pub(super) fn has_code(body: &[u8], code: &str) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        code: String,
    }
    let answer = serde_json::from_slice::<Answer>(body);
    answer.is_ok_and(|answer| answer.errors.iter().any(|item| item.code.eq_ignore_ascii_case(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// `linux/amd64 linux/arm64/v8` of an index, the config's digest of an image, or what else it is.
    fn told(body: &str) -> String {
        match read(body.as_bytes()) {
            Ok(Document::Index(Some(found))) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Ok(Document::Index(None)) => "unclear".to_owned(),
            Ok(Document::Image(config)) => format!("{} {}", config.digest, config.size),
            Ok(other) => format!("{other:?}"),
            Err(DocumentError::Malformed(cause)) => format!("malformed: {cause}"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn indexes() {
        let check = |entries: &str, expected: &str| {
            let body = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
            assert_eq!(told(&body), expected, "{entries}");
        };
        let amd = r#"{"platform":{"os":"linux","architecture":"amd64"}}"#;
        check("", "");
        check(amd, "linux/amd64");
        check(
            &format!(r#"{amd},{{"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}"#),
            "linux/amd64 linux/arm64/v8",
        );
        check(&format!("{amd},{amd}"), "linux/amd64");
        check(r#"{"platform":{"os":"linux","architecture":"amd64","variant":""}}"#, "linux/amd64");
        check(&format!(r#"{amd},{{"platform":{{"os":"unknown","architecture":"unknown"}}}}"#), "linux/amd64");
        check(&format!(r#"{amd},{{"platform":{{"os":"linux"}}}}"#), "linux/amd64");
        check(&format!(r#"{amd},{{"platform":{{"os":"linux","architecture":"a\nb"}}}}"#), "linux/amd64");
        check(&format!(r#"{amd},{{"digest":"x"}}"#), "unclear");
        check(&format!(r#"{amd},{{"platform":null}}"#), "unclear");
        check(&format!(r#"{amd},{{"artifactType":"application/x"}}"#), "linux/amd64");
        check(r#"{"platform":5}"#, "malformed: it is no manifest (line 1, column 45)");
        check(&vec![amd; MAX_ENTRIES].join(","), "linux/amd64");
        check(&vec!["{}"; MAX_ENTRIES + 1].join(","), "TooMuch(Entries(1000))");
    }

    #[test]
    fn documents() {
        #[track_caller]
        fn check(body: &str, expected: &str) {
            assert_eq!(told(body), expected, "{body}");
        }
        let image = |kind: &str, digest: &str| {
            let config = format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7}}"#);
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#)
        };
        check(&image(IMAGE_CONFIGS[0], SHA), &format!("{SHA} 7"));
        check(&image(IMAGE_CONFIGS[1], SHA), &format!("{SHA} 7"));
        check(&image("application/vnd.cncf.helm.config.v1+json", SHA), "Other");
        let bad = "malformed: the digest of its config is neither sha256 nor sha512";
        check(&image(IMAGE_CONFIGS[0], "../../secret"), bad);
        check(r#"{"schemaVersion":1,"fsLayers":[],"architecture":"amd64"}"#, "Schema1");
        check(r#"{"schemaVersion":2}"#, "Other");
        check(r#"{"mediaType":"application/x","blobs":[]}"#, "Other");
        let both = "malformed: it is an index and an image at once";
        check(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, both);
        check(&format!(r#"{{"manifests":[],"config":{{"digest":"{SHA}","size":1}}}}"#), both);
        check(r#"{"errors":[{"code":"DENIED"}]}"#, "Errors");
        check(r#"{"tags":["1"]}"#, "malformed: it is no manifest");
        check("{}", "malformed: it is no manifest");
        check("", "malformed: it is no manifest");
        check("null", "malformed: it is no manifest");
        check("[2,null,[]]", "malformed: it is no manifest");
        check("{}}", "malformed: it is no manifest (line 1, column 3)");
        check(r#"{"manifests":[],"manifests":[]}"#, "malformed: it is no manifest (line 1, column 27)");
        check("\n<html>", "malformed: it is a web page, no manifest: check the registry's name and port");
    }

    #[test]
    fn configs() {
        let check = |body: &str, expected: Option<&str>| {
            let found = config_platform(body.as_bytes()).map(|platform| platform.to_string());
            assert_eq!(found.as_deref(), expected, "{body}");
        };
        check(r#"{"os":"linux","architecture":"amd64","rootfs":{}}"#, Some("linux/amd64"));
        check(r#"{"os":"linux","architecture":"arm","variant":"v6"}"#, Some("linux/arm/v6"));
        check(r#"{"os":"linux"}"#, None);
        check(r#"{"os":"","architecture":""}"#, None);
        check("{}", None);
        check("<html>", None);
    }

    #[test]
    fn codes() {
        let check = |body: &str, expected: bool| {
            assert_eq!(has_code(body.as_bytes(), "MANIFEST_UNKNOWN"), expected, "{body}");
        };
        check(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x","detail":{"Tag":"1"}}]}"#, true);
        check(r#"{"errors":[{"code":"OTHER"},{"code":"manifest_unknown"}]}"#, true);
        check(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#, false);
        check(r#"{"errors":[]}"#, false);
        check("MANIFEST_UNKNOWN", false);
        check("", false);
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_read(body in r#"[{}\[\]":,a-z0-9]{0,80}"#) {
            let _ = (read(body.as_bytes()), config_platform(body.as_bytes()), has_code(body.as_bytes(), "x"));
        }
    }
}
