//! The `restante` program: everything is in the library, but for the allocator's settings, which must be there when a process begins.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    settle_malloc();
    restante::cli::main()
}

/// glibc puts large values into the arena of whichever thread asks, once it has seen one of their size freed, and then
/// keeps them: 180 MiB where 64 were asked for, more with a larger store. With a fixed threshold they go back at once
/// (tests/it/snapshot/memory.rs); what is used again and again is kept by `restante::storage::buffer`. It reads these variables before `main`, so the program starts itself again, in the
/// same process. Whoever set them himself knows better.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn settle_malloc() {
    use std::os::unix::process::CommandExt;

    const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
    const ARENAS: &str = "MALLOC_ARENA_MAX";
    if [THRESHOLD, ARENAS].iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "restante".into());
    if let Ok(program) = std::env::current_exe() {
        let mut again = std::process::Command::new(program);
        again.arg0(name).args(arguments).env(THRESHOLD, "262144").env(ARENAS, "2");
        // Comes back only when it failed; then it goes on as it is.
        let _ = again.exec();
    }
}
