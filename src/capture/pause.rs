//! Owns: which state of a capture an operator may hold and let go on. Does not own: starting and stopping (`start`), obeying (`engine`).

use crate::fault::{Fault, Result};
use crate::ledger::{Capture, CaptureState, SharedLedger};

/// Pauses a running capture, or lets a paused one go on from its checkpoint. To where it is already is no error: a repeat is harmless.
/// `Rejected` for one that is stopped or has failed.
pub async fn set_paused(ledger: &SharedLedger, capture: Capture, paused: bool, by: &str) -> Result<Capture> {
    let (to, reason) =
        if paused { (CaptureState::Paused, Some(format!("paused by the operator ({by})"))) } else { (CaptureState::Running, None) };
    if !matches!(capture.state, CaptureState::Running | CaptureState::Paused) {
        let state = format!("{:?}", capture.state).to_lowercase();
        return Err(Fault::rejected(format!(
            "the capture of {} is {state}: only running and paused ones can be paused and resumed; argon capture start goes on with a stopped one",
            capture.branch_name
        )));
    }
    if capture.state == to {
        return Ok(capture);
    }
    ledger.set_capture_state(&capture.id, to, reason.as_deref()).await?;
    tracing::info!(capture = %capture.id, branch = %capture.branch_name, ?to, by, "capture changed by an operator");
    Ok(ledger.capture(&capture.id).await?.unwrap_or(capture))
}
