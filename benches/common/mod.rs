//! What the benches share: arguments, timing, the peaks of the machine, made-up inputs and one training step.

pub mod data;
pub mod kernels;
pub mod peaks;
pub mod step;
pub mod timing;

// The program's own allocator: candle's operations allocate their results, and are the reference.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line of a bench.
pub struct Args {
    /// Words that a row of the table must all contain.
    filter: Vec<String>,
    pub threads: usize,
    pub model: Option<String>,
}

impl Args {
    /// Reads the command line and starts the threads. `None`: this is not `cargo bench` but a test run over all targets,
    /// which shall not measure anything.
    pub fn start() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let threads = variable("BERTFT_BENCH_THREADS").or_else(|| variable("RAYON_NUM_THREADS"));
        let offered = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = |text: String| text.parse().expect("a number of threads");
        let mut this = Self {
            filter: vec![],
            threads: threads.map_or_else(offered, count),
            model: variable("BERTFT_BENCH_MODEL").filter(|m| !m.is_empty()),
        };
        let (mut words, mut by_cargo) = (std::env::args().skip(1), false);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--bench" => by_cargo = true,
                "--threads" => this.threads = words.next().map(count).expect("--threads takes a number"),
                "--model" => this.model = Some(words.next().expect("--model takes a directory")),
                _ => this.filter.push(word),
            }
        }
        if !by_cargo {
            eprintln!("benches are run by `cargo bench`");
            return None;
        }
        for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            // SAFETY: there is no other thread yet; candle reads its own count at each product.
            unsafe { std::env::set_var(name, this.threads.to_string()) };
        }
        rayon::ThreadPoolBuilder::new().num_threads(this.threads).build_global().expect("threads");
        Some(this)
    }

    /// Whether the row of that description is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.filter.iter().all(|word| row.contains(word.as_str()))
    }
}

/// `1 thread`, `2 threads`.
pub fn threads_text(n: usize) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}
