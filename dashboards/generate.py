#!/usr/bin/env python3
"""Writes dashboards/grafana/*.json, so that four dashboards look and work the same.

    python3 dashboards/generate.py            write them
    python3 dashboards/generate.py --check    exit 1 if the files are not what this writes

What a dashboard shows is at the end (OVERVIEW, PIPELINE, QUEUE_AND_POOL, CAPTURES_AND_BRANCHES); before it come panels, then what all dashboards share.

In expressions three words stand for the matchers of the variables:
    JOB     the deployments that are selected
    ENGINE  their engines that are selected
    BRANCH  their branches that are selected
Figures of the metadata (jobs, captures, branches) are the same from every engine: they are taken by max, and never filtered by engine.
"""

import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
RUNBOOK = "https://github.com/argon-lab/argon/blob/main/docs/runbook.md"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MATCHERS = {
    "JOB": 'job=~"$job"',
    "ENGINE": 'job=~"$job", instance=~"$engine"',
    "BRANCH": 'job=~"$job", branch=~"$branch"',
}
UIDS = {
    "overview": "argon-overview",
    "pipeline": "argon-pipeline",
    "queue": "argon-queue-and-pool",
    "captures": "argon-captures-and-branches",
}
TITLES = {
    "overview": "Argon / Overview",
    "pipeline": "Argon / Pipeline",
    "queue": "Argon / Queue and pool",
    "captures": "Argon / Captures and branches",
}

GIB = 1 << 30
MINUTE, HOUR, DAY = 60, 3600, 86400

# Words for figures that are words.
HEALTH = {0: ("unhealthy", "red"), 0.5: ("degraded", "orange"), 1: ("ok", "green")}
STATUSES = {
    1: ("active", "green"),
    2: ("stalled", "red"),
    3: ("gap", "orange"),
    4: ("failed", "dark-red"),
    5: ("archived", "blue"),
    6: ("deleted", "text"),
}
BRANCH_STATUS = " or ".join(
    f'{number} * (max by (branch) (argon_branch_status{{BRANCH, status="{name}"}}) == 1)' for number, (name, _) in STATUSES.items()
)


# ---- panels ----------------------------------------------------------------------------------------------------------------------------------


def query(expr, legend="", table=False):
    """One expression of a panel; `legend` names its series, in a table it is the heading of its column."""
    expr = re.sub(r"\b(JOB|ENGINE|BRANCH)\b", lambda word: MATCHERS[word[0]], " ".join(expr.split()))
    target = {"datasource": DATASOURCE, "expr": expr, "legendFormat": "__auto" if table else legend, "editorMode": "code"}
    return target | ({"format": "table", "instant": True, "range": False} if table else {"range": True})


def thresholds(*steps):
    """green, then from each value on its colour; a first step without a value replaces green."""
    base = "green"
    if steps and steps[0][0] is None:
        base, steps = steps[0][1], steps[1:]
    return {"mode": "absolute", "steps": [{"color": base, "value": None}] + [{"color": color, "value": value} for value, color in steps]}


def mappings(words):
    options = {str(value): {"text": text, "color": color, "index": n} for n, (value, (text, color)) in enumerate(words.items())}
    return [{"type": "value", "options": options}]


def panel(kind, title, description, targets, width, height, unit="short", steps=(), words=None, custom=None, options=None, more=None, **defaults):
    """What all kinds have. `more`: further fields of the panel itself; `defaults`: further field defaults, such as min and max."""
    for n, target in enumerate(targets):
        target["refId"] = chr(ord("A") + n)
    field = {"unit": unit, "thresholds": thresholds(*steps), "mappings": mappings(words) if words else [], **defaults}
    if custom is not None:
        field["custom"] = custom
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": options or {},
        "gridPos": {"w": width, "h": height},
        **(more or {}),
    }


def stat(title, description, expr, unit="short", steps=(), words=None, to=None, width=3, **defaults):
    """One figure, coloured; a click leads to the dashboard `to`."""
    options = {
        "colorMode": "background" if steps or words else "value",
        "graphMode": "none" if words else "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
        "wideLayout": True,
    }
    more = {"links": [{"title": TITLES[to], "url": f"/d/{UIDS[to]}?${{__url_time_range}}&${{job:queryparam}}"}]} if to else None
    defaults.setdefault("color", {"mode": "thresholds"})
    return panel("stat", title, description, [query(expr)], width, 4, unit, steps, words, options=options, more=more, **defaults)


def graph(title, description, *targets, unit="short", steps=(), width=8, height=8, stacked=False, bars=False, **defaults):
    """Lines over time. `steps` are drawn as lines. Never below 0 unless `min` says so."""
    custom = {
        "drawStyle": "bars" if bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 20 if stacked else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "axisPlacement": "auto",
        "axisLabel": "",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }
    options = {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults.setdefault("min", 0)
    # A dashed line at the base, which is at minus infinity, is not drawn: only the values count.
    return panel("timeseries", title, description, list(targets), width, height, unit, steps, custom=custom, options=options, **defaults)


def gauges(title, description, *targets, unit="percentunit", steps=(), width=8, height=8, **defaults):
    """A bar for each series, as it is now."""
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "valueMode": "color",
        "minVizHeight": 10,
        "minVizWidth": 0,
    }
    defaults = {"min": 0, "max": 1, "color": {"mode": "thresholds"}} | defaults
    return panel("bargauge", title, description, list(targets), width, height, unit, steps, options=options, **defaults)


def states(title, description, words, *targets, width=12, height=8):
    """A band for each series, coloured by its state."""
    options = {
        "mergeValues": True,
        "showValue": "never",
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"lineWidth": 0, "fillOpacity": 80}
    color = {"mode": "thresholds"}
    return panel("state-timeline", title, description, list(targets), width, height, words=words, custom=custom, options=options, color=color)


def table(title, description, key_columns, columns, sort_by, width=24, height=8, descending=False):
    """A row for each value of the keys, a column for each expression.

    `key_columns`: label -> heading. `columns`: heading -> (expression, field defaults such as unit, decimals, words, steps).
    """
    targets, rename, overrides = [], dict(key_columns), []
    for n, (heading, (expr, field)) in enumerate(columns.items()):
        targets.append(query(expr, table=True))
        rename[f"Value #{chr(ord('A') + n)}" if len(columns) > 1 else "Value"] = heading
        field = dict(field)
        properties = []
        if words := field.pop("words", None):
            properties.append({"id": "mappings", "value": mappings(words)})
        if steps := field.pop("steps", None):
            properties.append({"id": "thresholds", "value": thresholds(*steps)})
        if words or steps:
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        properties += [{"id": name, "value": value} for name, value in field.items()]
        overrides.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
    order = {name: n for n, name in enumerate(rename)}
    hidden = {"Time": True, "__name__": True, "alertstate": True}
    organize = {"excludeByName": hidden, "indexByName": order, "renameByName": rename}
    more = {"transformations": [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]}
    options = {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": sort_by, "desc": descending}]}
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False, "inspect": False}
    made = panel("table", title, description, targets, width, height, custom=custom, options=options, more=more, color={"mode": "thresholds"})
    made["fieldConfig"]["overrides"] = overrides
    return made


# ---- what all dashboards share ----------------------------------------------------------------------------------------------------------------


def variable(name, label, labels_of, description):
    """A variable with the values of a label; several can be chosen, all to begin with."""
    return {
        "name": name,
        "label": label,
        "description": description,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": labels_of,
        "query": {"qryType": 1, "query": labels_of, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def variables():
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "description": "The Prometheus that scrapes the engines.",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "current": {},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }
    return [
        source,
        variable("job", "Deployment", "label_values(argon_build_info, job)", "Name of the scrape job: engines that share their metadata."),
        variable("engine", "Engine", 'label_values(argon_build_info{job=~"$job"}, instance)', "Address that is scraped."),
        variable("branch", "Branch", 'label_values(argon_branch_head{job=~"$job"}, branch)', "Captured branches, project/branch."),
    ]


def annotations():
    own = {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }
    alerts = {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": 'ALERTS{alertname=~"Argon.*", alertstate="firing", severity=~"critical|warning", job=~"$job"}',
        "hide": False,
        "iconColor": "red",
        "name": "Alerts",
        "step": "30s",
        "tagKeys": "severity",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{branch}} {{instance}} {{kind}}",
        "useValueForTime": False,
    }
    return [own, alerts]


def links(of):
    def link(title, url, icon, **more):
        base = {"type": "link", "title": title, "url": url, "icon": icon, "asDropdown": False, "tags": [], "tooltip": ""}
        return base | {"targetBlank": False, "keepTime": False, "includeVars": False} | more

    others = [link(TITLES[name], f"/d/{uid}", "dashboard", keepTime=True, includeVars=True) for name, uid in UIDS.items() if name != of]
    return others + [link("Runbook", RUNBOOK, "doc", targetBlank=True)]


def dashboard(name, description, rows):
    """`rows`: heading -> panels, which flow from left to right."""
    panels, y = [], 0

    def place(made, x, y):
        made["id"] = len(panels) + 1
        made["gridPos"] = {"h": made["gridPos"]["h"], "w": made["gridPos"]["w"], "x": x, "y": y}
        panels.append(made)

    for heading, content in rows.items():
        place({"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": {"w": 24, "h": 1}}, 0, y)
        x, y, tallest = 0, y + 1, 0
        for made in content:
            width, height = made["gridPos"]["w"], made["gridPos"]["h"]
            if x + width > 24:
                x, y, tallest = 0, y + tallest, 0
            place(made, x, y)
            x, tallest = x + width, max(tallest, height)
        y += tallest
    return {
        "uid": UIDS[name],
        "title": TITLES[name],
        "description": description,
        "tags": ["argon"],
        "schemaVersion": 39,
        "version": 1,
        "id": None,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "refresh": "30s",
        "liveNow": False,
        "links": links(name),
        "templating": {"list": variables()},
        "annotations": {"list": annotations()},
        "panels": panels,
    }


# ---- the dashboards ---------------------------------------------------------------------------------------------------------------------------

OVERVIEW = dashboard(
    "overview",
    "Is everything captured, how far behind is it, and what is wrong. Needs the recording rules of argon-recording.yml.",
    {
        "Now": [
            stat(
                "Engines",
                "Engines that answer the scrape.",
                "count(argon_build_info{JOB})",
                steps=[(None, "red"), (1, "green")],
            ),
            stat(
                "Health",
                "The worst engine, by its own word: /health says why.",
                'min(argon_health{JOB, check="all"})',
                words=HEALTH,
                steps=[(None, "red"), (0.5, "orange"), (1, "green")],
            ),
            stat(
                "Captures that run",
                "Captures that follow their source, of all engines.",
                'sum(max by (job) (argon_captures{JOB, state="running"}))',
                steps=[(None, "orange"), (1, "green")],
                to="captures",
            ),
            stat(
                "Captures in trouble",
                "Captures that have failed, and running ones that say what they wait for.",
                'sum(max by (job) (argon_captures{JOB, state="failed"})) + sum(max by (job) (argon_captures_waiting{JOB}))',
                steps=[(1, "red")],
                to="captures",
            ),
            stat(
                "Worst delay",
                "How far the committed history of the slowest capture is behind its source.",
                "max(job_branch:argon_capture_commit_delay_seconds:max{JOB})",
                unit="s",
                steps=[(MINUTE, "orange"), (15 * MINUTE, "red")],
                to="captures",
            ),
            stat(
                "Shortest oplog window",
                "How long the capture with the least oplog could stand still before history is lost.",
                "min(job_branch:argon_oplog_window_seconds:min{JOB})",
                unit="s",
                steps=[(None, "red"), (HOUR, "orange"), (6 * HOUR, "green")],
                to="captures",
            ),
            stat(
                "Queue depth",
                "Jobs that wait: ready ones, and sync jobs that are tried again later.",
                "sum(job:argon_queue_depth:sum{JOB})",
                steps=[(1000, "orange")],
                to="queue",
            ),
            stat(
                "Dead jobs",
                "Jobs that have failed for good and wait for an operator.",
                'sum(job_state_kind:argon_jobs:max{JOB, state="dead"})',
                steps=[(1, "red")],
                to="queue",
            ),
            stat(
                "Changes a second",
                "Changes that were checkpointed in the last 5 minutes: from then on they are safe.",
                'sum(job_stage:argon_stage_changes:rate5m{JOB, stage="checkpoint"})',
                unit="cps",
                to="pipeline",
            ),
            stat(
                "Stored for a byte",
                "Stored bytes of all captured branches for a byte of their events.",
                "sum(max by (job, branch) (argon_branch_stored_bytes{JOB})) / sum(max by (job, branch) (argon_branch_raw_bytes{JOB}))",
                unit="percentunit",
                decimals=1,
                to="captures",
            ),
            stat(
                "Branches in trouble",
                "Branches that are stalled, have failed or have a gap.",
                'sum(max by (job, status) (argon_branches{JOB, status=~"stalled|gap|failed"}))',
                steps=[(1, "red")],
                to="captures",
            ),
            stat(
                "Oldest proof",
                "The branch whose last drill that succeeded is the longest ago. No value: none has been proven.",
                "max(time() - max by (job, branch) (argon_branch_proven_timestamp_seconds{JOB}))",
                unit="s",
                steps=[(8 * DAY, "orange")],
                to="captures",
                noValue="never",
            ),
            stat(
                "Success rate",
                "Attempts at sync jobs that succeeded within 15 minutes; what an outage gives back does not count.",
                '1 - max(job_kind:argon_job_failures:ratio_increase15m{JOB, kind="sync"})',
                unit="percentunit",
                steps=[(None, "red"), (0.95, "orange"), (0.99, "green")],
                to="queue",
                decimals=2,
            ),
            stat(
                "Sync job, p95",
                "19 of 20 sync jobs take no longer, from the last 10 minutes.",
                'max(job_kind:argon_job_run_seconds:p95_rate10m{JOB, kind="sync"})',
                unit="s",
                steps=[(5, "orange")],
                to="queue",
            ),
            stat(
                "Store",
                "Whether the store answers every engine.",
                'min(argon_health{JOB, check="store"})',
                words=HEALTH,
                steps=[(None, "red"), (0.5, "orange"), (1, "green")],
                to="pipeline",
            ),
            stat(
                "Leaders",
                "Engines that lead the maintenance, of the deployment that has the fewest: one.",
                "min(sum by (job) (argon_leader{JOB}))",
                steps=[(None, "red"), (1, "green")],
            ),
            table(
                "Firing alerts",
                "What is wrong by the rules of argon-alerts.yml; the runbook has a section for each. Empty: nothing.",
                {
                    "alertname": "alert",
                    "severity": "severity",
                    "job": "deployment",
                    "instance": "engine",
                    "branch": "branch",
                    "kind": "kind of job",
                    "operation": "operation",
                },
                {
                    "alerts": (
                        'sum by (alertname, severity, job, instance, branch, kind, operation) (ALERTS{alertname=~"Argon.*", alertstate="firing", JOB})',
                        {"custom.hidden": True},
                    )
                },
                sort_by="severity",
                height=6,
            ),
        ],
        "Flow": [
            graph(
                "Changes",
                "Captured: in the durable queue. Committed: in history. The two lines differ while the queue fills or drains.",
                query('sum(rate(argon_stage_changes_total{ENGINE, stage="checkpoint"}[$__rate_interval]))', "captured"),
                query('sum(rate(argon_stage_changes_total{ENGINE, stage="commit"}[$__rate_interval]))', "committed"),
                unit="cps",
                width=12,
            ),
            graph(
                "Bytes",
                "Events as the server sends them, and what of them goes to the store.",
                query('sum(rate(argon_stage_bytes_total{ENGINE, stage="assemble"}[$__rate_interval]))', "events"),
                query('sum(rate(argon_stage_bytes_total{ENGINE, stage="upload"}[$__rate_interval]))', "segments"),
                unit="Bps",
                width=12,
            ),
            graph(
                "Delay of the ten slowest branches",
                "How far committed history is behind the source.",
                query("topk(10, job_branch:argon_capture_commit_delay_seconds:max{BRANCH})", "{{branch}}"),
                unit="s",
                steps=[(MINUTE, "orange"), (15 * MINUTE, "red")],
                width=12,
            ),
            graph(
                "Queue",
                "Jobs that wait, run, and are dead. The same figure from every engine.",
                query("sum(job:argon_queue_depth:sum{JOB})", "waiting"),
                query('sum(job_state_kind:argon_jobs:max{JOB, state="running"})', "running"),
                query('sum(job_state_kind:argon_jobs:max{JOB, state="dead"})', "dead"),
                steps=[(1000, "orange")],
                width=12,
            ),
        ],
        "Engines": [
            table(
                "Engines",
                "Every engine that answers.",
                {"job": "deployment", "instance": "engine", "version": "version"},
                {
                    "is": ("max by (job, instance, version) (argon_build_info{ENGINE})", {"custom.hidden": True}),
                    "health": ('max by (job, instance) (argon_health{ENGINE, check="all"})', {"words": HEALTH}),
                    "runs for": ("max by (job, instance) (argon_uptime_seconds{ENGINE})", {"unit": "s"}),
                    "leads": ("max by (job, instance) (argon_leader{ENGINE})", {"words": {0: ("", "text"), 1: ("leads", "blue")}}),
                    "captures": ("max by (job, instance) (argon_captures_owned{ENGINE})", {}),
                    "workers": ('max by (job, instance) (argon_workers{ENGINE, state="running"})', {}),
                    "busy": ('max by (job, instance) (argon_workers{ENGINE, state="busy"})', {}),
                    "memory": ("max by (job, instance) (argon_process_resident_memory_bytes{ENGINE})", {"unit": "bytes"}),
                    "cores": (
                        "max by (job, instance) (rate(argon_process_cpu_seconds_total{ENGINE}[5m]))",
                        {"decimals": 2},
                    ),
                    "runtime lag": (
                        "max by (job, instance) (argon_runtime_lag_seconds{ENGINE})",
                        {"unit": "s", "steps": [(1, "orange"), (5, "red")]},
                    ),
                },
                sort_by="engine",
                height=7,
            ),
            states(
                "Health by part",
                "The worst of the selected engines. Captures: one has failed or waits. Workers: stopping, or the heartbeat is late.",
                HEALTH,
                query('min by (check) (argon_health{ENGINE, check!="all"})', "{{check}}"),
            ),
            states(
                "Health by engine",
                "What each engine says of itself.",
                HEALTH,
                query('min by (instance) (argon_health{ENGINE, check="all"})', "{{instance}}"),
            ),
        ],
    },
)

PIPELINE = dashboard(
    "pipeline",
    "Ingest, assemble, checkpoint, then the queue, then claim, encode, upload, commit: how much passes, how long it takes, and where it waits.",
    {
        "Stages": [
            graph(
                "Changes",
                "Changes that pass a stage.",
                query("sum by (stage) (rate(argon_stage_changes_total{ENGINE}[$__rate_interval]))", "{{stage}}"),
                unit="cps",
            ),
            graph(
                "Bytes",
                "Ingest: replies; assemble: raw events; checkpoint: compressed payload; encode: payload in; upload: segments.",
                query("sum by (stage) (rate(argon_stage_bytes_total{ENGINE}[$__rate_interval]))", "{{stage}}"),
                unit="Bps",
            ),
            graph(
                "Units",
                "Replies, batches or jobs that a stage has worked on.",
                query("sum by (stage) (rate(argon_stage_seconds_count{ENGINE}[$__rate_interval]))", "{{stage}}"),
                unit="ops",
            ),
            graph(
                "Busy",
                "Seconds of work a second: 1 is one worker that is busy all the time. Ingest, assemble and checkpoint are one for each capture.",
                query("sum by (stage) (rate(argon_stage_seconds_sum{ENGINE}[$__rate_interval]))", "{{stage}}"),
                unit="short",
            ),
            graph(
                "Time of a unit, mean",
                "What one reply, batch or job takes.",
                query(
                    """sum by (stage) (rate(argon_stage_seconds_sum{ENGINE}[$__rate_interval]))
                    / sum by (stage) (rate(argon_stage_seconds_count{ENGINE}[$__rate_interval]))""",
                    "{{stage}}",
                ),
                unit="s",
            ),
            graph(
                "Time of a unit, p95",
                "19 of 20 take no longer.",
                query("histogram_quantile(0.95, sum by (stage, le) (rate(argon_stage_seconds_bucket{ENGINE}[$__rate_interval])))", "{{stage}}"),
                unit="s",
            ),
        ],
        "Where it waits": [
            gauges(
                "Links, now",
                "How full the fullest link of its name is. A full link is where the next stage is the slow one.",
                query("max by (link) (argon_link_depth{ENGINE} / argon_link_capacity{ENGINE})", "{{link}}"),
                steps=[(0.7, "orange"), (1, "red")],
            ),
            graph(
                "Blocked",
                "Seconds a second in which a sender waited for room in a link.",
                query("sum by (link) (rate(argon_link_blocked_seconds_sum{ENGINE}[$__rate_interval]))", "{{link}}"),
            ),
            graph(
                "Depth",
                "Messages that wait in a link.",
                query("sum by (link) (argon_link_depth{ENGINE})", "{{link}}"),
            ),
            graph(
                "Wait for room, p95",
                "How long a sender waits when a link is full.",
                query("histogram_quantile(0.95, sum by (link, le) (rate(argon_link_blocked_seconds_bucket{ENGINE}[$__rate_interval])))", "{{link}}"),
                unit="s",
            ),
            graph(
                "Memory budget",
                "Bytes of jobs in work, by engine, and ARGON_MEMORY_BUDGET. A full budget is no fault; jobs that wait for it are.",
                query('argon_memory_budget_bytes{ENGINE, part="used"}', "{{instance}}"),
                query('min(argon_memory_budget_bytes{ENGINE, part="limit"})', "limit"),
                unit="bytes",
            ),
            graph(
                "Unprocessed payload",
                "Of the fullest capture, by engine, and ARGON_QUEUE_MAX_BYTES, at which the source is not read any more.",
                query('argon_queue_payload_bytes{ENGINE, part="used"}', "{{instance}}"),
                query('min(argon_queue_payload_bytes{ENGINE, part="limit"})', "limit"),
                unit="bytes",
            ),
        ],
        "Store": [
            graph(
                "Operations",
                "Operations at the store, failed ones too.",
                query("sum by (operation) (rate(argon_store_operation_seconds_count{ENGINE}[$__rate_interval]))", "{{operation}}"),
                unit="ops",
            ),
            graph(
                "Time of an operation, p50",
                "Half of the operations take no longer.",
                query(
                    "histogram_quantile(0.5, sum by (operation, le) (rate(argon_store_operation_seconds_bucket{ENGINE}[$__rate_interval])))",
                    "{{operation}}",
                ),
                unit="s",
            ),
            graph(
                "Time of an operation, p99",
                "99 of 100 operations take no longer.",
                query(
                    "histogram_quantile(0.99, sum by (operation, le) (rate(argon_store_operation_seconds_bucket{ENGINE}[$__rate_interval])))",
                    "{{operation}}",
                ),
                unit="s",
            ),
            graph(
                "Bytes",
                "Bytes of objects.",
                query("sum by (direction) (rate(argon_store_bytes_total{ENGINE}[$__rate_interval]))", "{{direction}}"),
                unit="Bps",
            ),
            graph(
                "Errors",
                "Failed operations by kind, and uploads that were tried again. Missing: the object is not there, which is an answer.",
                query("sum by (operation, kind) (rate(argon_store_errors_total{ENGINE}[$__rate_interval]))", "{{operation}} {{kind}}"),
                query("sum(rate(argon_store_retries_total{ENGINE}[$__rate_interval]))", "tried again"),
                unit="ops",
            ),
            graph(
                "Disk",
                "Free bytes of the file system of a file:// store. Other stores have no such figure.",
                query("min by (instance) (argon_store_free_bytes{ENGINE})", "{{instance}}"),
                unit="bytes",
                steps=[(None, "red"), (2 * GIB, "green")],
            ),
        ],
        "Process": [
            graph(
                "CPU",
                "Cores in use, by engine.",
                query("sum by (instance) (rate(argon_process_cpu_seconds_total{ENGINE}[$__rate_interval]))", "{{instance}}"),
                width=6,
            ),
            graph(
                "Resident memory",
                "By engine.",
                query("argon_process_resident_memory_bytes{ENGINE}", "{{instance}}"),
                unit="bytes",
                width=6,
            ),
            graph(
                "Runtime lag",
                "Worst delay of the async runtime within half a minute. 1 s is degraded, 5 s unhealthy.",
                query("argon_runtime_lag_seconds{ENGINE}", "{{instance}}"),
                unit="s",
                steps=[(1, "orange"), (5, "red")],
                width=6,
            ),
            graph(
                "Threads and open files",
                "By engine.",
                query("argon_process_threads{ENGINE}", "{{instance}} threads"),
                query("argon_process_open_files{ENGINE}", "{{instance}} files"),
                width=6,
            ),
        ],
    },
)

QUEUE_AND_POOL = dashboard(
    "queue",
    "Jobs and those who do them: what waits and how long, what fails, how many workers there are and why.",
    {
        "Queue": [
            graph(
                "Jobs by state",
                "Of all engines. Scheduled: at a later time, tried again, or of a paused branch.",
                query("sum by (state) (max by (job, state, kind) (argon_jobs{JOB}))", "{{state}}"),
                steps=[(1000, "orange")],
            ),
            graph(
                "Waiting jobs by kind",
                "Ready and scheduled.",
                query('sum by (kind) (max by (job, state, kind) (argon_jobs{JOB, state=~"ready|scheduled"}))', "{{kind}}"),
                stacked=True,
            ),
            graph(
                "Oldest ready job",
                "How long it has waited. Snapshots, compression and clean-up run at low priority.",
                query("max by (kind) (job_kind:argon_oldest_ready_seconds:max{JOB})", "{{kind}}"),
                unit="s",
                steps=[(5 * MINUTE, "orange")],
            ),
            graph(
                "Done",
                "Jobs that all engines finish, over 5 minutes.",
                query("sum by (kind) (job_kind:argon_jobs_completed:rate5m{JOB})", "{{kind}}"),
                unit="ops",
                stacked=True,
            ),
            graph(
                "Wait, p95",
                "From when a job could run to the begin of its attempt: 19 of 20 wait no longer.",
                query(
                    "histogram_quantile(0.95, sum by (kind, le) (rate(argon_job_wait_seconds_bucket{ENGINE}[$__rate_interval])))",
                    "{{kind}}",
                ),
                unit="s",
            ),
            graph(
                "Dead and cancelled",
                "Dead jobs by kind as they are now, and jobs that were cancelled within an hour.",
                query('sum by (kind) (job_state_kind:argon_jobs:max{JOB, state="dead"})', "{{kind}} dead"),
                query("sum by (kind) (max by (job, kind) (increase(argon_jobs_cancelled_total{JOB}[1h])))", "{{kind}} cancelled"),
            ),
        ],
        "Attempts": [
            graph(
                "Outcomes",
                "Given back: nothing was wrong with the job, such as in an outage or a stop. Fenced: another engine had taken it.",
                query("sum by (outcome) (rate(argon_job_attempts_total{ENGINE}[$__rate_interval]))", "{{outcome}}"),
                unit="ops",
            ),
            graph(
                "Failed share",
                "Of the attempts that succeeded or failed within 15 minutes.",
                query("max by (kind) (job_kind:argon_job_failures:ratio_increase15m{JOB})", "{{kind}}"),
                unit="percentunit",
                steps=[(0.05, "orange")],
            ),
            graph(
                "Run time of sync jobs",
                "Time of an attempt.",
                query(
                    'histogram_quantile(0.5, sum by (le) (rate(argon_job_run_seconds_bucket{ENGINE, kind="sync"}[$__rate_interval])))',
                    "p50",
                ),
                query(
                    'histogram_quantile(0.95, sum by (le) (rate(argon_job_run_seconds_bucket{ENGINE, kind="sync"}[$__rate_interval])))',
                    "p95",
                ),
                query(
                    'histogram_quantile(0.99, sum by (le) (rate(argon_job_run_seconds_bucket{ENGINE, kind="sync"}[$__rate_interval])))',
                    "p99",
                ),
                query(
                    """sum(rate(argon_job_run_seconds_sum{ENGINE, kind="sync"}[$__rate_interval]))
                    / sum(rate(argon_job_run_seconds_count{ENGINE, kind="sync"}[$__rate_interval]))""",
                    "mean",
                ),
                unit="s",
                steps=[(5, "orange")],
            ),
            graph(
                "Run time by kind, p95",
                "19 of 20 attempts take no longer, over 10 minutes.",
                query("max by (kind) (job_kind:argon_job_run_seconds:p95_rate10m{JOB})", "{{kind}}"),
                unit="s",
            ),
            graph(
                "Repeats and deaths",
                "Failed attempts after which the job runs again, and jobs that have failed for good.",
                query("sum by (kind) (rate(argon_job_retries_total{ENGINE}[$__rate_interval]))", "{{kind}} again"),
                query("sum by (kind) (rate(argon_jobs_died_total{ENGINE}[$__rate_interval]))", "{{kind}} dead"),
                unit="ops",
            ),
            graph(
                "Rescues and lost leases",
                "Within an hour, by engine: jobs taken back from processes that died or hang, and leases that the process itself has lost.",
                query("sum by (instance) (increase(argon_jobs_rescued_total{ENGINE}[1h]))", "{{instance}} rescued"),
                query("sum by (instance) (increase(argon_leases_lost_total{ENGINE}[1h]))", "{{instance}} leases lost"),
            ),
        ],
        "Pool": [
            graph(
                "Sync workers",
                "Of the selected engines: those that run, those that work, what the scalers want, and the bounds.",
                query('sum(argon_workers{ENGINE, state="running"})', "running"),
                query('sum(argon_workers{ENGINE, state="busy"})', "busy"),
                query("sum(argon_workers_target{ENGINE})", "wanted"),
                query('sum(argon_workers_limit{ENGINE, bound="min"})', "min"),
                query('sum(argon_workers_limit{ENGINE, bound="max"})', "max"),
                width=12,
            ),
            graph(
                "Workers by engine",
                "Sync workers that run.",
                query('argon_workers{ENGINE, state="running"}', "{{instance}}"),
                width=6,
            ),
            gauges(
                "Busy share, now",
                "Sync workers that work, of those that run.",
                query('argon_workers{ENGINE, state="busy"} / ignoring (state) argon_workers{ENGINE, state="running"}', "{{instance}}"),
                steps=[(0.95, "orange")],
                width=6,
            ),
            graph(
                "Decisions to change",
                "Of the scaler, by direction and reason.",
                query(
                    'sum by (direction, reason) (increase(argon_scaler_decisions_total{ENGINE, direction!="hold"}[$__rate_interval]))',
                    "{{direction}}: {{reason}}",
                ),
                bars=True,
                stacked=True,
                width=12,
            ),
            graph(
                "Decisions to stay",
                "Why the size stays, about one a second and engine.",
                query(
                    'sum by (reason) (rate(argon_scaler_decisions_total{ENGINE, direction="hold"}[$__rate_interval]))',
                    "{{reason}}",
                ),
                unit="ops",
                stacked=True,
                width=6,
            ),
            states(
                "Pins",
                "Whether an operator holds the number of workers: argon scale.",
                {0: ("by load", "green"), 1: ("pinned", "blue")},
                query("max by (instance) (argon_workers_pinned{ENGINE})", "{{instance}}"),
                width=6,
            ),
        ],
        "Interface over HTTP": [
            graph(
                "Requests by status",
                "Requests that were answered.",
                query("sum by (status) (rate(argon_http_requests_total{ENGINE}[$__rate_interval]))", "{{status}}"),
                unit="reqps",
                width=6,
            ),
            graph(
                "Requests by route",
                "The ten busiest.",
                query("topk(10, sum by (route) (rate(argon_http_requests_total{ENGINE}[$__rate_interval])))", "{{route}}"),
                unit="reqps",
                width=6,
            ),
            graph(
                "Connections",
                "Open ones, by listener.",
                query("sum by (listener) (argon_http_connections{ENGINE})", "{{listener}}"),
                width=6,
            ),
            graph(
                "Refused connections",
                "At a cap, or without a complete request in time.",
                query("sum by (why) (rate(argon_http_connections_refused_total{ENGINE}[$__rate_interval]))", "{{why}}"),
                unit="cps",
                width=6,
            ),
        ],
    },
)

CAPTURES_AND_BRANCHES = dashboard(
    "captures",
    "Every captured branch: how far it is behind, how much oplog is left, what can be restored and whether that was proven, what it takes.",
    {
        "Now": [
            table(
                "Captured branches",
                "Delay: how far committed history is behind the source. Oplog left: how long the capture could stand still. "
                "Proven: the last drill that succeeded.",
                {"branch": "branch"},
                {
                    "status": (BRANCH_STATUS, {"words": STATUSES}),
                    "head": ("max by (branch) (argon_branch_head{BRANCH})", {"unit": "locale"}),
                    "delay": (
                        "max by (branch) (job_branch:argon_capture_commit_delay_seconds:max{BRANCH})",
                        {"unit": "s", "steps": [(MINUTE, "orange"), (15 * MINUTE, "red")]},
                    ),
                    "oplog left": (
                        "min by (branch) (job_branch:argon_oplog_window_seconds:min{BRANCH})",
                        {"unit": "s", "steps": [(None, "red"), (HOUR, "orange"), (6 * HOUR, "green")]},
                    ),
                    "restorable to": (
                        "1000 * max by (branch) (argon_branch_restorable_timestamp_seconds{BRANCH})",
                        {"unit": "dateTimeAsIso"},
                    ),
                    "proven": (
                        "1000 * max by (branch) (argon_branch_proven_timestamp_seconds{BRANCH})",
                        {"unit": "dateTimeFromNow"},
                    ),
                    "changes": ("max by (branch) (argon_branch_changes{BRANCH})", {"unit": "locale"}),
                    "raw": ("max by (branch) (argon_branch_raw_bytes{BRANCH})", {"unit": "bytes"}),
                    "stored": ("max by (branch) (argon_branch_stored_bytes{BRANCH})", {"unit": "bytes"}),
                    "share": (
                        "max by (branch) (job_branch:argon_branch_stored:ratio{BRANCH})",
                        {"unit": "percentunit", "decimals": 1},
                    ),
                    "segments": ("max by (branch) (argon_branch_segments{BRANCH})", {"unit": "locale"}),
                },
                sort_by="delay",
                descending=True,
                height=10,
            ),
            states(
                "Status of branches",
                "Stalled: a dead job holds the head. Gap: changes are lost, until the next base. Failed: the capture has stopped for good.",
                STATUSES,
                query(BRANCH_STATUS, "{{branch}}"),
                height=9,
            ),
            graph(
                "Captures by state",
                "Of all engines, and running ones that say what they wait for.",
                query("sum by (state) (max by (job, state) (argon_captures{JOB}))", "{{state}}"),
                query("sum(max by (job) (argon_captures_waiting{JOB}))", "waiting"),
                width=6,
                height=9,
            ),
            graph(
                "Captures by engine",
                "Who follows how many. Together they are those that run.",
                query("max by (instance) (argon_captures_owned{ENGINE})", "{{instance}}"),
                stacked=True,
                width=6,
                height=9,
            ),
        ],
        "Captures": [
            graph(
                "Delay of commit",
                "How far committed history is behind the source: everything older can be restored.",
                query("max by (branch) (argon_capture_commit_delay_seconds{BRANCH})", "{{branch}}"),
                unit="s",
                steps=[(MINUTE, "orange"), (15 * MINUTE, "red")],
            ),
            graph(
                "Delay of reading",
                "From the server's commit of the newest change that was read to now; 0 when everything is read.",
                query("max by (branch) (argon_capture_read_delay_seconds{BRANCH})", "{{branch}}"),
                unit="s",
            ),
            graph(
                "Oplog left",
                "How long a capture could stand still before its place is overwritten. Shorter than 3 times the delay of reading: act at once.",
                query("min by (branch) (argon_oplog_window_seconds{BRANCH})", "{{branch}}"),
                unit="s",
                steps=[(None, "red"), (HOUR, "orange"), (6 * HOUR, "green")],
            ),
            graph(
                "Changes",
                "By which heads grow.",
                query("clamp_min(max by (branch) (deriv(argon_branch_head{BRANCH}[$__rate_interval])), 0)", "{{branch}}"),
                unit="cps",
            ),
            graph(
                "Streams opened again",
                "Within an hour: change streams that broke and were opened again.",
                query("sum by (branch) (increase(argon_capture_resumes_total{BRANCH}[1h]))", "{{branch}}"),
            ),
            graph(
                "Gaps",
                "Within an hour: gaps that engines have recorded.",
                query("sum by (branch) (increase(argon_capture_gaps_total{BRANCH}[1h]))", "{{branch}}"),
                steps=[(1, "red")],
            ),
        ],
        "Branches": [
            graph(
                "Since the end of what can be restored",
                "Age of the newest moment that can be restored. It grows while a capture is stopped.",
                query("time() - max by (branch) (argon_branch_restorable_timestamp_seconds{BRANCH})", "{{branch}}"),
                unit="s",
            ),
            graph(
                "Since the last proof",
                "Age of the last drill that succeeded. No line: none has yet.",
                query("time() - max by (branch) (argon_branch_proven_timestamp_seconds{BRANCH})", "{{branch}}"),
                unit="s",
                steps=[(8 * DAY, "orange")],
            ),
            graph(
                "Branches by status",
                "All branches, those without a capture too.",
                query("sum by (status) (max by (job, status) (argon_branches{JOB}))", "{{status}}"),
                stacked=True,
            ),
            graph(
                "Stored",
                "Bytes of segments.",
                query("max by (branch) (argon_branch_stored_bytes{BRANCH})", "{{branch}}"),
                unit="bytes",
                stacked=True,
            ),
            graph(
                "Stored for a byte",
                "Bytes of segments for a byte of events.",
                query("max by (branch) (job_branch:argon_branch_stored:ratio{BRANCH})", "{{branch}}"),
                unit="percentunit",
            ),
            graph(
                "Segments",
                "Objects that hold the branch's own history. Compression makes them fewer.",
                query("max by (branch) (argon_branch_segments{BRANCH})", "{{branch}}"),
            ),
            graph(
                "Events",
                "Bytes of events before compression, a second.",
                query("clamp_min(max by (branch) (deriv(argon_branch_raw_bytes{BRANCH}[$__rate_interval])), 0)", "{{branch}}"),
                unit="Bps",
                width=12,
            ),
            graph(
                "Jobs beside the stream",
                "Bases, compression, clean-up and drills that wait or run.",
                query(
                    """sum by (kind, state) (max by (job, state, kind)
                    (argon_jobs{JOB, state=~"ready|scheduled|running", kind=~"snapshot|compression|cleanup|drill"}))""",
                    "{{kind}} {{state}}",
                ),
                width=12,
            ),
        ],
    },
)


def files():
    for made in (OVERVIEW, PIPELINE, QUEUE_AND_POOL, CAPTURES_AND_BRANCHES):
        yield HERE / "grafana" / f"{made['uid']}.json", json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def main():
    wanted = dict(files())
    if sys.argv[1:] == ["--check"]:
        there = set((HERE / "grafana").glob("*.json"))
        wrong = [path for path, text in wanted.items() if path not in there or path.read_text() != text] + sorted(there - set(wanted))
        for path in wrong:
            print(f"{path.relative_to(HERE.parent)} is not what dashboards/generate.py writes: run it", file=sys.stderr)
        return 1 if wrong else 0
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
