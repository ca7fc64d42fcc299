//! Service account tokens: JWTs signed with ES256, bound to a pod where one is named. Owns the signing key and the
//! claims; whether what a token names still exists is asked of the store by the caller.

use anyhow::anyhow;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Issuer of the tokens and audience of this API server, as kubeadm sets both.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The signer.
pub struct Tokens {
    key: EcdsaKeyPair,
    id: String,
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// The service account's namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The service account's uid.
    pub service_account_uid: String,
    /// The object it is bound to: (kind, name, uid).
    pub bound: Option<(String, String, String)>,
    /// The node of the bound pod: (name, uid).
    pub node: Option<(String, String)>,
    /// Audiences.
    pub audiences: Vec<String>,
    /// Seconds since the epoch from which on it is valid.
    pub issued: i64,
    /// Seconds since the epoch at which it ends.
    pub expires: i64,
    /// Unique id of the token.
    pub id: String,
}

/// The JSON name of a bound object's kind inside the `kubernetes.io` claim.
fn claim_of(kind: &str) -> String {
    kind.to_lowercase()
}

impl Tokens {
    /// A signer with a fresh key.
    pub fn generate() -> anyhow::Result<Tokens> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| anyhow!("could not generate the key that signs service account tokens"))?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.public_key().as_ref());
        Ok(Tokens { id: URL_SAFE_NO_PAD.encode(digest), key })
    }

    /// A signed token.
    pub fn sign(&self, claims: &Claims) -> anyhow::Result<String> {
        let mut about = json!({
            "namespace": claims.namespace,
            "serviceaccount": { "name": claims.service_account, "uid": claims.service_account_uid },
        });
        if let Some((kind, name, uid)) = &claims.bound {
            about[claim_of(kind)] = json!({ "name": name, "uid": uid });
        }
        if let Some((name, uid)) = &claims.node {
            about["node"] = json!({ "name": name, "uid": uid });
        }
        let header = json!({ "alg": "ES256", "kid": self.id });
        let payload = json!({
            "aud": claims.audiences,
            "exp": claims.expires,
            "iat": claims.issued,
            "iss": ISSUER,
            "jti": claims.id,
            "kubernetes.io": about,
            "nbf": claims.issued,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(payload.to_string())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| anyhow!("could not sign a service account token"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this signer made and that is valid at `now` (seconds since the epoch).
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("not a JWT")?;
        let (header, payload) = signed.split_once('.').ok_or("not a JWT")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "not base64");
        let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).map_err(|_| "not JSON");
        if json(header)?.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err("not signed with ES256");
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| "not signed by this server")?;
        let claims = read(&json(payload)?).ok_or("claims are missing")?;
        if now < claims.issued - 10 {
            return Err("not valid yet");
        }
        if now >= claims.expires {
            return Err("expired");
        }
        Ok(claims)
    }

    /// The public key as a JSON web key set.
    pub fn jwks(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let half = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or(&[]));
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": half(1..33), "y": half(33..65),
        }] })
    }
}

fn read(payload: &Value) -> Option<Claims> {
    let about = payload.get("kubernetes.io")?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let pair = |key: &str| about.get(key).and_then(|v| Some((text(v, "name")?, text(v, "uid")?)));
    let account = about.get("serviceaccount")?;
    let bound = ["Pod", "Secret", "Node"].into_iter().find_map(|kind| {
        // The node claim of a pod's token says where the pod is; only alone does it bind.
        if kind == "Node" && about.get("pod").is_some() {
            return None;
        }
        pair(&claim_of(kind)).map(|(name, uid)| (kind.to_owned(), name, uid))
    });
    Some(Claims {
        namespace: text(about, "namespace")?,
        service_account: text(account, "name")?,
        service_account_uid: text(account, "uid")?,
        bound,
        node: pair("node"),
        audiences: payload
            .get("aud")?
            .as_array()?
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect(),
        issued: payload.get("iat")?.as_i64()?,
        expires: payload.get("exp")?.as_i64()?,
        id: text(payload, "jti").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
