//! What librdkafka says of properties, without a connection.

use crate::pipeline::keys::nearest;
use rdkafka::bindings as rd;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use rdkafka::ClientConfig;
use std::collections::BTreeMap;

/// What is wrong with one property, or with all of them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `None`: each is right, and they do not go together.
    pub name: Option<String>,
    /// Lower case, without a full stop; may quote the value.
    pub message: String,
    pub expected: Option<String>,
    pub nearest: Option<String>,
    /// It is the value, not the name.
    pub of_value: bool,
}

/// Asks librdkafka about each property, then, when each is right, about all of them: what only shows when a client is
/// made, such as a file of certificates that cannot be read. No broker is named, so that none is asked. Unless they are
/// `all`, only each for itself is asked about.
pub fn refusals(options: &[(&str, &str)], all: bool) -> Vec<Refusal> {
    let mut refused: Vec<Refusal> = options.iter().filter_map(|(name, value)| refusal(name, value)).collect();
    if refused.is_empty() && all && !options.is_empty() {
        let mut config = ClientConfig::new();
        // What goes wrong is said by the answer.
        config.set("log_level", "0");
        options.iter().for_each(|(name, value)| {
            config.set(*name, *value);
        });
        let made: Result<BaseConsumer, KafkaError> = config.create();
        if let Err(KafkaError::ClientCreation(why)) = made {
            let name = options.iter().map(|(name, _)| *name).filter(|name| why.contains(name)).max_by_key(|name| name.len());
            refused.push(Refusal { name: name.map(String::from), message: said(&why), expected: None, nearest: None, of_value: name.is_some() });
        }
    }
    refused
}

fn refusal(name: &str, value: &str) -> Option<Refusal> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    let Err(KafkaError::ClientConfig(kind, why, ..)) = config.create_native_config() else { return None };
    let known = properties();
    Some(match kind {
        RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => Refusal {
            name: Some(name.to_string()),
            message: format!("librdkafka has no property `{name}`"),
            expected: Some("a property of librdkafka 2.12, as its CONFIGURATION.md lists them".to_string()),
            nearest: nearest(name, known.keys().map(String::as_str)).map(String::from),
            of_value: false,
        },
        _ => {
            let range = known.get(name).filter(|r| !r.is_empty());
            let words: Vec<&str> = range.map(|r| r.split(", ").collect()).unwrap_or_default();
            Refusal {
                name: Some(name.to_string()),
                message: format!("librdkafka refuses this value: {}", said(&why)),
                expected: range.map(|r| if words.len() > 1 { format!("one of {r}") } else { r.clone() }),
                nearest: nearest(value, words.into_iter()).map(String::from),
                of_value: true,
            }
        }
    })
}

fn said(why: &str) -> String {
    let mut chars = why.trim().trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Every property that librdkafka lists, with the values that it takes, as it describes them (empty: any text).
fn properties() -> BTreeMap<String, String> {
    let (mut text, mut length): (*mut libc::c_char, usize) = (std::ptr::null_mut(), 0);
    // SAFETY: the stream writes to a buffer of its own, which is valid once the stream is closed, and is ours to free.
    let listed = unsafe {
        let stream = libc::open_memstream(&raw mut text, &raw mut length);
        if stream.is_null() {
            return BTreeMap::new();
        }
        rd::rd_kafka_conf_properties_show(stream);
        libc::fclose(stream);
        if text.is_null() {
            return BTreeMap::new();
        }
        let listed = String::from_utf8_lossy(std::slice::from_raw_parts(text.cast::<u8>(), length)).into_owned();
        libc::free(text.cast());
        listed
    };
    let row = |line: &str| {
        let mut cells = line.split('|').map(str::trim);
        let (name, _, range) = (cells.next()?, cells.next()?, cells.next()?);
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_'));
        is_name.then(|| (name.to_string(), range.to_string()))
    };
    listed.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_is_asked_about_names_and_values() {
        let one = |name: &str, value: &str| {
            let mut all = refusals(&[(name, value)], true);
            assert_eq!(all.len(), 1, "{name}={value}: {all:?}");
            all.remove(0)
        };
        let r = one("fetch.min.byts", "1");
        assert_eq!((r.nearest.as_deref(), r.of_value), (Some("fetch.min.bytes"), false), "{r:?}");
        assert_eq!(one("zzz", "1").nearest, None);
        let r = one("fetch.min.bytes", "0");
        assert_eq!((r.expected.as_deref(), r.of_value), (Some("1 .. 100000000"), true), "{r:?}");
        let r = one("broker.address.family", "v5");
        assert_eq!((r.expected.as_deref(), r.nearest.as_deref()), (Some("one of any, v4, v6"), Some("v4")), "{r:?}");
        let r = one("ssl.truststore.location", "x");
        assert!(r.message.contains("ssl.ca.location"), "{r:?}");
        assert_eq!(refusals(&[("fetch.min.bytes", "1"), ("client.rack", "a"), ("request.required.acks", "1")], true), []);
    }

    #[test]
    fn what_does_not_go_together_is_told_without_a_broker() {
        let all = refusals(&[("security.protocol", "ssl"), ("ssl.ca.location", "/nowhere/ca.pem")], true);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].name.as_deref(), Some("ssl.ca.location"), "{all:?}");
        let all = refusals(&[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN")], true);
        assert!(all.len() == 1 && all[0].message.contains("sasl.username"), "{all:?}");
        assert_eq!(refusals(&[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN"), ("sasl.username", "u"), ("sasl.password", "p")], true), []);
        // What is missing may be among those that cannot be read.
        assert_eq!(refusals(&[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN")], false), []);
    }
}
