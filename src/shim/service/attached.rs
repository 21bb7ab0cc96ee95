//! Clients that are attached to containers.

use super::super::container::Attached;
use super::super::protocol::Reply;
use super::super::socket;
use super::{Phase, Shim};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// An attached client.
pub(super) struct Session {
    number: u64,
    /// ID of the container.
    id: String,
    with_input: bool,
}

impl Shim {
    /// Attaches whoever is connected there; `Ok`: it is answered.
    pub(super) fn attach(&mut self, id: String, stdin: bool, connection: usize) -> Result<(), String> {
        let number = self.next_session;
        self.next_session += 1;
        let container = self.container(&id)?;
        match container.phase {
            Phase::Running => {}
            Phase::Starting { .. } => return Err(format!("container {id} has not started")),
            Phase::Draining { .. } | Phase::Ended => return Err(format!("container {id} has ended")),
        }
        let given = container.attach(number, stdin).map_err(|e| format!("cannot attach: {e}"))?;
        let Attached { terminal, stdin: takes, stdin_once, .. } = given;
        let fds: Vec<BorrowedFd<'_>> = given.outputs.iter().chain(&given.input).map(AsFd::as_fd).collect();
        let reply = serde_json::to_vec(&Reply::Attached { terminal, stdin: takes, stdin_once });
        let connection = &mut self.connections[connection];
        connection.attached = Some(Session { number, id, with_input: stdin });
        let sent = reply.map_err(io::Error::from).and_then(|packet| socket::try_send(&connection.fd, &packet, &fds));
        sent.map_err(|e| format!("cannot answer: {e}"))
    }

    pub(super) fn end_input(&mut self, connection: usize) {
        if let Some(Session { id, with_input: true, .. }) = &self.connections[connection].attached
            && let Some(container) = self.containers.iter_mut().find(|container| container.instance.id == *id)
        {
            container.end_input();
        }
    }

    /// A connection is closed: who was attached over it is not any more.
    pub(super) fn disconnected(&mut self, index: usize) {
        self.end_input(index);
        if let Some(Session { number, .. }) = self.connections.remove(index).attached {
            for container in &mut self.containers {
                container.taps.retain(|tap| tap.session != number);
            }
        }
    }
}
