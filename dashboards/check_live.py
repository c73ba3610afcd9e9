#!/usr/bin/env python3
"""Asks a real Prometheus for every expression of every dashboard and rule, and names those that return no data.

    python3 dashboards/check_live.py http://127.0.0.1:9090     that Prometheus has the rules loaded and scrapes an engine under load
    python3 dashboards/check_live.py --as-rules                the dashboards' expressions as a file for `promtool check rules`

Of an alert, which should not fire, every selector must return data: an alert about a name or a label that nobody exports never fires.
Exit code 1 when something that must not be empty is, when a rule or a query fails, or when a target is down. dashboards/live.sh runs it.
"""

import json
import math
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
VARIABLES = {"$job": ".*", "$engine": ".*", "$branch": ".*", "$__rate_interval": "1m", "$__interval": "15s", "$__range": "10m"}

# Selectors that may be empty in a healthy engine under load, and why. The first one that fits counts; a pattern must fit at the beginning.
# An expression may be empty if it has one of them and its other selectors are not.
MAY_BE_EMPTY = [
    (r"ALERTS\b", "nothing is wrong"),
    (r'argon_branch_status\{.*status="(?!active)', "no branch has this status"),
    (r'argon_branches\{.*status="(?!active)', "no branch has this status"),
    (r'argon_captures\{.*state="(?!running)', "no capture is in this state"),
    (r"argon_branch_proven_timestamp_seconds\b", "no drill has been made yet"),
    (r"argon_capture_gaps_total\b", "no gap has been recorded"),
    (r"argon_capture_resumes_total\b", "no stream has been opened again"),
    (r"argon_store_free_bytes\b", "the store is no file system"),
    (r"argon_store_errors_total\b", "no operation has failed"),
    (r"argon_store_retries_total\b", "no upload was tried again"),
    (r'argon_job_attempts_total\{.*outcome="failed"', "no attempt has failed"),
    (r"argon_job_retries_total\b", "no attempt has failed"),
    (r"argon_jobs_died_total\b", "no job has failed for good"),
    (r"argon_jobs_cancelled_total\b", "no job was cancelled"),
    (r'argon_jobs\{.*state="dead"', "no job has failed for good"),
    (r'job_state_kind:argon_jobs:max\{.*state="(dead|scheduled)"', "no job is in this state"),
    (r"job_kind:argon_oldest_ready_seconds:max\{.*snapshot\|", "no job of these kinds is ready"),
    (r'argon_scaler_decisions_total\{.*direction!="hold"', "the load has not asked for another size"),
    (r"argon_http_connections_refused_total\b", "no connection was refused"),
    (r"argon_link_blocked_seconds_bucket\b", "no sender has waited for room"),
    (r".*\boffset \d+[smhd]", "this Prometheus has not run for so long"),
]
# Selectors: a name with or without matchers, and what shifts it in time.
SELECTOR = re.compile(r"(?<![\w:$\"])((?:[a-z_]+:)?argon_[a-z0-9_]+(?::[a-z0-9_]+)?|up|ALERTS)(\{[^}]*\})?(?:\[[^]]*\])?(\s+offset\s+\d+[smhd])?(?![\w:(\"])")


def filled(expr):
    """The expression as Grafana would send it, with everything selected."""
    for name, value in VARIABLES.items():
        expr = re.sub(re.escape(name) + r"\b", value, expr)
    return expr


def dashboards():
    for path in sorted((HERE / "grafana").glob("*.json")):
        yield path.stem, json.loads(path.read_text())


def panel_expressions():
    """(where, expression) of every dashboard."""
    for name, dashboard in dashboards():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']}", filled(target["expr"])
        for annotation in dashboard["annotations"]["list"]:
            if "expr" in annotation:
                yield f"{name}: annotation {annotation['name']}", filled(annotation["expr"])
        for variable in dashboard["templating"]["list"]:
            if found := re.fullmatch(r"label_values\((.+), *\w+\)", variable.get("definition", "")):
                yield f"{name}: variable {variable['name']}", filled(found[1])


def selectors(expr):
    """Every selector of an expression, with its offset and without its range."""
    for name, matchers, offset in SELECTOR.findall(expr):
        yield name + matchers + offset


def excuse(selector):
    """Why a selector may be empty, or None."""
    return next((why for pattern, why in MAY_BE_EMPTY if re.match(pattern, selector)), None)


class Prometheus:
    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, path, **params):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error).get("error", str(error))) from error
        return body["data"]

    def values(self, expr):
        """Finite values of the series that an expression has now; NaN is what 0 / 0 gives, and says nothing."""
        values = [float(series["value"][1]) for series in self.get("query", query=expr)["result"]]
        return [value for value in values if math.isfinite(value)]


def check(prometheus):
    """Problems, remarks, and how many expressions were asked for."""
    problems, remarks, asked = [], [], 0

    def ask(where, expr, must):
        nonlocal asked
        asked += 1
        try:
            values = prometheus.values(expr)
        except RuntimeError as error:
            problems.append(f"{where}: {error}\n    {expr}")
            return
        if values or not must:
            return
        reasons = {selector: excuse(selector) for selector in selectors(expr)}
        silent = [selector for selector, why in reasons.items() if not why and not prometheus.values(selector)]
        if silent or not any(reasons.values()):
            problems.append(f"{where}: no data{' for ' + ', '.join(silent) if silent else ''}\n    {expr}")
        else:
            remarks.append(f"{where}: empty, since {next(filter(None, reasons.values()))}")

    for target in prometheus.get("targets")["activeTargets"]:
        if target["health"] != "up":
            problems.append(f"target {target['scrapeUrl']} is {target['health']}: {target['lastError']}")
    rules = 0
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            rules += 1
            where = f"{group['name']}: {rule['name']}"
            if rule["health"] != "ok":
                problems.append(f"{where} is {rule['health']}: {rule.get('lastError', '')}")
            if rule["type"] == "recording":
                ask(where, rule["query"], must=True)
                continue
            ask(where, rule["query"], must=False)
            for selector in dict.fromkeys(selectors(rule["query"])):
                ask(f"{where}, selector", selector, must=True)
            if rule["state"] == "firing":
                remarks.append(f"{where} fires: {rule['alerts'][0]['annotations'].get('description', '')}")
    if not rules:
        problems.append("no rules are loaded")
    for where, expr in panel_expressions():
        ask(where, expr, must=True)
    return problems, remarks, asked


def as_rules():
    rules = [{"record": f"panel:{n}", "expr": expr} for n, (_, expr) in enumerate(panel_expressions())]
    return json.dumps({"groups": [{"name": "panels", "rules": rules}]}, indent=1)


def main():
    if sys.argv[1:] == ["--as-rules"]:
        print(as_rules())
        return 0
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    problems, remarks, asked = check(Prometheus(sys.argv[1]))
    for remark in remarks:
        print(f"note  {remark}")
    for problem in problems:
        print(f"WRONG {problem}")
    print(f"{asked} expressions, {len(problems)} wrong, {len(remarks)} notes")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
