//! API keys: made here, shown once, kept as digests.

use chrono::Utc;
use ring::hmac;
use sha2::{Digest, Sha256};

use super::{ControlError, ControlPlane};
use crate::domain::id::SandboxId;
use crate::domain::token;
use crate::entity::api_keys::{ApiKey, Removal};
use crate::entity::sandboxes::Sandbox;

/// Characters of a key that lists show.
const SHOWN: usize = 11;

/// Who makes a request: the id of an API key.
#[derive(Debug, Clone)]
pub struct CallerId(pub String);

/// What tokens are made of. It is the daemon's, and not in the database.
#[derive(Clone)]
pub struct TokenSecret(hmac::Key);

impl TokenSecret {
    /// Of these bytes, which are random.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The token for the ports of a sandbox.
    pub(super) fn ports_token(&self, id: &SandboxId) -> String {
        // The words keep it apart from whatever else may be made of the secret one day.
        let of = format!("token for the ports of sandbox {id}");
        hex::encode(hmac::sign(&self.0, of.as_bytes()))
    }
}

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
        // No reason to keep anybody out: on a full disk it takes a key to make room.
        if let Err(error) = keys.touch_last_used(&found.id, Utc::now()).await {
            tracing::warn!(key = found.id, error = %crate::chain(&error),
                "the use of an API key was not noted");
        }
        Ok(Some(CallerId(found.id)))
    }

    /// The token that opens the ports of a sandbox which are not public. Each sandbox has its own,
    /// which neither its guest nor its agent knows, nor who has got hold of the database.
    pub fn ports_token(&self, id: &SandboxId) -> String {
        self.secret.ports_token(id)
    }

    /// Whether one of the tokens is the one that opens the ports of a sandbox.
    pub fn opens_ports(&self, sandbox: &Sandbox, tokens: &[&str]) -> bool {
        let right = digest(&self.ports_token(&sandbox.id));
        let opens = |token: &&str| {
            let digest = digest(token);
            digest == right || sandbox.ports_token_digest.as_ref() == Some(&digest)
        };
        tokens.iter().any(opens)
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
        match self.database.api_keys().delete(id).await? {
            Removal::Removed => Ok(()),
            Removal::NotFound => Err(ControlError::NoKey(id.to_owned())),
            Removal::Last => Err(ControlError::LastKey),
        }
    }
}

/// A key is 256 random bits, so a plain hash of it cannot be guessed back. Comparing digests takes as
/// long wherever secrets differ.
fn digest(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}
