//! `--registry-config`: the file and those that it names.

use std::path::Path;

use anyhow::Context;

use crate::registry::Registries;

use super::input;

/// Largest configuration and PEM file, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// Reads the configuration; paths in it are relative to its folder. Without a file it is empty.
pub fn read(path: Option<&Path>) -> anyhow::Result<Registries> {
    let Some(path) = path else { return Ok(Registries::default()) };
    let text = input::read(path, MAX_FILE).context("--registry-config")?;
    let whose = || format!("--registry-config {}", path.display());
    let text = String::from_utf8(text).map_err(|_| anyhow::anyhow!("it is not UTF-8")).with_context(whose)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |name: &Path| input::read(&folder.join(name), MAX_FILE).map_err(|error| format!("{error:#}"));
    Registries::parse(&text, &file).with_context(whose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registries.toml");
        let check = |text: &str, expected: &str| {
            std::fs::write(&path, text).unwrap();
            let found = read(Some(&path)).map_or_else(|error| format!("{error:#}"), |_| "read".to_owned());
            assert!(found.contains(expected) && !found.contains("KEY"), "{text}: {found}");
        };
        std::fs::write(folder.path().join("tls.crt"), "CERTIFICATE").unwrap();
        std::fs::write(folder.path().join("tls.key"), "PRIVATE KEY").unwrap();
        check("", "read");
        check("[[registry]]\nprefix = 'r.io'\nca-file = 'ca.pem'", "ca-file: cannot read");
        check("[[registry]]\nprefix = 'r.io'\nca-file = 'ca.pem'", &folder.path().join("ca.pem").display().to_string());
        check("[[registry]]\nprefix = 'r.io'\nca-file = 'tls.crt'", "line 1: ca-file: tls.crt holds no PEM");
        let both = "client-cert-file = 'tls.crt'\nclient-key-file = 'tls.key'";
        check(&format!("[[registry]]\nprefix = 'r.io'\n{both}"), "tls.crt and tls.key hold no PEM");
        check("\nprefix = 5", "line 2: unknown field `prefix`");
        std::fs::write(&path, b"\xff").unwrap();
        assert!(format!("{:#}", read(Some(&path)).unwrap_err()).ends_with("it is not UTF-8"));
        assert!(read(None).is_ok());
    }
}
