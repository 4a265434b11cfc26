//! The one Image of a manifest. Pure.

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::api::{self, ActionType, ImageSpec};

use super::super::input::{self, is_image};
use super::Choice;

/// Rules, filter and current tag of the only Image in `text`: YAML or JSON, several documents, lists. Other objects are
/// skipped.
pub fn read(text: &str) -> anyhow::Result<Choice> {
    let images: Vec<Value> = input::objects(text)?.into_iter().filter(is_image).collect();
    let [image] = &*images else {
        bail!("it holds {} Images of {}, not one", images.len(), api::GROUP);
    };
    let name = image["metadata"]["name"].as_str().unwrap_or_default();
    choice(image).with_context(|| format!("Image {name:?}"))
}

fn choice(image: &Value) -> anyhow::Result<Choice> {
    let spec: ImageSpec = serde_path_to_error::deserialize(&image["spec"])
        .map_err(|error| anyhow::anyhow!("spec.{}: {}", error.path(), error.inner()))?;
    let compiled = api::compile(&spec, Timestamp::now())?;
    // A rule that only tells moves no tag.
    let moves = |kind: ActionType| matches!(kind, ActionType::Apply | ActionType::RequestApproval);
    let rules = spec.rules.iter().zip(compiled.rules);
    let rules = rules.filter(|(spec, _)| spec.actions.iter().any(|action| moves(action.kind)));
    let settled = match &image["status"]["tag"] {
        Value::Null => None,
        tag => Some(String::deserialize(tag).context("status.tag")?),
    };
    let current = settled.filter(|tag| !tag.is_empty()).or(Some(spec.base_tag.clone()));
    Ok(Choice {
        rules: rules.map(|(_, compiled)| compiled.rule).collect(),
        filter: compiled.filter,
        current: current.filter(|tag| !tag.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rule;

    const SPEC: &str = "{image: alpine, triggers: [{type: interval, value: 5m}], rules: [{name: stable, type: semver, \
                        value: '^1', actions: [{type: apply}]}]}";

    fn image(more: &str) -> String {
        format!(
            "{{apiVersion: kimup.cloudavenue.io/v1alpha1, kind: Image, metadata: {{name: web}}, spec: {SPEC}{more}}}"
        )
    }

    #[test]
    fn the_only_image_is_found() {
        let check = |text: &str, current: &str| {
            let choice = read(text).unwrap();
            assert_eq!(choice.rules, [Rule::parse("semver", Some("^1")).unwrap()], "{text}");
            assert_eq!(choice.current.as_deref(), Some(current), "{text}");
        };
        check(&image(""), "latest");
        check(&image(", status: {tag: 1.2.0, later: field}"), "1.2.0");
        check(&image(", status: {tag: ''}"), "latest");
        check(&image("").replace("image: alpine", "image: alpine, baseTag: 1.1.0"), "1.1.0");
        check(&format!("kind: Secret\n---\n{}\n---\n", image("")), "latest");
        check(&format!("{{apiVersion: v1, kind: List, items: [{{kind: Pod}}, {}]}}", image("")), "latest");
        check(&format!("{}\n---\napiVersion: image.example.com/v1\nkind: Image\n", image("")), "latest");
    }

    #[test]
    fn rules_that_only_tell_move_no_tag() {
        let check = |action: &str, rules: usize| {
            assert_eq!(read(&image("").replace("apply", action)).unwrap().rules.len(), rules, "{action}");
        };
        check("apply", 1);
        check("request-approval", 1);
        check("alert-slack", 0);
    }

    #[test]
    fn errors_name_the_field() {
        let check = |text: &str, parts: &[&str]| {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        };
        check("", &["0 Images"]);
        check("kind: Pod", &["0 Images of kimup.cloudavenue.io, not one"]);
        check(&format!("{}\n---\n{}", image(""), image("")), &["2 Images"]);
        check("{", &["line 1"]);
        check(
            &image("").replace("^1", ">=1.x.y"),
            &["Image \"web\": rule \"stable\": invalid range", "fix spec.rules[0].value"],
        );
        check(&image("").replace("semver", "newest"), &["spec.rules[0].type: unknown variant `newest`"]);
        check(&image("").replace("rules", "rule"), &["spec", "missing field `rules`"]);
        check(&image("").replace("image: alpine", "image: 'alpine:3'"), &["fix spec.image"]);
    }
}
