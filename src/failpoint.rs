//! Points at which a test makes the process die, to prove that what is left behind is whole.
//!
//! A point has a name; `RESTANTE_FAILPOINT=name:k` aborts the process when the point is passed for the k-th time (counted
//! from 1), as a power cut would: no destructor runs, no buffer is flushed. The storage layer has the points
//! `storage:before` and `storage:after` around each call, whatever changes the live store for good has `commit:before` and
//! `commit:after` ([`committing`]).
//! `RESTANTE_FAILPOINTS_PASSED=FILE` writes the name of each point down as it is passed, so that a test knows them all beforehand.
//! `RESTANTE_STORAGE_DELAY=MS` makes each storage call take so many milliseconds longer: all that may wait for the storage then does.
//! `RESTANTE_NO_READ_BACK=1` leaves out that packs are fetched back, to measure what that costs.
//!
//! Without the cargo feature `failpoints` nothing of this is compiled in. Every layer may use it.

/// Passes the point: dies here if the environment asks for it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_point: &'static str) {}

/// Passes the point: dies here if the environment asks for it.
#[cfg(feature = "failpoints")]
pub fn hit(point: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ASKED: OnceLock<Option<Failpoint>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    if let Some(file) = std::env::var_os("RESTANTE_FAILPOINTS_PASSED") {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        if file.and_then(|mut file| writeln!(file, "{point}")).is_err() {
            std::process::abort();
        }
    }
    let asked = ASKED.get_or_init(|| {
        let text = std::env::var("RESTANTE_FAILPOINT").ok()?;
        let parsed = Failpoint::parse(&text);
        if parsed.is_none() {
            // A mistyped point would make a test pass that tested nothing.
            eprintln!("RESTANTE_FAILPOINT={text} is not of the form name:k with k from 1");
            std::process::abort();
        }
        parsed
    });
    if let Some(asked) = asked
        && asked.point == point
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == asked.pass
    {
        eprintln!("dying at {point}:{}", asked.pass);
        std::process::abort();
    }
}

/// Are packs not fetched back after they were put?
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn skips_reading_back() -> bool {
    false
}

/// Are packs not fetched back after they were put?
#[cfg(feature = "failpoints")]
pub fn skips_reading_back() -> bool {
    std::env::var_os("RESTANTE_NO_READ_BACK").is_some()
}

/// Does what the live store keeps from then on, a COMMIT or a statement without a transaction, between `commit:before` and
/// `commit:after`.
pub async fn committing<T>(work: impl Future<Output = T>) -> T {
    hit("commit:before");
    let done = work.await;
    hit("commit:after");
    done
}

/// Waits as long as a slow storage would.
#[cfg(feature = "failpoints")]
pub async fn delay() {
    if let Ok(text) = std::env::var("RESTANTE_STORAGE_DELAY") {
        let Ok(milliseconds) = text.parse() else {
            eprintln!("RESTANTE_STORAGE_DELAY={text} is not a number of milliseconds");
            std::process::abort();
        };
        tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
    }
}

#[cfg(any(feature = "failpoints", test))]
#[derive(Debug, PartialEq, Eq)]
struct Failpoint {
    point: String,
    pass: u64,
}

#[cfg(any(feature = "failpoints", test))]
impl Failpoint {
    /// The name may hold colons itself, so the number stands after the last one.
    fn parse(text: &str) -> Option<Self> {
        let (point, pass) = text.rsplit_once(':')?;
        let pass = pass.parse().ok().filter(|pass| *pass > 0)?;
        (!point.is_empty()).then(|| Self { point: point.to_owned(), pass })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_after_the_last_colon() {
        assert_eq!(Failpoint::parse("storage:before:17"), Some(Failpoint { point: "storage:before".into(), pass: 17 }));
        for wrong in ["storage", "storage:before", "storage:0", ":3", "", "storage:-1"] {
            assert_eq!(Failpoint::parse(wrong), None, "{wrong:?}");
        }
    }
}
