//! How the whole command line is read.

use clap::CommandFactory;

use super::*;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("nestbox").chain(line.iter().copied()))
}

fn good(line: &[&str]) -> Cli {
    parse(line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_commands_own_flags_are_not_ours() {
    let cli = good(&["exec", "abc", "--cwd", "/tmp", "--", "ls", "--json", "-e", "--", "x"]);
    assert!(!cli.global.json);
    let Command::Exec(args) = cli.command else { panic!("not exec") };
    let request = args.into_request();
    assert_eq!(request.cmd, "ls");
    assert_eq!(request.args, ["--json", "-e", "--", "x"]);
    assert_eq!(request.cwd.as_deref(), Some("/tmp"));
}

#[test]
fn one_word_is_a_command_without_arguments_and_no_shell_line() {
    let Command::Exec(args) = good(&["exec", "abc", "--", "echo $HOME"]).command else {
        panic!("not exec")
    };
    let request = args.into_request();
    assert_eq!((request.cmd.as_str(), request.args.len()), ("echo $HOME", 0));
}

#[test]
fn global_flags_stand_before_or_after_the_verb() {
    for line in [["--json", "ls"], ["ls", "--json"]] {
        assert!(good(&line).global.json);
    }
}

#[test]
fn create_takes_what_the_api_takes() {
    let line = "create --template py3 --vcpus 2 --memory-mb 1024 --timeout-sec 60 \
                -e A=1 -e B=x=y --metadata team=birds --idempotency-key once";
    let Command::Create(args) = good(&line.split_whitespace().collect::<Vec<_>>()).command else {
        panic!("not create")
    };
    let request: client::CreateRequest = args.spec.into();
    let json = serde_json::to_value(request).unwrap();
    let want = serde_json::json!({
        "template": "py3", "vcpus": 2, "memory_mb": 1024, "timeout_sec": 60,
        "envs": {"A": "1", "B": "x=y"}, "metadata": {"team": "birds"},
    });
    assert_eq!(json, want);
}

#[test]
fn what_takes_its_time_can_be_traced() {
    let tracing = |line: &[&str]| match good(line).command {
        Command::Create(args) => args.trace.tracing(),
        Command::Pause(args) | Command::Resume(args) => args.trace.tracing(),
        Command::Fork(args) => args.trace.tracing(),
        other => panic!("{other:?}"),
    };
    for line in [&["create"] as &[&str], &["pause", "a"], &["resume", "a"], &["fork", "a"]] {
        assert_eq!(tracing(line), client::Tracing::Off, "{line:?}");
        let traced = [line, &["--trace"]].concat();
        assert_eq!(tracing(&traced), client::Tracing::On, "{traced:?}");
    }
}

#[test]
fn several_sandboxes_are_paused_and_resumed_at_once() {
    for verb in ["pause", "resume"] {
        let (Command::Pause(args) | Command::Resume(args)) = good(&[verb, "a", "b"]).command else {
            panic!("not {verb}")
        };
        assert_eq!(args.ids, ["a", "b"]);
    }
}

#[test]
fn one_copy_is_made_unless_more_are_asked_for() {
    for (line, want) in [(&["fork", "a"] as &[&str], 1), (&["fork", "a", "--count", "16"], 16)] {
        let Command::Fork(args) = good(line).command else { panic!("not fork") };
        assert_eq!(args.count, want);
    }
}

#[test]
fn a_snapshot_replaces_another_only_when_told_to() {
    for (line, overwrite) in [
        (&["snapshot", "create", "abc", "py3"] as &[&str], false),
        (&["snapshot", "create", "abc", "py3", "--overwrite"], true),
    ] {
        let Command::Snapshot(snapshot::SnapshotCommand::Create(args)) = good(line).command else {
            panic!("not snapshot create")
        };
        let json = serde_json::to_value(args.into_request("k3v9".to_owned())).unwrap();
        let want = serde_json::json!({"sandbox_id": "k3v9", "name": "py3", "overwrite": overwrite});
        assert_eq!(json, want);
    }
}

#[test]
fn what_is_not_said_is_left_to_the_daemon() {
    let Command::Create(args) = good(&["create"]).command else { panic!("not create") };
    let json = serde_json::to_string(&client::CreateRequest::from(args.spec)).unwrap();
    assert_eq!(json, r#"{"template":"debian"}"#);
}

#[test]
fn events_begin_with_the_last_ones_unless_it_is_said_where() {
    for line in [&["events"] as &[&str], &["events", "-f", "--sandbox", "abc", "--json"]] {
        assert!(matches!(good(line).command, Command::Events(_)), "{line:?}");
    }
    good(&["events", "--follow", "--after", "12"]);
    good(&["events", "--follow", "--last", "0"]);
}

#[test]
fn inspect_is_another_name_for_get() {
    assert!(matches!(good(&["inspect", "abc"]).command, Command::Get(_)));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for line in [
        &["exec", "abc"] as &[&str],
        &["exec", "abc", "ls"],
        &["exec", "--", "ls"],
        &["run"],
        &["run", "ls"],
        &["rm"],
        &["rm", "abc", "--all"],
        &["cp", "a"],
        &["create", "--vcpus", "0"],
        &["create", "--vcpus", "many"],
        &["create", "-e", "=x"],
        &["create", "--metadata", "x"],
        &["ls", "--state", "asleep"],
        &["ls", "--state", "running", "--all"],
        &["key"],
        &["key", "create"],
        &["pause"],
        &["resume", "--trace"],
        &["fork"],
        &["fork", "a", "b"],
        &["fork", "a", "--count", "0"],
        &["fork", "a", "--count", "17"],
        &["exec", "a", "--trace", "--", "ls"],
        &["run", "--trace", "--", "ls"],
        &["snapshot"],
        &["snapshot", "create", "a"],
        &["snapshot", "create", "a", "../up"],
        &["snapshot", "rm"],
        &["snapshot", "rm", "good", "Bad"],
        &["events", "abc"],
        &["events", "--last", "1001"],
        &["events", "--last", "5", "--after", "7"],
        &["top", "abc"],
        &["top", "--every", "0"],
        &["completions"],
        &["completions", "tcsh"],
        &["fly"],
    ] {
        let error = parse(line).map(|_| ()).unwrap_err();
        assert!(error.use_stderr(), "{line:?}");
    }
}

#[test]
fn help_is_no_failure_and_tells_the_exit_codes() {
    let error = parse(&["--help"]).map(|_| ()).unwrap_err();
    assert!(!error.use_stderr());
    let text = error.to_string();
    for code in ["125", "126", "127"] {
        assert!(text.contains(code), "{text}");
    }
}

#[test]
fn states_are_listed_with_commas_or_one_by_one() {
    for line in [
        &["ls", "--state", "running,paused"] as &[&str],
        &["ls", "--state", "running", "--state", "paused"],
    ] {
        assert!(matches!(good(line).command, Command::Ls(_)));
    }
}
