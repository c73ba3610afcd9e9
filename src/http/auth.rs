//! Who may do what: bearer tokens with scopes, from the environment and from a file.
//!
//! Owns: reading tokens, comparing them, which listener may go without. Does not own: which scope a route needs (`routes`), TLS (`tls`).
//!
//! Only hashes are kept. What a client sends is hashed and compared with every one of them in constant time, so that neither the length nor
//! the bytes of a token can be found by measuring answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::HttpSettings;
use crate::fault::{Fault, Result};

/// A shorter token can be guessed.
const SHORT: usize = 16;
/// No file of tokens is larger.
const MOST_TOKENS: usize = 1_000;

/// What a caller may do. Each includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Nothing but what anyone may see.
    Public,
    /// Look at everything.
    Read,
    /// Change what heals by itself: the number of workers, pauses, retries, test jobs.
    Operate,
    /// Also what loses history.
    Admin,
}

impl Scope {
    /// Its name in a file of tokens and in the OpenAPI document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    fn number(self) -> u8 {
        self as u8
    }

    fn of_number(number: u8) -> Self {
        [Self::Public, Self::Read, Self::Operate, Self::Admin].into_iter().find(|s| s.number() == number).unwrap_or(Self::Public)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub scope: Scope,
    /// For log lines and notes: `control socket`, `token 3f2a91c0`, `anonymous`. Never the token.
    pub name: String,
}

/// No token can have this name: theirs begin otherwise.
const LOCAL: &str = "control socket";

impl Caller {
    /// The owner of the control socket's file, who could as well read the engine's memory.
    pub fn local() -> Self {
        Self { scope: Scope::Admin, name: LOCAL.into() }
    }

    /// Whether it comes by the control socket.
    pub fn is_local(&self) -> bool {
        self.name == LOCAL
    }

    fn anonymous(scope: Scope) -> Self {
        Self { scope, name: "anonymous".into() }
    }
}

/// The tokens of a listener.
#[derive(Debug)]
pub struct Tokens {
    from_env: Vec<Token>,
    from_file: RwLock<Vec<Token>>,
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    hash: [u8; 32],
    scope: Scope,
}

impl Tokens {
    /// Reads both places. A token that nobody could send or that is empty is a mistake: an empty variable must not open the door.
    pub fn load(settings: &HttpSettings) -> Result<Self> {
        let mut from_env = Vec::new();
        if let Some(token) = &settings.api_token {
            let token = usable(token.reveal()).map_err(|why| Fault::config(format!("ARGON_API_TOKEN {why}")))?;
            if token.len() < SHORT {
                tracing::warn!("ARGON_API_TOKEN has fewer than {SHORT} characters: it can be guessed");
            }
            from_env.push(Token { hash: hash(token), scope: Scope::Admin });
        }
        let file = settings.api_tokens_file.clone();
        let from_file = RwLock::new(file.as_deref().map(read).transpose()?.unwrap_or_default());
        Ok(Self { from_env, from_file, file })
    }

    /// No token is set anywhere: whoever reaches the listener may do everything.
    pub fn is_open(&self) -> bool {
        self.from_env.is_empty() && self.file.is_none()
    }

    /// Reads the file again. What cannot be read leaves the tokens as they were: half a file that an editor is writing must neither lock
    /// everybody out nor let anybody in.
    pub(super) fn read_again(&self) {
        let Some(file) = &self.file else { return };
        match read(file) {
            Ok(tokens) => {
                tracing::info!(file = %file.display(), tokens = tokens.len(), "tokens read again");
                *self.from_file.write() = tokens;
            }
            Err(fault) => tracing::error!(error = %fault, "the tokens stay as they were"),
        }
    }

    /// The caller behind an `Authorization` header; `None` for a token that is not ours.
    pub fn caller(&self, authorization: Option<&str>) -> Option<Caller> {
        if self.is_open() {
            return Some(Caller::anonymous(Scope::Admin));
        }
        let Some(header) = authorization else { return Some(Caller::anonymous(Scope::Public)) };
        let (scheme, token) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let sent = hash(token.trim());
        let mut best = 0u8;
        for token in self.from_env.iter().chain(self.from_file.read().iter()) {
            // No early end: the time does not tell which token was nearly right.
            let same: Choice = sent.ct_eq(&token.hash);
            let better = u8::conditional_select(&0, &token.scope.number(), same);
            best = best.max(better);
        }
        let scope = Scope::of_number(best);
        (scope > Scope::Public).then(|| Caller { scope, name: format!("token {}", hex4(&sent)) })
    }
}

/// Refuses a listener that others can reach and where nobody has to say who they are, unless that was asked for.
pub(super) fn check_open(addr: SocketAddr, open: bool, allowed: bool) -> Result<()> {
    if !open || addr.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    if allowed {
        tracing::warn!(%addr, "anyone who reaches this address may do everything: ARGON_ALLOW_UNAUTHENTICATED=true");
        return Ok(());
    }
    Err(Fault::config(format!(
        "ARGON_HTTP_ADDR={addr} can be reached from other machines, and no token is set: set ARGON_API_TOKEN or ARGON_API_TOKENS_FILE, \
         listen on 127.0.0.1, or say ARGON_ALLOW_UNAUTHENTICATED=true"
    ))
    .next("export ARGON_API_TOKEN=$(openssl rand -hex 32)"))
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Enough to tell tokens apart in a log, too little to be of use.
fn hex4(hash: &[u8; 32]) -> String {
    format!("{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// A token as it can stand in a header.
fn usable(token: &str) -> std::result::Result<&str, String> {
    if token.trim().is_empty() {
        return Err("is empty: give it a long random value, or do not set it".into());
    }
    if let Some(bad) = token.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("holds {bad:?}, which cannot be sent in a header: use letters, digits and punctuation"));
    }
    Ok(token)
}

/// Lines `scope:token`; empty lines and lines that begin with # are skipped.
fn read(path: &Path) -> Result<Vec<Token>> {
    let bad = |why: String| Fault::config(format!("ARGON_API_TOKENS_FILE {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    // A mounted secret often is: worth a word, not a refusal.
    if std::fs::metadata(path).is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o004 != 0) {
        tracing::warn!(file = %path.display(), "every user of this machine can read the tokens: chmod 600");
    }
    let mut tokens = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |why: String| bad(format!("line {}: {why}", i + 1));
        let (scope, token) = line.split_once(':').ok_or_else(|| at("is not scope:token".into()))?;
        let scope = [Scope::Read, Scope::Operate, Scope::Admin].into_iter().find(|s| s.name() == scope.trim());
        let scope = scope.ok_or_else(|| at("the scope is none of read, operate, admin".into()))?;
        let token = usable(token.trim()).map_err(|why| at(format!("the token {why}")))?;
        tokens.push(Token { hash: hash(token), scope });
    }
    if tokens.is_empty() {
        return Err(bad("holds no token: write lines such as read:SECRET".into()));
    }
    if tokens.len() > MOST_TOKENS {
        return Err(bad(format!("holds {} tokens, at most {MOST_TOKENS}", tokens.len())));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn settings(token: Option<&str>, file: Option<&Path>) -> HttpSettings {
        HttpSettings { api_token: token.map(Secret::from), api_tokens_file: file.map(Path::to_owned), ..HttpSettings::default() }
    }

    fn scope(tokens: &Tokens, header: &str) -> Option<Scope> {
        tokens.caller(Some(header)).map(|c| c.scope)
    }

    #[test]
    fn each_token_has_its_scope_and_anything_else_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        std::fs::write(&file, "# people\nread:look-at-it-only\n\n operate : do:things \nadmin:root-of-it-all\n").unwrap();
        let tokens = Tokens::load(&settings(Some("from-the-environment"), Some(&file))).unwrap();
        assert_eq!(scope(&tokens, "Bearer look-at-it-only"), Some(Scope::Read));
        assert_eq!(scope(&tokens, "bearer do:things"), Some(Scope::Operate));
        assert_eq!(scope(&tokens, "Bearer root-of-it-all"), Some(Scope::Admin));
        assert_eq!(scope(&tokens, "Bearer from-the-environment"), Some(Scope::Admin));
        for wrong in ["Bearer look-at-it-onl", "Bearer ", "Bearer", "Basic look-at-it-only", "", "look-at-it-only"] {
            assert_eq!(scope(&tokens, wrong), None, "{wrong:?}");
        }
        assert_eq!(tokens.caller(None).unwrap().scope, Scope::Public);
        let name = tokens.caller(Some("Bearer root-of-it-all")).unwrap().name;
        assert!(!name.contains("root") && name.starts_with("token "), "{name}");
        assert!(!format!("{tokens:?}").contains("root-of"));
    }

    #[test]
    fn without_any_token_everybody_is_admin() {
        let tokens = Tokens::load(&settings(None, None)).unwrap();
        assert!(tokens.is_open());
        assert_eq!(scope(&tokens, "Bearer whatever"), Some(Scope::Admin));
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_and_the_place_named() {
        for empty in ["", "  ", "two words", "umlaut-ä"] {
            let error = Tokens::load(&settings(Some(empty), None)).unwrap_err();
            assert!(error.what.starts_with("ARGON_API_TOKEN ") && error.kind == crate::fault::Kind::Config, "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        for (text, said) in [
            ("", "no token"),
            ("# none\n", "no token"),
            ("read:a\nb\n", "line 2: is not scope:token"),
            ("root:secret-secret", "line 1: the scope is none of"),
            ("read:", "line 1: the token is empty"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Tokens::load(&settings(None, Some(&file))).unwrap_err();
            assert!(error.what.contains(said) && error.what.contains("tokens"), "{text:?}: {error}");
            assert!(!error.what.contains("secret-secret"), "{error}");
        }
        let error = Tokens::load(&settings(None, Some(&dir.path().join("absent")))).unwrap_err();
        assert!(error.what.contains("absent") && error.what.contains("cannot be read"), "{error}");
    }

    #[test]
    fn a_changed_file_counts_at_once_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        std::fs::write(&file, "read:the-first-one").unwrap();
        let tokens = Tokens::load(&settings(None, Some(&file))).unwrap();
        std::fs::write(&file, "operate:the-second-one").unwrap();
        tokens.read_again();
        assert_eq!([scope(&tokens, "Bearer the-first-one"), scope(&tokens, "Bearer the-second-one")], [None, Some(Scope::Operate)]);
        for broken in ["", "admin"] {
            std::fs::write(&file, broken).unwrap();
            tokens.read_again();
            assert_eq!(scope(&tokens, "Bearer the-second-one"), Some(Scope::Operate));
        }
        std::fs::remove_file(&file).unwrap();
        tokens.read_again();
        assert_eq!(scope(&tokens, "Bearer the-second-one"), Some(Scope::Operate));
        assert!(!tokens.is_open());
    }

    #[test]
    fn only_loopback_may_be_open_unless_told_so() {
        for (addr, open, allowed, fine) in [
            ("127.0.0.1:8080", true, false, true),
            ("[::1]:8080", true, false, true),
            ("[::ffff:127.0.0.1]:8080", true, false, true),
            ("0.0.0.0:8080", true, false, false),
            ("[::]:8080", true, false, false),
            ("192.168.1.7:8080", true, false, false),
            ("0.0.0.0:8080", true, true, true),
            ("0.0.0.0:8080", false, false, true),
        ] {
            let checked = check_open(addr.parse().unwrap(), open, allowed);
            assert_eq!(checked.is_ok(), fine, "{addr} {open} {allowed}");
            if let Err(fault) = checked {
                assert_eq!(fault.kind, crate::fault::Kind::Config);
                assert!(fault.what.contains("ARGON_API_TOKEN") && fault.what.contains("ARGON_ALLOW_UNAUTHENTICATED=true"), "{fault}");
            }
        }
    }
}
