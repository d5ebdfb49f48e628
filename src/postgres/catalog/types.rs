//! Types in full depth: which ones matter, how columns of them travel, and the digest of what a table's rows mean.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{Catalog, Table, Wire};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeKind {
    #[serde(alias = "b")]
    Base,
    #[serde(alias = "c")]
    Composite,
    #[serde(alias = "d")]
    Domain,
    #[serde(alias = "e")]
    Enum,
    #[serde(alias = "r")]
    Range,
    #[serde(alias = "m")]
    Multirange,
    #[serde(alias = "p")]
    Pseudo,
}

/// A type; an array is a base type with an element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeFacts {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub kind: TypeKind,
    pub has_send: bool,
    pub has_receive: bool,
    pub element: Option<u32>,
    /// Of a domain, with its modifier in `base_type`.
    pub base: Option<u32>,
    pub base_type: Option<String>,
    pub not_null: bool,
    /// Of a range or multirange.
    pub subtype: Option<u32>,
    pub labels: Option<Vec<String>>,
    pub attributes: Option<Vec<Attribute>>,
    /// A domain's constraints.
    pub checks: Option<Vec<String>>,
    /// Made by a user, not merely the row of a table or the array of something.
    pub user_made: bool,
}

/// A field of a composite type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    pub name: String,
    pub type_oid: u32,
    #[serde(rename = "type")]
    pub type_name: String,
    /// One that was dropped and made again under its name is another.
    #[serde(default)]
    pub number: i16,
}

impl TypeFacts {
    /// The types that it is built of.
    fn parts(&self) -> impl Iterator<Item = u32> {
        let attributes = self.attributes.iter().flatten().map(|attribute| attribute.type_oid);
        attributes.chain(self.element).chain(self.base).chain(self.subtype)
    }

    /// Can the server write it in binary and read that again with the same meaning elsewhere?
    fn travels(&self) -> bool {
        // The binary form of `regclass` and its kin is an oid, which names something else in another database.
        let system = self.schema == "pg_catalog";
        let names_an_oid = system && self.name.starts_with("reg");
        // PostgreSQL writes an empty tsquery that it refuses to read ("operand not found", tried on 15).
        let one_way = system && self.name == "tsquery";
        self.has_send && self.has_receive && !names_an_oid && !one_way
    }
}

/// Gives every column its wire and every table its digest, and keeps the types that matter.
pub(super) fn settle(catalog: &mut Catalog, all: Vec<TypeFacts>) {
    let types: HashMap<u32, TypeFacts> = all.into_iter().map(|facts| (facts.oid, facts)).collect();
    let mut missing: HashMap<(String, String), Vec<(String, String)>> = HashMap::new();
    for value in &catalog.sensitive.missing {
        let table = (value.column.table.schema.clone(), value.column.table.name.clone());
        missing.entry(table).or_default().push((value.column.column.clone(), value.expression.clone()));
    }
    let mut wanted: BTreeSet<u32> =
        types.values().filter(|facts| facts.user_made).flat_map(|facts| closure(facts.oid, &types)).collect();
    for table in &mut catalog.tables {
        for column in &mut table.columns {
            let reached = closure(column.type_oid, &types);
            // A type that is unknown here (made since the list was read) goes as text, which always works.
            let binary = reached.iter().all(|oid| types.get(oid).is_some_and(TypeFacts::travels));
            column.wire = if binary || column.dropped { Wire::Binary } else { Wire::Text };
            wanted.extend(reached);
        }
        let values = missing.remove(&(table.name.schema.clone(), table.name.name.clone())).unwrap_or_default();
        table.schema_digest = digest(table, &values, &types);
    }
    let mut kept: Vec<TypeFacts> = wanted.iter().filter_map(|oid| types.get(oid).cloned()).collect();
    kept.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    catalog.types = kept;
}

/// A type and all that it is built of; types may contain themselves through arrays.
fn closure(oid: u32, types: &HashMap<u32, TypeFacts>) -> BTreeSet<u32> {
    let mut reached = BTreeSet::new();
    let mut open = vec![oid];
    while let Some(oid) = open.pop() {
        if oid != 0 && reached.insert(oid) {
            open.extend(types.get(&oid).into_iter().flat_map(TypeFacts::parts));
        }
    }
    reached
}

fn digest(table: &Table, missing: &[(String, String)], types: &HashMap<u32, TypeFacts>) -> String {
    /// A type without its oids.
    #[derive(Serialize)]
    struct Canonical<'a> {
        schema: &'a str,
        name: &'a str,
        kind: TypeKind,
        base_type: &'a Option<String>,
        element: Option<(&'a str, &'a str)>,
        subtype: Option<(&'a str, &'a str)>,
        labels: &'a Option<Vec<String>>,
        attributes: Vec<(&'a str, &'a str, i16)>,
    }
    let name = |oid: Option<u32>| {
        oid.and_then(|oid| types.get(&oid)).map(|facts| (facts.schema.as_str(), facts.name.as_str()))
    };
    let mut used: Vec<Canonical<'_>> = table
        .live_columns()
        .flat_map(|column| closure(column.type_oid, types))
        .collect::<BTreeSet<u32>>()
        .iter()
        .filter_map(|oid| types.get(oid))
        .map(|facts| Canonical {
            schema: &facts.schema,
            name: &facts.name,
            kind: facts.kind,
            base_type: &facts.base_type,
            element: name(facts.element),
            subtype: name(facts.subtype),
            labels: &facts.labels,
            attributes: facts
                .attributes
                .iter()
                .flatten()
                .map(|attribute| (attribute.name.as_str(), attribute.type_name.as_str(), attribute.number))
                .collect(),
        })
        .collect();
    used.sort_by(|a, b| (a.schema, a.name).cmp(&(b.schema, b.name)));
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|column| (column.number, &column.name, column.dropped, &column.type_name, &column.generated, column.wire))
        .collect();
    // The expression of a generated column is left out: changing it rewrites the table, or the values are not stored.
    let canonical = serde_json::to_vec(&("schema-2", &table.access_method, columns, used, missing));
    // Plain structures with string keys always serialize; an empty text would still only cost a full read.
    blake3::hash(&canonical.unwrap_or_default()).to_hex().to_string()
}
