//! Names to addresses, without those that a request may not reach.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::origin::{self, Reach};

/// Answers for names in tests; `None` asks the system.
pub(super) type Names = Arc<dyn Fn(&str) -> Option<Vec<Found>> + Send + Sync>;

/// One address of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// What is judged.
    pub(super) ip: IpAddr,
    /// Where the connection goes: the same, but in tests. A port of 0 means the request's own.
    pub(super) to: SocketAddr,
}

/// The system's resolver, but for names that lead where they must not.
///
/// It judges the very addresses that are connected to: a name that changes between a check and a connection gains nothing.
#[derive(Clone)]
pub(super) struct Resolver {
    names: Option<Names>,
    public_only: bool,
}

/// A name that must not be asked.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub(super) enum ForbiddenName {
    #[error("resolves to a link-local or metadata address")]
    NodeOnly,
    #[error("resolves to a private address, and the registry does not")]
    Private,
}

impl Resolver {
    pub(super) fn new(names: Option<Names>, public_only: bool) -> Self {
        Self { names, public_only }
    }

    /// All addresses of a name, judged by nobody.
    pub(super) async fn lookup(&self, name: &str) -> io::Result<Vec<Found>> {
        if let Some(found) = self.names.as_ref().and_then(|names| names(name)) {
            return Ok(found);
        }
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|to| Found { ip: to.ip(), to }).collect())
    }

    fn judge(&self, found: &[Found]) -> Result<(), ForbiddenName> {
        let any = |reach| found.iter().any(|found| origin::reach(found.ip) == reach);
        if any(Reach::Forbidden) {
            Err(ForbiddenName::NodeOnly)
        } else if self.public_only && any(Reach::Private) {
            Err(ForbiddenName::Private)
        } else {
            Ok(())
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.lookup(name.as_str()).await?;
            resolver.judge(&found)?;
            Ok(Box::new(found.into_iter().map(|found| found.to)) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgements() {
        let check = |public_only: bool, ips: &[&str], expected: Result<(), ForbiddenName>| {
            let found: Vec<_> = ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
            let found: Vec<_> = found.into_iter().map(|ip| Found { ip, to: SocketAddr::new(ip, 0) }).collect();
            assert_eq!(Resolver::new(None, public_only).judge(&found), expected, "{ips:?}");
        };
        check(false, &["1.1.1.1", "10.0.0.1"], Ok(()));
        check(true, &["1.1.1.1", "2606:4700::1"], Ok(()));
        check(true, &["1.1.1.1", "10.0.0.1"], Err(ForbiddenName::Private));
        check(true, &["10.0.0.1", "169.254.169.254"], Err(ForbiddenName::NodeOnly));
        check(false, &["1.1.1.1", "fe80::1"], Err(ForbiddenName::NodeOnly));
        check(false, &[], Ok(()));
    }
}
