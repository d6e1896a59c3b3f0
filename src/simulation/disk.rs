//! A worker's own disk after the power was cut: what was being written is there in part, and so may be what was
//! not synced, or synced by a disk that lies.
//!
//! All that lies on it can be made again from the log and the tables: key indexes, spilled panes. None of it may be
//! believed when it is not whole.

use super::world::World;
use std::fs;
use std::path::{Path, PathBuf};

/// Cuts some of the files below this folder short.
pub fn tear(world: &World, host: &Path) -> std::io::Result<()> {
    let mut files = vec![];
    list(host, &mut files)?;
    // Folders carry the uuids of tables, which a library rolls: their order must not decide.
    files.sort_by_key(|f| f.iter().map(|part| name_without_id(&part.to_string_lossy())).collect::<PathBuf>());
    for file in files {
        let bytes = fs::metadata(&file)?.len();
        if bytes == 0 || !world.chance(40) {
            continue;
        }
        let left = bytes * world.below(100) / 100;
        fs::OpenOptions::new().write(true).open(&file)?.set_len(left)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        world.trace.note("host", format_args!("of {name} {left} of {bytes} bytes are left"));
    }
    Ok(())
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.file_name().is_some_and(|n| n == "lock" || n == "cleaner") {
            true => {}
            false if path.is_dir() => list(&path, into)?,
            false => into.push(path),
        }
    }
    Ok(())
}

/// `sums-delta-67e55044-10b1-426f-9247-bb680e5fe0c8` as `sums-delta`.
fn name_without_id(name: &str) -> String {
    let cut = name.len().checked_sub(36).filter(|at| name.is_char_boundary(*at) && uuid::Uuid::try_parse(&name[*at..]).is_ok());
    cut.map_or(name, |at| &name[..at]).to_string()
}
