#!/usr/bin/env python3
"""Holds dashboards, rules and runbook to the one table of metrics (src/telemetry/metrics.rs), and alerts, runbook and tests to each other.

    python3 dashboards/check_names.py [TABLE]

Reads text, runs nothing. Exit code 1 when something does not fit.
"""

import pathlib
import re
import sys

sys.dont_write_bytecode = True
import check_live  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RULES = [HERE / "prometheus" / name for name in ("argon-recording.yml", "argon-alerts.yml")]
RUNBOOK = ROOT / "docs" / "runbook.md"

# A line of the table: METRIC = Kind "argon_name" [LABEL, LABEL] "help";
LINE = re.compile(r'^\s*[A-Z][A-Z0-9_]* = (Counter|Gauge|Histogram) "(argon_\w+)" \[([^\]]*)\]', re.M)
# A line of its labels: LABEL = "name" ["value", "value"]; without values it may say anything.
LABEL = re.compile(r'^\s*([A-Z][A-Z0-9_]*) = "(\w+)" \[([^\]]*)\];', re.M)
WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
# Labels that a scrape and a histogram add.
ADDED = {"job", "instance", "le"}


def table(path):
    """Name as rendered -> its labels, each with its values: any, if there are none."""
    text = path.read_text()
    known = {constant: (name, set(re.findall(r'"(\w+)"', values))) for constant, name, values in LABEL.findall(text)}
    names = {}
    for kind, name, labels in LINE.findall(text):
        labels = dict(known[constant] for constant in re.findall(r"\w+", labels))
        for suffix in ("_bucket", "_sum", "_count") if kind == "Histogram" else ("",):
            names[name + suffix] = labels
    return names


def base(name):
    return re.sub(r"_(bucket|sum|count)$", "", name)


class Findings:
    def __init__(self, known, recorded):
        self.known, self.recorded, self.used, self.problems = known, recorded, set(), []

    def text(self, where, text):
        """Every word that looks like the name of a metric is one."""
        for word in WORD.findall(text):
            if ":argon_" in word:
                if word not in self.recorded:
                    self.problems.append(f"{where}: no rule records {word}")
            elif word.startswith("argon_"):
                self.used.add(word)
                if word not in self.known:
                    self.problems.append(f"{where}: {word} is not in the table")
        for name, matchers in SELECTOR.findall(text):
            if (labels := self.labels(name)) is not None:
                self.matchers(where, name, labels, matchers)

    def labels(self, name):
        """Those of a metric; of a recorded one those that its name says are left."""
        if ":" not in name:
            return self.known.get(name)
        level, of = name.split(":")[:2]
        whole = next((self.known[of + suffix] for suffix in ("", "_total", "_bucket") if of + suffix in self.known), {})
        return {label: whole.get(label, set()) for label in level.split("_")}

    def matchers(self, where, name, labels, matchers):
        """Every label is one of the metric, and every value one that the label takes. Of patterns only a choice of words is understood."""
        for label, pattern in MATCHER.findall(matchers):
            if label in ADDED:
                continue
            if label not in labels:
                self.problems.append(f"{where}: {name} has no label {label}")
                continue
            for value in pattern.split("|"):
                if labels[label] and re.fullmatch(r"\w+", value) and value not in labels[label]:
                    self.problems.append(f"{where}: {label} of {name} is never {value}")

    def alerts(self, text):
        """Alert -> the anchor that it points to; an alert with two severities points to one section."""
        anchors = {}
        for block in re.split(r"(?=^      - alert: )", text, flags=re.M)[1:]:
            name = re.match(r" *- alert: (\w+)", block)[1]
            for part in ("severity:", "summary:", "description:", "runbook_url:"):
                if part not in block:
                    self.problems.append(f"{name} has no {part[:-1]}")
            anchor = re.search(r"runbook_url: \S+/docs/runbook\.md#(\S+)", block)
            anchors[name] = anchor[1] if anchor else None
            if anchors[name] != name.lower():
                self.problems.append(f"{name} points to {anchors[name]}, not to {name.lower()}")
        return anchors

    def tests(self, alerts, texts):
        """Every alert is tested in a case where it fires and in one where it does not."""
        cases = re.findall(r"alertname: (\w+)\n\s+exp_alerts:( \[\])?", "\n".join(texts))
        for alert in alerts:
            quiet = {bool(empty) for name, empty in cases if name == alert}
            if quiet != {True, False}:
                self.problems.append(f"{alert}: no test where it {'does not fire' if True not in quiet else 'fires'}")


def main():
    known = table(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src" / "telemetry" / "metrics.rs")
    rules = {path.name: path.read_text() for path in RULES}
    recorded = re.findall(r"record: (\S+)", "\n".join(rules.values()))
    found = Findings(known, set(recorded))
    if not known:
        found.problems.append("the table of metrics is not found")
    if len(recorded) != len(set(recorded)):
        found.problems.append("a name is recorded twice")
    for where, expr in check_live.panel_expressions():
        found.text(where, expr)
    for name, text in rules.items():
        found.text(name, text)
    runbook = RUNBOOK.read_text()
    found.text("runbook.md", runbook)
    used = "\n".join([*rules.values(), *(expr for _, expr in check_live.panel_expressions())])
    for name in recorded:
        if len(re.findall(rf"(?<![\w:]){re.escape(name)}(?![\w:])", used)) < 2:
            found.problems.append(f"{name} is recorded and not used")

    alerts = found.alerts(rules["argon-alerts.yml"])
    sections = re.findall(r"^### (\w+)$", runbook, re.M)
    for name in sorted(set(alerts) - set(sections)):
        found.problems.append(f"runbook.md has no section for {name}")
    for name in sorted(set(sections) - set(alerts)):
        found.problems.append(f"runbook.md: there is no alert {name}")
    headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", runbook, re.M)}
    for anchor in re.findall(r"\]\(#([^)]+)\)", runbook):
        if anchor not in headings:
            found.problems.append(f"runbook.md: there is no section #{anchor}")
    found.tests(alerts, [path.read_text() for path in sorted((HERE / "prometheus" / "tests").glob("*.yml"))])

    unused = sorted({base(name) for name in known} - {base(name) for name in found.used})
    if unused:
        print(f"note  in no dashboard and no rule: {', '.join(unused)}")
    for problem in dict.fromkeys(found.problems):
        print(f"WRONG {problem}", file=sys.stderr)
    print(f"{len(found.used)} names, {len(set(recorded))} recorded, {len(alerts)} alerts, {len(set(found.problems))} wrong")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
