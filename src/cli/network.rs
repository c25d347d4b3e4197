//! `network`: what a sandbox may reach. The flags are also part of `create` and `run`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::{Client, NetworkRequest};
use super::output::Format;
use super::resolve::resolve;
use crate::domain::egress::{Policy, Rule, Verdict};

/// Arguments of `network`.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    #[command(flatten)]
    egress: EgressArgs,
    /// Let it reach everything but private networks
    #[arg(long, conflicts_with_all = ["no_network", "default", "allow", "deny"])]
    on: bool,
}

/// What a sandbox may reach.
#[derive(Debug, Args)]
pub struct EgressArgs {
    /// Address, network or name (*.example.com for all below it) that it may reach; without --deny
    /// it reaches nothing else. A name stands for TLS and HTTP, and with a port (example.com:22) for
    /// anything on that one
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    allow: Vec<Rule>,
    /// Address, network or name that it may not reach, unless --allow says so
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    deny: Vec<Rule>,
    /// What goes for all that no rule names: with allow, --allow adds private networks to the rest
    #[arg(long, value_name = "allow|deny", value_parser = verdict, conflicts_with = "no_network")]
    default: Option<Verdict>,
    /// Let it reach nothing, or only what --allow says
    #[arg(long, visible_alias = "off")]
    no_network: bool,
}

impl EgressArgs {
    /// What the flags ask for; nothing if there are none.
    pub(super) fn into_request(self) -> Option<NetworkRequest> {
        let Self { allow, deny, default, no_network } = self;
        let default = default.or(no_network.then_some(Verdict::Deny));
        let asked = default.is_some() || !allow.is_empty() || !deny.is_empty();
        asked.then_some(NetworkRequest { default, allow, deny })
    }
}

fn verdict(word: &str) -> Result<Verdict, &'static str> {
    match word {
        "allow" => Ok(Verdict::Allow),
        "deny" => Ok(Verdict::Deny),
        _ => Err("it is allow or deny"),
    }
}

pub(super) async fn run(client: &Client, format: Format, args: NetworkArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    let wanted = match args.on {
        true => Some(NetworkRequest::default()),
        false => args.egress.into_request(),
    };
    let policy = match wanted {
        Some(wanted) => client.set_network(&id, &wanted).await?,
        None => client.network(&id).await?,
    };
    format.print(&policy, || describe(&policy))?;
    Ok(ExitCode::SUCCESS)
}

/// One line a list; what is empty is left out.
fn describe(policy: &Policy) -> String {
    let default = match policy.by_default() {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    };
    let rules: Vec<_> = [("allow", list(policy.allow())), ("deny", list(policy.deny()))]
        .into_iter()
        .filter(|(_, rules)| !rules.is_empty())
        .map(|(name, rules)| format!("{:9}{rules}\n", format!("{name}:")))
        .collect();
    format!("default: {default}\n{}", rules.concat())
}

fn list<'a>(rules: impl Iterator<Item = &'a Rule>) -> String {
    rules.map(Rule::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        egress: EgressArgs,
    }

    fn request(flags: &[&str]) -> serde_json::Value {
        let flags = Flags::try_parse_from(["nestbox"].iter().chain(flags)).expect("flags");
        serde_json::to_value(flags.egress.into_request()).expect("writes")
    }

    #[test]
    fn flags_ask_for_a_policy_and_none_for_nothing() {
        assert_eq!(request(&[]), serde_json::Value::Null);
        let lists =
            request(&["--allow", "a.com,10.0.0.0/8", "--allow", "*.b.com", "--deny", "1.2.3.4"]);
        let rules = serde_json::json!(["a.com", "10.0.0.0/8", "*.b.com"]);
        assert_eq!(lists, serde_json::json!({ "allow": rules, "deny": ["1.2.3.4"] }));
        let off = serde_json::json!({ "default": "deny", "allow": [], "deny": [] });
        assert_eq!((request(&["--no-network"]), request(&["--off"])), (off.clone(), off));
        let more = request(&["--default", "allow", "--allow", "10.1.2.3,a.com:22"]);
        let rules = serde_json::json!(["10.1.2.3", "a.com:22"]);
        assert_eq!(more, serde_json::json!({ "default": "allow", "allow": rules, "deny": [] }));
        for wrong in [["--allow", "10.0.0.0/99"], ["--allow", "10.0.0.1:80"], ["--default", "no"]] {
            assert!(Flags::try_parse_from(["nestbox"].iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_policy_is_shown_line_by_line() {
        let policy = r#"{"allow": ["a.com", "10.0.0.0/8"], "deny": ["*.b.com"]}"#;
        let policy = serde_json::from_str(policy).expect("a policy");
        assert_eq!(
            describe(&policy),
            "default: allow\nallow:   10.0.0.0/8, a.com\ndeny:    *.b.com\n"
        );
        assert_eq!(describe(&Policy::off()), "default: deny\n");
    }
}
