//! Owns: what the user of a client may do in the metadata database, as the server itself says it, and what is missing of what the engine does there.
//! Does not own: the words of a refusal (`classify`).

use bson::{Bson, Document, doc};
use mongodb::Client;

use super::classify::fault_of;
use crate::fault::Result;

/// The command that gives a user a built-in role. `$ADMIN_URI` is of somebody who may do that.
pub fn grant_command(user: &str, user_db: &str, role: &str, db: &str) -> String {
    format!(
        "mongosh \"$ADMIN_URI\" --eval 'db.getSiblingDB(\"{user_db}\").grantRolesToUser(\"{user}\", [{{role: \"{role}\", db: \"{db}\"}}])'"
    )
}

/// What the engine does in its metadata database: the role of `docs/rights/metadata-role.json`.
const METADATA_ACTIONS: [&str; 7] = ["find", "insert", "update", "remove", "createIndex", "listCollections", "listIndexes"];

/// A user who may not do everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRights {
    pub user: String,
    /// The database where the user was made.
    pub user_db: String,
    pub actions: Vec<&'static str>,
}

/// `None`: nothing is missing, or the server checks nobody.
pub async fn missing_rights(client: &Client, metadata_db: &str) -> Result<Option<MissingRights>> {
    let asked = client.database("admin").run_command(doc! { "connectionStatus": 1, "showPrivileges": true }).await;
    Ok(missing(&asked.map_err(fault_of)?, metadata_db))
}

fn missing(status: &Document, db: &str) -> Option<MissingRights> {
    let auth = status.get_document("authInfo").ok()?;
    let documents = |name: &str| auth.get_array(name).map(Vec::as_slice).unwrap_or_default().iter().filter_map(Bson::as_document);
    let user = documents("authenticatedUsers").next()?;
    let granted: Vec<&str> = documents("authenticatedUserPrivileges")
        .filter(|privilege| privilege.get_document("resource").is_ok_and(|resource| covers(resource, db)))
        .flat_map(|privilege| privilege.get_array("actions").map(Vec::as_slice).unwrap_or_default())
        .filter_map(Bson::as_str)
        .collect();
    let actions: Vec<_> =
        METADATA_ACTIONS.into_iter().filter(|action| !granted.contains(action) && !granted.contains(&"anyAction")).collect();
    let text = |name: &str| user.get_str(name).unwrap_or("?").to_owned();
    (!actions.is_empty()).then(|| MissingRights { user: text("user"), user_db: text("db"), actions })
}

/// All collections of the database: a right on single ones would not do for those of the next version.
fn covers(resource: &Document, db: &str) -> bool {
    let is = |name: &str, wanted: &[&str]| resource.get_str(name).is_ok_and(|value| wanted.contains(&value));
    resource.get_bool("anyResource").unwrap_or(false) || (is("db", &["", db]) && is("collection", &[""]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(privileges: &[Document]) -> Document {
        doc! { "authInfo": { "authenticatedUsers": [{ "user": "ann", "db": "admin" }], "authenticatedUserPrivileges": privileges.to_vec() } }
    }

    #[test]
    fn the_documented_role_is_what_is_asked_for() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rights/metadata-role.json");
        let role: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let actions: Vec<&str> = role["privileges"][0]["actions"].as_array().unwrap().iter().filter_map(|a| a.as_str()).collect();
        assert_eq!(actions, METADATA_ACTIONS);
    }

    #[test]
    fn what_is_missing_is_named_and_rights_on_something_else_do_not_count() {
        let all = doc! { "resource": { "db": "argon", "collection": "" }, "actions": METADATA_ACTIONS.to_vec() };
        assert_eq!(missing(&status(std::slice::from_ref(&all)), "argon"), None);
        assert_eq!(missing(&status(&[doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] }]), "argon"), None);
        let everywhere = doc! { "resource": { "db": "", "collection": "" }, "actions": METADATA_ACTIONS.to_vec() };
        assert_eq!(missing(&status(&[everywhere]), "argon"), None);
        let one = doc! { "resource": { "db": "argon", "collection": "jobs" }, "actions": METADATA_ACTIONS.to_vec() };
        let most = doc! { "resource": { "db": "argon", "collection": "" }, "actions": ["find", "insert", "update", "createIndex", "listCollections"] };
        let found = missing(&status(&[one, most]), "argon").unwrap();
        assert_eq!((found.user.as_str(), found.user_db.as_str(), found.actions), ("ann", "admin", vec!["remove", "listIndexes"]));
        assert_eq!(missing(&status(&[all]), "other").unwrap().actions, METADATA_ACTIONS);
        assert_eq!(missing(&doc! { "authInfo": { "authenticatedUsers": [] } }, "argon"), None, "nobody is asked who they are");
    }
}
