//! `WWW-Authenticate` headers, one a line: a token is asked for only over https, or at the registry's own origin, and never
//! where an address holds a user name or belongs to a metadata service.
#![no_main]

use kimup::registry::fuzzing::realm;
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|bytes: &[u8]| {
    let values: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    for registry in ["https://registry.example.com/", "http://registry.example.com:5000/", "https://10.0.0.1/"] {
        let registry = Url::parse(registry).expect("an address");
        let Some((realm, true)) = realm(&registry, &values) else { continue };
        assert!(realm.scheme() == "https" || realm.origin() == registry.origin(), "{realm}");
        assert!(realm.username().is_empty() && realm.password().is_none(), "{realm}");
        let host = realm.host_str().expect("a host");
        assert!(host == "10.0.0.1" || host.ends_with("example.com"), "{realm}");
    }
});
