//! The lengths that an Arrow IPC stream claims, checked against the bytes that are there before a
//! reader allocates what it is told.

use arrow::ipc::{Message, MessageHeader, RecordBatch, root_as_message};

const CONTINUATION: [u8; 4] = [0xff; 4];
/// A byte of lz4 stands for at most 255, and a frame has a header.
const LZ4_MOST: i64 = 255;
const NOT_COMPRESSED: i64 = -1;

/// Whether every message, body and buffer of this stream lies within it, and no buffer claims to be
/// larger than lz4 could have made it small.
pub fn hold(stream: &[u8]) -> Result<(), String> {
    let mut rest = stream;
    while let Some((word, mut after)) = rest.split_first_chunk::<4>() {
        let mut length = *word;
        if length == CONTINUATION {
            let Some((next, behind)) = after.split_first_chunk::<4>() else { return Err("it ends within a message's length".into()) };
            (length, after) = (*next, behind);
        }
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            return Ok(());
        }
        let (metadata, behind) = after.split_at_checked(length).ok_or_else(|| format!("a message claims {length} bytes, {} are left", after.len()))?;
        let message = root_as_message(metadata).map_err(|e| e.to_string())?;
        let claimed = usize::try_from(message.bodyLength()).map_err(|_| "a body claims a negative length".to_string())?;
        let (body, behind) = behind.split_at_checked(claimed).ok_or_else(|| format!("a body claims {claimed} bytes, {} are left", behind.len()))?;
        if let Some(batch) = batch(&message) {
            buffers(&batch, body)?;
        }
        rest = behind;
    }
    // Without an end mark the reader stops where the bytes do.
    Ok(())
}

fn batch<'a>(message: &Message<'a>) -> Option<RecordBatch<'a>> {
    match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch()?.data(),
        _ => None,
    }
}

fn buffers(batch: &RecordBatch<'_>, body: &[u8]) -> Result<(), String> {
    for buffer in batch.buffers().iter().flatten() {
        let (from, length) = (buffer.offset(), buffer.length());
        let within = usize::try_from(from).ok().zip(usize::try_from(length).ok()).and_then(|(from, length)| body.get(from..from.checked_add(length)?));
        let bytes = within.ok_or_else(|| format!("a buffer claims the bytes {from} to {}, the body has {}", from.saturating_add(length), body.len()))?;
        if batch.compression().is_none() || bytes.is_empty() {
            continue;
        }
        let (size, packed) = bytes.split_first_chunk::<8>().ok_or_else(|| format!("a packed buffer of {length} bytes"))?;
        let size = i64::from_le_bytes(*size);
        if size < NOT_COMPRESSED || size > LZ4_MOST.saturating_mul(packed.len() as i64) {
            return Err(format!("{} packed bytes claim to be {size}", packed.len()));
        }
    }
    Ok(())
}
