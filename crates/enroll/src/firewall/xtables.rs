//! Scripts for `iptables-restore --noflush`: what is ours is replaced, what is others' is not read and not changed.
//!
//! iptables knows no "delete if it is there", so a script depends on what `iptables-save` shows ([`Present`]). Each
//! table of a script is one transaction of its own.

use std::collections::BTreeMap;
use std::fmt::Write;

use netns::NetNs;

use super::{Error, Variant, run};

/// Which of a set of chains are there, and how often others jump to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    chains: Vec<(String, String)>,
    jumps: BTreeMap<(String, String, String), usize>,
}

impl Present {
    /// Reads the output of `iptables-save`.
    pub fn read(save: &str) -> Self {
        let mut present = Self::default();
        let mut table = "";
        for line in save.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_whitespace().next().unwrap_or_default();
                present.chains.push((table.to_owned(), name.to_owned()));
            } else if let Some(rule) = line.strip_prefix("-A ")
                && let [from, "-j", to] = rule.split_whitespace().collect::<Vec<_>>()[..]
            {
                *present.jumps.entry((table.to_owned(), from.to_owned(), to.to_owned())).or_default() += 1;
            }
        }
        present
    }

    fn has(&self, table: &str, chain: &str) -> bool {
        self.chains.iter().any(|(t, c)| t == table && c == chain)
    }

    fn jumps(&self, table: &str, from: &str, to: &str) -> usize {
        self.jumps.get(&(table.to_owned(), from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }
}

/// One of our chains: the built-in one that jumps to it, and its rules.
#[derive(Clone, Debug)]
pub struct Chain {
    /// `nat`, `mangle`, `raw` or `filter`.
    pub table: &'static str,
    /// The built-in chain.
    pub hook: &'static str,
    /// Ours.
    pub name: &'static str,
    /// Its rules, each what follows `-A <name> `.
    pub rules: Vec<String>,
    /// Whether it is to be there.
    pub wanted: bool,
}

/// The script that makes `chains` what they are to be, given what is `present`; nothing when there is nothing to do.
/// Our jumps stand first, so that a rule of somebody else's that accepts never hides them.
pub fn script(present: &Present, chains: &[Chain]) -> String {
    let mut out = String::new();
    let tables: Vec<&str> = chains.iter().fold(Vec::new(), |mut all, chain| {
        if !all.contains(&chain.table) {
            all.push(chain.table);
        }
        all
    });
    for table in tables {
        let ours = || chains.iter().filter(|chain| chain.table == table);
        if !ours().any(|chain| chain.wanted || present.has(table, chain.name)) {
            continue;
        }
        let concerned = || ours().filter(|chain| chain.wanted || present.has(table, chain.name));
        let _ = writeln!(out, "*{table}");
        for chain in concerned() {
            let _ = writeln!(out, ":{} - [0:0]", chain.name);
        }
        for chain in concerned() {
            for _ in 0..present.jumps(table, chain.hook, chain.name) {
                let _ = writeln!(out, "-D {} -j {}", chain.hook, chain.name);
            }
            if chain.wanted {
                for rule in &chain.rules {
                    let _ = writeln!(out, "-A {} {rule}", chain.name);
                }
                let _ = writeln!(out, "-I {} 1 -j {}", chain.hook, chain.name);
            } else {
                let _ = writeln!(out, "-X {}", chain.name);
            }
        }
        let _ = writeln!(out, "COMMIT");
    }
    out
}

/// Makes `chains` what they are to be in `namespace`, or in the caller's own one. A family whose programs are
/// missing is an error only when something is wanted of it.
pub async fn apply(
    namespace: Option<&NetNs>,
    variant: Variant,
    ipv6: bool,
    chains: &[Chain],
) -> Result<(), Error> {
    let save = run(namespace, &variant.program(ipv6, "save"), &[], "").await;
    let wanted = chains.iter().any(|chain| chain.wanted);
    let save = match save {
        Err(Error::Start { .. } | Error::Refused { .. }) if !wanted => return Ok(()),
        save => save?,
    };
    let script = script(&Present::read(&save), chains);
    if script.is_empty() {
        return Ok(());
    }
    run(namespace, &variant.program(ipv6, "restore"), &["--noflush", "-w", "5"], &script).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(wanted: bool) -> Chain {
        Chain { table: "nat", hook: "OUTPUT", name: "OURS", rules: vec!["-j ACCEPT".to_owned()], wanted }
    }

    #[test]
    fn what_is_there_is_replaced_however_often_it_is_there() {
        let save = "*nat\n:OUTPUT ACCEPT [0:0]\n:OURS - [0:0]\n-A OUTPUT -j OURS\n-A OUTPUT -j OURS\n-A OURS -j ACCEPT\nCOMMIT\n";
        let script = script(&Present::read(save), &[chain(true)]);
        assert_eq!(script.matches("-D OUTPUT -j OURS").count(), 2);
        assert_eq!(script.matches("-I OUTPUT 1 -j OURS").count(), 1);
        assert_eq!(script.matches("-A OURS").count(), 1);
    }

    #[test]
    fn what_is_not_there_is_not_removed() {
        assert_eq!(script(&Present::read(""), &[chain(false)]), "");
        let save = "*nat\n:OURS - [0:0]\nCOMMIT\n*mangle\n-A OUTPUT -j OURS\nCOMMIT\n";
        assert_eq!(script(&Present::read(save), &[chain(false)]), "*nat\n:OURS - [0:0]\n-X OURS\nCOMMIT\n");
    }
}
