-- Every type that a column can have and every shape that a table can have, beside the reference mail store: NULL and the
-- empty value, values of 512 and 513 bytes, infinities, types without binary output (aclitem), dropped and generated
-- columns, partitions, tables without rows or columns, names that need quotes.

create schema "odd Name";
create type mood as enum ('sad', 'ok', 'happy');
create type pair as (a int, b text);
create domain posint as int check (value > 0);
create table kinds (
  id bigint primary key, gone int, c_bool bool, c_int2 int2, c_int4 int4, c_int8 int8, c_oid oid, c_float4 float4, c_float8 float8, c_numeric numeric, c_money money,
  c_text text, c_varchar varchar(2000), c_char char(10), c_qchar "char", c_name name, c_bytea bytea, c_bit bit(5), c_varbit bit varying,
  c_date date, c_time time, c_timetz timetz, c_ts timestamp, c_tstz timestamptz, c_interval interval, c_uuid uuid,
  c_inet inet, c_cidr cidr, c_mac macaddr, c_mac8 macaddr8, c_json json, c_jsonb jsonb, c_jsonpath jsonpath,
  c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle, c_tsv tsvector, c_tsq tsquery,
  c_lsn pg_lsn, c_snap pg_snapshot, c_xid xid, c_xid8 xid8, c_cid cid, c_tid tid, c_class regclass, c_vector oidvector, c_i2vector int2vector,
  c_range int4range, c_multi int8multirange, c_ints int[], c_texts text[], c_mood mood, c_pair pair, c_pos posint, c_pairs pair[], c_acl aclitem, c_acls aclitem[],
  c_generated int generated always as (c_int4 / 2) stored);
alter table kinds drop column gone;
insert into kinds select g, g % 2 = 0, g, g * 1000, g * -1000000007::int8, (4294967295 - g)::oid, g / 7.0, case g % 5 when 0 then 'nan' when 1 then '-infinity' else g * 1e300 end::float8,
  case g % 4 when 0 then 'NaN' when 1 then repeat('9', g)::numeric when 2 then 0.00001 * g else 'infinity' end::numeric, g::money,
  case g % 4 when 0 then '' when 1 then repeat('ä', 256) when 2 then repeat('x', 513) else repeat('z', g * 40) end, repeat('v', g), 'c' || g, 'q', 'n' || g,
  decode(repeat(md5(g::text), 3 * g), 'hex'), (g % 32)::bit(5), repeat('10', g)::varbit,
  case g % 4 when 0 then 'infinity' when 1 then '-infinity' when 2 then '4713-01-01 BC' else '2000-01-01'::date + g end::date, '12:34:56.789'::time + g * interval '1 minute',
  '23:00+05:30'::timetz, case g % 3 when 0 then 'infinity' when 1 then '1999-12-31 23:59:59.999999' else '2014-08-10'::timestamp + g * interval '1 hour' end::timestamp, '2014-08-10 14:00Z'::timestamptz + g * interval '1 hour',
  g * interval '1 month 2 days 3.5 seconds', md5(g::text)::uuid, ('10.0.0.' || g)::inet, '10.1.0.0/16', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
  json_build_object('a', repeat('j', g * 20)), jsonb_build_object('b', g, 'c', array[1, 2, null]), '$.a[*] ? (@ > 1)',
  point(g, -g), '{1,2,3}', '[(0,0),(1,1)]', '((0,0),(1,1))', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(1,2),3>', to_tsvector('simple', 'the lost mail ' || g), 'lost & mail',
  '16/B374D848', '10:20:10,14,15', (g + 3)::text::xid, g::text::xid8, '7', '(1,2)', case g % 2 when 0 then 'pg_class' else 'kinds' end::regclass, '1 2 3', '4 5',
  int4range(g, g + 5), int8multirange(int8range(1, g + 1), int8range(100, 200)), array[[1, g], [null, 3]], array['', null, repeat('t', g * 10)], (array['sad', 'ok', 'happy'])[g % 3 + 1]::mood, row(g, null)::pair, g,
  array[row(1, 'x')::pair, null], makeaclitem('postgres'::regrole, 'postgres'::regrole, 'SELECT', g % 2 = 0), array[makeaclitem('postgres'::regrole, 'postgres'::regrole, 'INSERT', false)]
  from generate_series(1, 120) g;
insert into kinds (id) select g from generate_series(1001, 1040) g;
create table empty_table (a int primary key, b bytea);
create table no_columns ();
insert into no_columns select from generate_series(1, 7);
create table "odd Name"."Table ""x""" ("Spalte ü" text primary key, b int);
insert into "odd Name"."Table ""x""" select 'k' || g, g from generate_series(1, 3000) g;
create table log (at timestamptz not null, what text, primary key (at)) partition by range (at);
create table log_08 partition of log for values from ('2014-08-01') to ('2014-09-01');
create table log_09 partition of log for values from ('2014-09-01') to ('2014-10-01') partition by range (at);
create table log_09_a partition of log_09 for values from ('2014-09-01') to ('2014-09-15');
create table log_09_b partition of log_09 default;
create table log_default partition of log default;
insert into log select '2014-07-20Z'::timestamptz + g * interval '3 hours', repeat(md5(g::text), g % 40) from generate_series(1, 700) g;
create table base64_only (id int primary key, body bytea);
insert into base64_only select g, convert_to('Content-Transfer-Encoding: base64' || E'\r\n\r\n' || replace(encode(decode(repeat(md5(g::text), 900), 'hex'), 'base64'), E'\n', case g % 2 when 0 then E'\r\n' else E'\n' end) || case g % 3 when 0 then '' else E'\r\n' end, 'UTF8') from generate_series(1, 40) g;
create table big_keys (k text primary key, n int);
insert into big_keys select string_agg(md5(g::text || h), ''), g from generate_series(1, 200) g, generate_series(1, 20) h group by g;
insert into big_keys select 'small' || g, g from generate_series(1, 200) g;
-- One row a block, so that few rows fill more than one segment.
create table spread (id int primary key, pad text) with (fillfactor = 10);
insert into spread select g, repeat('p', 490) from generate_series(1, 2100) g;
create table all_null (id int primary key, t text unique, n int unique, d date unique, at timestamp unique);
insert into all_null select g from generate_series(1, 5) g;
delete from kinds where id % 17 = 0;
update kinds set c_bool = not c_bool where id % 13 = 0;
