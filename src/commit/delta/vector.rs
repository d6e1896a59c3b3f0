//! Deletion vectors that other writers left on a table, decoded. We write none.
//!
//! Delta protocol, "Deletion Vector Format": magic 1681511377 (little endian), then a 64-bit
//! roaring bitmap in the portable format. On disk the vector stands behind a version byte (1 at the
//! file's start), its size and before its CRC-32, both big endian.

use super::log::{object_path, unavailable};
use crate::commit::CommitError;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const MAGIC: u32 = 1_681_511_377;

/// The descriptor, as the log holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeletionVector {
    pub storage_type: String,
    pub path_or_inline_dv: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    pub size_in_bytes: i64,
    pub cardinality: i64,
}

impl DeletionVector {
    /// What tells the vectors of one file apart, as the protocol defines it.
    pub fn id(&self) -> String {
        let at = self.offset.map(|o| format!("@{o}")).unwrap_or_default();
        format!("{}{}{at}", self.storage_type, self.path_or_inline_dv)
    }

    /// The deleted positions.
    pub async fn read(&self, store: &dyn ObjectStore) -> Result<RoaringTreemap, CommitError> {
        let bad = |why: String| CommitError::Refused(format!("deletion vector `{}` is not readable: {why}", self.path_or_inline_dv));
        let size = usize::try_from(self.size_in_bytes).map_err(|_| bad("its size is negative".into()))?;
        let bytes = match self.storage_type.as_str() {
            "i" => {
                let mut bytes = z85(&self.path_or_inline_dv).ok_or_else(|| bad("it is no z85 text".into()))?;
                bytes.truncate(size);
                bytes
            }
            "u" => {
                let path = self.relative_path().ok_or_else(|| bad("its name is no z85 uuid".into()))?;
                let at = self.offset.unwrap_or(0) as u64;
                let framed = store.get_range(&path, at..at + size as u64 + 8).await;
                let framed = framed.map_err(|e| unavailable(&format!("read deletion vector {path}"), e))?;
                if framed.len() != size + 8 {
                    return Err(bad("the file is too short".into()));
                }
                let number = |at: usize| u32::from_be_bytes([framed[at], framed[at + 1], framed[at + 2], framed[at + 3]]);
                let data = &framed[4..4 + size];
                let mut crc = flate2::Crc::new();
                crc.update(data);
                if number(0) as usize != size || number(4 + size) != crc.sum() {
                    return Err(bad("size or checksum do not match".into()));
                }
                data.to_vec()
            }
            other => return Err(bad(format!("storage type `{other}` lies outside the table's folder"))),
        };
        if bytes.len() < 4 || u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) != MAGIC {
            return Err(bad("the magic number does not match".into()));
        }
        let positions = RoaringTreemap::deserialize_from(&bytes[4..]).map_err(|e| bad(e.to_string()))?;
        if positions.len() as i64 != self.cardinality {
            return Err(bad(format!("it holds {} positions and says {}", positions.len(), self.cardinality)));
        }
        Ok(positions)
    }

    /// `<prefix>/deletion_vector_<uuid>.bin`: the last 20 characters are the uuid in z85.
    fn relative_path(&self) -> Option<Path> {
        let text = &self.path_or_inline_dv;
        let (prefix, id) = text.split_at_checked(text.len().checked_sub(20)?)?;
        let id = Uuid::from_slice(&z85(id)?).ok()?;
        let folder = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        object_path(&format!("{folder}deletion_vector_{id}.bin")).ok()
    }
}

const ALPHABET: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

fn z85(text: &str) -> Option<Vec<u8>> {
    if text.len() % 5 != 0 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 5 * 4);
    for chunk in text.as_bytes().chunks(5) {
        let mut value: u64 = 0;
        for c in chunk {
            value = value * 85 + ALPHABET.iter().position(|a| a == c)? as u64;
        }
        out.extend(u32::try_from(value).ok()?.to_be_bytes());
    }
    Some(out)
}

#[cfg(test)]
pub(super) fn z85_encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(4) {
        let mut word = [0u8; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let value = u32::from_be_bytes(word);
        for power in (0..5).rev() {
            out.push(ALPHABET[(value / 85u32.pow(power) % 85) as usize] as char);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn body(positions: &RoaringTreemap) -> Vec<u8> {
        let mut body = MAGIC.to_le_bytes().to_vec();
        positions.serialize_into(&mut body).unwrap();
        body
    }

    #[tokio::test]
    async fn inline_and_stored_vectors_read_alike() {
        assert_eq!(z85("HelloWorld").unwrap(), [0x86, 0x4F, 0xD2, 0x6F, 0xB5, 0x59, 0xF7, 0x5B], "the example of ZeroMQ RFC 32");
        let positions: RoaringTreemap = [1u64, 7, 5_000_000_000].into_iter().collect();
        let body = body(&positions);
        let store = InMemory::new();
        let inline = DeletionVector {
            storage_type: "i".into(),
            path_or_inline_dv: z85_encode(&body),
            offset: None,
            size_in_bytes: body.len() as i64,
            cardinality: 3,
        };
        assert_eq!(inline.read(&store).await.unwrap(), positions);
        let id = Uuid::from_u128(7);
        let mut file = vec![1u8];
        file.extend((body.len() as u32).to_be_bytes());
        file.extend(&body);
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        file.extend(crc.sum().to_be_bytes());
        store.put(&Path::from(format!("ab/deletion_vector_{id}.bin")), file.into()).await.unwrap();
        let stored = DeletionVector { storage_type: "u".into(), path_or_inline_dv: format!("ab{}", z85_encode(id.as_bytes())), offset: Some(1), ..inline.clone() };
        assert_eq!(stored.read(&store).await.unwrap(), positions);
        let wrong = DeletionVector { cardinality: 2, ..inline };
        assert!(matches!(wrong.read(&store).await, Err(CommitError::Refused(_))));
    }
}
