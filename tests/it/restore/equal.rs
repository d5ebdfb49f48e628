//! Long values that several lost mails have: they are sent to the server once, and each mail has its own again.

use std::collections::BTreeSet;

use restante::restore::{ApplyOptions, Plan, PlanOptions};

use super::memory::MemorySource;
use super::store::{Content, Store};

/// Long values that some rows share, beside NULL and short ones; two columns of a row share one; one type allows no NULL, one has no
/// equality, and two columns are called as what the copying goes by.
const VALUES: &str = "
    CREATE DOMAIN long AS bytea NOT NULL;
    ALTER TABLE messages ADD was bigint, ADD note text, ADD other text, ADD raw bytea, ADD kept long DEFAULT '', ADD json json, ADD short text, ADD this text, ADD that text";
const FILL: &str = "
    UPDATE messages SET was = id, note = long(id % 2), other = CASE id % 3 WHEN 0 THEN NULL WHEN 1 THEN long(id % 2) ELSE long(id) END,
        raw = CASE WHEN id % 3 = 1 THEN NULL ELSE convert_to(long(id % 2), 'UTF8') END, kept = convert_to(long(id % 2), 'UTF8'),
        json = to_json(long(id % 2)), short = md5((id % 2)::text), this = long(id % 2), that = long(id % 4)";
const LONG: &str = "CREATE FUNCTION long(n bigint) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 100) i $$";
const SEEN: &str =
    "SELECT string_agg(concat_ws(' ', was, size, md5(body), coalesce(md5(note), '-'), coalesce(md5(other), '-'),
    coalesce(md5(raw), '-'), md5(kept), md5(json::text), short, md5(this), md5(that)), E'\\n' ORDER BY was) FROM messages";

#[tokio::test]
async fn long_values_that_several_mails_have_come_back_in_each() {
    for batch_messages in [200, 4] {
        let store = Store::new().await;
        let ask = async |sql: &str| store.client.query_one(sql, &[]).await.unwrap().get::<_, String>(0);
        store.client.batch_execute(VALUES).await.unwrap();
        store.client.batch_execute(LONG).await.unwrap();
        let account = store.account("a@example.org").await;
        let (inbox, archive) = (store.mailbox(account, "INBOX", 0).await, store.mailbox(account, "Archive", 0).await);
        let mut ids = Vec::new();
        for number in 0..12 {
            let mailbox = if number % 2 == 0 { inbox } else { archive };
            ids.push(store.deliver(mailbox, Content(number / 3), i64::from(number), 0).await);
        }
        store.client.batch_execute(FILL).await.unwrap();
        let before = ask(SEEN).await;
        assert_eq!(before.lines().collect::<BTreeSet<_>>().len(), 12);
        let snapshot = MemorySource::take(&store.session().await).await;
        store.lose(&ids, &[], true).await;

        let plan = Plan::new(store.compare(&snapshot, None).await, &PlanOptions::default());
        let options = ApplyOptions { batch_messages, ..Default::default() };
        let report = store.apply(&snapshot, plan, options).await;
        assert_eq!((report.mail.restored, report.mail.changed_columns.len()), (12, 0), "{report:?}");
        assert_eq!(ask(SEEN).await, before, "in batches of {batch_messages}");
        store.check_counters().await;
    }
}
