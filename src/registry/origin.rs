//! Where a request may go: origins, forbidden addresses and the rule for token realms. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use url::{Host, Url};

use super::error::{Refusal, RegistryError};
use crate::policy::Repository;

/// Scheme, host and port (RFC 6454): what "the same host" means for redirects, links and credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    https: bool,
    host: Host<String>,
    port: u16,
}

impl Origin {
    /// `None` for a scheme other than http and https.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self { https, host: url.host()?.to_owned(), port: url.port_or_known_default()? })
    }

    pub(super) fn is_https(&self) -> bool {
        self.https
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// The hosts that the operator declared to speak plain http, as `host:port` (without a port: 80).
#[derive(Clone, Debug, Default)]
pub(super) struct PlainHttp(Vec<Authority>);

/// A host and its port.
pub(super) type Authority = (Host<String>, u16);

impl PlainHttp {
    pub(super) fn parse(hosts: &[String]) -> Result<Self, RegistryError> {
        hosts.iter().map(|text| authority(text, 80)).collect::<Result<_, _>>().map(Self)
    }

    fn contains(&self, host: &str) -> bool {
        authority(host, 80).is_ok_and(|pair| self.0.contains(&pair))
    }
}

/// Reads `HOST` or `HOST:PORT`.
pub(super) fn authority(text: &str, default: u16) -> Result<Authority, RegistryError> {
    let bad = || RegistryError::Config { cause: format!("{text:?} is no HOST:PORT of a registry") };
    if text.is_empty() || text.contains(['/', '@', '?', '#', '\\']) {
        return Err(bad());
    }
    // "https" so that an explicit :80 is kept apart from no port at all.
    let url = Url::parse(&format!("https://{text}/")).map_err(|_| bad())?;
    let host = url.host().ok_or_else(bad)?.to_owned();
    Ok((host, url.port().unwrap_or(if text.ends_with(":443") { 443 } else { default })))
}

/// Tags that a page may hold, as far as it is up to us.
pub(super) const PAGE_SIZE: usize = 1000;

/// The page after this tag (OCI distribution specification, "Listing Tags").
pub(super) fn page_after(first: &Url, last: &str) -> Url {
    let mut url = first.clone();
    url.query_pairs_mut().append_pair("last", last);
    url
}

/// The first page's address: `GET /v2/<path>/tags/list?n=1000` (OCI distribution specification, "Listing Tags").
pub(super) fn tags_url(repository: &Repository, plain_http: &PlainHttp) -> Result<Url, RegistryError> {
    repository_url(repository, plain_http, &format!("tags/list?n={PAGE_SIZE}"))
}

/// `/v2/<path>/<tail>` on the repository's registry. The tail is not escaped.
pub(super) fn repository_url(
    repository: &Repository,
    plain_http: &PlainHttp,
    tail: &str,
) -> Result<Url, RegistryError> {
    registry_url(repository.host(), plain_http, &format!("v2/{}/{tail}", repository.path()))
}

/// The origin of a registry that images name so.
pub(super) fn registry_origin(host: &str, plain_http: &PlainHttp) -> Result<Origin, RegistryError> {
    Origin::of(&registry_url(host, plain_http, "")?).ok_or_else(|| no_host(host))
}

fn registry_url(name: &str, plain_http: &PlainHttp, path: &str) -> Result<Url, RegistryError> {
    let host = match name {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let scheme = if plain_http.contains(name) { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/{path}")).map_err(|_| no_host(name))
}

fn no_host(name: &str) -> RegistryError {
    RegistryError::Config { cause: format!("{name:?} is no usable host of a registry") }
}

/// Refuses what must never be requested, whoever asks: user names in an address (they would become credentials) and
/// addresses of the node itself, as literals.
pub(super) fn check_address(url: &Url) -> Result<(), Refusal> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::Address(format!("{} comes with a user name in it", host_text(url))));
    }
    match literal(url) {
        Some(ip) if reach(ip) == Reach::Forbidden => {
            Err(Refusal::Address(format!("{ip} is a link-local or metadata address")))
        }
        _ => Ok(()),
    }
}

/// Who can be at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Link-local addresses and the metadata services of the clouds: a request there speaks with the node's identity.
    Forbidden,
    /// The node itself and networks that are not the Internet's.
    Private,
    Public,
}

/// What an address means, IPv4 addresses inside IPv6 ones included (mapped; NAT64, RFC 6052).
pub(super) fn reach(ip: IpAddr) -> Reach {
    match ip {
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(ip) => reach_v4(ip),
            None => reach_v6(ip),
        },
    }
}

fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    const NAT64: u128 = 0x64_ff9b << 96;
    let bits = ip.to_bits();
    let low = u32::try_from(bits & u128::from(u32::MAX)).ok();
    ip.to_ipv4_mapped().or(low.filter(|&low| bits - u128::from(low) == NAT64).map(Ipv4Addr::from_bits))
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    if ip.is_unicast_link_local() || ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) {
        return Reach::Forbidden; // the latter: AWS
    }
    let site_local = ip.segments()[0] & 0xffc0 == 0xfec0;
    let odd = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4().is_some();
    if odd || site_local || ip.is_unique_local() { Reach::Private } else { Reach::Public }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    let metadata = [
        Ipv4Addr::new(100, 100, 100, 200), // Alibaba
        Ipv4Addr::new(168, 63, 129, 16),   // Azure's host
        Ipv4Addr::new(192, 0, 0, 192),     // Oracle
    ];
    // Link-local: 169.254.169.254 and 169.254.170.2 are those of AWS, Azure, Google and most others.
    if ip.is_link_local() || metadata.contains(&ip) {
        return Reach::Forbidden;
    }
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && b & 0xc0 == 64; // carrier-grade NAT, RFC 6598: Pod networks use it
    let benchmark = a == 198 && b & 0xfe == 18;
    let protocols = [a, b, c] == [192, 0, 0];
    let nowhere = a == 0 || a >= 224; // this host, multicast, reserved
    if ip.is_private() || ip.is_loopback() || shared || benchmark || protocols || nowhere {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// The address of a host that is written as one.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
        Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
        Host::Domain(_) => None,
    }
}

/// Token hosts of registries that do not share a registrable domain with them, or that are too important to depend on
/// the public suffix list.
const KNOWN_TOKEN_HOSTS: &[(&str, &str)] = &[("registry-1.docker.io", "auth.docker.io")];

/// Whether a token may be asked for, with or without credentials, at the realm that the registry named.
///
/// The same origin; else over https only: a host that the operator `allowed`, a known token host, or the same registrable
/// domain (public suffix list). An IP address has no domain. A private network's names (`registry.corp.internal`) have the last two labels as their domain.
pub(super) fn check_realm(registry: &Origin, allowed: &[Authority], realm: &Url) -> Result<(), Refusal> {
    check_address(realm)?;
    let refused = |why: &str| Err(Refusal::Realm(format!("{} {why}", host_text(realm))));
    let Some(origin) = Origin::of(realm) else {
        return refused("is not reached over https");
    };
    if origin == *registry {
        return Ok(());
    }
    if !origin.https {
        return refused("is not reached over https");
    }
    if allowed.iter().any(|(host, port)| *host == origin.host && *port == origin.port) {
        return Ok(());
    }
    let (Host::Domain(ours), Host::Domain(theirs)) = (&registry.host, &origin.host) else {
        return refused("is another host than the registry");
    };
    if KNOWN_TOKEN_HOSTS.contains(&(ours.as_str(), theirs.as_str())) {
        return Ok(());
    }
    match (psl::domain_str(ours), psl::domain_str(theirs)) {
        (Some(a), Some(b)) if a == b => Ok(()),
        _ => refused("is not in the registry's domain"),
    }
}

/// Host and port for messages.
pub(super) fn host_text(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&Url::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn realms() {
        for line in REALMS.lines() {
            let [registry, realm, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let result = check_realm(&origin(registry), &[], &Url::parse(realm).unwrap());
            assert_eq!(result.is_ok(), expected == "allowed", "{line}: {result:?}");
        }
    }

    #[test]
    fn allowed_realms() {
        let allowed = [authority("auth.other.com", 443).unwrap(), authority("10.0.0.9:8443", 443).unwrap()];
        let check = |realm: &str, expected: bool| {
            let result = check_realm(&origin("https://r.io"), &allowed, &Url::parse(realm).unwrap());
            assert_eq!(result.is_ok(), expected, "{realm}: {result:?}");
        };
        check("https://auth.other.com/token", true);
        check("https://auth.other.com:444/token", false);
        check("http://auth.other.com/token", false);
        check("http://auth.other.com:443/token", false);
        check("https://u:p@auth.other.com/token", false);
        check("https://a.auth.other.com/token", false);
        check("https://10.0.0.9:8443/token", true);
        check("https://10.0.0.9/token", false);
        check("https://169.254.169.254/token", false);
    }

    /// Registry, realm, outcome.
    const REALMS: &str = "\
https://registry-1.docker.io https://auth.docker.io/token allowed
https://registry-1.docker.io http://auth.docker.io/token refused
https://ghcr.io https://ghcr.io/token allowed
https://ghcr.io https://ghcr.io:444/token allowed
https://ghcr.io https://ghcr.io.evil.com/token refused
https://ghcr.io https://evilghcr.io/token refused
https://registry.example.com https://auth.example.com/token allowed
https://registry.example.com:5000 https://auth.example.com/token allowed
https://registry.example.com http://auth.example.com/token refused
https://registry.example.com http://registry.example.com/token refused
https://registry.example.com ftp://registry.example.com/token refused
https://registry.example.com https://u:p@registry.example.com/token refused
https://a.co.uk https://b.co.uk/token refused
https://r.a.co.uk https://t.a.co.uk/token allowed
https://co.uk https://co.uk:444/token refused
https://alice.github.io https://mallory.github.io/token refused
https://1.dkr.ecr.us-east-1.amazonaws.com https://evil.s3.amazonaws.com/token refused
https://localhost:5000 https://localhost:5000/token allowed
https://localhost:5000 https://localhost:5001/token refused
https://registry.corp.internal https://auth.corp.internal/token allowed
http://registry.corp.internal:5000 http://registry.corp.internal:5000/token allowed
http://registry.corp.internal:5000 http://registry.corp.internal:5001/token refused
http://registry.corp.internal:5000 http://auth.corp.internal:5000/token refused
https://10.0.0.1 https://10.0.0.1/token allowed
https://10.0.0.1 https://10.0.0.1:444/token refused
https://10.0.0.1 https://11.0.0.1/token refused
https://ghcr.io https://127.0.0.1/token refused
https://ghcr.io https://169.254.169.254/token refused
http://169.254.169.254 http://169.254.169.254/token refused
https://[::1]:5000 https://[::1]:5000/token allowed
https://[fe80::1] https://[fe80::1]/token refused";

    #[test]
    fn addresses() {
        let check = |text: &str, allowed: bool| {
            assert_eq!(check_address(&Url::parse(text).unwrap()).is_ok(), allowed, "{text}");
        };
        check("https://registry.example.com/v2/", true);
        check("https://10.1.2.3/v2/", true);
        check("https://169.254.169.254/", false);
        check("https://0xa9fea9fe/", false);
        check("https://2852039166/", false);
        check("https://[::ffff:169.254.169.254]/", false);
        check("https://[fd00:ec2::254]/", false);
        check("https://100.100.100.200/", false);
        check("https://user@registry.example.com/", false);
        check("https://:secret@registry.example.com/", false);
    }

    #[test]
    fn reaches() {
        for (reach_of, addresses) in [
            (Reach::Forbidden, "169.254.0.1 169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192"),
            (Reach::Forbidden, "fe80::1 febf::1 fd00:ec2::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe"),
            (Reach::Private, "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 127.0.0.1 127.9.9.9 0.0.0.0 0.1.2.3"),
            (Reach::Private, "100.64.0.1 100.127.255.255 198.18.0.1 198.19.0.1 192.0.0.1 224.0.0.1 255.255.255.255"),
            (Reach::Private, "::1 :: fc00::1 fd12::1 fec0::1 ff02::1 ::ffff:10.0.0.1 64:ff9b::a00:1 ::7f00:1"),
            (Reach::Public, "1.1.1.1 9.255.255.255 11.0.0.1 172.32.0.1 100.63.0.1 100.128.0.1 169.253.0.1 198.20.0.1"),
            (Reach::Public, "2606:4700::1 ::ffff:1.1.1.1 64:ff9b::101:101 fe00::1"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(reach(address.parse().unwrap()), reach_of, "{address}");
            }
        }
    }

    #[test]
    fn urls() {
        let plain = ["registry:5000", "plain.example.com", "[::1]:5000", "tls:443"].map(str::to_owned);
        let plain = PlainHttp::parse(&plain).unwrap();
        let check = |image: &str, expected: &str| {
            let url = tags_url(&Repository::parse(image).unwrap(), &plain).unwrap();
            assert_eq!(url.as_str(), format!("{expected}/tags/list?n=1000"), "{image}");
        };
        check("alpine", "https://registry-1.docker.io/v2/library/alpine");
        check("ghcr.io/org/app", "https://ghcr.io/v2/org/app");
        check("registry:5000/app", "http://registry:5000/v2/app");
        check("registry:5001/app", "https://registry:5001/v2/app");
        check("plain.example.com/app", "http://plain.example.com/v2/app");
        check("plain.example.com:80/app", "http://plain.example.com/v2/app");
        check("plain.example.com:443/app", "https://plain.example.com/v2/app");
        check("tls:443/app", "http://tls:443/v2/app");
        check("[::1]:5000/app", "http://[::1]:5000/v2/app");
        check("[::1]:5001/app", "https://[::1]:5001/v2/app");
        for bad in ["", "http://registry:5000", "registry:port", "a b", "user@registry:5000", "registry:5000/app"] {
            assert!(matches!(PlainHttp::parse(&[bad.to_owned()]), Err(RegistryError::Config { .. })), "{bad:?}");
        }
    }
}
