"""The declaration of an experiment: options, claims, and the function that does the work."""

import argparse
import inspect
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import record
from experiments.harness.context import Context
from experiments.harness.report import write_page


@dataclass(frozen=True)
class Option:
    """A command-line option.

    - `name`: `--name` on the command line (with `-` for `_`), `context.options.name` in the code.
    - `default`: its value; the type of the default is the type of the option. A `bool` becomes a
      pair `--name / --no-name`.
    - `quick`: its default under `--quick`; the same as `default` if left out.
    - `choices`: the values allowed, all if left out.
    - `help`: one line.
    """

    name: str
    default: Any
    quick: Any = None
    choices: Sequence[Any] | None = None
    help: str = ""

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the option; its value stays `None` until `settle` fills it."""
        quick = "" if self.quick is None else f"; with --quick {self.quick}"
        flag = "--" + self.name.replace("_", "-")
        text = f"{self.help} (default {self.default}{quick})".strip()
        if isinstance(self.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, dest=self.name, action=action, default=None, help=text)
        else:
            kind = type(self.default)
            parser.add_argument(
                flag, dest=self.name, type=kind, default=None, choices=self.choices, help=text
            )

    def settle(self, options: argparse.Namespace) -> None:
        """Give the option its default if the command line did not."""
        if getattr(options, self.name) is None:
            quick = options.quick and self.quick is not None
            setattr(options, self.name, self.quick if quick else self.default)


@dataclass(frozen=True)
class Claim:
    """A statement that the run checks.

    - `key`: its name in `context.measure`.
    - `claim`: the statement, in words.
    - `at_most`, `at_least`: the bound on what is measured, exactly one of the two. A number that is
      not finite never holds. What must simply be true is measured as a `bool`, `at_least=1`.
    - `quick`: the bound of a `--quick` run, which is smaller; the same, if left out.
    - `when`: whether the claim applies under the run's options; always, if left out. It asks for
      what the run does (which tasks, which rivals), not for `quick`.
    """

    key: str
    claim: str
    at_most: float | None = None
    at_least: float | None = None
    quick: float | None = None
    when: Callable[[argparse.Namespace], bool] = field(default=lambda options: True)

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"Claim {self.key!r} needs `at_most` or `at_least`, and not both.")

    def bound(self, *, quick: bool) -> float:
        """The number that decides a run."""
        if quick and self.quick is not None:
            return self.quick
        return self.at_least if self.at_most is None else self.at_most

    def check(self, measured: float, *, quick: bool) -> dict[str, Any]:
        """The claim as a record holds it."""
        bound = self.bound(quick=quick)
        holds = measured >= bound if self.at_most is None else measured <= bound
        return {
            "key": self.key,
            "claim": self.claim,
            "measured": measured,
            "bound": f"{'>=' if self.at_most is None else '<='} {bound:.6g}",
            "holds": bool(holds and np.isfinite(measured)),
        }


@dataclass(frozen=True)
class Experiment:
    """What `@experiment` makes of a function; `main()` runs it."""

    run: Callable[[Context], None]
    paper: str
    options: Sequence[Option]
    claims: Sequence[Claim]
    x64: bool
    compiles: bool = False

    @property
    def name(self) -> str:
        """Name of the module that the experiment is written in."""
        return Path(inspect.getfile(self.run)).stem

    @property
    def description(self) -> str:
        """Docstring of that module."""
        return inspect.cleandoc(self.run.__globals__["__doc__"] or "")

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options that a command line gives (that of the process, by default)."""
        parser = argparse.ArgumentParser(
            prog=f"python -m experiments.{self.name}",
            description=self.description.partition("\n")[0],
        )
        parser.add_argument("--quick", action="store_true", help="a small version of the run")
        parser.add_argument("--seed", type=int, default=0, help="seed of the run (default 0)")
        default = Path("results") / self.name
        parser.add_argument(
            "--out", type=Path, default=default, help=f"where results go (default {default})"
        )
        for option in self.options:
            option.add_to(parser)
        options = parser.parse_args(arguments)
        for option in self.options:
            option.settle(options)
        return options

    def command(self, options: argparse.Namespace) -> str:
        """The command line that gives these options, without `--out`."""
        plain = self.parse(["--quick"] if options.quick else [])
        words = [f"python -m experiments.{self.name}", *(["--quick"] if options.quick else [])]
        for name, value in vars(options).items():
            if name != "out" and value != getattr(plain, name):
                flag = name.replace("_", "-")
                words.append(
                    f"--{'' if value else 'no-'}{flag}"
                    if isinstance(value, bool)
                    else f"--{flag} {shlex.quote(str(value))}"
                )
        return " ".join(words)

    def deciding(self, options: argparse.Namespace) -> list[Claim]:
        """The claims that apply under these options."""
        return [claim for claim in self.claims if claim.when(options)]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run, write results and page, print the claims.

        **Arguments:**

        - `arguments`: command line; that of the process, by default.

        **Returns:** 0 if all claims hold, 1 if one does not.

        **Raises:** `ValueError` if a claim that applies was not measured.
        """
        options = self.parse(arguments)
        if self.x64:
            import jax

            jax.config.update("jax_enable_x64", True)
        if self.compiles and options.quick:
            import jax

            jax.config.update("jax_disable_most_optimizations", True)
        claims = self.deciding(options)
        context = Context(self.name, options, known_claims={claim.key for claim in self.claims})
        started = time.perf_counter()
        with context:
            self.run(context)
        seconds = time.perf_counter() - started
        missing = [claim.key for claim in claims if claim.key not in context.measured]
        if missing:
            raise ValueError(f"Claims that were not measured: {', '.join(missing)}.")
        checked = [
            claim.check(context.measured[claim.key], quick=options.quick) for claim in claims
        ]
        results = record.new(
            "experiments",
            self.name,
            title=self.description.partition("\n")[0],
            paper=self.paper,
            command=self.command(options),
            settings=vars(options),
            seconds=round(seconds, 2),
            plots=context.plots,
            pictures=[path.name for path in context.figures if path.stem not in context.plots],
            tables=context.tables,
            findings=context.findings,
            claims=checked,
        )
        record.write(results, options.out)
        page = write_page(context, self.description, results)
        context.print_claims(checked)
        context.console.print(f"Page: {page}   ({seconds:.0f} s)", highlight=False)
        return 0 if all(claim["holds"] for claim in checked) else 1


def experiment(
    *,
    paper: str,
    options: Sequence[Option] = (),
    claims: Sequence[Claim] = (),
    x64: bool = False,
    compiles: bool = False,
) -> Callable[[Callable[[Context], None]], Experiment]:
    """Turn `run(context)` into an experiment.

    **Arguments:**

    - `paper`: author, year and number of the paper whose statement is checked, or `"ours"`.
    - `options`: the experiment's own options.
    - `claims`: what the run must show, with bounds.
    - `x64`: enable float64 in JAX before the run.
    - `compiles`: a `--quick` run compiles longer than it computes: few optimisations then.
    """
    return lambda run: Experiment(run, paper, tuple(options), tuple(claims), x64, compiles)
