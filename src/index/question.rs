//! The question of admission to sync.
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
/// Which tag?
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Question {
    /// Namespace.
    pub namespace: String,
    /// Image.
    pub image: String,
}
/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answered {
    /// The tag.
    pub tag: Option<String>,
    /// Why.
    pub reason: String,
}
/// Somebody who answers.
pub trait Ask: Send + Sync {
    /// Asks.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>>;
}
