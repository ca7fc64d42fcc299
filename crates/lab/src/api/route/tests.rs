use super::*;

fn objects(path: &str) -> String {
    match parse(path) {
        Ok(Route::Objects(t)) => format!(
            "{}/{} {:?} {} {:?} {:?}",
            t.group,
            t.version,
            t.namespace.unwrap_or_default(),
            t.resource,
            t.name.unwrap_or_default(),
            t.subresource.unwrap_or_default()
        ),
        other => format!("{other:?}"),
    }
}

#[test]
fn paths_of_objects() {
    for (path, want) in [
        ("/api/v1/pods", r#"/v1 "" pods "" """#),
        ("/api/v1/namespaces", r#"/v1 "" namespaces "" """#),
        ("/api/v1/namespaces/a", r#"/v1 "" namespaces "a" """#),
        ("/api/v1/namespaces/a/status", r#"/v1 "" namespaces "a" "status""#),
        ("/api/v1/namespaces/a/finalize", r#"/v1 "" namespaces "a" "finalize""#),
        ("/api/v1/namespaces/a/pods", r#"/v1 "a" pods "" """#),
        ("/api/v1/namespaces/a/pods/b/log", r#"/v1 "a" pods "b" "log""#),
        ("/apis/apps/v1/namespaces/a/deployments/b/scale", r#"apps/v1 "a" deployments "b" "scale""#),
        ("/apis/x.io/v1/things/b%2Dc", r#"x.io/v1 "" things "b-c" """#),
    ] {
        assert_eq!(objects(path), want, "{path}");
    }
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    assert_eq!(parse("/nope").expect_err("nowhere").code, 404);
    assert_eq!(parse("/api/v1/namespaces/a/pods/b/c/d").expect_err("too deep").code, 404);
    assert_eq!(parse("/api/v1/pods/%zz").expect_err("malformed").code, 400);
    assert_eq!(parse("/api/v1/pods/%ff").expect_err("not text").code, 400);
    assert_eq!(parse("/api/v1/pods/%+1").expect_err("not hex").code, 400);
}

#[test]
fn everything_else_by_name() {
    assert_eq!(parse("/").expect("root"), Route::Root);
    assert_eq!(parse("/livez/ping").expect("health"), Route::Health);
    assert_eq!(parse("/apis/apps/v1").expect("resources"), Route::Resources("apps".into(), "v1".into()));
    assert_eq!(parse("/openapi/v3/api/v1").expect("openapi"), Route::OpenApi("v3/api/v1".into()));
}
