use super::*;

fn claims() -> Claims {
    Claims {
        namespace: "web".into(),
        service_account: "shop".into(),
        service_account_uid: "u1".into(),
        bound: Some(("Pod".into(), "shop-1".into(), "u2".into())),
        node: Some(("one".into(), "u3".into())),
        audiences: vec!["istio-ca".into()],
        issued: 1000,
        expires: 2000,
        id: "t".into(),
    }
}

#[test]
fn a_token_says_what_it_was_signed_for_until_it_expires() {
    let tokens = Tokens::generate().expect("a key");
    let token = tokens.sign(&claims()).expect("signed");
    assert_eq!(tokens.verify(&token, 1500).expect("valid"), claims());
    assert_eq!(tokens.verify(&token, 2000), Err("expired"));
    assert_eq!(tokens.verify(&token, 900), Err("not valid yet"));
}

#[test]
fn a_token_of_another_server_or_with_other_claims_is_refused() {
    let (tokens, other) = (Tokens::generate().expect("a key"), Tokens::generate().expect("a key"));
    let token = tokens.sign(&claims()).expect("signed");
    assert_eq!(other.verify(&token, 1500), Err("not signed by this server"));
    let mut parts: Vec<&str> = token.split('.').collect();
    let forged = URL_SAFE_NO_PAD.encode(json!({"iss": ISSUER, "exp": 99_999}).to_string());
    parts[1] = &forged;
    assert_eq!(tokens.verify(&parts.join("."), 1500), Err("not signed by this server"));
    for nonsense in ["", ".", "..", "a.b.c", "\u{e9}.\u{e9}.\u{e9}"] {
        assert!(tokens.verify(nonsense, 1500).is_err(), "{nonsense:?}");
    }
}
