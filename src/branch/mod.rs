//! A branch and the way back from the bucket.
//!
//! Owns: object keys (`layout`), the JSON objects of a branch (`documents`) and their changes (`mirror`), the catalogue of a database and its folding (`catalogue`),
//! points in history (`point`), reading history (`history`), folding it into documents (`fold`), restore, verification,
//! metadata from the bucket alone (`rebuild`), and how a branch is shown (`view`).
//! Does not own: how changes get into the bucket (`capture`, `sync`), the file format (`segment`), rows (`ledger`).

pub mod base;
pub mod catalogue;
pub mod checkout;
pub mod documents;
pub mod drill;
pub mod fold;
pub mod fork;
pub mod history;
pub mod layout;
pub mod line;
pub mod look;
pub mod mirror;
mod object;
pub mod point;
pub mod rebuild;
pub mod replay;
pub mod restore;
mod server;
#[cfg(test)]
pub(crate) mod testing;
pub mod verify;
pub mod view;
