//! Owns: which options of a MongoDB URI hold secrets, and blanking them out of texts. Pure.
//! Does not own: the user part of a URI (`classify::scrub`), what is done about a URI with secrets (`capture::source`).

/// What the name of an option, or of a property inside one, looks like when its value is a secret: `proxyPassword`,
/// `tlsCertificateKeyFilePassword`, `AWS_SESSION_TOKEN`.
const MARKS: [&str; 3] = ["password", "token", "secret"];
/// Where a name cannot reach back over.
const BEFORE_NAME: &[char] = &['?', '&', ',', '=', ':', ' ', '"', '\'', '`', '/', ';', '('];

/// The first option of a URI whose value is a secret, by its name.
pub fn secret_option(uri: &str) -> Option<&str> {
    options(uri).find(|(name, value)| is_secret(name, value)).map(|(name, _)| name)
}

/// Values of a URI's options that no message may quote.
pub(super) fn secret_values(uri: &str) -> impl Iterator<Item = &str> {
    let secret = options(uri).filter(|(name, value)| is_secret(name, value));
    secret.flat_map(|(_, value)| value.split([',', ':'])).filter(|part| part.len() > 2 && !is_mark(part))
}

fn options(uri: &str) -> impl Iterator<Item = (&str, &str)> {
    uri.split_once('?').map_or("", |(_, options)| options).split(['&', ';']).filter_map(|option| option.split_once('='))
}

fn is_secret(name: &str, value: &str) -> bool {
    let property =
        |p: &str| p.split_once(':').or_else(|| p.split_once("%3A")).or_else(|| p.split_once("%3a")).is_some_and(|(name, _)| is_mark(name));
    is_mark(name) || name.eq_ignore_ascii_case("authMechanismProperties") && value.split(',').any(property)
}

fn is_mark(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // tokenResource and the like name a thing, they are not one.
    MARKS.iter().any(|mark| name.ends_with(mark))
}

/// The text with the values of such options blanked out, wherever in it they stand.
pub(super) fn mask(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, len)) = separator(rest) {
        let (head, tail) = rest.split_at(at + len);
        out.push_str(head);
        let name = rest.get(..at).and_then(|before| before.rsplit(BEFORE_NAME).next()).unwrap_or_default();
        // A colon alone is a sentence's ("password: refused"); of properties only those in capitals are meant.
        let is_property = head.ends_with('=') || name.contains('_');
        rest = tail;
        if is_property && is_mark(name) {
            let end = tail.find(|c: char| c.is_whitespace() || matches!(c, '&' | ',' | '"' | '\'' | '`')).unwrap_or(tail.len());
            if end > 0 {
                out.push_str("***");
            }
            rest = tail.get(end..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    out
}

/// Place and length of the next thing that may stand between a name and its value.
fn separator(text: &str) -> Option<(usize, usize)> {
    let encoded = text.find("%3A").or_else(|| text.find("%3a")).map(|at| (at, 3));
    let plain = text.find(['=', ':']).map(|at| (at, 1));
    encoded.into_iter().chain(plain).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_secrets_are_found_by_name_and_blanked_out() {
        for (uri, name, masked) in [
            (
                "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=s3cret",
                "tlsCertificateKeyFilePassword",
                "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=***",
            ),
            ("mongodb://a,b/?PROXYPASSWORD=s3cret&tls=true", "PROXYPASSWORD", "mongodb://a,b/?PROXYPASSWORD=***&tls=true"),
            (
                "mongodb://h/?authMechanismProperties=X:1,AWS_SESSION_TOKEN:s3cret/+==,Y:2",
                "authMechanismProperties",
                "mongodb://h/?authMechanismProperties=X:1,AWS_SESSION_TOKEN:***,Y:2",
            ),
            (
                "mongodb://h/?authmechanismproperties=AWS_SESSION_TOKEN%3As3cret",
                "authmechanismproperties",
                "mongodb://h/?authmechanismproperties=AWS_SESSION_TOKEN%3A***",
            ),
        ] {
            assert_eq!(secret_option(uri), Some(name), "{uri}");
            assert_eq!(mask(uri), masked);
            assert_eq!(mask(&format!("cannot use {uri} here: why")), format!("cannot use {masked} here: why"));
            assert!(secret_values(uri).any(|value| value.contains("s3cret")), "{uri}");
        }
    }

    #[test]
    fn other_options_and_sentences_stay_as_they_are() {
        for uri in [
            "mongodb://h:1/?replicaSet=r&authMechanismProperties=SERVICE_NAME:x",
            "mongodb://h",
            "mongodb://h/?proxyHost=p&proxyUsername=u",
        ] {
            assert_eq!((secret_option(uri), mask(uri).as_str()), (None, uri));
        }
        let text = "refused (check user, password and authSource): bad resume token: 12:30";
        assert_eq!(mask(text), text);
    }
}
