"""`python -m benchmarks`: run every benchmark, print one table of ratios; `python -m benchmarks NAME …` runs some.

`python -m benchmarks scale` measures what takes hours: `benchmarks.scale`.

Exit status 1 when a benchmark could not be measured, or its stack not be started or stopped. A missed aim is a result
like any other.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from rich.console import Console

from benchmarks.own_stack import STORES, own_stack
from benchmarks.ratio import Ratio, table

SERVING = (*STORES, "model")
MODULES: Mapping[str, tuple[str, ...]] = {
    "stream_throughput": (),
    "stream_latency": (),
    "stream_backlog": (),
    "views": (),
    "model_service": SERVING,
    "serving_peers": SERVING,
    "two_applications": SERVING,
    "overload": SERVING,
    "training": (),
    "recomputation": (),
    "horizon": (),
    "upkeep": (),
    "tuning": STORES,
    "rollback": (),
}
"""By name, the parts of the stack that run beside it, of which () are all. Each has `measure()`, which returns one
`Ratio` or several."""


def main() -> int:
    if sys.argv[1:2] == ["scale"]:
        from benchmarks.scale.sections import main as scale

        return scale(sys.argv[2:])
    console = Console()
    if {"-h", "--help"} & {*sys.argv}:
        console.print(
            f"python -m benchmarks [NAME …], all without a name: {', '.join(MODULES)}; scale --help for that one"
        )
        return 0
    chosen = sys.argv[1:] or MODULES
    if unknown := [name for name in chosen if name not in MODULES]:
        console.print(f"no benchmark {unknown[0]!r}; there are {', '.join(MODULES)}")
        return 2
    ratios: list[Ratio] = []
    failed: dict[str, str] = {}
    for parts in dict.fromkeys(MODULES[name] for name in chosen):
        left = [name for name in chosen if MODULES[name] == parts]
        together = f"the stack of {', '.join(left)}"
        try:
            with own_stack(*parts):
                while left:
                    name = left.pop(0)
                    try:
                        with console.status(f"measuring {name}"):
                            found = _measured(name)
                    except Exception as exc:  # one benchmark's trouble should not hide the others' ratios
                        failed[name] = f"{type(exc).__name__}: {exc}"
                    else:
                        ratios += found
                        # At once, for what follows takes long, or may fail.
                        console.print(*map(str, found), sep="\n", highlight=False, soft_wrap=True)
        except Exception as exc:  # nor should a stack's
            failed |= dict.fromkeys(left or [together], f"{type(exc).__name__}: {exc}")
    console.print(table(ratios))
    for name, reason in failed.items():
        console.print(f"[red]{name} failed[/red]: {reason}", highlight=False)
    return 1 if failed else 0


def _measured(name: str) -> list[Ratio]:
    if find_spec(f"benchmarks.{name}") is None:
        raise LookupError(f"there is no benchmarks/{name}.py")
    found: Ratio | list[Ratio] = importlib.import_module(f"benchmarks.{name}").measure()
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    sys.exit(main())
