//! `/metrics`, `/livez`, `/readyz`.

use super::Metrics;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(at: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(at).await?;
    let bound = listener.local_addr()?;
    let (text, ready) = (metrics.clone(), metrics);
    let app = Router::new()
        .route("/metrics", get(move || async move { text.prometheus() }))
        .route("/livez", get(|| async { "alive\n" }))
        .route(
            "/readyz",
            get(move || async move {
                match (ready.ready.load(Ordering::Relaxed), ready.is_waiting()) {
                    (true, None) => (StatusCode::OK, "ready\n".to_string()),
                    (true, Some((what, why))) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {what}: {why}\n")),
                    (false, None) => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_string()),
                    (false, Some((what, why))) => (StatusCode::SERVICE_UNAVAILABLE, format!("starting; waiting for {what}: {why}\n")),
                }
            }),
        );
    tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    });
    Ok(bound)
}
