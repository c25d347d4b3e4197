//! Settings from their layers, and wrong ones.

use super::*;

#[test]
fn every_setting_has_a_flag() {
    let args = ConfigArgs {
        config: None,
        listen: Some(Config::default().listen),
        domain: Some(String::new()),
        host_names: vec![String::new()],
        database_url: Some(String::new()),
        hypervisor: Some(HypervisorChoice::Auto),
        firecracker: Some(PathBuf::new()),
        jailer: Some(JailerChoice::On),
        allow_missing: vec![Wall::Cpu],
        image_dir: Some(PathBuf::new()),
        memory_reserve_mib: Some(1),
        allow_lan: Some(true),
        dns_rate: Some(1),
        disk_bytes_per_sec: Some(1),
        disk_ops_per_sec: Some(1),
        network_bytes_per_sec: Some(1),
        slot_pool: Some(1),
        standbys: Some(1),
        vmm_pool: Some(1),
        vm_uid_base: Some(1),
        fault: Some(String::new()),
        boot_timeout_sec: Some(1),
        vmm_timeout_sec: Some(1),
        log: Some(String::new()),
        log_format: Some(LogFormat::Text),
        otlp_endpoint: Some(String::new()),
    };
    let flags = serde_json::to_value(args).expect("plain data");
    for name in field_names().iter().filter(|name| *name != "data_dir") {
        assert!(flags.get(name).is_some(), "{name} has no flag");
    }
}

#[test]
fn a_later_layer_wins() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:1\"\nslot_pool = 3\n").expect("writes");
    let args = ConfigArgs {
        config: Some(file),
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
        ..ConfigArgs::default()
    };
    let config = Config::load(&args, Some(Path::new("/data"))).expect("loads");
    assert_eq!((config.listen.port(), config.slot_pool), (2, 3));
    assert_eq!(config.image_dir(), Path::new("/data/images"));
}

#[test]
fn a_wrong_or_unknown_setting_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    let wrong = [
        ("listn = 1", "listn"),
        ("listen = \"nowhere\"", "listen"),
        ("slot_pool = -1", "slot_pool"),
        ("slot_pool = 257", "slot_pool is 257: at most 256"),
        ("standbys = 257", "standbys is 257: at most 256"),
        ("vmm_pool = 1000000000000", "vmm_pool is 1000000000000: at most 256"),
        ("boot_timeout_sec = 0", "boot_timeout_sec is 0: a guest has 1 to 3600 seconds"),
        ("boot_timeout_sec = 3601", "boot_timeout_sec is 3601"),
        ("vmm_timeout_sec = -1", "vmm_timeout_sec"),
        ("vmm_timeout_sec = 4", "vmm_timeout_sec is 4: it is 5 to 86400, or 0 for never"),
        ("vm_uid_base = 1000", "vm_uid_base is 1000: the users of VMs begin from 65536"),
        ("vm_uid_base = 4294967295", "vm_uid_base is 4294967295"),
        ("allow_missing = \"memory, ceiling\"", "ceiling"),
        ("host_names = [\"http://a\"]", "\"http://a\" in host_names"),
        ("host_names = \"a, b:80\"", "\"b:80\" in host_names"),
        ("allow_lan = \"some\"", "allow_lan"),
        ("disk_ops_per_sec = 1", "disk_ops_per_sec is 1: it is 10 to 1000000000"),
        ("network_bytes_per_sec = 5000000000", "network_bytes_per_sec is 5000000000"),
        ("dns_rate = 0", "dns_rate is 0: a sandbox asks for 1 to 10000 names a second"),
    ];
    for (text, name) in wrong {
        std::fs::write(&file, text).expect("writes");
        let args = ConfigArgs { config: Some(file.clone()), ..ConfigArgs::default() };
        let error = Config::load(&args, None).expect_err("is refused");
        assert!(crate::chain(&error).to_string().contains(name), "{name}: {error:?}");
    }
}

#[test]
fn names_are_a_list_or_a_text_with_commas() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    for text in ["host_names = [\"a.example\", \"b\"]", "host_names = \"a.example, b\""] {
        std::fs::write(&file, text).expect("writes");
        let args = ConfigArgs { config: Some(file.clone()), ..ConfigArgs::default() };
        let config = Config::load(&args, None).expect("loads");
        assert_eq!(config.host_names, ["a.example", "b"], "{text}");
    }
}
