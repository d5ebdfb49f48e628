//! Who approved a change: OpenSSH signatures (`ssh-keygen -Y sign -n restante`) over its canonical text, kept in the repository.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, PublicKey, SshSig};

use super::canonical::Canonical;
use super::error::GuardError;
use super::policy::InForce;
use crate::repository::id::ObjectId;
use crate::repository::{Repository, changes};

/// What the signatures are for, as `ssh-keygen -n` says it: one made for anything else counts for nothing here.
pub const NAMESPACE: &str = "restante";
const LARGEST_SIGNATURE: usize = 64 << 10;

/// One who may approve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    pub name: String,
    pub key: ssh_key::public::KeyData,
}

impl Signer {
    /// A line of `allowed_signers`: a name, and a public key as `ssh-keygen` prints it. `namespaces="restante"` may stand between.
    pub fn parse(line: &str) -> Result<Self, String> {
        let shown: String = line.chars().take(60).collect();
        let fail = |why: &str| format!("{shown:?}: {why}; write \"ada@example.org ssh-ed25519 AAAA…\"");
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| !name.starts_with('#')).ok_or_else(|| fail("there is no name"))?;
        let mut rest: Vec<&str> = words.collect();
        if rest.first().is_some_and(|word| word.contains('=') || word.contains(',') || *word == "cert-authority") {
            if rest[0] != format!("namespaces=\"{NAMESPACE}\"") {
                return Err(fail("no option but namespaces=\"restante\" is known"));
            }
            rest.remove(0);
        }
        if name.contains([',', '*', '?', '!']) {
            return Err(fail("one name for each key, without patterns"));
        }
        let key =
            PublicKey::from_openssh(&rest.join(" ")).map_err(|e| fail(&format!("the key is not understood ({e})")))?;
        Ok(Self { name: name.to_owned(), key: key.key_data().clone() })
    }

    /// As `ssh-keygen -l` shows the key.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }
}

/// Whose signature it is, if it is one of the signers' over exactly this text.
fn verify<'a>(signers: &'a [Signer], text: &[u8], pem: &str) -> Result<&'a Signer, GuardError> {
    let fail = |message: String| GuardError::Signature(message);
    if pem.len() > LARGEST_SIGNATURE {
        return Err(fail("that is no signature: it is larger than 64 KiB".into()));
    }
    let signature = SshSig::from_pem(pem.trim())
        .map_err(|e| fail(format!("that is no signature of `ssh-keygen -Y sign -n {NAMESPACE}`: {e}")))?;
    let fingerprint = signature.public_key().fingerprint(HashAlg::Sha256);
    let signer = signers
        .iter()
        .find(|signer| signer.key == *signature.public_key())
        .ok_or_else(|| fail(format!("the key {fingerprint} belongs to nobody who may sign")))?;
    if signature.namespace() != NAMESPACE {
        return Err(fail(format!(
            "the signature of {} was made for {:?}: sign with `ssh-keygen -Y sign -n {NAMESPACE}`",
            signer.name,
            signature.namespace()
        )));
    }
    PublicKey::from(signer.key.clone()).verify(NAMESPACE, text, &signature).map_err(|_| {
        fail(format!(
            "the signature of {} is over another text: the change, a script, the target or the policy is not what was signed",
            signer.name
        ))
    })?;
    Ok(signer)
}

/// The names of those who signed this text. A signature that does not count is an error.
pub fn signed_by(signers: &[Signer], text: &[u8], signatures: &[&str]) -> Result<BTreeSet<String>, GuardError> {
    signatures.iter().map(|pem| Ok(verify(signers, text, pem)?.name.clone())).collect()
}

/// `changes/approvals/<change>/<signature>`
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    change: String,
    id: String,
    signature: String,
    put: Timestamp,
}

fn folder(hash: &ObjectId) -> String {
    format!("approvals/{hash}/")
}

/// Checks a signature and keeps it; the signer's name.
pub async fn put(
    repository: &Repository,
    policy: &InForce,
    canonical: &Canonical,
    pem: &str,
) -> Result<String, GuardError> {
    let (text, hash) = (canonical.text()?, canonical.hash()?);
    let signer = verify(&policy.policy.signers, text.as_bytes(), pem)?;
    let name = format!("{}{}", folder(&hash), ObjectId::of(pem.trim().as_bytes()));
    if changes::get::<Record>(repository, &name).await?.is_none() {
        let id = canonical.change.id.clone();
        let record = Record { change: hash.to_hex(), id, signature: pem.trim().to_owned(), put: Timestamp::now() };
        changes::put(repository, &name, &record).await?;
    }
    Ok(signer.name.clone())
}

/// Who approved exactly this change, and why other signatures that lie with it do not count.
pub async fn of(
    repository: &Repository,
    policy: &InForce,
    canonical: &Canonical,
) -> Result<(BTreeSet<String>, Vec<String>), GuardError> {
    let (text, hash) = (canonical.text()?, canonical.hash()?);
    let (mut by, mut problems) = (BTreeSet::new(), Vec::new());
    for name in changes::names(repository, &folder(&hash)).await? {
        let record = match changes::read::<Record>(repository, name).await {
            Ok(found) => found.record,
            Err(e) if e.is_about_an_object() => {
                problems.push(e.to_string());
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        match verify(&policy.policy.signers, text.as_bytes(), &record.signature) {
            Ok(signer) => drop(by.insert(signer.name.clone())),
            Err(e) => problems.push(e.to_string()),
        }
    }
    Ok((by, problems))
}

/// Approvals of earlier forms of the change: of another script, target or policy.
pub async fn of_other_forms(repository: &Repository, canonical: &Canonical) -> Result<u64, GuardError> {
    let hash = canonical.hash()?.to_hex();
    let mut others = 0;
    for name in changes::names(repository, "approvals/").await? {
        if !name.as_str().contains(&hash)
            && let Ok(found) = changes::read::<Record>(repository, name).await
            && found.record.id == canonical.change.id
        {
            others += 1;
        }
    }
    Ok(others)
}
