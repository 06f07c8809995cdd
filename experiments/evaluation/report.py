"""The printed report of an evaluation, and its tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from pitune.envs import EnvSpec
from pitune.experiments.evaluation.results import Summary
from pitune.experiments.evaluation.variations import Cell, text_of
from pitune.experiments.reports.table import TextTable
from pitune.experiments.reports.task_table import counts_of, names_of, task_table
from pitune.experiments.runs.report import percent
from pitune.rl.evaluation.outcome import text_of as text_of_summary


class CellResult(NamedTuple):
    """The results of one cell of `--vary`, or of the only one.

    Example:
        >>> result = CellResult({"flow_steps": 4}, {"checkpoint": {}}, {"checkpoint": "ODE"}, None)
        >>> result.record()["settings"]
        {'flow_steps': 4}
    """

    cell: Cell
    results: Mapping[str, Summary]
    """By the option that names the policy."""
    how: Mapping[str, str]
    """Mode and sampler of each policy, in words."""
    comparison: Summary | None

    def record(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        record = {"settings": dict(self.cell), "result": self.results["checkpoint"]}
        if self.comparison is not None:
            record |= {"compare": self.results["compare"], "comparison": self.comparison}
        return record


def print_report(console: Console, env_id: str, spec: EnvSpec, cells: Sequence[CellResult]) -> None:
    """Print the results of an evaluation."""
    if len(cells) > 1:
        console.print(f"{env_id} ({spec.simulator})", markup=False, highlight=False)
    else:
        for line in summary_lines(env_id, spec, cells[0]):
            console.print(line, markup=False)
    for table in tables(spec, cells):
        console.print(table.rich())
    for cell in cells:
        for line in comparison_lines(cell):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_lines(env_id: str, spec: EnvSpec, cell: CellResult) -> Iterator[str]:
    """Yield the rate of each policy of a cell, its seeds and a warning."""
    for name, summary in cell.results.items():
        title = f"{env_id} ({spec.simulator}), {cell.how[name]}"
        title = title if name == "checkpoint" else f"compare: {title}"
        measure = "success " if summary["success_rule"] else ""
        yield f"{title}: {measure}{text_of_summary(summary)}"
        once, at_end = summary["success_once"], summary["success_at_end"]
        if summary["success_rate"] is not None and once != at_end:
            yield f"  solved once: {once:.1%}, solved at the end: {at_end:.1%}"
        if summary["warning"] is not None:
            yield f"  warning: {summary['warning']}"
        if len(summary["seeds"]) > 1:
            for seed, part in summary["seeds"].items():
                yield f"  seed {seed}: {text_of_summary(part)}"


def tables(spec: EnvSpec, cells: Sequence[CellResult]) -> Iterator[TextTable]:
    """Yield the tables of an evaluation: of the cells, and of the tasks of each."""
    if len(cells) > 1:
        yield _table_of_cells(cells)
    for cell in cells:
        titles = {"checkpoint": "success"} if len(cell.results) == 1 else {}
        counts = {titles.get(name, name): counts_of(s) for name, s in cell.results.items()}
        table = task_table(names_of(spec), counts)
        if table is not None:
            yield table._replace(title=": ".join(filter(None, [table.title, text_of(cell.cell)])))
        if cell.comparison is not None and len(cell.comparison["tasks"]) > 1:
            yield _table_of_pairs(cell)


def _table_of_cells(cells: Sequence[CellResult]) -> TextTable:
    """Return the table with a row for each combination of the varied settings."""
    # a column for each setting and each policy
    names = list(cells[0].cell)
    policies = list(cells[0].results)
    titles = ["success"] if len(policies) == 1 else policies
    rows = [
        (
            *(str(cell.cell[name]) for name in names),
            *(percent(cell.results[policy]) for policy in policies),
            _number(cell.results["checkpoint"]["mean_length"]),
        )
        for cell in cells
    ]
    return TextTable(
        "deployed settings, on the same starts",
        (*names, *titles, "mean steps"),
        rows,
        "95 % Wilson intervals.",
    )


def _table_of_pairs(cell: CellResult) -> TextTable:
    """Return the table of the paired tests, in total and by task."""
    comparison = cell.comparison or {}
    rows = [
        (name, *_pair_cells(test))
        for name, test in [
            *((task["task"], task) for task in comparison["tasks"]),
            ("total", comparison["total"]),
        ]
    ]
    columns = ("task", "difference", "compare alone", "checkpoint alone", "pairs", "exact p")
    caption = (
        "Success of --compare minus that of --checkpoint, with Newcombe's 95 % interval of pairs. "
        "The p-values (McNemar) are not corrected for the number of tasks."
    )
    title = ": ".join(filter(None, ["paired comparison", text_of(cell.cell)]))
    return TextTable(title, columns, rows, caption)


def _pair_cells(test: Summary) -> tuple[str, ...]:
    return (
        _difference(test),
        str(test["solved_by_compare_alone"]),
        str(test["solved_by_checkpoint_alone"]),
        str(test["pairs"]),
        f"{test['p_value']:.2g}",
    )


def comparison_lines(cell: CellResult) -> Iterator[str]:
    """Yield the comparison of a cell in sentences."""
    if cell.comparison is None:
        return
    title = f"{text_of(cell.cell)}: " if cell.cell else ""
    total = cell.comparison["total"]
    if total is None:
        yield f"{title}no comparison, because the environment reports no success"
    elif not cell.comparison["paired"]:
        p_value = "none" if total["p_value"] is None else f"{total['p_value']:.2g}"
        yield (
            f"{title}unpaired, because a seed does not fix the starts of this environment: "
            f"difference {_difference(total)}, Fisher's exact p = {p_value}"
        )
    else:
        left_out = f", {total['left_out']} left out as broken" if total["left_out"] else ""
        yield (
            f"{title}on the {total['pairs']} starts of both: solved by --compare alone "
            f"{total['solved_by_compare_alone']}, by --checkpoint alone "
            f"{total['solved_by_checkpoint_alone']}, difference {_difference(total)}, exact p = "
            f"{total['p_value']:.2g}{left_out}"
        )


def _difference(test: Summary) -> str:
    if test["difference"] is None:
        return "-"
    low, high = test["difference_low"], test["difference_high"]
    return f"{test['difference']:+.1%} [{low:+.1%}, {high:+.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
