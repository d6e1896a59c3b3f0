//! `millpond schema`.

use super::{FAILED, OK, answer};
use crate::console::note;

pub fn main() -> i32 {
    match serde_json::to_string_pretty(&crate::pipeline::json_schema()) {
        Ok(text) => answer(format_args!("{text}\n"), OK),
        Err(e) => {
            note(format_args!("error: {e}"));
            FAILED
        }
    }
}
