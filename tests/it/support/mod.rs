//! What the tests share: real services, started and stopped here.

#[path = "../../../benches/generate.rs"]
#[allow(dead_code)]
pub mod generate;
pub mod kafka;
pub mod millpond;
pub mod process;
pub mod proxy;
pub mod secured;
pub mod spending;
