//! Files and standard input, read whole and bounded.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::api;

/// What `path` holds; `-` is standard input. An error names the file.
pub fn read(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    if is_stdin(path) {
        return read_stdin(max);
    }
    let open = || -> io::Result<(File, usize)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        // Linux opens folders and fails at the first read, with a message that names none.
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok((file, usize::try_from(metadata.len()).unwrap_or(usize::MAX)))
    };
    let (file, size) = open().with_context(|| format!("cannot read {}", path.display()))?;
    bounded(file, size.min(max), max).with_context(|| format!("cannot read {}", path.display()))
}

/// All of standard input.
pub fn read_stdin(max: usize) -> anyhow::Result<Vec<u8>> {
    bounded(io::stdin().lock(), 0, max).context("cannot read standard input")
}

/// The objects of a manifest: YAML or JSON, several documents, lists (`kind: List`) taken apart.
pub fn objects(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(documents.into_iter().flat_map(items).filter(Value::is_object).collect())
}

fn items(document: Value) -> Vec<Value> {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Object(mut list) if is_list => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        object => vec![object],
    }
}

/// Whether an object of a manifest is an Image of kimup's.
pub fn is_image(object: &Value) -> bool {
    let group = object["apiVersion"].as_str().and_then(|version| version.split('/').next());
    object["kind"] == "Image" && group == Some(api::GROUP)
}

/// Whether the user means standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn bounded(from: impl Read, expected: usize, max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(expected + 1);
    from.take(max as u64 + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() <= max, "it is larger than {} KiB", max / 1024);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_bound_is_an_error() {
        let check = |length: usize, read: bool| {
            let from = vec![b'a'; length];
            assert_eq!(bounded(&*from, 0, 2048).is_ok_and(|bytes| bytes == from), read, "{length}");
        };
        check(0, true);
        check(2048, true);
        check(2049, false);
        let endless = bounded(io::repeat(b'a'), 0, 2048).unwrap_err();
        assert_eq!(endless.to_string(), "it is larger than 2 KiB");
    }

    #[test]
    fn lists_are_taken_apart() {
        let check = |text: &str, names: &[&str]| {
            let objects = objects(text).unwrap();
            let found: Vec<&str> = objects.iter().map(|object| object["name"].as_str().unwrap()).collect();
            assert_eq!(found, names, "{text}");
        };
        check("", &[]);
        check("---\n---\nname: a\n---\n# nothing\n", &["a"]);
        check("{kind: List, items: [{name: a}, {name: b}, 7]}\n---\nname: c", &["a", "b", "c"]);
        check("{kind: ImageList, items: [{name: a}]}", &["a"]);
        check("{kind: List, name: a}", &[]);
        check("{kind: Box, name: a, items: [{name: b}]}", &["a"]);
        check("{\"name\": \"a\"}", &["a"]);
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, part: &str| {
            let path = folder.path().join(name);
            let error = format!("{:#}", read(&path, 10).unwrap_err());
            assert!(error.starts_with(&format!("cannot read {}: ", path.display())) && error.contains(part), "{error}");
        };
        check("missing", "No such file");
        check("", "is a directory");
    }
}
