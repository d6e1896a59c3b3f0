//! `millpond schema`.

pub fn main() -> i32 {
    match serde_json::to_string_pretty(&crate::pipeline::json_schema()) {
        Ok(text) => {
            println!("{text}");
            super::OK
        }
        Err(e) => {
            eprintln!("error: {e}");
            super::FAILED
        }
    }
}
