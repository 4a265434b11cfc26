//! The action `request-approval`: a person says yes before a tag goes. Pure.

use std::time::Duration;

use super::gates::{GateError, duration};
use super::image::{ActionType, ImageSpec, RuleSpec};

/// How a rule asks for approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Approval {
    /// After how long a request lapses (`data.value`); none: never.
    pub deadline: Option<Duration>,
}

impl Approval {
    /// Reads the actions of the rule at `index`: none if it does not ask. Of several deadlines the shortest counts.
    ///
    /// # Errors
    /// A deadline that cannot be read.
    pub(super) fn parse(index: usize, rule: &RuleSpec) -> Result<Option<Self>, GateError> {
        let mut found: Option<Self> = None;
        for (action, spec) in rule.actions.iter().enumerate().filter(|(_, a)| a.kind == ActionType::RequestApproval) {
            let field = |name: &str| format!("rules[{index}].actions[{action}].data.{name}");
            let data = spec.data.clone().unwrap_or_default();
            if data.value_from.is_some() {
                let cause = "request-approval takes its deadline from data.value only".to_owned();
                return Err(GateError::new(field("valueFrom"), cause));
            }
            let deadline = Some(data.value.as_str()).filter(|text| !text.is_empty()).map(|text| {
                let cause = |cause| format!("invalid deadline {text:?}: {cause}; use a duration such as 48h");
                duration(text).map_err(|error| GateError::new(field("value"), cause(error)))
            });
            let before = found.and_then(|approval| approval.deadline);
            found = Some(Self { deadline: before.into_iter().chain(deadline.transpose()?).min() });
        }
        Ok(found)
    }
}

/// Whether a rule of the spec asks for approval, also of one that cannot be used otherwise.
pub fn asks_approval(spec: &ImageSpec) -> bool {
    spec.rules.iter().flat_map(|rule| &rule.actions).any(|action| action.kind == ActionType::RequestApproval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_rule_asks_until_its_deadline() {
        #[track_caller]
        fn check(actions: &Value, expected: Result<&str, &str>) {
            let rule = serde_json::from_value(json!({"name": "r", "type": "semver", "actions": actions})).unwrap();
            let said = |approval: Option<Approval>| match approval.map(|approval| approval.deadline) {
                None => "goes".to_owned(),
                Some(None) => "asks".to_owned(),
                Some(Some(deadline)) => format!("asks for {} s", deadline.as_secs()),
            };
            let found = Approval::parse(2, &rule).map(said).map_err(|e| e.to_string());
            assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{actions}");
        }
        let asks = |data: &Value| json!({"type": "request-approval", "data": data});
        check(&json!([{"type": "apply"}]), Ok("goes"));
        check(&json!([{"type": "apply"}, {"type": "request-approval"}]), Ok("asks"));
        check(&json!([asks(&json!({"value": ""}))]), Ok("asks"));
        check(&json!([asks(&json!({"value": "48h"}))]), Ok("asks for 172800 s"));
        check(
            &json!([asks(&json!({"value": "2h"})), asks(&json!({})), asks(&json!({"value": "1h"}))]),
            Ok("asks for 3600 s"),
        );
        let wrong = "invalid deadline \"soon\": expected number at 0; use a duration such as 48h; fix \
                     spec.rules[2].actions[1].data.value";
        check(&json!([{"type": "apply"}, asks(&json!({"value": "soon"}))]), Err(wrong));
        let from = json!({"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        let wrong =
            "request-approval takes its deadline from data.value only; fix spec.rules[2].actions[0].data.valueFrom";
        check(&json!([asks(&from)]), Err(wrong));
    }
}
