//! What the table formats say of a table that is declared, without a lake and without a connection.

use crate::commit;
use crate::commit::iceberg::catalog::CatalogError;
use crate::commit::iceberg::{Ambient, Catalog};
use crate::epoch::plan;
use crate::pipeline::sql::TablePlan;
use crate::pipeline::TableDecl;
use crate::stage::TableSpec;
use arrow::datatypes::Schema;
use async_trait::async_trait;
use object_store::ObjectStore;
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

/// Tables of one column each, with its partition fields.
fn columns(spec: &TableSpec) -> impl Iterator<Item = TableSpec> {
    spec.schema.fields().iter().map(|field| TableSpec {
        schema: Arc::new(Schema::new(vec![field.clone()])),
        key: vec![],
        partition_by: spec.partition_by.iter().filter(|p| p.column == *field.name()).cloned().collect(),
        ..spec.clone()
    })
}

/// Everything that one of its formats has against a table; its late table counts with it.
pub(super) fn refusals(decl: &TableDecl, plan: &TablePlan) -> Vec<String> {
    let records = match plan::declared_table(decl, plan) {
        Ok(records) => records,
        Err(e) => return vec![e.to_string()],
    };
    let Ok(root) = Url::parse("file:///") else { return vec![] };
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let ambient = Ambient { now_ms: Arc::new(|| 0), new_id: Arc::new(Uuid::nil) };
    let formats = commit::formats(&store, &root, NoCatalog, "pipeline", "pipeline", ambient);
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
            let refusal = |spec: &TableSpec| formats[format].check(spec);
            // A format stops at the first column that it cannot hold.
            let mut found: Vec<String> = columns(&spec).filter_map(|alone| refusal(&alone).err()).map(|e| e.to_string()).collect();
            if found.is_empty() {
                found.extend(refusal(&spec).err().map(|e| e.to_string()));
            }
            said.extend(found.into_iter().filter(|why| !said.contains(why)).collect::<Vec<_>>());
        }
    }
    said
}
