//! The address of the next page, from `Link` headers (RFC 8288, and what registries make of it). Pure.

use http::{HeaderMap, header::LINK};
use url::Url;

use super::{
    error::{Refusal, RegistryError},
    origin::{self, Origin, host_text},
};

/// Longest `Link` header that is read, in bytes.
const MAX_HEADER: usize = 8 * 1024;

/// The next page of a listing, or `None` at its end.
///
/// `at` is the address that answered (after redirects), `first` the listing's own. The next page is on the registry's
/// origin and of the same repository, or it is refused: a cursor must not lead credentials away.
pub(super) fn next_page(
    headers: &HeaderMap,
    at: &Url,
    registry: &Origin,
    first: &Url,
) -> Result<Option<Url>, RegistryError> {
    let host = host_text(at);
    let Some(target) = next_target(headers).map_err(|cause| malformed(&host, cause))? else {
        return Ok(None);
    };
    let mut next = at.join(&target).map_err(|_| malformed(&host, "a Link that is no address"))?;
    next.set_fragment(None);
    let refused = |why: String| Err(RegistryError::Refused { host: host.clone(), why: Refusal::Link(why) });
    if origin::check_address(&next).is_err() {
        return refused(format!("{} is no address of a registry", host_text(&next)));
    }
    let to = Origin::of(&next);
    if to.as_ref() != Some(registry) {
        let downgrade = registry.is_https() && !to.is_some_and(|to| to.is_https());
        let why = if downgrade { "from https to another scheme" } else { "to another host" };
        return refused(format!("{why} ({})", host_text(&next)));
    }
    let same_origin = Origin::of(at).as_ref() == Some(registry);
    if next.path() != first.path() && !(same_origin && next.path() == at.path()) {
        return refused("to another repository".to_owned());
    }
    Ok(Some(next))
}

/// One spelling per page, so that a repeated cursor is seen whatever the order of its parameters.
pub(super) fn page_key(url: &Url) -> String {
    let mut pairs: Vec<_> = url.query_pairs().collect();
    pairs.sort();
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    format!("{}?{query}", url.path())
}

fn malformed(host: &str, cause: &str) -> RegistryError {
    RegistryError::Malformed { host: host.to_owned(), cause: cause.to_owned() }
}

/// A `Link` that cannot be read is an error: taken for the end it would make a part of the tags the whole.
fn next_target(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut found: Option<String> = None;
    for value in headers.get_all(LINK) {
        let text = value.to_str().map_err(|_| "a Link header that is not ASCII")?;
        if text.len() > MAX_HEADER {
            return Err("a Link header that is too long");
        }
        let mut rest = text;
        while let Some((link, after)) = parse_one(rest)? {
            rest = after;
            if !link.is_next {
                continue;
            }
            if found.as_ref().is_some_and(|found| *found != link.target) {
                return Err("Link headers with two next pages");
            }
            found = Some(link.target);
        }
    }
    Ok(found)
}

struct Link {
    target: String,
    is_next: bool,
}

/// Reads one link and answers what follows it.
fn parse_one(text: &str) -> Result<Option<(Link, &str)>, &'static str> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    if text.is_empty() {
        return Ok(None);
    }
    let (target, mut rest) = match text.strip_prefix('<') {
        Some(inner) => inner.split_once('>').ok_or("a Link without its closing bracket")?,
        None => text.split_at(text.find([';', ',']).unwrap_or(text.len())),
    };
    let target = target.trim().to_owned();
    if target.is_empty() {
        return Err("an empty Link");
    }
    // Without a rel there is only one thing that a registry can mean.
    let mut is_next = None;
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix(';') else {
            break;
        };
        let (name, value, after) = parse_parameter(parameter)?;
        if name.eq_ignore_ascii_case("rel") && is_next.is_none() {
            is_next = Some(value.split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next")));
        }
        rest = after;
    }
    if !(rest.is_empty() || rest.starts_with(',')) {
        return Err("a Link with text after its address");
    }
    Ok(Some((Link { target, is_next: is_next.unwrap_or(true) }, rest)))
}

/// `name`, `name=token` or `name="quoted"`: name, value, what follows.
fn parse_parameter(text: &str) -> Result<(&str, String, &str), &'static str> {
    let text = text.trim_start();
    let end = text.find(['=', ';', ',']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let name = name.trim_end();
    let Some(value) = rest.strip_prefix('=') else {
        return Ok((name, String::new(), rest));
    };
    let value = value.trim_start();
    let Some(quoted) = value.strip_prefix('"') else {
        let (value, rest) = value.split_at(value.find([';', ',']).unwrap_or(value.len()));
        return Ok((name, value.trim_end().to_owned(), rest));
    };
    let mut unescaped = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((name, unescaped, &quoted[at + 1..])),
            '\\' => unescaped.extend(chars.next().map(|(_, c)| c)),
            c => unescaped.push(c),
        }
    }
    Err("a Link with an open quotation mark")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(at: &str, links: &[&str]) -> Result<Option<String>, RegistryError> {
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(LINK, link.parse().unwrap());
        }
        let first = Url::parse("https://r.io/v2/team/app/tags/list?n=1000").unwrap();
        let registry = Origin::of(&first).unwrap();
        Ok(next_page(&headers, &Url::parse(at).unwrap(), &registry, &first)?.map(String::from))
    }

    const AT: &str = "https://r.io/v2/team/app/tags/list?n=1000";

    #[test]
    fn followed() {
        let check = |links: &[&str], expected: Option<&str>| {
            let expected = expected.map(|query| format!("https://r.io/v2/team/app/tags/list?{query}"));
            assert_eq!(next(AT, links), Ok(expected), "{links:?}");
        };
        check(&[], None);
        check(&[r#"</v2/team/app/tags/list?last=b&n=2>; rel="next""#], Some("last=b&n=2"));
        check(&[r#"<https://r.io/v2/team/app/tags/list?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<https://R.IO:443/v2/team/app/tags/list?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<//r.io/v2/team/app/tags/list?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<?last=b#x>; rel="next""#], Some("last=b"));
        check(&["/v2/team/app/tags/list?last=b; rel=next"], Some("last=b"));
        check(&["</v2/team/app/tags/list?last=b>;rel=next"], Some("last=b"));
        check(&["</v2/team/app/tags/list?last=b>"], Some("last=b"));
        check(&["</v2/team/app/tags/list?last=b> ; REL = \"prev NEXT\" ; x"], Some("last=b"));
        check(&[r#"<?last=a,b;c>; title="a, \"b\"; rel=prev"; rel=next; x=y"#], Some("last=a,b;c"));
        check(&[r#"</other>; rel="self", <?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"</other>; rel="self""#, r#"<?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<?last=b>; rel="next", , <?last=b>; rel="next""#], Some("last=b"));
        check(&[r#"<https://evil.com/>; rel="prev""#], None);
        check(&[r#"</other>; rel="first"; rel="next""#], None); // RFC 8288 3.3: the first rel counts
    }

    #[test]
    fn refused() {
        let check = |at: &str, link: &str| {
            let result = next(at, &[link]);
            assert!(matches!(result, Err(RegistryError::Refused { why: Refusal::Link(_), .. })), "{link}: {result:?}");
        };
        check(AT, "<https://evil.com/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "<//evil.com/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, r"<\\evil.com/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "<https://r.io:444/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "<http://r.io/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "<http://r.io:443/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "<file:///etc/passwd>; rel=next");
        check(AT, "<https://u:p@r.io/v2/team/app/tags/list?last=b>; rel=next");
        check(AT, "</v2/team/other/tags/list?last=b>; rel=next");
        check(AT, "</v2/team/app/../other/tags/list?last=b>; rel=next");
        check(AT, "</v2/team/app/tags/list/?last=b>; rel=next");
        check(AT, "</>; rel=next");
        // After a redirect away, a relative Link is on the other host.
        check("https://cdn.io/v2/team/app/tags/list?n=1000", "<?last=b>; rel=next");
        check("https://cdn.io/v2/mirror/tags/list", "<https://r.io/v2/mirror/tags/list>; rel=next");
    }

    #[test]
    fn after_a_redirect_on_the_registry() {
        let at = "https://r.io/mirror/v2/team/app/tags/list?n=1000";
        let to = |path: &str| Ok(Some(format!("https://r.io{path}?last=b")));
        assert_eq!(next(at, &["<?last=b>; rel=next"]), to("/mirror/v2/team/app/tags/list"));
        assert_eq!(next(at, &["</v2/team/app/tags/list?last=b>; rel=next"]), to("/v2/team/app/tags/list"));
    }

    #[test]
    fn unreadable_is_never_the_end() {
        for link in [
            "</v2/team/app/tags/list?last=b; rel=next",
            "<>; rel=next",
            r#"<?last=b>; rel="next"#,
            "<?last=b> rel=next",
            "<?last=a>; rel=next, <?last=b>; rel=next",
            "<https://[::1>; rel=next",
        ] {
            let result = next(AT, &[link]);
            assert!(matches!(result, Err(RegistryError::Malformed { .. })), "{link}: {result:?}");
        }
    }

    #[test]
    fn page_keys() {
        let key = |text: &str| page_key(&Url::parse(text).unwrap());
        assert_eq!(key("https://r.io/a?n=1&last=b"), key("https://r.io/a?last=b&n=1"));
        assert_eq!(key("https://r.io/a?last=%62"), key("https://r.io/a?last=b"));
        assert_ne!(key("https://r.io/a?last=b"), key("https://r.io/a?last=c"));
    }

    proptest::proptest! {
        #[test]
        fn any_header_stays_on_the_registry(link in "[ -~]{0,80}") {
            if let Ok(Some(url)) = next(AT, &[&link]) {
                proptest::prop_assert!(url.starts_with("https://r.io/v2/team/app/tags/list"), "{url}");
            }
        }
    }
}
