//! Platforms of images and nodes, and which runs on which (OCI image index spec, "platform").

use std::{fmt, str::FromStr};

use super::pattern::shorten;

/// Longest part of a platform in bytes.
const MAX_PART: usize = 64;
/// What an architecture's variant is where none is named, as container runtimes read it.
const BASE_VARIANTS: [(&str, &str); 3] = [("amd64", "v1"), ("arm", "v7"), ("arm64", "v8")];

/// What an image is built for, or what a node is: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`, `windows`: a GOOS value.
    pub os: String,
    /// `amd64`, `arm64`: a GOARCH value.
    pub architecture: String,
    /// The CPU's variant: `v7`. Kubernetes does not know it of its nodes.
    pub variant: Option<String>,
}

/// A text that is no [`Platform`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform: write os/architecture or os/architecture/variant, for example linux/arm64")]
pub struct PlatformError(String);

impl Platform {
    /// Made of its parts, in lower case; an empty variant is none. `None` if a part is not 1 to 64 letters, digits, `.`,
    /// `_` or `-`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let variant = variant.filter(|variant| !variant.is_empty());
        let legal = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            !part.is_empty() && part.len() <= MAX_PART && part.bytes().all(known)
        };
        if !(legal(os) && legal(architecture) && variant.is_none_or(legal)) {
            return None;
        }
        Some(Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_ascii_lowercase(),
            variant: variant.map(str::to_ascii_lowercase),
        })
    }

    /// Whether an image for this platform runs on `node`: same system and architecture, and no newer variant than the
    /// node's. A node without a variant accepts any, since nothing is known against it; an image without one is of the
    /// architecture's usual variant (arm v7, arm64 v8, amd64 v1).
    ///
    /// That some runtimes run 32-bit images on 64-bit nodes does not count: not every CPU can.
    pub fn matches(&self, node: &Self) -> bool {
        let (ours, theirs) = (self.known_architecture(), node.known_architecture());
        if self.os != node.os || ours != theirs {
            return false;
        }
        let base = || BASE_VARIANTS.iter().find(|(architecture, _)| *architecture == ours).map(|(_, variant)| *variant);
        let (Some(image), Some(node)) = (self.variant.as_deref().or_else(base), node.variant.as_deref()) else {
            return true;
        };
        match (level(image), level(node)) {
            // From v8 to v9 ARM counted five minor versions on: v9.0 has all of v8.5. Others have no minor versions.
            (Some((major, minor)), Some((have, have_minor))) => {
                major <= have && minor <= have_minor.saturating_add(5 * (have - major))
            }
            _ => image == node,
        }
    }

    /// The names that `uname` gives are those of the images of some build tools.
    fn known_architecture(&self) -> &str {
        match &*self.architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        }
    }
}

/// `v8.2` and `8.2` are (8, 2).
fn level(variant: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.parse::<u16>().ok().map(u32::from);
    let digits = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
    Some((number(major)?, number(minor)?))
}

/// `linux/arm64/v8`
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let platform = match parts[..] {
            [os, architecture] => Self::new(os, architecture, None),
            [os, architecture, variant] if !variant.is_empty() => Self::new(os, architecture, Some(variant)),
            _ => None,
        };
        platform.ok_or_else(|| PlatformError(shorten(text)))
    }
}

/// Whether an image for `platforms` runs on each of `needed`; else those of `needed` on which it does not, once each.
pub fn covers(platforms: &[Platform], needed: &[Platform]) -> Result<(), Vec<Platform>> {
    let mut missing: Vec<Platform> = Vec::new();
    for node in needed {
        if !platforms.iter().any(|platform| platform.matches(node)) && !missing.contains(node) {
            missing.push(node.clone());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn platforms(text: &str) -> Vec<Platform> {
        text.split_whitespace().map(platform).collect()
    }

    #[test]
    fn texts() {
        let check = |text: &str, expected: Option<&str>| {
            let parsed = text.parse::<Platform>();
            assert_eq!(parsed.as_ref().ok().map(ToString::to_string).as_deref(), expected, "{text}: {parsed:?}");
            assert!(parsed.err().is_none_or(|error| error.to_string().len() < 300), "{text}");
        };
        check("linux/amd64", Some("linux/amd64"));
        check("linux/arm64/v8", Some("linux/arm64/v8"));
        check("Linux/ARM/V7", Some("linux/arm/v7"));
        check("windows/x86_64", Some("windows/x86_64"));
        for bad in ["", "linux", "amd64", "/", "linux/", "/amd64", "linux/arm/", "linux/arm/v7/x", "linux / amd64"] {
            check(bad, None);
        }
        check("linux/a\u{e9}", None);
        check(&format!("linux/{}", "x".repeat(64)), Some(&format!("linux/{}", "x".repeat(64))));
        check(&format!("linux/{}", "x".repeat(65)), None);
        check(&"x".repeat(100_000), None);
    }

    #[test]
    fn variants() {
        let check = |image: &str, node: &str, runs: bool| {
            assert_eq!(platform(image).matches(&platform(node)), runs, "{image} on {node}");
        };
        check("linux/amd64", "linux/amd64", true);
        check("linux/amd64", "linux/arm64", false);
        check("linux/amd64", "windows/amd64", false);
        check("linux/x86_64", "linux/amd64", true);
        check("linux/aarch64", "linux/arm64", true);
        check("linux/i386", "linux/386", true);
        check("linux/386", "linux/amd64", false);
        check("linux/arm/v7", "linux/arm64", false);
        check("linux/arm64", "linux/arm64/v8", true);
        check("linux/arm64/v8", "linux/arm64", true);
        check("linux/arm64/8", "linux/arm64/v8.0", true);
        check("linux/arm64", "linux/arm64/v9", true);
        check("linux/arm64/v9", "linux/arm64/v8", false);
        check("linux/arm64/v8.5", "linux/arm64/v9", true);
        check("linux/arm64/v8.6", "linux/arm64/v9", false);
        check("linux/arm64/v8.6", "linux/arm64/v9.1", true);
        check("linux/arm64/v9", "linux/arm64/v8.9", false);
        check("linux/arm64/v9", "linux/arm64", true);
        check("linux/arm/v5", "linux/arm/v7", true);
        check("linux/arm/v6", "linux/arm/v7", true);
        check("linux/arm/v7", "linux/arm/v7", true);
        check("linux/arm/v7", "linux/arm/v6", false);
        check("linux/arm", "linux/arm/v7", true);
        check("linux/arm", "linux/arm/v6", false);
        check("linux/arm/v6", "linux/arm", true);
        check("linux/amd64", "linux/amd64/v3", true);
        check("linux/amd64/v2", "linux/amd64/v3", true);
        check("linux/amd64/v4", "linux/amd64/v3", false);
        check("linux/amd64/v3", "linux/amd64", true);
        check("linux/ppc64le/power8", "linux/ppc64le/power8", true);
        check("linux/ppc64le/power9", "linux/ppc64le/power8", false);
        check("linux/ppc64le", "linux/ppc64le/power8", true);
        check("linux/arm/v65536", "linux/arm/v7", false);
        check("linux/arm/v65535.65535", "linux/arm/v65535.65535", true);
    }

    #[test]
    fn coverage() {
        let check = |image: &str, needed: &str, missing: &str| {
            let found = covers(&platforms(image), &platforms(needed)).err().unwrap_or_default();
            assert_eq!(found, platforms(missing), "{image} for {needed}");
        };
        check("linux/amd64", "linux/amd64", "");
        check("linux/amd64", "", "");
        check("", "", "");
        check("", "linux/amd64", "linux/amd64");
        check("linux/amd64 linux/arm64/v8", "linux/arm64 linux/amd64", "");
        check("linux/amd64", "linux/arm64 linux/amd64 linux/arm64 linux/s390x", "linux/arm64 linux/s390x");
        check("linux/arm/v6 linux/arm64/v8", "linux/arm/v7", "");
        check("linux/arm/v7", "linux/arm/v6 linux/arm", "linux/arm/v6");
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_reads_back(text in "[a-z0-9/._-]{0,20}") {
            if let Ok(read) = text.parse::<Platform>() {
                proptest::prop_assert_eq!(read.to_string(), text);
                proptest::prop_assert!(read.matches(&read));
            }
        }

        #[test]
        fn what_runs_on_an_older_variant_runs_on_a_newer(image in 5..12u32, old in 5..12u32, more in 0..4u32) {
            for architecture in ["arm", "arm64", "amd64"] {
                let of = |level: u32| platform(&format!("linux/{architecture}/v{level}"));
                if of(image).matches(&of(old)) {
                    proptest::prop_assert!(of(image).matches(&of(old + more)));
                }
            }
        }
    }
}
