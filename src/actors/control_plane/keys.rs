//! API keys: made here, shown once, kept as digests.

use chrono::Utc;
use sha2::{Digest, Sha256};

use super::{ControlError, ControlPlane};
use crate::domain::token;
use crate::entity::api_keys::{ApiKey, Removal};

/// Characters of a key that lists show.
const SHOWN: usize = 11;

/// Who makes a request: the id of an API key.
#[derive(Debug, Clone)]
pub struct CallerId(pub String);

/// A key at the only moment it is known.
pub struct NewKey {
    /// The key itself.
    pub secret: String,
    /// What is kept of it.
    pub kept: ApiKey,
}

impl ControlPlane {
    /// The caller whose key this is.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn authenticate(&self, key: &str) -> Result<Option<CallerId>, ControlError> {
        let keys = self.database.api_keys();
        let Some(found) = keys.find_by_digest(&digest(key)).await? else { return Ok(None) };
        keys.touch_last_used(&found.id, Utc::now()).await?;
        Ok(Some(CallerId(found.id)))
    }

    /// Makes a key.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn create_key(&self, name: &str) -> Result<NewKey, ControlError> {
        let secret = format!("nb_{}", token::random());
        let kept = ApiKey {
            id: token::random()[..16].to_owned(),
            name: name.to_owned(),
            digest: digest(&secret),
            prefix: secret[..SHOWN].to_owned(),
            created_at: Utc::now(),
            last_used_at: None,
        };
        self.database.api_keys().insert(&kept).await?;
        Ok(NewKey { secret, kept })
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn keys(&self) -> Result<Vec<ApiKey>, ControlError> {
        Ok(self.database.api_keys().list().await?)
    }

    /// Whether there is any key at all.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn has_keys(&self) -> Result<bool, ControlError> {
        Ok(self.database.api_keys().count().await? > 0)
    }

    /// Takes a key's power away.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoKey`], or [`ControlError::LastKey`] rather than locking everybody out.
    pub async fn delete_key(&self, id: &str) -> Result<(), ControlError> {
        let _alone = self.key_removal.lock().await;
        let keys = self.database.api_keys();
        let all = keys.list().await?;
        if all.len() == 1 && all[0].id == id {
            return Err(ControlError::LastKey);
        }
        match keys.delete(id).await? {
            Removal::Removed => Ok(()),
            Removal::NotFound => Err(ControlError::NoKey(id.to_owned())),
        }
    }
}

/// Whether two secrets are the same. How long it takes says nothing about where they differ.
pub(super) fn same_secret(one: &str, other: &str) -> bool {
    digest(one) == digest(other)
}

/// A key is 256 random bits, so a plain hash of it cannot be guessed back.
fn digest(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
