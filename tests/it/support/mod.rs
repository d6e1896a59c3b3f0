//! What the tests share: real services, started and stopped here.

pub mod disk;
#[path = "../../../benches/generate.rs"]
#[allow(dead_code)]
pub mod generate;
pub mod kafka;
pub mod keys;
pub mod millpond;
pub mod process;
pub mod proxy;
pub mod secured;
pub mod spending;

/// A test that cannot run here says so: in its output, and in the file that `infra/test` shows at its end.
pub fn skip(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
    let Ok(path) = std::env::var("MILLPOND_SKIPPED") else { return };
    let mut file = std::fs::File::options().create(true).append(true).open(path).expect("the file of what was skipped");
    std::io::Write::write_all(&mut file, format!("{test}: {why}\n").as_bytes()).expect("the file of what was skipped");
}
