//! A process in a guest that nobody can start again without being noticed.

use super::Sandbox;

/// Where it shows how far it has come; in the guest's memory.
const SHOWN: &str = "/dev/shm/witness";

/// A process that counts, and knows a word that is nowhere but in its memory.
#[derive(Debug, Clone)]
pub struct Witness {
    word: String,
    pid: String,
    /// How far it had come when it was last looked at.
    count: u64,
}

impl Witness {
    /// Starts it.
    pub async fn start(sandbox: &Sandbox) -> Self {
        let count = "read word < /proc/sys/kernel/random/uuid; i=0; while :; do i=$((i+1)); \
                     echo $$ $word $i > NEW; mv NEW SHOWN; sleep 0.05; done";
        let count = count.replace("NEW", "/dev/shm/witness.new").replace("SHOWN", SHOWN);
        sandbox.sh(&format!("setsid sh -c '{count}' >/dev/null 2>&1 < /dev/null &")).await;
        sandbox.sh(&format!("until [ -e {SHOWN} ]; do sleep 0.05; done")).await;
        let (pid, word, count) = read(sandbox).await;
        Self { word, pid, count }
    }

    /// Looks at it in the same sandbox or a copy: it is the same process, has lost nothing, and goes
    /// on.
    #[track_caller]
    pub fn goes_on<'a>(&'a mut self, sandbox: &'a Sandbox) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let (pid, word, count) = read(sandbox).await;
            assert_eq!((&pid, &word), (&self.pid, &self.word), "{place}: another process");
            assert!(count >= self.count, "{place}: {count} comes after {}", self.count);
            // It shows its next step, so it runs.
            let next = format!(
                "for i in $(seq 600); do read -r _ _ n < {SHOWN}; [ $n -gt {count} ] && exit 0; \
                 sleep 0.05; done; exit 1"
            );
            sandbox.sh(&next).await;
            self.count = count;
        }
    }
}

async fn read(sandbox: &Sandbox) -> (String, String, u64) {
    let shown = sandbox.sh(&format!("cat {SHOWN}")).await;
    let words: Vec<&str> = shown.split(' ').collect();
    let [pid, word, count] = words[..] else { panic!("{shown:?}") };
    (pid.to_owned(), word.to_owned(), count.parse().expect("a number"))
}
