use super::*;

fn host(files: &[(&str, &str)], variables: &[(&str, &str)]) -> Registries {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    Registries::from(dir.path(), Path::new("root"), &variable)
}

fn certificate(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_machine_without_mirrors_gives_nothing() {
    let found = host(&[("etc/pip.conf", "[global]\ntimeout = 9\n[list]\nindex-url = x\n")], &[]);
    assert_eq!(found, Registries::default());
}

#[test]
fn the_nearer_setting_counts_and_the_environment_most() {
    let files = [
        (
            "etc/pip.conf",
            "[global]\nindex-url = https://a.example/simple\ntrusted-host = a.example\n",
        ),
        ("root/.config/pip/pip.conf", "# mine\n[install]\nindex_url: https://b.example/simple\n"),
        ("usr/etc/npmrc", "registry=https://a.example/npm\nfund=false\n"),
        (
            "root/.npmrc",
            "; mine\nregistry = \"https://b.example/npm\"\n@me:registry=https://me.example/\n",
        ),
    ];
    let found = host(&files, &[]);
    assert_eq!(found.pip, "[global]\ntrusted-host=a.example\nindex-url=https://b.example/simple\n");
    assert_eq!(found.npm, "registry=https://b.example/npm\n@me:registry=https://me.example/\n");
    let variables = [
        ("PIP_INDEX_URL", "https://c.example/simple"),
        ("npm_config_registry", "https://c.example/"),
    ];
    let found = host(&files, &variables);
    assert!(found.pip.contains("index-url=https://c.example/simple\n"), "{found:?}");
    assert!(found.npm.contains("\nregistry=https://c.example/\n"), "{found:?}");
    assert!(!format!("{found:?}").contains("b.example/simple"), "{found:?}");
}

#[test]
fn logins_stay_on_the_host() {
    let files = [
        (
            "etc/pip.conf",
            "[global]\nindex-url = https://me:secret@a.example/simple\n\
             extra-index-url =\n    https://secret@b.example/simple\n    http://localhost:3141/x\n",
        ),
        (
            "root/.npmrc",
            "registry=https://me:secret@a.example/npm\n//a.example/npm:_authToken=secret\n\
             _auth=secret\n@x:registry=https://x.example/${SECRET}\nemail=secret@a.example\n",
        ),
    ];
    let found = host(&files, &[("PIP_TRUSTED_HOST", "a.example")]);
    assert_eq!(
        found.pip,
        "[global]\nindex-url=https://a.example/simple\n\
         extra-index-url=https://b.example/simple\ntrusted-host=a.example\n"
    );
    assert_eq!(found.npm, "registry=https://a.example/npm\n");
}

#[test]
fn a_mirror_on_the_host_itself_is_none_in_a_guest() {
    for url in ["http://localhost:3141/x", "http://127.0.0.1/x", "http://me@[::1]:1/", "file:///x"]
    {
        let found = host(&[], &[("PIP_INDEX_URL", url), ("NPM_CONFIG_REGISTRY", url)]);
        assert_eq!(found, Registries::default(), "{url}");
    }
}

#[test]
fn only_authorities_that_debian_does_not_bring_are_taken_and_then_used() {
    let known = certificate("AAAA");
    let (all, broken) = (certificate("AA\nAA") + &certificate("BBBB"), certificate("no base64!"));
    let bundle = all + &broken;
    let files = [("usr/share/ca-certificates/mozilla/a.crt", known.as_str()), (BUNDLE, &bundle)];
    let found = host(&files, &[]);
    assert_eq!(found.certificates, [certificate("BBBB")]);
    assert_eq!(found.pip, format!("[global]\ncert=/{BUNDLE}\n"));
    assert_eq!(found.npm, format!("cafile=/{BUNDLE}\n"));
    assert_eq!(host(&files[1..], &[]), Registries::default(), "not kept as Debian does");

    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("etc")).unwrap();
    write(&found, tree.path()).unwrap();
    let written = fs::read_to_string(tree.path().join(LOCAL).join("host-0.crt")).unwrap();
    assert_eq!(written, certificate("BBBB"));
}
