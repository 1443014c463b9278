//! Nothing leaves a domain before it has been looked at.

use super::host::host;

const POLICY: &str =
    "printf '[process]\\ndeny = [\"xmrig\"]\\n[gate]\\nhold_budget_ms = 60000\\n' >/tmp/policy.toml";

#[test]
fn smoke() {
    let mut host = host();
    let mut guest = host.guest_at("web1", "10.9.0.2");
    guest.start_workload(2, 8).unwrap();
    host.script("web1", POLICY);
    println!("{}", host.script("web1", "varve --json gate web1 --policy /tmp/policy.toml --epochs 8 >/tmp/gate 2>&1 </dev/null & 
ping -c 30 -i 0.3 10.9.0.2 >/tmp/ping 2>&1 </dev/null || true; wait; cat /tmp/gate /tmp/ping /var/log/varve/gate-web1.jsonl; varve gate --status; tc -s qdisc show; ls -la /run/varve; varve gate web1 --off; ping -c 2 10.9.0.2"));
}
