//! `image pull`: bars on a terminal, a line for each change otherwise.

use super::age::size;
use super::client::{Client, decode};
use super::error::Error;
use super::table::printable;
use super::{print, terminal};
use crate::image::Digest;
use crate::image::registry::{LayerState, Progress};
use crate::server::encode;
use crate::server::types::{PullEnd, PullLine};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;

/// How many digits of a digest tell layers apart for people.
const SHORT: usize = 12;

/// Runs `image pull`. Ctrl-C ends this process, and with its connection the pull.
pub(super) async fn pull(client: &Client, names: &[String]) -> Result<i32, Error> {
    for name in names {
        let failed = |why: String| Error::new(format!("cannot pull {name}"), why);
        let mut lines = client.stream_post(&format!("/coracle/v1/images/pull?name={}", encode(name))).await?;
        let mut view: Box<dyn View> =
            if terminal::is_output() { Box::new(Bars::default()) } else { Box::new(Lines::default()) };
        let end = loop {
            let Some(line) = lines.line().await? else { return Err(failed("the agent broke off".to_owned())) };
            match decode(&line)? {
                PullLine::Progress(progress) => view.show(&progress)?,
                PullLine::End(end) => break end,
            }
        };
        view.end();
        match end {
            PullEnd::Pulled { name, digest, size: bytes, fetched, .. } => {
                let what = if fetched { "pulled" } else { "is up to date" };
                print(&format!("{} {what} ({digest}, {})\n", printable(&name), size(bytes)))?;
            }
            PullEnd::Failed { reason, message, hint } => {
                let error = failed(format!("{message} ({reason})"));
                return Err(match hint {
                    Some(hint) => error.hint(printable(&hint)),
                    None => error,
                });
            }
        }
    }
    Ok(0)
}

/// Shows how far a pull is.
trait View {
    fn show(&mut self, progress: &Progress) -> Result<(), Error>;
    fn end(&mut self);
}

fn short(digest: &Digest) -> &str {
    digest.hex().get(..SHORT).unwrap_or_default()
}

/// One line for each change of a layer's state.
#[derive(Default)]
struct Lines {
    states: HashMap<Digest, LayerState>,
}

impl Lines {
    /// The line for it, if there is something new.
    fn line(&mut self, progress: &Progress) -> Option<String> {
        match progress {
            Progress::Resolved { digest, layers } => {
                let plural = if *layers == 1 { "" } else { "s" };
                Some(format!("{digest}: {layers} layer{plural}\n"))
            }
            Progress::Layer { digest, size: bytes, state, .. } => {
                if self.states.insert(digest.clone(), *state) == Some(*state) {
                    return None;
                }
                let word = match state {
                    LayerState::Waiting => return None,
                    LayerState::Present => "already here",
                    LayerState::Downloading => "downloading",
                    LayerState::Done => "done",
                };
                Some(format!("{}: {word} ({})\n", short(digest), size(*bytes)))
            }
            Progress::Retry { message } => Some(format!("trying again: {}\n", printable(message))),
        }
    }
}

impl View for Lines {
    fn show(&mut self, progress: &Progress) -> Result<(), Error> {
        self.line(progress).map_or(Ok(()), |line| print(&line))
    }

    fn end(&mut self) {}
}

/// A bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: HashMap<Digest, ProgressBar>,
}

impl View for Bars {
    fn show(&mut self, progress: &Progress) -> Result<(), Error> {
        match progress {
            Progress::Resolved { .. } => {}
            Progress::Retry { message } => {
                // The terminal is gone: then nobody reads it anyway.
                let _ = self.all.println(format!("trying again: {}", printable(message)));
            }
            Progress::Layer { digest, size, done, state } => {
                let new = || {
                    // The templates are constant; a wrong one shows the plain bar.
                    let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}");
                    let bar = self.all.add(ProgressBar::new(*size));
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    bar.set_prefix(short(digest).to_owned());
                    bar
                };
                let bar = self.bars.entry(digest.clone()).or_insert_with(new);
                bar.set_position(*done);
                match state {
                    LayerState::Waiting => bar.set_message("waiting"),
                    LayerState::Downloading => bar.set_message("downloading"),
                    LayerState::Present => {
                        bar.set_position(*size);
                        bar.finish_with_message("already here");
                    }
                    LayerState::Done => bar.finish_with_message("done"),
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        for bar in self.bars.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_says_once_what_it_does() {
        let digest = Digest::of(b"layer");
        let layer = |done, state| Progress::Layer { digest: digest.clone(), size: 2_000_000, done, state };
        let mut lines = Lines::default();
        let all: String = [
            Progress::Resolved { digest: digest.clone(), layers: 1 },
            layer(0, LayerState::Waiting),
            layer(0, LayerState::Downloading),
            layer(1_000_000, LayerState::Downloading),
            Progress::Retry { message: "connection reset".into() },
            layer(2_000_000, LayerState::Done),
        ]
        .iter()
        .filter_map(|progress| lines.line(progress))
        .collect();
        let id = short(&digest);
        assert_eq!(
            all,
            format!(
                "{digest}: 1 layer\n{id}: downloading (2.00MB)\ntrying again: connection reset\n{id}: done (2.00MB)\n"
            )
        );
    }

    #[test]
    fn the_agent_s_lines_are_read_back() {
        let digest = Digest::of(b"x");
        for line in [
            PullLine::Progress(Progress::Resolved { digest: digest.clone(), layers: 2 }),
            PullLine::Progress(Progress::Layer {
                digest: digest.clone(),
                size: 5,
                done: 2,
                state: LayerState::Present,
            }),
            PullLine::Progress(Progress::Retry { message: "m".into() }),
            PullLine::End(PullEnd::Failed {
                reason: "ErrImagePull".into(),
                message: "m".into(),
                hint: Some("h".into()),
            }),
            PullLine::End(PullEnd::Failed { reason: "ErrImagePull".into(), message: "m".into(), hint: None }),
            PullLine::End(PullEnd::Pulled { name: "n".into(), id: "i".into(), digest, size: 1, fetched: true }),
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<PullLine>(&text).unwrap(), line, "{text}");
        }
    }
}
