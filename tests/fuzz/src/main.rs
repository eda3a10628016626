//! The targets as a program: see the library.
//!
//! Under libFuzzer the environment says which (`FUZZ_TARGET`), since the arguments are libFuzzer's.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: std::sync::OnceLock<fn(&[u8])> = std::sync::OnceLock::new();
    let run = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET is not set");
        postern_fuzz::target(&name).expect("FUZZ_TARGET is no target").1
    });
    run(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;
    let mut arguments = std::env::args().skip(1);
    let Some((name, run)) = arguments.next().and_then(|name| postern_fuzz::target(&name)) else {
        let names = postern_fuzz::TARGETS.map(|target| target.0);
        eprintln!("usage: postern-fuzz TARGET FILE…, TARGET one of {}", names.join(", "));
        return ExitCode::from(64);
    };
    for file in arguments {
        match std::fs::read(&file) {
            Ok(octets) => run(&octets),
            Err(e) => {
                eprintln!("{file}: {e}");
                return ExitCode::from(66);
            }
        }
        println!("{name} {file}: well");
    }
    ExitCode::SUCCESS
}
