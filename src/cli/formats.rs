//! What the table formats say of a table that is declared, without a lake and without a connection.

use crate::commit::TableFormat;
use crate::commit::delta::DeltaFormat;
use crate::commit::iceberg::catalog::CatalogError;
use crate::commit::iceberg::{Ambient, Catalog, IcebergFormat};
use crate::epoch::plan;
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{TableDecl, TableFormatKind};
use async_trait::async_trait;
use object_store::memory::InMemory;
use std::sync::Arc;
use url::Url;
use uuid::Uuid;

/// Nothing asks it: a declaration is judged without.
struct NoCatalog;

#[async_trait]
impl Catalog for NoCatalog {
    fn name(&self) -> &str {
        "none"
    }

    fn place(&self) -> String {
        "nowhere".into()
    }

    async fn metadata_location(&self, _: &str, _: &str) -> Result<Option<String>, CatalogError> {
        Ok(None)
    }

    async fn create_table(&self, _: &str, _: &str, _: &str) -> Result<String, CatalogError> {
        Err(none())
    }

    async fn swap(&self, _: &str, _: &str, _: &str, _: &str) -> Result<bool, CatalogError> {
        Err(none())
    }
}

fn none() -> CatalogError {
    CatalogError::Unavailable { path: "nowhere".into(), reason: "there is none".into() }
}

/// Everything that one of its formats has against a table; its late table counts with it.
pub(super) fn refusals(decl: &TableDecl, plan: &TablePlan) -> Vec<String> {
    let records = match plan::declared_table(decl, plan) {
        Ok(records) => records,
        Err(e) => return vec![e.to_string()],
    };
    let Ok(root) = Url::parse("file:///") else { return vec![] };
    let store = Arc::new(InMemory::new());
    let ambient = Ambient { now_ms: Arc::new(|| 0), new_id: Arc::new(Uuid::nil) };
    let iceberg = IcebergFormat::new(store.clone(), &root, NoCatalog, "pipeline", "pipeline", ambient);
    let delta = DeltaFormat::new(store, root, "pipeline", Arc::new(|| 0), Arc::new(Uuid::nil));
    let mut said: Vec<String> = vec![];
    for record in records {
        let spec = match record.spec() {
            Ok(spec) => spec,
            Err(why) => {
                said.push(why);
                continue;
            }
        };
        for format in &record.formats {
            let checked = match format {
                TableFormatKind::Iceberg => iceberg.check(&spec),
                TableFormatKind::Delta => delta.check(&spec),
            };
            said.extend(checked.err().map(|e| e.to_string()).filter(|why| !said.contains(why)));
        }
    }
    said
}
