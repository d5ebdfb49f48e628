//! The questions to `pg_catalog`. The server answers each row as JSON in the shape of our structures, so that their
//! fields are named once.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{
    Catalog, Column, ColumnExpression, Constraint, Extension, Index, Policy, Publication, Sequence, Table, TableName,
    Trigger, types,
};
use crate::postgres::error::PostgresError;
use crate::postgres::session::Session;

/// Tables of users: not the system's, not ours, not temporary.
const OURS_AND_SYSTEMS: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'restante') \
     AND n.nspname !~ '^pg_(toast_)?temp_' AND c.relpersistence <> 't'";

/// Reads everything, under the session's current transaction if it is in one.
pub async fn read(session: &Session) -> Result<Catalog, PostgresError> {
    let mut catalog = Catalog {
        tables: rows(session, "the tables", &tables()).await?,
        sequences: rows::<Sequence>(session, "the sequences", &sequences()).await?,
        extensions: rows::<Extension>(session, "the extensions", EXTENSIONS).await?,
        publications: rows::<Publication>(session, "the publications", PUBLICATIONS).await?,
        ..Catalog::default()
    };
    let general = "SELECT (SELECT count(*) FROM pg_largeobject_metadata), \
         (SELECT stats_reset::text FROM pg_stat_database WHERE datname = current_database())";
    let row = session.client().query_one(general, &[]).await.map_err(PostgresError::server("reading the catalog"))?;
    (catalog.large_objects, catalog.statistics_reset) = (row.get(0), row.get(1));

    let places: HashMap<u32, usize> = catalog.tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    let tables = &mut catalog.tables;
    let mut give = |of: u32, into: &mut dyn FnMut(&mut Table)| {
        // A view or foreign table is not locked and may have come after the list was read: then it is left out.
        if let Some(place) = places.get(&of) {
            into(&mut tables[*place]);
        }
    };
    for of in rows::<Of<Column>>(session, "the columns", &columns()).await? {
        give(of.table_oid, &mut |table| table.columns.push(of.value.clone()));
    }
    for of in rows::<Of<Constraint>>(session, "the constraints", &constraints()).await? {
        give(of.table_oid, &mut |table| table.constraints.push(of.value.clone()));
    }
    for of in rows::<Of<Index>>(session, "the indexes", &indexes()).await? {
        give(of.table_oid, &mut |table| table.indexes.push(of.value.clone()));
    }
    for of in rows::<Of<Trigger>>(session, "the triggers", &triggers()).await? {
        give(of.table_oid, &mut |table| table.triggers.push(of.value.clone()));
    }
    for of in rows::<Of<Policy>>(session, "the policies", &policies()).await? {
        give(of.table_oid, &mut |table| table.policies.push(of.value.clone()));
    }
    catalog.sensitive.defaults = rows::<ColumnExpression>(session, "the defaults", &defaults()).await?;
    catalog.sensitive.missing = rows::<ColumnExpression>(session, "the missing values", &missing()).await?;
    let all = rows(session, "the types", TYPES).await?;
    types::settle(&mut catalog, all);
    Ok(catalog)
}

/// The tables that a snapshot locks, by name, with their oids: ordinary ones and partitioned parents that the role may read.
/// One that was dropped while we asked (the answer about the right is null) is among them: its name may belong to its successor
/// already, which must not be passed over.
pub async fn relations(session: &Session) -> Result<Vec<(TableName, u32)>, PostgresError> {
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND {OURS_AND_SYSTEMS} AND ({READABLE} OR has_table_privilege(c.oid, 'SELECT') IS NULL) \
         ORDER BY n.nspname, c.relname"
    );
    let rows = session.client().query(&sql, &[]).await.map_err(PostgresError::server("listing the tables"))?;
    Ok(rows.iter().map(|row| (TableName { schema: row.get(0), name: row.get(1) }, row.get(2))).collect())
}

#[derive(Deserialize)]
struct Of<T> {
    table_oid: u32,
    #[serde(flatten)]
    value: T,
}

async fn rows<T: DeserializeOwned>(session: &Session, what: &str, sql: &str) -> Result<Vec<T>, PostgresError> {
    let doing = format!("reading {what} of the catalog");
    let asked = format!("SELECT row_to_json(q)::text FROM ({sql}) q");
    let found = session.client().query(&asked, &[]).await.map_err(PostgresError::server(doing.clone()))?;
    found
        .iter()
        .map(|row| serde_json::from_str(row.get(0)))
        .collect::<Result<_, _>>()
        .map_err(|error| PostgresError::Answer { doing, reason: error.to_string() })
}

/// USAGE on the schema counts too, else the statement fails all the same. The null guards against a table dropped since.
const READABLE: &str = "coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false)";

fn tables() -> String {
    format!(
        "SELECT n.nspname AS schema, c.relname AS name, c.oid::int8, c.relkind AS kind, c.relpersistence = 'u' AS unlogged, \
         nullif(pg_relation_filenode(c.oid), 0)::int8 AS relfilenode, am.amname AS access_method, \
         pg_get_userbyid(c.relowner) AS owner, c.relpages AS pages, c.reltuples::float8 AS tuples, \
         (SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid WHERE d.classid = 'pg_class'::regclass \
          AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e') AS extension, \
         CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) END AS heap_bytes, \
         CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) END AS table_bytes, \
         nullif(c.reltoastrelid, 0)::int8 AS toast_oid, \
         CASE WHEN c.relispartition THEN (SELECT json_build_object('schema', pn.nspname, 'name', p.relname) FROM pg_inherits i \
          JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid) \
          END AS partition_of, \
         pg_get_expr(c.relpartbound, c.oid) AS partition_bound, \
         CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key, \
         CASE WHEN c.relispartition THEN '[]' ELSE coalesce((SELECT json_agg(json_build_object('schema', pn.nspname, 'name', \
          p.relname) ORDER BY i.inhseqno) FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn \
          ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid), '[]') END AS inherits, \
         c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security, \
         coalesce(row_security_active(c.oid), false) AS row_security_applies, {READABLE} AS readable, \
         c.relreplident AS replica_identity, coalesce(to_json(c.reloptions), '[]') AS options, \
         s.n_tup_ins AS inserted, s.n_tup_upd AS updated, s.n_tup_del AS deleted, s.n_live_tup AS live_estimate, \
         s.n_dead_tup AS dead_estimate \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam \
         LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid \
         WHERE c.relkind IN ('r', 'p', 'f', 'm', 'v') AND {OURS_AND_SYSTEMS} ORDER BY 1, 2"
    )
}

/// The join and condition that the lists of a table's parts share; `c` is the table.
fn of_tables() -> String {
    format!(
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f', 'm', 'v') AND {OURS_AND_SYSTEMS}"
    )
}

fn columns() -> String {
    format!(
        "SELECT c.oid::int8 AS table_oid, a.attnum AS number, a.attname AS name, a.attisdropped AS dropped, \
         a.atttypid::int8 AS type_oid, CASE WHEN a.attisdropped THEN a.attlen || a.attalign::text ELSE \
         format_type(a.atttypid, a.atttypmod) END AS type, a.attnotnull AS not_null, nullif(a.attidentity, '') AS identity, \
         nullif(a.attgenerated, '') AS generated, a.atthasdef AS has_default, a.atthasmissing AS has_missing, \
         CASE WHEN a.attcollation <> t.typcollation THEN (SELECT quote_ident(x.nspname) || '.' || quote_ident(l.collname) \
          FROM pg_collation l JOIN pg_namespace x ON x.oid = l.collnamespace WHERE l.oid = a.attcollation) END AS collation, \
         a.attstorage AS storage, nullif(a.attcompression, '') AS compression \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_type t ON t.oid = a.atttypid {} \
         AND a.attnum > 0 ORDER BY 1, 2",
        of_tables()
    )
}

/// The names of the columns whose numbers `numbers` of the relation `of` hold, in that order.
fn names(of: &str, numbers: &str) -> String {
    format!(
        "coalesce((SELECT json_agg(a.attname ORDER BY k.at) FROM unnest({numbers}) WITH ORDINALITY k(number, at) \
         JOIN pg_attribute a ON a.attrelid = {of} AND a.attnum = k.number), '[]')"
    )
}

fn constraints() -> String {
    format!(
        "SELECT c.oid::int8 AS table_oid, o.conname AS name, o.contype AS kind, {own} AS columns, \
         pg_get_constraintdef(o.oid) AS definition, o.condeferrable AS deferrable, o.condeferred AS deferred, \
         o.convalidated AS validated, CASE WHEN o.contype = 'f' THEN (SELECT json_build_object('schema', fn.nspname, 'name', \
          f.relname, 'columns', {theirs}, 'on_delete', o.confdeltype, 'on_update', o.confupdtype) FROM pg_class f \
          JOIN pg_namespace fn ON fn.oid = f.relnamespace WHERE f.oid = o.confrelid) END AS references \
         FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid {} ORDER BY 1, 2",
        of_tables(),
        own = names("o.conrelid", "o.conkey"),
        theirs = names("o.confrelid", "o.confkey"),
    )
}

fn indexes() -> String {
    format!(
        "SELECT c.oid::int8 AS table_oid, x.relname AS name, pg_get_indexdef(i.indexrelid) AS definition, \
         i.indisunique AS unique, i.indisprimary AS primary, i.indisvalid AS valid, i.indpred IS NOT NULL AS partial, \
         (SELECT json_agg(a.attname ORDER BY k.at) FROM unnest(i.indkey) WITH ORDINALITY k(number, at) \
          LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number WHERE k.at <= i.indnkeyatts) AS columns \
         FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid {} ORDER BY 1, 2",
        of_tables()
    )
}

fn triggers() -> String {
    format!(
        "SELECT c.oid::int8 AS table_oid, g.tgname AS name, g.tgenabled AS enabled, \
         quote_ident(x.nspname) || '.' || quote_ident(p.proname) AS function, pg_get_triggerdef(g.oid) AS definition \
         FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_proc p ON p.oid = g.tgfoid \
         JOIN pg_namespace x ON x.oid = p.pronamespace {} AND NOT g.tgisinternal ORDER BY 1, 2",
        of_tables()
    )
}

fn policies() -> String {
    format!(
        "SELECT c.oid::int8 AS table_oid, p.polname AS name, p.polpermissive AS permissive, \
         CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' \
         END AS command, (SELECT json_agg(CASE WHEN role = 0 THEN 'public' ELSE pg_get_userbyid(role) END ORDER BY role) \
          FROM unnest(p.polroles) role) AS roles, pg_get_expr(p.polqual, c.oid) AS using, \
         pg_get_expr(p.polwithcheck, c.oid) AS with_check FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid {} \
         ORDER BY 1, 2",
        of_tables()
    )
}

/// A default speaks of no column, and without a table the server need not name all its columns for each: of 1,500 it took 15 seconds.
fn defaults() -> String {
    format!(
        "SELECT n.nspname AS schema, c.relname AS name, a.attname AS column, \
         pg_get_expr(d.adbin, CASE WHEN a.attgenerated = '' THEN 0::oid ELSE d.adrelid END) AS expression \
         FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
         JOIN pg_class c ON c.oid = d.adrelid {} ORDER BY 1, 2, a.attnum",
        of_tables()
    )
}

fn missing() -> String {
    format!(
        "SELECT n.nspname AS schema, c.relname AS name, a.attname AS column, a.attmissingval::text AS expression \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid {} AND a.atthasmissing AND a.attnum > 0 \
         ORDER BY 1, 2, a.attnum",
        of_tables()
    )
}

fn sequences() -> String {
    format!(
        "SELECT n.nspname AS schema, c.relname AS name, c.oid::int8, format_type(s.seqtypid, NULL) AS type, \
         s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum, s.seqcache AS cache, \
         s.seqcycle AS cycles, o.owned_by, coalesce(o.identity, false) AS identity, \
         coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT'), false) AS readable \
         FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN LATERAL (SELECT json_build_object('schema', tn.nspname, 'name', t.relname, 'column', a.attname) AS owned_by, \
          d.deptype = 'i' AS identity FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn \
          ON tn.oid = t.relnamespace JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid \
          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass \
          AND d.deptype IN ('a', 'i') LIMIT 1) o ON true WHERE {OURS_AND_SYSTEMS} ORDER BY 1, 2"
    )
}

const EXTENSIONS: &str = "SELECT e.extname AS name, e.extversion AS version, n.nspname AS schema FROM pg_extension e \
     JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1";

const PUBLICATIONS: &str = "SELECT pubname AS name, puballtables AS all_tables FROM pg_publication ORDER BY 1";

/// All types but the row types of system catalogs; [`types::settle`] keeps those that matter. Constraints are looked for of domains
/// alone: one by one no index finds them, and types times constraints was a third of the time that a small comparison took.
const TYPES: &str = "SELECT t.oid::int8, n.nspname AS schema, t.typname AS name, t.typtype AS kind, \
     t.typsend <> 0 AS has_send, t.typreceive <> 0 AS has_receive, \
     CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem::int8 END AS element, \
     nullif(t.typbasetype, 0)::int8 AS base, CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END \
     AS base_type, t.typnotnull AS not_null, coalesce(r.rngsubtype, m.rngsubtype)::int8 AS subtype, \
     (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE t.typtype = 'e' AND e.enumtypid = t.oid) \
      AS labels, \
     (SELECT json_agg(json_build_object('name', a.attname, 'type_oid', a.atttypid::int8, 'type', \
      format_type(a.atttypid, a.atttypmod), 'number', a.attnum) ORDER BY a.attnum) FROM pg_attribute a WHERE t.typtype = 'c' \
      AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS attributes, \
     (SELECT json_agg(pg_get_constraintdef(o.oid) ORDER BY o.conname) FROM pg_constraint o WHERE t.typtype = 'd' \
      AND o.contypid = t.oid) AS checks, \
     n.nspname NOT IN ('pg_catalog', 'information_schema', 'restante') AND n.nspname !~ '^pg_' AND (c.relkind IS NULL \
      OR c.relkind = 'c') AND t.typtype IN ('c', 'd', 'e', 'r') AS user_made \
     FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid \
     LEFT JOIN pg_range r ON r.rngtypid = t.oid LEFT JOIN pg_range m ON m.rngmultitypid = t.oid \
     WHERE t.typtype <> 'p' AND (t.typtype <> 'c' OR n.nspname NOT IN ('pg_catalog', 'information_schema')) ORDER BY 2, 3";
