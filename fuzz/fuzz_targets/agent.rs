//! Whoever answers in an agent's place. The first byte says which call it is that is answered, the
//! next how often the end of the answer comes; the connection ends then.

#![no_main]

use std::cell::OnceCell;

use futures::StreamExt;
use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::domain::exec::Exec;
use nestbox_fuzz::domain::file::{FileRange, Reach, WatchNews};
use nestbox_fuzz::domain::process::ProcessRef;
use nestbox_fuzz::measure;
use nestbox_fuzz::said::{expanded, is_fit};
use nestbox_fuzz::vmm::guest::{Agent, AgentError, Begin, FileStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// By how much an answer may make the daemon larger.
const MEMORY: usize = 32 << 20;

/// What a command may write that is kept of it.
const OUTPUT: usize = 1 << 20;

/// As `vmm::guest` has it for lists.
const LIST: usize = 8 << 20;

type Call = for<'a> fn(&'a Agent) -> futures::future::LocalBoxFuture<'a, Result<(), AgentError>>;

/// Calls whose answers are read in ways of their own.
const CALLS: [Call; 11] = [
    |agent| Box::pin(agent.set_clock()),
    |agent| {
        Box::pin(async {
            drain(agent.read_file(&"/x".into(), None, &FileRange::default()).await?).await
        })
    },
    |agent| Box::pin(async { agent.write_archive(&"/x".into(), None, nothing()).await.map(drop) }),
    |agent| {
        Box::pin(async {
            let found = agent.stat(&"/x".into(), None).await?;
            assert!(found.path.as_bytes().len() <= 256 << 10);
            Ok(())
        })
    },
    |agent| {
        Box::pin(async {
            let found = agent.list(&"/x".into(), 1, None).await?;
            assert!(found.iter().map(|entry| entry.path.as_bytes().len()).sum::<usize>() <= LIST);
            Ok(())
        })
    },
    |agent| {
        Box::pin(async {
            let exec = Exec { cmd: "true".to_owned(), output_limit: OUTPUT, ..Exec::default() };
            let output = agent.exec(exec, &CancellationToken::new()).await?;
            assert!(output.stdout.len() + output.stderr.len() <= 2 * OUTPUT);
            Ok(())
        })
    },
    |agent| {
        Box::pin(async {
            let exec = Exec { cmd: "true".to_owned(), output_limit: OUTPUT, ..Exec::default() };
            agent.start_background(exec, None, None).await.map(drop)
        })
    },
    |agent| Box::pin(async { agent.list_background().await.map(drop) }),
    |agent| Box::pin(async { agent.stop_background(&ProcessRef::Pid(1)).await }),
    |agent| Box::pin(async { agent.listen(&ProcessRef::Pid(1), Begin::After(0)).await.map(drop) }),
    |agent| {
        Box::pin(async {
            let mut watching = agent.watch(&"/x".into(), Reach::Below, None).await?;
            while !matches!(watching.next().await?, WatchNews::Lost) {}
            Ok(())
        })
    },
];

thread_local! {
    static RUNTIME: OnceCell<tokio::runtime::Runtime> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| {
    let Some((call, answer)) = input.split_first() else { return };
    let call = CALLS[usize::from(*call) % CALLS.len()];
    let said = expanded(answer);
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
        });
        measure::within(MEMORY, || runtime.block_on(ask(call, said)));
    });
});

async fn ask(call: Call, said: Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let agent = Agent::new(listener.local_addr().expect("its number"), "token");
    let answering = async {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = answer(stream, &said).await;
        }
    };
    tokio::select! {
        outcome = call(&agent) => if let Err(error) = outcome {
            is_fit(&error);
        },
        () = answering => unreachable!("it listens until it is told"),
    }
}

async fn answer(mut stream: TcpStream, said: &[u8]) -> std::io::Result<()> {
    let mut asked = [0; 4096];
    stream.read(&mut asked).await?;
    stream.write_all(said).await?;
    stream.shutdown().await?;
    // It is the client's end that closes first, so that no answer is lost.
    while stream.read(&mut asked).await? > 0 {}
    Ok(())
}

fn nothing() -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static {
    futures::stream::iter([Ok(bytes::Bytes::from_static(b"x"))])
}

/// Takes a file as a client would.
async fn drain(file: FileStream) -> Result<(), AgentError> {
    let mut stream = Box::pin(file.into_stream());
    while let Some(Ok(piece)) = stream.next().await {
        assert!(piece.len() <= 1 << 20, "{} bytes at once", piece.len());
    }
    Ok(())
}
