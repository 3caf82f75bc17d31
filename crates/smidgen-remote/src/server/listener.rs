//! Connections: at most so many at once, and their bytes counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::metrics::Metrics;

/// After an accept that failed, most likely for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection.
#[derive(Debug)]
pub(super) struct Counted {
    stream: TcpStream,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

/// Accepts connections, `most` at once; the others wait in the system's queue.
pub(super) fn accept(
    listener: TcpListener,
    most: usize,
    metrics: Arc<Metrics>,
) -> ReceiverStream<io::Result<Counted>> {
    let (connections, received) = mpsc::channel(1);
    let room = Arc::new(Semaphore::new(most));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.closed() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            _ = stream.set_nodelay(true);
            metrics.connections.add(1);
            let metrics = Arc::clone(&metrics);
            if connections.send(Ok(Counted { stream, metrics, _permit: permit })).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(received)
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.connections.subtract(1);
    }
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.metrics.received.add((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.metrics.sent.add(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts))?;
        self.metrics.sent.add(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Gives the metrics to whoever asks for /metrics by HTTP.
pub(super) async fn metrics_page(listener: TcpListener, metrics: Arc<Metrics>) {
    const READERS: usize = 8;
    const PATIENCE: Duration = Duration::from_secs(5);
    let room = Arc::new(Semaphore::new(READERS));
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            _ = tokio::time::timeout(PATIENCE, answer(stream, &metrics)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    const REQUEST_BYTES_MAX: u64 = 8192;
    let mut request = Vec::new();
    let (read, mut write) = stream.split();
    let mut read = read.take(REQUEST_BYTES_MAX);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if read.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let (status, page) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", metrics.page()),
        false => ("404 Not Found", "The metrics are at /metrics.\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    write.write_all(head.as_bytes()).await?;
    write.write_all(page.as_bytes()).await?;
    write.shutdown().await
}
