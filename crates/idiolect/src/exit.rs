//! How the program ends: what it says last, and its exit code.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | a bug of ours, or a machine that refused (a full disk, too little memory): the same command may succeed later |
//! | 2 | the user's to mend: the same command fails again until then |
//! | 3 | done, but some users are in quarantine or some cells of a matrix diverged; they are named |

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

use problem::{Problem, REPORT, Result};

/// What a command that did not fail ended with.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Everything is done.
    Done,
    /// Everything is done except for these users or cells, a sentence each; with what may help.
    Partly(Vec<String>, Option<String>),
}

/// Runs a command, prints what it failed with, panics included, and gives the exit code.
pub(crate) fn guarded(command: impl FnOnce() -> Result<Outcome>) -> u8 {
    std::panic::set_hook(Box::new(report_panic));
    match catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(Outcome::Done)) => 0,
        Ok(Ok(Outcome::Partly(missing, hint))) => {
            let missing = missing.join("; ");
            match hint {
                Some(hint) => tracing::warn!(hint, "finished, except: {missing}"),
                None => tracing::warn!("finished, except: {missing}"),
            }
            3
        }
        Ok(Err(problem)) => {
            report(&problem);
            problem.kind().exit_code()
        }
        Err(_) => 1, // the hook has said it
    }
}

fn report(problem: &Problem) {
    match problem.hint() {
        Some(hint) => tracing::error!(hint, "{problem}"),
        None => tracing::error!("{problem}"),
    }
}

/// A panic is a bug of ours, unless the machine failed inside an operation of libtorch that cannot return an error.
fn report_panic(info: &PanicHookInfo) {
    if run::is_expected_panic() {
        return;
    }
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = first_line(text.unwrap_or("a panic without a message"));
    let place = info.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
    let (what, hint) = device::machine_failure(text).unwrap_or(("a panic", REPORT));
    tracing::error!(hint, "{what} at {place}: {text}");
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        tracing::error!("backtrace:\n{trace}");
    }
}

/// What a panic says, without the frames of C++ that libtorch adds behind (escaped) line ends, and without `unwrap`'s own words.
fn first_line(text: &str) -> &str {
    let end = [text.find('\n'), text.find("\\n")].into_iter().flatten().min().unwrap_or(text.len());
    let text = &text[..end];
    let text = text.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(text);
    text.strip_prefix("Torch(\"").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Run by the tests below in a process of its own, since the hook is the process's.
    #[test]
    #[ignore = "a part of other tests"]
    fn child() {
        run::start_logs(run::LogFormat::Text).unwrap();
        let how = std::env::var("IDIOLECT_TEST_END").unwrap();
        let code = guarded(|| match how.as_str() {
            "panic" => panic!("index 3 of 2"),
            // As tch panics: the error in Debug form, with escaped line ends.
            "memory" => {
                let said =
                    "CUDA out of memory. Tried to allocate 2.00 GiB\nException raised from malloc\nframe #0: c10";
                let refused: Result<(), _> = std::hint::black_box(Err(tch::TchError::Torch(said.into())));
                refused.map(|()| Outcome::Done).unwrap();
                unreachable!()
            }
            "thread" => {
                std::thread::spawn(|| panic!("in a thread")).join().map_err(|e| std::panic::resume_unwind(e)).unwrap()
            }
            "cell" => Ok(Outcome::Partly(vec!["[wild]: the loss is not finite".into()], Some("lower the rate".into()))),
            _ => unreachable!(),
        });
        std::process::exit(code.into());
    }

    fn ended(how: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["exit::tests::child", "--exact", "--ignored", "--nocapture"])
            .env("IDIOLECT_TEST_END", how)
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Line numbers move with every edit.
        let mut words = String::new();
        for part in said.split_inclusive(".rs:") {
            let after_a_file = words.ends_with(".rs:");
            words +=
                if after_a_file { part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':') } else { part };
        }
        format!("exit code {}\n{words}", output.status.code().unwrap())
    }

    #[test]
    fn a_panic_is_a_bug_of_ours_and_asks_for_a_report() {
        insta::assert_snapshot!(ended("panic"));
    }

    #[test]
    fn a_panic_of_a_thread_is_said_once() {
        insta::assert_snapshot!(ended("thread"));
    }

    #[test]
    fn too_little_memory_inside_libtorch_is_the_machines() {
        insta::assert_snapshot!(ended("memory"));
    }

    #[test]
    fn a_cell_that_diverged_is_named_with_a_hint() {
        insta::assert_snapshot!(ended("cell"));
    }
}
