//! `--registry-config`: Images name hosts that nobody could ask, and the file says who stands for them.

use kimup::api::SyncResult;
use kimup_testbed::{KimupProcess, Registry, TestCa};
use serde_json::json;

use crate::own::Own;
use crate::support::opted_in;

#[tokio::test]
async fn images_follow_mirrors_and_remapped_registries() {
    let own = Own::start().await;
    let ca = TestCa::new().unwrap();
    let private = Registry::https(&ca.server(&["127.0.0.1"]).unwrap()).await.unwrap();
    private.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    own.registry.push_all("hub/app", &["1.0.0", "1.2.0"]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.toml");
    std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
    let text = format!(
        "[[registry]]\nprefix = 'apps.test'\nlocation = '{}/team'\nca-file = 'ca.pem'\n\
         [[registry]]\nprefix = 'mirrored.test'\n\
         [[registry.mirror]]\nlocation = '127.0.0.1:1'\n\
         [[registry.mirror]]\nlocation = '{}/hub'\nplain-http = true",
        private.host(),
        own.registry.host()
    );
    std::fs::write(&path, text).unwrap();
    let mut options = own.options("kimup").await;
    // Plain HTTP is by the file as well.
    options.args.retain(|arg| *arg != "--plain-http-registry" && *arg != own.registry.host());
    options.args.extend(["--registry-config".to_owned(), path.display().to_string()]);
    let kimup = KimupProcess::start(options).await.unwrap();
    crate::support::configured(&own.cluster).await;

    let shop = own.shop("registry-config").await;
    for (name, host, tag) in [("remapped", "apps.test", "1.1.0"), ("mirrored", "mirrored.test", "1.2.0")] {
        let image = format!("{host}/app");
        shop.create_image(name, &json!({"spec": {"image": image}})).await;
        shop.create_deployment(name, &format!("{image}:1.0.0"), &opted_in()).await;
        // Pods keep the name that their manifest has: the kubelet has mirrors of its own.
        shop.pods_run(name, 2, &format!("{image}:{tag}")).await;
        let status = shop.settles(name, tag).await;
        // The manifest, too, came from there.
        assert_eq!((status.result, status.digest.is_some()), (Some(SyncResult::Success), true), "{name}");
    }
    let log = kimup.log_text();
    let told = log.lines().filter(|line| line.contains("a mirror fails") && line.contains("WARN")).count();
    assert_eq!(told, 1, "once, for all lists and manifests: {log}");
}
