-- Restores of the reference store that know no better. Running this takes the snapshot: a copy of each table.
drop schema if exists naive cascade;
create schema naive;
do $$
declare
    name text;
begin
    foreach name in array array['accounts', 'mailboxes', 'attachments', 'messages', 'message_attachments', 'keywords'] loop
        execute format('create table naive.%I as table public.%I', name, name);
    end loop;
end $$;

-- Rows of a table that `wanted` holds for, with n for the snapshot's row; `instead` has an expression for a column.
create function naive.put(name text, wanted text, instead jsonb default '{}') returns void language plpgsql as $$
declare
    columns text;
    expressions text;
begin
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum),
           string_agg(coalesce(instead ->> a.attname, 'n.' || quote_ident(a.attname)), ', ' order by a.attnum) into columns, expressions
        from pg_attribute a where a.attrelid = ('public.' || name)::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
    execute format('insert into public.%I (%s) overriding system value select %s from naive.%I n where %s on conflict do nothing',
                   name, columns, expressions, name, wanted);
end $$;

create function naive.on_conflict() returns void language sql as $$
    select naive.put('accounts', 'true');
    select naive.put('mailboxes', 'exists (select from accounts p where p.id = n.account_id)');
    select naive.put('messages', 'exists (select from mailboxes p where p.id = n.mailbox_id)');
    select naive.put('attachments', 'true');
    select naive.put('message_attachments', 'exists (select from messages p where p.id = n.message_id)');
    select naive.put('keywords', 'exists (select from messages p where p.id = n.message_id)')
$$;

-- A row whose key is there is taken for the same; a UID that is taken gives way to a new one.
create function naive.key() returns void language sql as $$
    select naive.put('accounts', 'not exists (select from accounts l where l.id = n.id)');
    select naive.put('mailboxes', 'not exists (select from mailboxes l where l.id = n.id) and exists (select from accounts p where p.id = n.account_id)');
    select naive.put('messages', 'not exists (select from messages l where l.id = n.id) and exists (select from mailboxes p where p.id = n.mailbox_id)',
        '{"uid": "case when exists (select from messages l where (l.mailbox_id, l.uid) = (n.mailbox_id, n.uid)) then (select max(l.uid) from messages l where l.mailbox_id = n.mailbox_id) + row_number() over (partition by n.mailbox_id) else n.uid end"}');
    select naive.put('attachments', 'true');
    select naive.put('message_attachments', 'exists (select from messages p where p.id = n.message_id)');
    select naive.put('keywords', 'exists (select from messages p where p.id = n.message_id)')
$$;

-- As programs that copy mail from server to server do: mailboxes by name, made where they are missing, and each mail delivered anew.
create function naive.message_id() returns void language plpgsql as $$
declare
    lost naive.messages;
    box bigint;
    made bigint;
begin
    for lost in select * from naive.messages n order by n.id loop
        select b.id into box from naive.mailboxes o join naive.accounts a on a.id = o.account_id
            join public.accounts p on p.address = a.address join public.mailboxes b on b.account_id = p.id and b.name = o.name
            where o.id = lost.mailbox_id and b.deleted_at is null;
        if box is null then
            select driver.mailbox(coalesce((select p.id::text from public.accounts p where p.address = a.address), driver.account(a.address)), o.name, now()) into box
                from naive.mailboxes o join naive.accounts a on a.id = o.account_id where o.id = lost.mailbox_id;
        end if;
        continue when exists (select from public.messages m where m.mailbox_id = box and m.message_id = lost.message_id);
        update public.mailboxes b set uidnext = b.uidnext + 1, highestmodseq = b.highestmodseq + 1 where b.id = box
            returning b.uidnext - 1, b.highestmodseq into lost.uid, lost.modseq;
        perform naive.put('messages', format('n.id = %s', lost.id), jsonb_build_object('id', 'nextval(''messages_id_seq'')',
            'mailbox_id', box::text, 'uid', lost.uid::text, 'modseq', lost.modseq::text));
        made := currval('messages_id_seq');
        perform naive.put('attachments', 'true');
        perform naive.put('message_attachments', format('n.message_id = %s', lost.id), jsonb_build_object('message_id', made::text));
        perform naive.put('keywords', format('n.message_id = %s', lost.id), jsonb_build_object('message_id', made::text));
    end loop;
end $$;
