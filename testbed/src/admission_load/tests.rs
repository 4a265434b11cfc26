use super::*;
use crate::{FaultReply, FaultRequest, FaultServer, TestCa};

fn reviews() -> Reviews {
    Reviews { namespace: "shop".to_owned(), text: "app:1".to_owned(), wanted: "app:2".to_owned() }
}

fn answer(number: u64, allowed: bool, patch: &Value) -> Vec<u8> {
    let patch = STANDARD.encode(patch.to_string());
    json!({"response": {"uid": uid(number), "allowed": allowed, "patch": patch}}).to_string().into_bytes()
}

#[test]
fn only_the_right_answer_will_do() {
    let set = |path: &str, image: &str| json!([{"op": "replace", "path": path, "value": image}]);
    let right = set("/spec/containers/0/image", "app:2");
    let check = |status: u16, body: Vec<u8>, expected: Option<&str>| {
        let found = reviews().check(7, &(status, body)).map_err(|error| error.to_string());
        match expected {
            None => assert_eq!(found, Ok(())),
            Some(part) => assert!(found.as_ref().is_err_and(|error| error.contains(part)), "{part}: {found:?}"),
        }
    };
    check(200, answer(7, true, &right), None);
    check(503, b"not listed".to_vec(), Some("status 503: not listed"));
    check(200, answer(8, true, &right), Some("another review"));
    check(200, answer(7, false, &right), Some("denied"));
    check(200, answer(7, true, &set("/spec/containers/0/image", "app:1")), Some("unmutated"));
    check(200, answer(7, true, &set("/metadata", "app:2")), Some("unmutated"));
    check(200, json!({"response": {"uid": uid(7), "allowed": true}}).to_string().into_bytes(), Some("unmutated"));
}

#[test]
fn answers_are_read_to_their_end() {
    let check = |text: &str, expected: Result<Option<(u16, &str, bool)>, ()>| {
        let found = parse(text.as_bytes()).map_err(drop);
        let found = found.map(|answer| answer.map(|a| (a.status, String::from_utf8(a.body).unwrap(), a.keep)));
        assert_eq!(found, expected.map(|e| e.map(|(status, body, keep)| (status, body.to_owned(), keep))), "{text:?}");
    };
    check("HTTP/1.1 200 OK\r\n", Ok(None));
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", Ok(None));
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok(Some((200, "ab", true))));
    check("HTTP/1.1 503 No\r\nConnection: close\r\ncontent-length: 0\r\n\r\n", Ok(Some((503, "", false))));
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", Err(()));
    check("HTTP/1.1 200 OK\r\n\r\n", Err(()));
}

/// A server whose connections live as `reply` says, and a client of it.
async fn server(reply: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static) -> (FaultServer, WebhookClient) {
    let ca = TestCa::new().unwrap();
    let server = FaultServer::https(&ca.server(&["127.0.0.1"]).unwrap(), reply).await.unwrap();
    let client = WebhookClient::new(server.address(), "127.0.0.1", ca.pem()).unwrap();
    (server, client)
}

#[tokio::test]
async fn connections_are_kept_and_nothing_is_sent_twice() {
    let (server, client) = server(|request| match request.nth {
        2 => FaultReply::new(200, "bye").header("connection", "close"),
        4 => FaultReply::raw(""),
        _ => FaultReply::new(200, "ok"),
    })
    .await;
    let check = async |expected: Result<&str, &str>, connections: u64, requests: usize| {
        let found = client.post(b"{}").await.map(|(_, body)| String::from_utf8(body).unwrap());
        match (&found, expected) {
            (Ok(body), Ok(wanted)) => assert_eq!(body, wanted),
            (Err(error), Err(wanted)) => assert!(format!("{error:#}").contains(wanted), "{error:#}"),
            _ => panic!("{found:?} instead of {expected:?}"),
        }
        assert_eq!((client.connections(), server.requests().len()), (connections, requests));
    };
    check(Ok("ok"), 1, 1).await;
    check(Ok("ok"), 1, 2).await;
    check(Ok("bye"), 1, 3).await;
    check(Ok("ok"), 2, 4).await;
    check(Err("a connection used before: the connection ended after 0 bytes"), 2, 5).await;
    check(Ok("ok"), 3, 6).await;
    assert_eq!(client.resent(), 0);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_not_used() {
    let (server, client) = server(|_| FaultReply::new(200, "ok")).await;
    client.post(b"{}").await.unwrap();
    drop(server);
    let idle = async || {
        let taken = client.take().await;
        let gone = taken.is_none();
        if let Some(connection) = taken {
            client.put(connection);
        }
        gone
    };
    crate::eventually(Duration::from_secs(5), "it is dropped", idle).await;
}

#[tokio::test]
async fn a_load_counts_what_came_of_it() {
    let right = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "app:2"}]);
    let (_server, client) = server(move |request| {
        let review: Value = serde_json::from_slice(&request.body).unwrap();
        let number = review["request"]["uid"].as_str().unwrap()[24..].parse().unwrap();
        if number == 3 { FaultReply::new(500, "no") } else { FaultReply::new(200, answer(number, true, &right)) }
    })
    .await;
    let load = AdmissionLoad::start(client, reviews(), 20).unwrap();
    let enough = async || load.so_far().answered >= 6;
    crate::eventually(Duration::from_secs(20), "some are answered", enough).await;
    let report = load.stop().await.unwrap();
    let causes: Vec<&str> = report.failures.iter().map(|failure| failure.cause.as_str()).collect();
    assert!(matches!(causes.as_slice(), [cause] if cause.contains("status 500: no")), "{causes:?}");
    assert_eq!((report.skipped, report.times.len() as u64), (0, report.answered));
    assert!(report.quantile(0.5) <= report.quantile(0.99) && report.quantile(1.0) == *report.times.last().unwrap());
}
