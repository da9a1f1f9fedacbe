"""How a scheduler spent its resource."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from strategies.plots.style import COLOURS, single
from strategies.schedulers.base import Scheduler
from strategies.schedulers.hyperband import Hyperband

#: Brackets that fit into a figure.
_MOST = 16


def brackets(scheduler: Scheduler) -> Figure:
    """How many configurations each bracket trained up to each resource.

    A row for each bracket that has begun (one in all for a scheduler without brackets), a box for
    each rung: its height is the number of its configurations, and the number stands
    beside it, after that of those that have reported if some have not.

    **Arguments:**

    - `scheduler`: with results. The last 16 brackets are shown.
    """
    if not isinstance(scheduler, Scheduler):
        raise ValueError(f"'scheduler': expected a scheduler, received {scheduler!r:.80}")
    rows = _rows(scheduler)[-_MOST:]
    resources = scheduler.resources
    figure, axes = single(max(1.3 * len(resources) + 2.0, 4.5), max(0.9 * len(rows) + 1.2, 2.4))
    axes.grid(visible=False)
    legend: dict[str, Rectangle] = {}
    for row, (_, rungs) in enumerate(rows):
        largest = max((len(members) for members in rungs.values()), default=1) or 1
        for level, members in rungs.items():
            results = [scheduler.candidates[n].results.get(level) for n in members]
            done = [item for item in results if item is not None]
            failed = sum(item.status == "failed" for item in done)
            unit = 0.8 / largest
            base = row - unit * len(members) / 2
            parts = (
                ("finished", len(done) - failed, COLOURS[0]),
                ("failed", failed, COLOURS[1]),
                ("open", len(members) - len(done), "#cccccc"),
            )
            for label, count, colour in parts:
                if count:
                    box = Rectangle((level - 0.32, base), 0.64, unit * count, facecolor=colour)
                    axes.add_patch(box)
                    legend.setdefault(label, box)
                    base += unit * count
            text = f"{len(done)}" if len(done) == len(members) else f"{len(done)}/{len(members)}"
            axes.text(level + 0.32, row, f" {text}", ha="left", va="center", fontsize=9)
    axes.set_xlim(-0.6, len(resources) - 0.4)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xticks(range(len(resources)), [f"{resource:.4g}" for resource in resources])
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set(xlabel="resource of a configuration", ylabel="bracket")
    if legend.keys() - {"finished"}:
        figure.legend(legend.values(), legend, loc="outside right upper", frameon=False)
    return figure


def _rows(scheduler: Scheduler) -> list[tuple[str, dict[int, list[int]]]]:
    """Labels, and the configurations known at each level."""
    known = scheduler.candidates
    if isinstance(scheduler, Hyperband):
        found = []
        for bracket in scheduler.brackets():
            if bracket.numbers[0] not in known:
                break
            rungs = {
                rung.level: [n for n in rung.members if n in known]
                for rung in scheduler.rungs(bracket)
            }
            start = scheduler.resources[bracket.bottom]
            found.append((f"{bracket.iteration}: from {start:.4g}", rungs))
        return found
    return [
        (
            "all",
            {
                level: members
                for level in range(scheduler.top + 1)
                if (members := [n for n, c in known.items() if level in c.results])
            },
        )
    ]
