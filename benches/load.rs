//! Fills a Kafka topic for the quickstart and the benchmarks.

mod generate;

use clap::{Parser, Subcommand};
use generate::{Load, TimeText, ensure_topic, produce_events};
use std::path::PathBuf;
use std::process::ExitCode;

/// Fills a Kafka topic, and makes it first where it is not there yet.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write a file of flights (one JSON object a line, plain or .gz); does nothing when the topic already holds records
    Flights {
        /// host:port
        brokers: String,
        topic: String,
        #[arg(value_parser = clap::value_parser!(i32).range(1..=10_000))]
        partitions: i32,
        file: PathBuf,
    },
    /// Add made-up events, the same for the same COUNT, KEYS and SEED
    Events {
        /// host:port
        brokers: String,
        topic: String,
        #[arg(value_parser = clap::value_parser!(i32).range(1..=10_000))]
        partitions: i32,
        count: u64,
        /// How many different user ids there are
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        keys: u64,
        seed: u64,
        /// Write event_time as milliseconds since 1970 instead of as text
        #[arg(long)]
        millis: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Flights { brokers, topic, partitions, file } => {
            let load = Load { brokers: &brokers, topic: &topic, partitions, path: &file, key: "origin", times: &["actual_dep", "sched_dep"] };
            load.run().map(|rows| match rows {
                0 => println!("topic {topic} holds records already: nothing loaded"),
                rows => println!("{rows} records of {} loaded into topic {topic}", file.display()),
            })
        }
        What::Events { brokers, topic, partitions, count, keys, seed, millis } => {
            let times = if millis { TimeText::Millis } else { TimeText::Rfc3339 };
            ensure_topic(&brokers, &topic, partitions)
                .and_then(|()| produce_events(&brokers, &topic, partitions as u64, count, keys, seed, times))
                .map(|t| println!("{} events ({} bytes, {} cents, user ids summing to {}) loaded into topic {topic}", t.rows, t.bytes, t.amount_cents, t.user_ids))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
