//! Every integration test, in one binary: each further binary would link DataFusion once more.

mod chaos;
mod cleaning;
mod cli;
mod damage;
mod dead_letters;
mod faults_kafka;
mod faults_process;
mod faults_time;
mod flights_year;
mod guarantees;
mod foreign_hands;
mod foreign_hands_live;
mod fuzz;
mod iceberg_readers;
mod kills;
mod resources;
mod kafka_source;
mod operating;
mod pipeline_change;
mod receipts;
mod running_example;
mod skewed_partitions;
mod support;
mod two_workers;
mod verify;
