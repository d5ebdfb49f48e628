//! The text of a change that people sign: the change, the hashes of its scripts, its target and the policy. One form alone, so that
//! two who read the same file sign the same bytes; readable, so that they can see what they sign.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::change::Unbound;
use super::error::GuardError;
use super::policy::InForce;
use crate::repository::id::ObjectId;

/// A change with the policy under which it is approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canonical {
    restante: String,
    pub repository: String,
    /// BLAKE3 of the policy's text.
    pub policy: String,
    #[serde(flatten)]
    pub change: Unbound,
}

impl Canonical {
    pub fn new(repository: String, policy: &InForce, change: Unbound) -> Self {
        Self { restante: "change 1".into(), repository, policy: policy.hash.to_hex(), change }
    }

    /// What is signed.
    pub fn text(&self) -> Result<String, GuardError> {
        let json = serde_json::to_string_pretty(self).map_err(|e| GuardError::Signature(e.to_string()))?;
        Ok(json + "\n")
    }

    /// The hash by which approvals and the log name it.
    pub fn hash(&self) -> Result<ObjectId, GuardError> {
        Ok(ObjectId::of(self.text()?.as_bytes()))
    }

    /// Why its approvals do not count any more, or never would.
    pub fn expiry(&self, policy: &InForce, now: Timestamp) -> Option<String> {
        let expires = self.change.expires;
        if expires <= now {
            return Some(format!("the change expired at {expires}: write another time and have it approved again"));
        }
        let longest = policy.policy.longest_approval;
        let too_far = now.checked_add(longest).is_ok_and(|latest| expires > latest);
        too_far.then(|| {
            format!(
                "the change expires at {expires}, and the policy lets approvals stand for {} at most",
                super::document::shown(longest)
            )
        })
    }
}
