//! `/api/v1/events`: what happens, as server-sent events.
//!
//! Owns: the hub, the stream, the events that are made by looking once a second. Does not own: what handlers publish.
//!
//! Bounded: so many streams; a reader that falls behind is told how many events it has missed, and its connection ends when it reads nothing
//! at all (`network`). Nothing is looked at while nobody listens.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::api::Api;
use super::call::{Call, EventStream, NoBody, NoQuery};
use super::pipeline::Pipeline;
use super::problem::Problem;
use super::scaling;
use super::workers::{self, Pool};
use crate::fault::Result;

/// Events that a slow reader may be behind.
const BEHIND: usize = 256;
/// Without an event for so long a comment is sent: proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Time between looks.
const LOOK: Duration = Duration::from_secs(1);

/// Where events come together.
#[derive(Debug, Clone)]
pub struct EventHub {
    sender: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug)]
struct Event {
    name: &'static str,
    data: String,
}

impl EventHub {
    pub(super) fn new() -> Self {
        Self { sender: broadcast::channel(BEHIND).0 }
    }

    /// Tells everybody who listens; nobody may.
    pub fn publish<T: Serialize>(&self, name: &'static str, data: &T) {
        if self.sender.receiver_count() > 0
            && let Ok(data) = serde_json::to_string(data)
        {
            let _ = self.sender.send(Arc::new(Event { name, data })); // the last listener may have gone
        }
    }
}

/// Looks once a second while somebody listens: the engine in figures, and decisions of the scaler that changed something.
pub(super) fn start(api: &Arc<Api>) {
    let (weak, stop) = (Arc::downgrade(api), api.stop.clone());
    let looking = async move {
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(api) = weak.upgrade() else { return };
            if api.events.sender.receiver_count() == 0 {
                seen = None;
                continue;
            }
            let status = api.engine.status();
            let decisions: Vec<_> = api.engine.decisions().into_iter().filter(|d| d.changed).collect();
            // What was decided before anybody listened is a matter of /api/v1/scaler.
            let since = seen.unwrap_or_else(|| decisions.last().map(|d| d.at).unwrap_or_default());
            seen = Some(decisions.last().map_or(since, |d| d.at.max(since)));
            for decision in decisions.into_iter().filter(|d| d.at > since) {
                api.events.publish("decision", &scaling::view(decision, status.started_ms));
            }
            let busy = status.workers.iter().filter(|w| w.busy).count();
            let health = api.health();
            let queue = api.scraper.stats(&api).await.map(|stats| workers::Queue::new(&stats, status.avg_wait_ms));
            api.events.publish(
                "status",
                &serde_json::json!({
                    "engine": api.engine.id(), "health": health.status, "pool": Pool::from(&status.pool), "busy_workers": busy,
                    "attempts": { "succeeded": status.attempts.succeeded, "failed": status.attempts.failed },
                    "captures": status.captures, "queue": queue.ok(), "pipeline": Pipeline::of(&api),
                    "version": health.version, "uptime_seconds": health.uptime_seconds, "health_checks": health.checks,
                }),
            );
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = looking => {}
            () = stop.cancelled() => {}
        }
    });
}

pub(super) async fn stream(call: Call<NoQuery, NoBody>) -> Result<EventStream, Problem> {
    let permit = call.api.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Problem::busy("as many streams of events are open as this engine serves: close one, or poll"))?;
    let (receiver, stop) = (call.api.events.sender.subscribe(), call.api.stop.clone());
    let opened = stream::once(async { Ok(Bytes::from_static(b": argon\n\n")) });
    let events = stream::unfold((receiver, stop, permit), |(mut receiver, stop, permit)| async move {
        let text = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            next = tokio::time::timeout(KEEP_ALIVE, receiver.recv()) => match next {
                Ok(Ok(event)) => format!("event: {}\ndata: {}\n\n", event.name, event.data),
                Ok(Err(RecvError::Lagged(missed))) => format!("event: missed\ndata: {{\"events\":{missed}}}\n\n"),
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => ": still here\n\n".to_owned(),
            },
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), (receiver, stop, permit)))
    });
    Ok(EventStream(Body::from_stream(chain(opened, events))))
}

fn chain<A, B>(first: A, then: B) -> impl Stream<Item = A::Item>
where
    A: Stream,
    B: Stream<Item = A::Item>,
{
    futures_util::StreamExt::chain(first, then)
}
