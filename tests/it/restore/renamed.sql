-- The functions of fixtures/store.sql and its driver that need the tables themselves, for a store whose tables and columns have other names: a
-- rename leaves the text of functions as it is. Names in braces are filled in (names.rs).
create or replace function messages_inserted() returns trigger language plpgsql as $restante$
begin
    insert into {mailbox_stats} as s ({mailbox_stats.mailbox_id}, {mailbox_stats.messages}, {mailbox_stats.bytes})
        select {messages.mailbox_id}, count(*), sum({messages.size}) from new_rows
        group by {messages.mailbox_id} order by {messages.mailbox_id}
        on conflict ({mailbox_stats.mailbox_id}) do update set
            {mailbox_stats.messages} = s.{mailbox_stats.messages} + excluded.{mailbox_stats.messages},
            {mailbox_stats.bytes} = s.{mailbox_stats.bytes} + excluded.{mailbox_stats.bytes};
    update {accounts} a set {accounts.used_bytes} = a.{accounts.used_bytes} + d.d_bytes
        from (select b.{mailboxes.account_id} as d_account, sum(n.{messages.size}) as d_bytes
              from new_rows n join {mailboxes} b on b.{mailboxes.id} = n.{messages.mailbox_id} group by 1 order by 1) d
        where a.{accounts.id} = d.d_account;
    return null;
end $restante$;

create or replace function messages_deleted() returns trigger language plpgsql as $restante$
begin
    update {mailbox_stats} s set {mailbox_stats.messages} = s.{mailbox_stats.messages} - d.d_messages,
            {mailbox_stats.bytes} = s.{mailbox_stats.bytes} - d.d_bytes
        from (select {messages.mailbox_id} as d_mailbox, count(*) as d_messages, sum({messages.size}) as d_bytes
              from old_rows group by 1 order by 1) d
        where s.{mailbox_stats.mailbox_id} = d.d_mailbox;
    update {accounts} a set {accounts.used_bytes} = a.{accounts.used_bytes} - d.d_bytes
        from (select b.{mailboxes.account_id} as d_account, sum(o.{messages.size}) as d_bytes
              from old_rows o join {mailboxes} b on b.{mailboxes.id} = o.{messages.mailbox_id} group by 1 order by 1) d
        where a.{accounts.id} = d.d_account;
    return null;
end $restante$;

create or replace function messages_updated() returns trigger language plpgsql as $restante$
begin
    if not exists (select from old_rows o join new_rows n on n.{messages.id} = o.{messages.id}
                   where o.{messages.mailbox_id} <> n.{messages.mailbox_id} or o.{messages.size} <> n.{messages.size}) then
        return null;
    end if;
    insert into {mailbox_stats} as s ({mailbox_stats.mailbox_id}, {mailbox_stats.messages}, {mailbox_stats.bytes})
        select d_mailbox, sum(d_messages), sum(d_bytes)
        from (select {messages.mailbox_id} as d_mailbox, 1 as d_messages, {messages.size} as d_bytes from new_rows
              union all select {messages.mailbox_id}, -1, -{messages.size} from old_rows) d
        group by d_mailbox order by d_mailbox
        on conflict ({mailbox_stats.mailbox_id}) do update set
            {mailbox_stats.messages} = s.{mailbox_stats.messages} + excluded.{mailbox_stats.messages},
            {mailbox_stats.bytes} = s.{mailbox_stats.bytes} + excluded.{mailbox_stats.bytes};
    update {accounts} a set {accounts.used_bytes} = a.{accounts.used_bytes} + d.d_bytes
        from (select b.{mailboxes.account_id} as d_account, sum(e.d_bytes) as d_bytes
              from (select {messages.mailbox_id} as d_mailbox, {messages.size} as d_bytes from new_rows
                    union all select {messages.mailbox_id}, -{messages.size} from old_rows) e
              join {mailboxes} b on b.{mailboxes.id} = e.d_mailbox group by 1) d
        where a.{accounts.id} = d.d_account;
    return null;
end $restante$;

-- A view has no ctid.
create or replace function driver.tail(rows integer) returns table (link text) language sql stable as $restante$
    select m.{messages.id}::text from {messages} m order by m.ctid desc limit rows
$restante$;
