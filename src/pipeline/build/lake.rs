//! Where tables, log and state are kept.

use std::path::{Component, Path, PathBuf};

use super::super::LakeSpec;
use super::super::keys::{ICEBERG, LAKE};
use super::super::raw::Node;
use super::{Build, Role};
use super::fields::Fields;

impl Build<'_> {
    pub fn lake(&self, top: &Fields<'_>, pipeline: Option<&str>) -> Option<LakeSpec> {
        let fields = self.fields(top.get("lake")?, &LAKE, top.span("lake"))?;
        let root = fields.get("root").and_then(|node| self.root(node));
        self.parts.borrow_mut().root_at = fields.get("root").map(|node| node.span);
        let namespace = match fields.get("namespace") {
            Some(node) => self.name(node, Role::Namespace),
            None => pipeline.map(String::from),
        };
        let iceberg = self.section(&fields, "iceberg", &ICEBERG)?;
        let catalog = self.word(&iceberg, "catalog");
        let name = self.text_or_default(&iceberg, "name", "a catalog's name");
        let uri = match iceberg.get("uri") {
            // With another kind of catalog its uri is of another kind too.
            Some(node) => catalog.and_then(|_| self.sqlite(node)),
            None => root.as_ref().map(|root| root.join("catalog.db")),
        };
        catalog?;
        Some(LakeSpec { root: root?, iceberg_catalog: uri?, catalog_name: name?, namespace: namespace? })
    }

    fn root(&self, node: &Node) -> Option<PathBuf> {
        let scalar = self.filled(node, "a folder")?;
        let text = scalar.text.as_str();
        if let Some((scheme, path)) = text.split_once("://") {
            if scheme == "file" && path.starts_with('/') {
                return Some(absolute(self.cwd, path));
            }
            let named = if scalar.before.is_some() { scalar.shown().to_string() } else { format!("{scheme}://") };
            let known = matches!(scheme, "s3" | "s3a" | "gs" | "gcs" | "az" | "abfs" | "abfss" | "adl" | "http" | "https");
            let problem = match known {
                true => self.text.problem(node.span, format!("a lake at `{named}` is not in this version")).unsupported(),
                false => self.text.problem(node.span, format!("`{named}` is no place for a lake")),
            };
            self.note(problem.expected("a folder of the local file system, such as ./lake"));
            return None;
        }
        if text.starts_with('~') {
            self.wrong(node.span, "`~` is not expanded", "an absolute or relative path; ${HOME} is substituted");
            return None;
        }
        Some(absolute(self.cwd, text))
    }

    /// `sqlite://PATH`; PyIceberg's form, with one more slash before the path, means the same.
    fn sqlite(&self, node: &Node) -> Option<PathBuf> {
        const EXPECTED: &str = "sqlite://./relative/catalog.db or sqlite:////absolute/catalog.db";
        let scalar = self.filled(node, "the catalog's uri")?;
        let shown = scalar.shown();
        let Some((scheme, path)) = scalar.text.split_once("://") else {
            let near = format!("sqlite://{}", scalar.text);
            let near = Some(near).filter(|_| scalar.before.is_none() && !scalar.text.contains(':'));
            self.note(self.text.problem(node.span, format!("`{shown}` is no uri of a catalog")).expected(EXPECTED).nearest(near));
            return None;
        };
        if scheme != "sqlite" {
            let known = matches!(scheme.split('+').next(), Some("postgresql" | "postgres" | "mysql" | "http" | "https" | "thrift"));
            let scheme_shown = if scalar.before.is_some() { "this scheme" } else { scheme };
            let problem = match known {
                true => self.text.problem(node.span, format!("a catalog at `{scheme_shown}` is not in this version")).unsupported(),
                false => self.text.problem(node.span, format!("`{scheme_shown}` is no kind of catalog")),
            };
            self.note(problem.expected(EXPECTED));
            return None;
        }
        let path = match path.strip_prefix('/') {
            // `sqlite:///./rel` and `sqlite:////abs`: the third slash only ends the empty host.
            Some(rest) if rest.starts_with(['/', '.']) => rest,
            _ => path,
        };
        if path.contains('?') || path.contains(":memory:") || path.ends_with('/') || path.is_empty() {
            self.wrong(node.span, format!("`{shown}` names no file"), EXPECTED);
            return None;
        }
        let path = absolute(self.cwd, path);
        if path.parent() == Some(Path::new("/")) {
            let problem = self.text.problem(node.span, format!("`{shown}` is the file {} at the root of the file system", path.display()));
            self.parts.borrow_mut().warnings.push(problem.expected("sqlite://./catalog.db where the working directory is meant, as other programs read three slashes").warning());
        }
        Some(path)
    }
}

/// An absolute path without `.` and `..`: locations are compared as texts, by us and by readers.
pub(super) fn absolute(cwd: &Path, path: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for component in cwd.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}
