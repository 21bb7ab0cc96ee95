//! How a command's end is told to the client.

use super::Outcome;
use serde_json::json;

/// What the client's protocol has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// A v1 `Status` (version 4 and later).
    Status,
    /// Text, and nothing on success (before).
    Text,
}

impl Outcome {
    /// What goes over the error stream; `None`: nothing but its end.
    pub(super) fn told(&self, words: Words) -> Option<Vec<u8>> {
        let text = match self {
            Outcome::Exited(0) => None,
            Outcome::Exited(code) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
            Outcome::Failed(why) => Some(format!("Internal error occurred: {why}")),
        };
        let status = match (words, text, self) {
            (Words::Text, text, _) => return text.map(String::into_bytes),
            (Words::Status, None, _) => json!({"metadata": {}, "status": "Success"}),
            (Words::Status, Some(message), Outcome::Exited(code)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            (Words::Status, Some(message), Outcome::Failed(_)) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "code": 500,
            }),
        };
        Some(status.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_the_kubelet_tells_them() {
        let told = |outcome: Outcome, words| outcome.told(words).map(|text| String::from_utf8(text).unwrap());
        let both = |outcome: Outcome| [told(outcome.clone(), Words::Status), told(outcome, Words::Text)];
        let all = [Outcome::Exited(0), Outcome::Exited(137), Outcome::Failed("no sh".into())].map(both);
        expect_test::expect![[r#"
            [
                [
                    Some(
                        "{\"metadata\":{},\"status\":\"Success\"}",
                    ),
                    None,
                ],
                [
                    Some(
                        "{\"details\":{\"causes\":[{\"message\":\"137\",\"reason\":\"ExitCode\"}]},\"message\":\"command terminated with non-zero exit code: exit status 137\",\"metadata\":{},\"reason\":\"NonZeroExitCode\",\"status\":\"Failure\"}",
                    ),
                    Some(
                        "command terminated with non-zero exit code: exit status 137",
                    ),
                ],
                [
                    Some(
                        "{\"code\":500,\"message\":\"Internal error occurred: no sh\",\"metadata\":{},\"reason\":\"InternalError\",\"status\":\"Failure\"}",
                    ),
                    Some(
                        "Internal error occurred: no sh",
                    ),
                ],
            ]
        "#]]
        .assert_debug_eq(&all);
    }
}
