"""The page ``docs/evidence.md``: for each claim its runs, what they show, and how to repeat them; and the README's table of claims.

python -m lib.results.report
"""

import sys

import pandas as pd

from lib import files, paths
from lib.results import papers
from lib.results.records import records as read_records
from lib.results.tables import command_of
from lib.results.verdicts import MIN_CONTRAST, MIN_SEEDS, Finding, finding_of, mean_of, rules_of, statements, verdicts

PAGE, README = paths.ROOT / "docs" / "evidence.md", paths.ROOT / "README.md"
START, END = "<!-- claims: written by python -m lib.results.report -->", "<!-- end of the claims -->"
HEAD = f"""# Evidence

This page is written by `python -m lib.results.report` from the records in `records/`. It says for each claim of the talk what was compared,
whether the comparison can decide, what came out, and with which commands it is repeated. On a CPU with the same number of threads and the
same versions, a repeated run gives the same numbers to the last bit. Before a measurement, its run has to be trained: put `lib.train` in the place
of `lib.measure` and the measurement's name, and leave out words such as `localization.data=horses`.

A gap is the figure of the method that should be better less the highest figure of the others, paired by seed, in points of percent unless
the name of the figure says otherwise. Its interval is Student's t at 95%. The verdict is `reproduced` where the interval lies above zero,
`contradicted` where it lies below, `inconclusive` across zero. It is `not testable`, whatever the gap, where the comparison could not have
decided: with fewer than {MIN_SEEDS} seeds; where the masks of the better arm do not hide at least {MIN_CONTRAST} times as much of the objects as those
of the other arm, by the check that each run makes of itself; where no arm is better than the untrained network or a trivial answer; and where
the figures are at an end of the scale. A claim of several statements is contradicted if one of them is; its seeds are those of the statements
that have its verdict. A `Limit` belongs to a claim on costs: the figure is a ratio of times, each seed is one repeated timing, and the gap is that
of the limit less the ratio.
"""


def report(records: pd.DataFrame | None = None) -> str:
    """The page, as Markdown; ``records`` are as ``lib.results.records.records`` gives them, None reads them."""
    records = read_records() if records is None else records
    given = verdicts(records).set_index("id")
    parts = [HEAD, _overview(given)]
    details = statements(records)
    for claim in papers.claim_details():
        parts.append(f"## {claim['id']}: {claim['text']}\n\nVerdict: **{given.verdict[claim['id']]}**.")
        parts += [f"Of the paper's figures: {claim['note']}."] if claim.get("note") else []
        rows = details[details.id == claim["id"]]
        for rule, (_, row) in zip(rules_of(claim), rows.iterrows()):
            parts.append(_statement(rule, row, finding_of(rule, records)))
        parts += [claim["discussion"].strip()] if claim.get("discussion") else []
    return "\n\n".join(parts) + "\n"


def _overview(given: pd.DataFrame) -> str:
    texts = {claim["id"]: claim["text"] for claim in papers.claim_details()}
    lines = [f"| {i} | {row.verdict} | {row.seeds} | {texts[i]} |" for i, row in given.iterrows()]
    return "\n".join(["| claim | verdict | seeds | in the talk's words |", "|---|---|---|---|", *lines])


def _statement(rule: dict, row: pd.Series, finding: Finding) -> str:
    """What was compared and what came out, with the commands."""
    name = f"**{row.statement}:** " if row.statement else ""
    if not finding.scale:
        return f"{name}Not run."
    interval = f" [{row.gap_low:.2f}, {row.gap_high:.2f}]" if row.seeds > 1 else ""
    theirs = "" if pd.isna(row.paper_gap) else f"; the paper's is {row.paper_gap:.2f} ({', '.join(row.published)})"
    text = f"{name}Gap in {', '.join(row.metrics)}: {row.gap_mean:.2f}{interval}, {row.seeds} seed{'s' * (row.seeds != 1)}, scale {row.scale}{theirs}. "
    text += f"Limit {rule['limit']}. " if "limit" in rule else ""
    text += f"**{row.verdict[:1].upper()}{row.verdict[1:]}**{': ' + row.reason if row.reason else ''}."
    return text if finding.arms is None else f"{text}\n\n{_runs(rule, finding)}"


def _runs(rule: dict, finding: Finding) -> str:
    """A table of the compared runs, and the commands that repeat them."""
    assert finding.arms is not None
    sides = [finding.arms.better, *finding.arms.worse]
    fields = rule["field"] if isinstance(rule["field"], list) else [rule["field"]]
    rows, commands = [], []
    for side in sides:
        arm = ", ".join(str(side[f"config.{name}"].iloc[0]) for name in fields)
        hidden = [f"hidden_{side['config.masking'].iloc[0]}"] if "treatment" in rule else []
        names = [*rule["metrics"], *(f"untrained_{metric}" for metric in rule["metrics"]), *rule.get("floors", []), *hidden]
        values = [f"{name} {value:.2f}" for name in names if not pd.isna(value := mean_of(side, name))]
        rows.append(f"| {arm} | {', '.join(map(str, side.index))} | {'; '.join(values)} |")
        commands += [command_of(row) for _, row in side.reset_index().iterrows()]
    table = "\n".join([f"| {', '.join(fields)} | seeds | mean over the seeds |", "|---|---|---|", *rows])
    return f"{table}\n\n```bash\n" + "\n".join(f"{command} --record" for command in commands) + "\n```"


def readme() -> str:
    """The text of the README with the present table of claims."""
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{_overview(verdicts().set_index('id'))}\n{END}{after}"


def main() -> int:
    PAGE.parent.mkdir(exist_ok=True)
    files.write_text(PAGE, report())
    files.write_text(README, readme())
    print(f"{PAGE.relative_to(paths.ROOT)}\n{README.relative_to(paths.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
