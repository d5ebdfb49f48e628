use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        home: None,
        account: Some("account".to_owned()),
    }
}

fn parse(text: &str) -> Result<Dsn, DsnError> {
    Dsn::parse(text, &environment(&[]))
}

#[test]
fn both_forms_say_the_same() {
    let uri = parse("postgresql://u%20ser:p%40ss@h1:1,[::1]:2/d%2Fb?connect_timeout=1&application_name=a%20b").unwrap();
    let pairs =
        parse(r"host=h1,::1 port=1,2 user='u ser' password=p@ss dbname=d/b connect_timeout=1 application_name=a\ b");
    let pairs = pairs.unwrap();
    assert_eq!(format!("{uri:?}"), format!("{pairs:?}"));
    assert_eq!(uri.endpoints[1].password(), Some("p@ss"));
    assert_eq!(uri.connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(uri.user, "u ser");
    assert_eq!(uri.database, "d/b");
}

#[test]
fn a_blank_that_was_not_encoded_never_becomes_part_of_a_value() {
    let dsn = parse("postgres:// u%20 :\tp%20 @h/ d ? application_name = a%20b ").unwrap();
    assert_eq!((dsn.user.as_str(), dsn.database.as_str()), ("u ", "d"));
    assert_eq!(dsn.endpoints[0].password(), Some("p "));
    for text in ["postgres://u ser@h", "postgres://u@h/a b", "postgres://u@h?application_name=a b"] {
        assert!(matches!(parse(text), Err(DsnError::Syntax(_))), "{text}");
    }
    // In the other form it always was the end of a value.
    assert!(matches!(parse("user=u ser"), Err(DsnError::Syntax(_))));
}

#[test]
fn defaults_come_from_account_and_user() {
    let dsn = parse("").unwrap();
    assert_eq!((dsn.user.as_str(), dsn.database.as_str()), ("account", "account"));
    assert_eq!(dsn.endpoints[0].address, Address::Socket(default_socket_directory()));
    assert_eq!(parse("mail").unwrap().database, "mail");
    assert_eq!(parse("user=x").unwrap().database, "x");
}

#[test]
fn the_string_wins_over_the_service_and_that_over_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    std::fs::write(
        &file,
        "# ours\n[other]\nport=1\n[mail]\nhost=service\nport=5433\ndbname=from_service\n[next]\nport=2\n",
    )
    .unwrap();
    let variables =
        [("PGSERVICEFILE", file.to_str().unwrap()), ("PGHOST", "env"), ("PGUSER", "env_user"), ("PGPORT", "9")];
    let dsn = Dsn::parse("service=mail dbname=given", &environment(&variables)).unwrap();
    assert_eq!(dsn.to_string(), "postgres://env_user@service:5433/given?sslmode=prefer");
    assert!(matches!(Dsn::parse("service=none", &environment(&variables)), Err(DsnError::NoService { .. })));
}

#[test]
fn no_password_is_ever_shown() {
    for text in ["postgres://u:hush%21@h/d", "user=u password=hush! host=h", "host=h password='hush!' user=u"] {
        let dsn = parse(text).unwrap();
        assert_eq!(dsn.endpoints[0].password(), Some("hush!"));
        assert!(!format!("{dsn} {dsn:?} {:?}", dsn.endpoints).contains("hush"));
    }
    for wrong in ["postgres://u:hush%2@h", "password=x hush", "password='hush", "postgres://u:hush%00@h"] {
        assert!(!format!("{0} {0:?}", parse(wrong).unwrap_err()).contains("hush"), "{wrong}");
    }
}

#[test]
fn a_parameter_whose_wish_would_not_be_kept_is_refused() {
    for text in ["sslcrl=x", "requirepeer=root", "require_auth=scram-sha-256", "ssl_min_protocol_version=TLSv1.3"] {
        assert!(matches!(parse(text), Err(DsnError::Unsupported(_))), "{text}");
    }
    assert!(matches!(parse("sslmod=require"), Err(DsnError::UnknownParameter(_))));
    assert!(matches!(parse("sslmode=requird"), Err(DsnError::Value { .. })));
    assert!(matches!(parse("host=a,b,c port=1,2"), Err(DsnError::Count { .. })));
    assert!(matches!(parse("port=0"), Err(DsnError::Value { .. })));
    assert!(matches!(parse("sslrootcert=system sslmode=require"), Err(DsnError::Value { .. })));
    assert_eq!(parse("sslrootcert=system").unwrap().ssl.mode, SslMode::VerifyFull);
}

#[test]
fn a_password_file_that_others_may_read_is_not_used() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".pgpass");
    std::fs::write(
        &file,
        "# hosts\nh:5432:*:bob:no\nh\\:x:*:*:*:no\n*:5433:*:ann:no\nh:*:d\\:b:ann:a\\:b\\\\c\n*:*:*:*:last\n",
    )
    .unwrap();
    let environment = Environment { home: Some(home.path().into()), ..environment(&[]) };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let dsn = Dsn::parse("host=h user=ann dbname=d:b", &environment).unwrap();
    assert_eq!((dsn.endpoints[0].password(), dsn.warnings.len()), (None, 1));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let dsn = Dsn::parse("host=h,other user=ann dbname=d:b", &environment).unwrap();
    assert_eq!(dsn.endpoints[0].password(), Some("a:b\\c"));
    assert_eq!(dsn.endpoints[1].password(), Some("last"));
    let given = Dsn::parse("host=h user=ann dbname=d:b password=own", &environment).unwrap();
    assert_eq!(given.endpoints[0].password(), Some("own"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,60}", scheme in any::<bool>()) {
        let _ = parse(&if scheme { format!("postgres://{text}") } else { text });
    }

    #[test]
    fn a_quoted_value_comes_back_as_it_was(user in "[^\0]{1,20}", password in "[^\0]{1,20}") {
        let quote = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let dsn = parse(&format!("user='{}' password = '{}'", quote(&user), quote(&password))).unwrap();
        prop_assert_eq!(dsn.endpoints[0].password(), Some(password.as_str()));
        prop_assert_eq!(dsn.user, user);
    }

    #[test]
    fn a_percent_encoded_value_comes_back_as_it_was(user in "[^\0]{1,20}", database in "[^\0]{1,20}") {
        let encode = |value: &str| value.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let dsn = parse(&format!("postgres://{}@h/{}", encode(&user), encode(&database))).unwrap();
        prop_assert_eq!((dsn.user, dsn.database), (user, database));
    }
}
