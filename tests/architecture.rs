//! The order of the modules, and what may not be in the sources at all. `docs/architecture.md` has the reasons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bottom-up: each module with the modules it may use. `lib.rs` declares them in this order.
const MODULES: [(&str, &[&str]); 12] = [
    ("policy", &[]),
    ("api", &["policy"]),
    ("telemetry", &[]),
    ("net", &["telemetry"]),
    ("leader", &["telemetry"]),
    ("registry", &["policy", "telemetry"]),
    ("index", &["policy", "api", "telemetry"]),
    ("admission", &["policy", "api", "index", "telemetry", "net"]),
    ("notify", &["policy", "api", "telemetry"]),
    ("rollout", &["policy", "api", "telemetry"]),
    ("sync", &["policy", "api", "telemetry", "net", "leader", "registry", "index", "notify", "rollout"]),
    (
        "cli",
        &["policy", "api", "telemetry", "net", "leader", "registry", "index", "admission", "notify", "rollout", "sync"],
    ),
];

/// What `main.rs` may use.
const MAIN_USES: &[&str] = &["cli"];

const MAX_LINES: usize = 600;

#[test]
fn lib_declares_the_modules_bottom_up() {
    let names: Vec<&str> = MODULES.iter().map(|(name, _)| *name).collect();
    assert_eq!(declared(&read(&src().join("lib.rs"))), names);
    for (position, (name, uses)) in MODULES.iter().enumerate() {
        let above = &names[..position];
        assert!(uses.iter().all(|used| above.contains(used)), "{name} may use only modules above it");
    }
}

#[test]
fn each_module_uses_only_what_it_may() {
    let mut problems = Vec::new();
    for file in sources(&src()) {
        let inside = file.strip_prefix(src()).unwrap();
        let first = Path::new(inside.iter().next().unwrap()).with_extension("");
        let module = first.to_str().unwrap();
        let allowed = match MODULES.iter().find(|(name, _)| *name == module) {
            Some((_, uses)) => *uses,
            None if module == "main" => MAIN_USES,
            None if module == "lib" => &[],
            None => panic!("src/{} belongs to no module of the table", inside.display()),
        };
        let own: BTreeSet<String> = children(&src().join(module));
        problems.extend(foreign_uses(&read(&file), module, allowed, &own, inside));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn sources_are_short_safe_and_finished() {
    let testbed = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/src");
    let files = [src(), testbed].into_iter().flat_map(|folder| sources(&folder));
    let problems: Vec<String> = files.flat_map(|file| house_rules(&read(&file), &file)).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The modules that a `lib.rs` declares, in its order, test modules aside.
fn declared(lib: &str) -> Vec<String> {
    let tokens = tokens(lib);
    let declares = |at: &[String]| at[0] == "mod" && at[2] == ";";
    tokens.windows(3).filter(|window| declares(window)).map(|window| window[1].clone()).collect()
}

/// What a file of `module` uses of other modules without leave. `own` are the module's own submodules, which
/// `super::` may also mean.
fn foreign_uses(text: &str, module: &str, allowed: &[&str], own: &BTreeSet<String>, file: &Path) -> Vec<String> {
    let is_module = |name: &str| MODULES.iter().any(|(known, _)| *known == name);
    let mut problems = BTreeSet::new();
    for (root, used) in rooted_paths(&tokens(text)) {
        let known = match root {
            Root::Crate => used != module,
            // Up and out of the module: `super::registry` in `sync/mod.rs`.
            Root::Super => used != module && is_module(&used) && !own.contains(&used),
        };
        if known && !allowed.contains(&used.as_str()) {
            problems.insert(format!("{}: {module} may not use {used}", file.display()));
        }
    }
    problems.into_iter().collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Root {
    /// `crate::`, or `kimup::` in `main.rs`.
    Crate,
    /// One or more `super::`.
    Super,
}

/// Every first segment after `crate::` or `super::`, groups (`crate::{a, b::c}`) taken apart.
fn rooted_paths(tokens: &[String]) -> Vec<(Root, String)> {
    let mut found = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let root = match token.as_str() {
            "crate" | "kimup" => Root::Crate,
            "super" => Root::Super,
            _ => continue,
        };
        let [separator, rest @ ..] = &tokens[position + 1..] else {
            continue;
        };
        if separator == "::" {
            found.extend(first_segments(rest).into_iter().map(|name| (root, name)));
        }
    }
    found
}

fn first_segments(rest: &[String]) -> Vec<String> {
    match rest.first().map(String::as_str) {
        Some("{") => {}
        Some("super") | None => return Vec::new(), // the next `super` is looked at by itself
        Some(name) => return vec![name.to_owned()],
    }
    let (mut depth, mut segments, mut expecting) = (0, Vec::new(), true);
    for token in rest {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," => expecting = depth == 1,
            name if expecting && depth == 1 => {
                segments.push(name.to_owned());
                expecting = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    segments
}

fn house_rules(text: &str, file: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut report = |what: String| problems.push(format!("{}: {what}", file.display()));
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(format!("{lines} lines, more than {MAX_LINES}"));
    }
    let tokens = tokens(text);
    if tokens.iter().any(|token| token == "unsafe") {
        report("`unsafe`".to_owned());
    }
    for name in ["todo", "unimplemented"] {
        if tokens.windows(2).any(|pair| pair[0] == name && pair[1] == "!") {
            report(format!("`{name}!`"));
        }
    }
    problems
}

/// The words and signs of Rust source, without comments, texts and characters; `::` is one sign.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        let rest = &chars[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => quoted(rest, '"'),
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
            ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] if raw_string(rest).is_some() => raw_string(rest).unwrap(),
            ['b', '"', ..] => 1 + quoted(&rest[1..], '"'),
            [first, ..] if first.is_alphanumeric() || *first == '_' => {
                let length = rest.iter().position(|c| !c.is_alphanumeric() && *c != '_').unwrap_or(rest.len());
                tokens.push(rest[..length].iter().collect());
                length
            }
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            [first, ..] => {
                if !first.is_whitespace() {
                    tokens.push(first.to_string());
                }
                1
            }
            [] => break,
        };
        at += length;
    }
    tokens
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of `r"…"`, `r#"…"#`, `br"…"`; none if it is something else, as `r#type`.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().position(|&c| c == 'r')? + 1;
    let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
    let body = prefix + hashes + 1;
    if rest.get(body - 1) != Some(&'"') {
        return None;
    }
    let closes =
        |at: &usize| rest[*at] == '"' && rest[*at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
    let end = (body..rest.len()).find(closes)?;
    Some(end + 1 + hashes)
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `.rs` file in a folder and the folders in it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The names of the submodules in a module's folder, at any depth.
fn children(folder: &Path) -> BTreeSet<String> {
    if !folder.is_dir() {
        return BTreeSet::new();
    }
    let names = sources(folder).into_iter().flat_map(|file| {
        let inside = file.strip_prefix(folder).unwrap().with_extension("");
        inside.iter().map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    names.collect()
}

mod the_checks_can_fail {
    use super::*;

    #[test]
    fn declarations() {
        #[track_caller]
        fn check(lib: &str, expected: &[&str]) {
            assert_eq!(declared(lib), expected, "{lib}");
        }
        check("//! mod doc;\npub mod policy;\n\npub mod api;", &["policy", "api"]);
        check("mod api; pub(crate) mod policy;", &["api", "policy"]);
        check("#[cfg(test)] mod tests { use super::*; }", &[]);
        check("/* mod a; /* mod b; */ mod c; */ mod d;", &["d"]);
    }

    #[test]
    fn uses() {
        #[track_caller]
        fn check(module: &str, text: &str, expected: &[&str]) {
            let (_, allowed) = MODULES.iter().find(|(name, _)| *name == module).unwrap();
            let own = BTreeSet::from(["sync".to_owned()]); // a submodule that is called like a module
            let problems = foreign_uses(text, module, allowed, &own, Path::new("x.rs"));
            let expected: Vec<String> =
                expected.iter().map(|used| format!("x.rs: {module} may not use {used}")).collect();
            assert_eq!(problems, expected, "{text}");
        }
        check("api", "use crate::policy::Tag; use crate::api::Image;", &[]);
        check("policy", "use crate::api::Image;", &["api"]);
        check("policy", "fn f() -> crate::api::Image { todo() }", &["api"]);
        check("policy", "pub(crate) fn f() {} // use crate::api", &[]);
        check(
            "policy",
            "let text = \"crate::api\"; let raw = r#\"crate::api\"\"#; let c = '\"'; use crate::net::A;",
            &["net"],
        );
        check("policy", "fn f<'a>(x: &'a str) -> char { '\\'' } use crate :: net;", &["net"]);
        check("api", "use crate::{policy::{self, semver}, index::Snapshot, net};", &["index", "net"]);
        check("api", "pub(in crate::sync) fn f() {}", &["sync"]);
        check("admission", "use crate::sync::Question;", &["sync"]);
        check("sync", "use crate::admission::Patch; use crate::leader::Lease;", &["admission"]);
        check("rollout", "use super::registry::list;", &["registry"]);
        check(
            "rollout",
            "use super::super::registry; use super::plan; use super::{cli, plan::a};",
            &["cli", "registry"],
        );
        check("rollout", "use super::sync::Own;", &[]);
        check("rollout", "use super::*; use super::{Plan, policy};", &[]);
        check("cli", "use crate::admission::serve; use crate::sync::run;", &[]);
        check("net", "use crate::unheard_of::A;", &["unheard_of"]);
    }

    #[test]
    fn rules_of_the_house() {
        #[track_caller]
        fn check(text: &str, expected: &[&str]) {
            let expected: Vec<String> = expected.iter().map(|what| format!("x.rs: {what}")).collect();
            assert_eq!(house_rules(text, Path::new("x.rs")), expected);
        }
        check("fn f() { \"unsafe todo!()\"; } // unsafe\n", &[]);
        check("fn f() { unsafe { g() } }", &["`unsafe`"]);
        check("fn f() { todo!() }", &["`todo!`"]);
        check("fn f() { std::unimplemented!(\"later\") }", &["`unimplemented!`"]);
        check("let todo = unimplemented;", &[]);
        check(&"\n".repeat(600), &[]);
        check(&"\n".repeat(601), &["601 lines, more than 600"]);
    }
}
