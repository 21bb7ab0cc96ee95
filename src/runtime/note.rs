//! What an action has to tell: becomes an event of the pod.

/// Something worth telling.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// CamelCase reason, as kubelet where it has one.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// The container it is about.
    pub container: Option<String>,
}

impl Note {
    /// Of type Normal.
    #[must_use]
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Note {
        Note { warning: false, reason, message: message.into(), container: None }
    }

    /// Of type Warning.
    #[must_use]
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Note {
        Note { warning: true, reason, message: message.into(), container: None }
    }

    /// About a container.
    #[must_use]
    pub fn about(mut self, container: &str) -> Note {
        self.container = Some(container.to_owned());
        self
    }
}
