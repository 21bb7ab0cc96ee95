//! What a registry asks for (`WWW-Authenticate`), and what answers it: basic credentials or a token of docker's protocol.

use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::http::place::{Place, show};

/// Longest header that is looked at, in bytes; most challenges in it, and parameters of one.
const LONGEST: usize = 8192;
const MOST: usize = 16;
/// Life of a token whose server does not say, as the protocol has it.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// So much before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(5);
/// No token is taken for good, whatever its server says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// One challenge of RFC 9110 § 11.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Lower case.
    pub scheme: String,
    /// Names in lower case; each once.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header, which may hold several. What cannot be read ends the list: servers write this header
/// with varying care, and what came before it may do.
pub(super) fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = Scanner { text: &header[..floor(header, LONGEST)] };
    loop {
        rest.skip(|c| matches!(c, ' ' | '\t' | ','));
        let Some(word) = rest.token() else { return found };
        rest.skip(|c| matches!(c, ' ' | '\t'));
        let (assigned, full) = (rest.text.starts_with('='), found.len() == MOST);
        match found.last_mut().filter(|_| assigned) {
            Some(challenge) => {
                rest.text = &rest.text[1..];
                rest.skip(|c| matches!(c, ' ' | '\t'));
                let Some(value) = rest.quoted().or_else(|| rest.token().map(str::to_owned)) else { return found };
                let name = word.to_ascii_lowercase();
                if challenge.parameter(&name).is_none() && challenge.parameters.len() < MOST {
                    challenge.parameters.push((name, value));
                }
            }
            // A parameter of no scheme.
            None if assigned || full => return found,
            None => found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() }),
        }
    }
}

/// The largest boundary of a character at or below `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

struct Scanner<'a> {
    text: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.text = self.text.trim_start_matches(what);
    }

    fn token(&mut self) -> Option<&'a str> {
        let word = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
        let end = self.text.find(|c| !word(c)).unwrap_or(self.text.len());
        let (token, rest) = self.text.split_at(end);
        self.text = rest;
        (!token.is_empty()).then_some(token)
    }

    fn quoted(&mut self) -> Option<String> {
        let mut chars = self.text.strip_prefix('"')?.chars();
        let mut value = String::new();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(chars.next()?),
                c => value.push(c),
            }
        }
        self.text = chars.as_str();
        Some(value)
    }
}

/// What a token is asked of: a [`Challenge`] of scheme `bearer`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenService {
    /// URL of the token server.
    pub realm: String,
    /// Where that is.
    pub place: Place,
    pub service: Option<String>,
    pub scope: String,
}

impl TokenService {
    /// # Errors
    /// Why nobody can be asked.
    pub fn of(challenge: &Challenge, repository: &str) -> Result<TokenService, String> {
        let realm = challenge.parameter("realm").ok_or("asks for a token, but does not say of whom (realm)")?;
        let place =
            Place::of(realm).ok_or_else(|| format!("asks for a token of {:?}, which is no URL", show(realm)))?;
        let scope = challenge.parameter("scope").filter(|scope| !scope.is_empty());
        Ok(TokenService {
            realm: realm.to_owned(),
            place,
            service: challenge.parameter("service").map(str::to_owned),
            scope: scope.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned),
        })
    }

    /// The URL to get a token from.
    pub fn url(&self) -> String {
        let mut url = self.realm.split('#').next().unwrap_or_default().to_owned();
        let mut separator = if url.contains('?') { '&' } else { '?' };
        let mut add = |name: &str, value: &str| {
            url.push(separator);
            url.push_str(name);
            url.push('=');
            url.push_str(&encode(value));
            separator = '&';
        };
        if let Some(service) = &self.service {
            add("service", service);
        }
        // Several in one, as Docker Hub's and others' challenges have them, are several parameters.
        for scope in self.scope.split(' ').filter(|scope| !scope.is_empty()) {
            add("scope", scope);
        }
        url
    }

    /// The form (`application/x-www-form-urlencoded`) that turns an identity token into one for this.
    pub fn form(&self, identity_token: &str) -> String {
        let fields = [
            ("grant_type", "refresh_token"),
            ("service", self.service.as_deref().unwrap_or_default()),
            ("client_id", "coracle"),
            ("scope", &self.scope),
            ("refresh_token", identity_token),
        ];
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        fields.join("&")
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str) -> String {
    use fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// The value of `Authorization` for user and password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The password of what [`basic`] sends, after the scheme; `None` where it is none.
pub(super) fn password(sent: &str) -> Option<String> {
    let pair = String::from_utf8(STANDARD.decode(sent).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

/// A token for some repositories, for a while.
pub(super) struct Token {
    value: String,
    until: Instant,
}

/// Tokens are secrets.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Token {
    /// The token in a server's answer that was asked for at `asked`.
    ///
    /// # Errors
    /// Why there is none in it; says nothing of its content.
    pub fn parse(answer: &[u8], asked: Instant) -> Result<Token, String> {
        let answer: TokenAnswer = serde_json::from_slice(answer).map_err(|_| "the answer is not a token's JSON")?;
        let full = |token: &String| !token.is_empty();
        let value = answer.token.filter(full).or(answer.access_token.filter(full)).ok_or("no token in the answer")?;
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("the token has characters that no header can have".into());
        }
        let life = match answer.expires_in {
            Some(seconds) if seconds >= 1.0 => Duration::from_secs_f64(seconds.min(LONGEST_LIFE.as_secs_f64())),
            _ => DEFAULT_LIFE,
        };
        Ok(Token { value, until: asked + life })
    }

    /// Whether it is good for another request.
    pub fn fresh(&self, now: Instant) -> bool {
        now + MARGIN < self.until
    }

    /// The value of `Authorization`.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(header: &str) -> Vec<String> {
        let one = |c: &Challenge| {
            let parameters: Vec<String> = c.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{} {}", c.scheme, parameters.join(";"))
        };
        challenges(header).iter().map(one).collect()
    }

    #[test]
    fn challenges_as_registries_write_them() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#,
                vec![
                    "bearer realm=https://auth.docker.io/token;service=registry.docker.io;scope=repository:library/nginx:pull",
                ],
            ),
            (r#"Basic realm="Sonatype Nexus""#, vec!["basic realm=Sonatype Nexus"]),
            (
                r#"BEARER Realm = "a\"b\\c" , error=invalid_token, Basic realm="x, y=z""#,
                vec![r#"bearer realm=a"b\c;error=invalid_token"#, "basic realm=x, y=z"],
            ),
            ("Negotiate, Basic", vec!["negotiate ", "basic "]),
            ("Bearer realm=https://host/token?x,service=s", vec!["bearer realm=https://host/token"]),
            ("Bearer realm=\"one\",realm=\"two\"", vec!["bearer realm=one"]),
            ("Bearer realm=\"never closed", vec!["bearer "]),
            ("realm=\"of nobody\"", vec![]),
            ("=, Basic", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(flat(header), expected, "{header}");
        }
    }

    #[test]
    fn a_token_is_asked_of_a_url() {
        let of = |realm: &str| {
            let challenge = Challenge {
                scheme: "bearer".into(),
                parameters: vec![("realm".into(), realm.into()), ("service".into(), "a b".into())],
            };
            TokenService::of(&challenge, "team/app")
        };
        let service = of("https://auth.example/token?x=1#y").unwrap();
        assert_eq!(service.url(), "https://auth.example/token?x=1&service=a%20b&scope=repository%3Ateam%2Fapp%3Apull");
        assert_eq!(
            service.form("s3&cret"),
            "grant_type=refresh_token&service=a%20b&client_id=coracle&scope=repository%3Ateam%2Fapp%3Apull&refresh_token=s3%26cret"
        );
        assert!(of("http://auth.example/token").unwrap().place.plain);
        for bad in ["file:///etc/passwd", "https://user:s3cret@auth.example/", "\u{1b}[2J", "", "/token"] {
            let said = of(bad).unwrap_err();
            assert!(said.ends_with("which is no URL") && !said.contains(['\u{1b}', '@']), "{said}");
        }
    }

    #[test]
    fn tokens_of_both_dialects_and_their_end() {
        let now = Instant::now();
        let token = Token::parse(br#"{"token":"abc","expires_in":300}"#, now).unwrap();
        assert_eq!(token.header(), "Bearer abc");
        assert!(token.fresh(now) && token.fresh(now + Duration::from_secs(290)));
        assert!(!token.fresh(now + Duration::from_secs(296)));
        assert!(!format!("{token:?}").contains("abc"));
        let token = Token::parse(br#"{"access_token":"x.y","expires_in":0}"#, now).unwrap();
        assert!(token.fresh(now + Duration::from_secs(50)) && !token.fresh(now + Duration::from_secs(60)));
        assert!(!Token::parse(br#"{"token":"a","expires_in":1e300}"#, now).unwrap().fresh(now + LONGEST_LIFE));
        for bad in [&b"<html>"[..], b"{}", br#"{"token":""}"#, br#"{"token":"a\r\nHost: b"}"#, br#"{"token":7}"#] {
            assert!(Token::parse(bad, now).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn challenges_never_panic(header in "\\PC{0,200}|[A-Za-z=\", \\\\]{0,200}") {
            for challenge in challenges(&header) {
                prop_assert!(!challenge.scheme.is_empty());
            }
        }

        #[test]
        fn any_value_survives_quoting(value in "\\PC{0,60}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let found = challenges(&format!("Basic realm=\"{quoted}\", Bearer realm=\"{quoted}\""));
            prop_assert_eq!(found.len(), 2);
            prop_assert!(found.iter().all(|challenge| challenge.parameter("realm") == Some(value.as_str())));
        }

        #[test]
        fn tokens_never_panic(answer in "\\PC{0,80}|\\{\"token\":\"[a-z]{1,5}\",\"expires_in\":-?[0-9e.]{1,12}\\}") {
            let _ = Token::parse(answer.as_bytes(), Instant::now());
        }
    }
}
