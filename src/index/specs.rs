//! Specs compiled once: many Images have the same rules, and a compiled pattern takes many kilobytes and microseconds.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::api::{self, CompiledSpec, Group, ImageSpec, Order};

/// Fewer are kept even if no Image uses them.
const FEW: usize = 64;

/// What specs mean, apart from their repository and starting tag.
#[derive(Debug, Default)]
pub struct Specs {
    known: HashMap<String, Meaning>,
    /// How many may be known before those that nobody uses are dropped.
    limit: usize,
}

/// What admission needs of a spec.
#[derive(Clone, Debug)]
pub(super) struct Meaning {
    /// With the spec's starting tag.
    pub order: Order,
    /// The field that delays newer tags and that this version cannot honour.
    pub gate: Option<&'static str>,
    /// Why the spec cannot be used, with the field to fix.
    pub error: Option<String>,
    /// Whether Pods are pinned to a digest.
    pub pins: bool,
    /// Its [`Group`], as a number.
    pub group: u64,
}

impl Meaning {
    fn of(spec: &ImageSpec, now: Timestamp) -> Self {
        let compiled = api::compile(spec, now);
        Self {
            order: compiled.as_ref().map_or_else(|_| Order::of(spec), Order::from),
            gate: compiled.as_ref().ok().and_then(CompiledSpec::waits_for),
            error: compiled.err().map(|error| error.to_string()),
            pins: api::pins_digest(spec),
            group: Group::of(spec).number(),
        }
    }
}

impl Specs {
    /// What `spec` means; its repository must be one. `now` serves to refuse a cron line that never fires again.
    pub(super) fn read(&mut self, spec: &ImageSpec, now: Timestamp) -> Meaning {
        let Some(key) = key(spec) else {
            return Meaning::of(spec, now);
        };
        if let Some(known) = self.known.get(&key) {
            let order = known.order.from_base(spec);
            return Meaning { order, ..known.clone() };
        }
        let meaning = Meaning::of(spec, now);
        if self.known.len() >= self.limit.max(FEW) {
            self.known.retain(|_, known| known.order.is_shared());
            self.limit = self.known.len() * 2;
        }
        self.known.insert(key, meaning.clone());
        meaning
    }
}

/// Equal for specs that mean the same. Each field of a spec is named here, so that a new one is not forgotten.
fn key(spec: &ImageSpec) -> Option<String> {
    let ImageSpec {
        image: _,
        base_tag: _,
        image_pull_secrets: _,
        insecure_skip_tls_verify: _,
        triggers,
        rules,
        filter,
        suspend,
        min_age,
        windows,
        rollout,
        pin_digest,
        platforms,
    } = spec;
    let gates = (suspend, min_age, windows, rollout);
    serde_json::to_string(&(triggers, rules, filter, gates, pin_digest, platforms)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::index::testing::image;

    fn read(specs: &mut Specs, patch: &Value) -> Meaning {
        specs.read(&image(&json!({"spec": patch})).spec, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn equal_rules_are_compiled_once_and_mean_what_they_say() {
        let mut specs = Specs::default();
        let mut check = |patch: Value, known: usize| {
            let image = image(&json!({"spec": patch}));
            let fresh = Meaning::of(&image.spec, Timestamp::UNIX_EPOCH);
            let found = specs.read(&image.spec, Timestamp::UNIX_EPOCH);
            let all = |m: &Meaning| (format!("{:?}", m.order), m.gate, m.error.clone(), m.pins);
            assert_eq!(all(&found), all(&fresh), "{patch}");
            assert_eq!(specs.known.len(), known, "{patch}");
        };
        check(json!({}), 1);
        check(json!({"image": "ghcr.io/other/app", "baseTag": "1.0.0"}), 1);
        check(json!({"baseTag": "latest"}), 1);
        check(json!({"baseTag": "not a tag"}), 1);
        check(json!({"filter": {"pattern": "^v"}}), 2);
        check(json!({"filter": {"pattern": "^v"}, "baseTag": "2.0.0"}), 2);
        check(json!({"filter": {"pattern": "("}}), 3);
        check(json!({"filter": {"pattern": "("}, "baseTag": "latest"}), 3);
        check(json!({"suspend": true}), 4);
        check(json!({"pinDigest": true}), 5);
        let digest = json!([{"name": "d", "type": "digest", "actions": [{"type": "apply"}]}]);
        check(json!({"rules": digest}), 6);
        check(json!({"rules": digest, "baseTag": "latest"}), 6);
        check(json!({"triggers": [{"type": "interval", "value": "never"}]}), 7);
        check(json!({"minAge": "soon"}), 8);
        check(json!({"minAge": "24h"}), 9);
        let window = |duration: &str| json!([{"kind": "deny", "schedule": "0 0 * * *", "duration": duration}]);
        check(json!({"windows": window("long")}), 10);
        check(json!({"windows": window("8h")}), 11);
    }

    #[test]
    fn what_nobody_uses_is_dropped() {
        let mut specs = Specs::default();
        let used = read(&mut specs, &json!({}));
        for n in 0..FEW * 3 {
            read(&mut specs, &json!({"filter": {"pattern": format!("^{n}")}}));
            assert!(specs.known.len() <= FEW, "{n}");
        }
        assert!(specs.known.values().any(|known| known.order.is_shared()));
        drop(used);
    }
}
