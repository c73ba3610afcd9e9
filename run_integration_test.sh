#!/usr/bin/env bash
# The worker system against real servers: six validations, each with its figures. Needs what the README's two commands need, about two minutes, and no server.
#
#     ./run_integration_test.sh                     builds what is missing, then runs
#     ARGON_BIN=DIR ./run_integration_test.sh       with the binaries argon and argon-loadgen of a directory
#
# Exit code 0: all six hold. 1: one does not, or could not be tried.
set -euo pipefail
cd "$(dirname "$0")"

bin=${ARGON_BIN:-target/release}
[ -n "${ARGON_BIN:-}" ] || cargo build --release --workspace
work=$(mktemp -d)
demo=
finish() {
    [ -z "$demo" ] || { kill -TERM "$demo" 2>/dev/null && wait "$demo" 2>/dev/null; } || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

# A database of its own, an engine, a live load and the interface; retries come after a second instead of half a minute.
JOB_RETRY_DELAY=1s "$bin/argon" demo --serve --changes 5000 >"$work/demo" 2>&1 &
demo=$!
for _ in $(seq 600); do
    grep -q "The load goes on" "$work/demo" && break
    kill -0 "$demo" 2>/dev/null || { cat "$work/demo" >&2; exit 1; }
    sleep 0.2
done
grep -q "verified: identical" "$work/demo" || { cat "$work/demo" >&2; exit 1; }
address=$(sed -n 's/.*the status page is \(http[^ ]*\)\/$/\1/p' "$work/demo")

python3 - "$address" "$bin" <<'PYTHON'
import json, subprocess, sys, time, urllib.request

BASE = sys.argv[1] + "/api/v1"


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait(what, ready, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = ready()
        if found is not None:
            return found
        time.sleep(0.2)
    sys.exit(f"FAILED: {what} did not come within {seconds} s")


def holds(n, name, ok, figures):
    print(f"{n}. {name}: {'ok' if ok else 'FAILED'}  {figures}", flush=True)
    if not ok:
        sys.exit(1)


def pool():
    return next(engine for engine in ask("/workers/stats")["engines"] if engine["this"])["pool"]


def state(name):
    return len(ask(f"/jobs?kind=noop&state={name}&limit=200")["jobs"])


# 1
began = pool()["current"]
ask("/workers/scale", {"target_workers": 8})
grown = wait("8 workers", lambda: pool()["current"] if pool()["current"] == 8 else None)
ask("/workers/scale", {"target_workers": 2})
shrunk = wait("2 workers", lambda: pool()["current"] if pool()["current"] == 2 else None)
ask("/workers/scale", {"release": True})
for _ in range(2):
    ask("/jobs", {"kind": "noop", "count": 1000, "duration_ms": 50})
loaded = wait("more workers under load", lambda: pool()["current"] if pool()["current"] > began else None)
wait("the end of the load", lambda: True if state("ready") + state("running") == 0 else None)
holds(1, "pool start and scaling", began >= 1, f"{began} workers at first, {grown} and then {shrunk} when asked, {loaded} by itself under load")

# 2
count, begin = 200, time.monotonic()
made = ask("/jobs", {"kind": "noop", "count": count, "duration_ms": 5})["created"]
wait("the end of the jobs", lambda: True if state("ready") + state("running") + state("scheduled") == 0 else None)
took = time.monotonic() - begin
holds(2, "job submission and processing", made == count and state("dead") == 0, f"{count} jobs in {took:.1f} s, none dead")

# 3
branch = next(b for b in ask("/branches")["branches"] if b["name"] == "demo/main")
time.sleep(5)
later = next(b for b in ask("/branches")["branches"] if b["name"] == "demo/main")
changes = later["totals"]["changes"] - branch["totals"]["changes"]
segments = later["totals"]["segments"] - branch["totals"]["segments"]
holds(3, "change stream batching", segments > 0 and changes > 10 * segments, f"{changes} changes in {segments} batches within 5 s")

# 4
stats = ask(f"/branches/{later['id']}/stats")
repeated = json.loads(subprocess.run([f"{sys.argv[2]}/argon-loadgen", "bench", "repeated", "--json"], check=True, capture_output=True).stdout)
saved = 100 - repeated["stored_percent"]
holds(4, "compression", stats["compression_ratio"] > 2 and saved >= 95, f"{stats['saved_percent']} % saved of mixed operations, {saved:.1f} % of repeated ones")

# 5
before = ask("/workers/stats")["summary"]["total_failed"]
ask("/jobs", {"kind": "noop", "count": 60, "duration_ms": 1, "failure_rate": 0.3, "retries": 20})
wait("the end of the retries", lambda: True if state("ready") + state("running") + state("scheduled") == 0 else None, 180)
failed, lost = ask("/workers/stats")["summary"]["total_failed"] - before, state("dead")
ask("/jobs", {"kind": "noop", "count": 3, "failure_rate": 1.0, "retries": 0})
dead = wait("3 dead jobs", lambda: state("dead") if state("dead") == 3 else None)
holds(5, "errors and retries", failed > 0 and lost == 0, f"{failed} attempts failed, all 60 jobs were done in the end; {dead} jobs without retries are dead and kept")
PYTHON

kill -TERM "$demo" && wait "$demo"
demo=

"$bin/argon-loadgen" bench live --profile insert --rate 10000 --duration 15s --store file --json >"$work/live" 2>"$work/live.err" ||
    { cat "$work/live.err" >&2; exit 1; }
python3 - "$work/live" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
delay, rate, job = report["delay_ms"], report["changes_per_s"], report["job_ms"]
ok = rate >= 9_000 and delay["p99"] < 1_000 and job < 50
print(f"6. performance under load: {'ok' if ok else 'FAILED'}  {rate:,.0f} inserts a second for 15 s: from commit to committed segment p50 {delay['p50']:.0f} ms, p99 {delay['p99']:.0f} ms, a job {job:.1f} ms")
sys.exit(0 if ok else 1)
PYTHON
echo "all six validations hold"
