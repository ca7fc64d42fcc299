#!/usr/bin/env bash
# What the flow stream costs the data plane: new connections as fast as they go between two pods on two nodes, with
# the node proxies told of an observer (FLOW_ADDRESS) and without, by turns. Prints connections a second and the
# processor time of both proxies for each connection. Needs root, wrk and Debian's packages of the lab.
#
#   AMBIT=target/release/ambit crates/ambit/tests/view/flow-cost.sh [TURNS] [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/../../../.."
AMBIT=${AMBIT:-target/release/ambit} TURNS=${1:-4} SECONDS_EACH=${2:-8} NAME=${NAME:-flowcost}
HOME=$(mktemp -d); export HOME KUBECONFIG="$HOME/kubeconfig"
trap '"$AMBIT" lab down --name "$NAME" >/dev/null 2>&1; rm -rf "$HOME"' EXIT

cat >"$HOME/load.yaml" <<'END'
apiVersion: v1
kind: Namespace
metadata: {name: load, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: load}
data:
  nginx.conf: |
    daemon off;
    pid /tmp/nginx.pid;
    worker_processes 1;
    error_log stderr;
    events { worker_connections 4096; }
    http {
      access_log off;
      client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
      server { listen 8080 backlog=4096; keepalive_timeout 0; location / { return 200 "hello\n"; } }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: load, labels: {app: server}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers:
    - name: nginx
      image: nginx
      command: [nginx, -e, stderr, -c, /etc/web/nginx.conf]
      volumeMounts: [{name: config, mountPath: /etc/web}]
  volumes: [{name: config, configMap: {name: web}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: load, labels: {app: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: sleep, image: ambit, args: [lab, app, --name, client, --port, "9999"]}]
END
"$AMBIT" lab up --name "$NAME" --kubeconfig "$KUBECONFIG" -f "$HOME/load.yaml" >/dev/null 2>&1
"$AMBIT" install --set profile=ambient --kubeconfig "$KUBECONFIG" >/dev/null 2>&1
wait_for() { for _ in $(seq 300); do "$@" && return; sleep 0.2; done; echo "no longer waiting for: $*" >&2; exit 1; }
captured() { [ "$(kubectl get pods -n load -o 'jsonpath={.items[*].metadata.annotations.ambient\.istio\.io/redirection}')" = "enabled enabled" ]; }
wait_for captured
SERVER=$(kubectl get pod -n load server -o 'jsonpath={.status.podIP}')
ADDRESS=$(kubectl get ds -n ambit-system ambit-proxy -o 'jsonpath={.spec.template.spec.containers[0].env[?(@.name=="FLOW_ADDRESS")].value}')

# Closed connections would keep their ports for a minute, and 28,000 of them would be the limit rather than a processor.
for cgroup in /proc/[0-9]*/cgroup; do
  pid=${cgroup//[^0-9]/}
  grep -q "ambit-$NAME/" "$cgroup" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -Eq '^nginx|lab app' || continue
  nsenter --target "$pid" --net sysctl -qw net.ipv4.tcp_max_tw_buckets=64 net.ipv4.ip_local_port_range="2000 65000"
done

# Ticks of the processor that the proxies of this lab have used; each line is one proxy.
ticks() {
  for stat in /proc/[0-9]*/stat; do
    pid=${stat//[^0-9]/}
    grep -q "ambit-$NAME/" "/proc/$pid/cgroup" 2>/dev/null || continue
    [ "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -d' ' -f2)" = proxy ] || continue
    sed 's/.*) //' "$stat" | cut -d' ' -f12,13
  done | awk '{ sum += $1 + $2 } END { print sum + 0 }'
}
load() { "$AMBIT" lab exec --name "$NAME" load/client -- wrk -t1 -c"${CONNECTIONS:-8}" -d"$1s" -H 'Connection: close' "http://$SERVER:8080/"; }
turn() {
  kubectl set env -n ambit-system ds/ambit-proxy "FLOW_ADDRESS=$2" >/dev/null
  kubectl rollout status -n ambit-system ds/ambit-proxy --timeout=60s >/dev/null
  sleep 1; load 2 >/dev/null
  before=$(ticks); load "$SECONDS_EACH" >"$HOME/out"; after=$(ticks); out=$(<"$HOME/out")
  requests=$(awk '/requests in/ { print $1 }' <<<"$out")
  errors=$(grep -c 'Socket errors\|Non-2xx' <<<"$out" || true)
  awk -v n="$requests" -v t="$((after - before))" -v s="$SECONDS_EACH" -v hz="$(getconf CLK_TCK)" -v e="$errors" -v w="$1" \
    'BEGIN { printf "%s %.0f connections/s, %.2f us of processor time each%s\n", w, n / s, t / hz * 1e6 / n, e ? " (with errors)" : "" }'
}
for _ in $(seq "$TURNS"); do turn off ""; turn on "$ADDRESS"; done
