//! `restante doctor` and `restante grants`

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::comparing::Live;
use super::context::Context;
use super::exit::Exit;
use crate::compare::layout::layout_of_live;
use crate::postgres::grants::{self, Check, GrantsFor, Outcome};
use crate::postgres::session::{Session, SessionOptions};
use crate::restore::rights;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Purpose {
    Snapshot,
    Gap,
    Restore,
}

impl From<Purpose> for grants::Purpose {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Snapshot => Self::Snapshot,
            Purpose::Gap => Self::Gap,
            Purpose::Restore => Self::Restore,
        }
    }
}

/// Check that everything Restante needs is there
///
/// One line each; a failure says what to paste. Looks at the store and, where they are given, at the storage and the keys.
#[derive(Args)]
pub struct Doctor {
    /// What the role shall be able to do
    #[arg(long = "for", value_enum, default_value = "snapshot", value_name = "PURPOSE")]
    purpose: Purpose,
}

#[derive(Serialize)]
struct Line<'a> {
    check: &'a str,
    outcome: &'static str,
    detail: &'a str,
    remedy: Option<&'a str>,
}

impl Doctor {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let mut checks = grants::checks(&context.dsn()?, self.purpose.into(), &[]).await;
        if context.global.repo.is_some() || context.config.repo.is_some() {
            checks.extend(repository(context).await);
        }
        let mut failed = false;
        for check in &checks {
            let outcome = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Warn => "warning",
                Outcome::Fail => "FAILED",
            };
            failed |= check.outcome == Outcome::Fail;
            let line = Line { check: check.name, outcome, detail: &check.detail, remedy: check.remedy.as_deref() };
            context.output.json("check", &line)?;
            context.output.line(format!("{:12} {:8} {}", check.name, outcome, check.detail));
            if let Some(remedy) = &check.remedy {
                remedy.lines().for_each(|line| context.output.line(format!("             {line}")));
            }
        }
        Ok(if failed { Exit::Findings } else { Exit::Done })
    }
}

/// Storage and keys.
async fn repository(context: &Context) -> Vec<Check> {
    let check = |name, outcome, detail: String| Check { name, outcome, detail, remedy: None };
    let mut checks = Vec::new();
    match context.storage().await {
        Err(e) => checks.push(check("storage", Outcome::Fail, format!("{e:#}"))),
        Ok(storage) => match context.probe(&*storage).await {
            Err(e) => checks.push(check("storage", Outcome::Fail, format!("{e:#}"))),
            Ok(found) => {
                let condition = if found.conditional_create { "kept" } else { "ignored (harmless)" };
                let lock = match found.object_lock {
                    Some(true) => "on",
                    Some(false) => "off or ignored",
                    None => "not known",
                };
                let detail = format!("{}: create-only {condition}, object lock {lock}", storage.address());
                checks.push(check("storage", Outcome::Ok, detail));
            }
        },
    }
    match context.open_to_look().await {
        Err(e) => checks.push(check("keys", Outcome::Fail, format!("{e:#}"))),
        Ok(repository) if repository.writer.is_some() => match repository.check_key_objects().await {
            Err(e) => checks.push(check("keys", Outcome::Fail, e.to_string())),
            Ok(()) => checks.push(check("keys", Outcome::Ok, "the writer key fits the repository".into())),
        },
        Ok(_) => checks.push(check("keys", Outcome::Ok, "the identity opens the repository".into())),
    }
    checks
}

/// Print the SQL that gives a role what Restante needs
#[derive(Args)]
pub struct Grants {
    /// What the role shall be able to do
    #[arg(long = "for", value_enum, default_value = "snapshot", value_name = "PURPOSE")]
    purpose: Purpose,
    /// The role that Restante connects as
    #[arg(long, default_value = "restante")]
    role: String,
    /// With `--for restore`: built-in profile or a TOML file; found out if left out
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
}

impl Grants {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let dsn = context.dsn()?;
        let session = Session::connect(&dsn, SessionOptions::default()).await?;
        let (schemas, owners) = grants::schemas_and_owners(&session).await?;
        let (mut written, mut journal) = (Vec::new(), String::new());
        match self.purpose {
            Purpose::Snapshot => {}
            Purpose::Gap => journal = rights::gap_sql(&self.role),
            Purpose::Restore => {
                let live = Live::open(context, self.profile.as_deref(), &[]).await?;
                let layout = layout_of_live(&live.profile, &live.catalog)?;
                written = rights::written(&layout, &live.profile);
                journal = rights::restore_sql(&layout, &self.role);
            }
        }
        let text = grants::sql(
            self.purpose.into(),
            &GrantsFor {
                role: &self.role,
                database: &dsn.database,
                schemas: &schemas,
                owners: &owners,
                written: &written,
                journal: &journal,
            },
        );
        context.output.json("grants", &serde_json::json!({ "role": self.role, "sql": text }))?;
        context.output.lines(&text);
        Ok(Exit::Done)
    }
}
