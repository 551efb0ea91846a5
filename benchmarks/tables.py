"""Puts the tables of results/*.json into README.md: `python benchmarks/tables.py` after a run with --results."""

from __future__ import annotations

import json
import re

from harness import RESULTS

README = RESULTS.parent / "README.md"


def section(name: str) -> str:
    document = json.loads((RESULTS / f"{name}.json").read_text())
    machine, table = document["machine"], document["table"]
    versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items() if value)
    sets = ", ".join(machine["instruction_sets"])
    lines = ["| " + " | ".join(row) + " |" for row in (table["columns"], *table["rows"])]
    lines.insert(1, "|---" + "|---:" * (len(table["columns"]) - 1) + "|")
    targets = [
        f"- {'reached' if target['reached'] else '**not reached**'}: {target['target']}: {target['measured']}"
        for target in document["targets"]
    ]
    about = f"{machine['cpu']} ({sets}), {machine['cores']} cores, load {machine['load']} before the run; {versions}."
    return "\n".join([about, "", *lines, "", *targets])


def main() -> None:
    text = README.read_text()
    for path in sorted(RESULTS.glob("*.json")):
        begin, end = f"<!-- {path.stem} -->", f"<!-- end of {path.stem} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert pattern.search(text), f"README.md has no {begin}"
        before, after = pattern.split(text)
        text = f"{before}{begin}\n{section(path.stem)}\n{end}{after}"
    README.write_text(text)


if __name__ == "__main__":
    main()
