#!/usr/bin/env bash
# A real Prometheus against real engines, which the caller has started and keeps busy: scrapes once a second, evaluates the rules once a second, and
# after a while asks for every expression of every dashboard and rule (check_live.py).
#
#     dashboards/live.sh HOST:PORT[,HOST:PORT...] [SECONDS]      default 60 s
set -euo pipefail
cd "$(dirname "$0")"

addresses=${1:?usage: dashboards/live.sh HOST:PORT[,HOST:PORT...] [SECONDS]}
seconds=${2:-60}
prometheus=$(command -v prometheus) || { echo "prometheus is missing: apt-get install --no-install-recommends prometheus" >&2; exit 1; }

work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/prometheus.yml" <<YAML
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files:
  - $PWD/prometheus/argon-*.yml
scrape_configs:
  - job_name: argon
    static_configs:
      - targets: [${addresses}]
YAML
promtool check config "$work/prometheus.yml" >/dev/null

"$prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$port" \
    --log.level=warn 2>"$work/log" &
server=$!
python3 - "$port" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import sys, time, urllib.request
for _ in range(300):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/-/ready", timeout=1)
        sys.exit(0)
    except OSError:
        time.sleep(0.1)
sys.exit("prometheus does not get ready")
PYTHON
sleep "$seconds"
kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
python3 check_live.py "http://127.0.0.1:$port"
