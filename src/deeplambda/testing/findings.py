"""What a check finds: what is wrong, where, and what to do."""

import re
from dataclasses import dataclass, field

from deeplambda.errors import DeepLambdaError

_PLACE = re.compile(r" \((?P<file>[^()\s]+\.py), line (?P<line>\d+)\)")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """check: what was being checked. problem, remedy: what is wrong, and what to do. file, line: where, if known."""

    check: str
    problem: str
    remedy: str
    file: str | None = None
    line: int | None = None

    @property
    def place(self) -> str:
        """File and line as editors take them; empty when unknown."""
        return ":".join(str(each) for each in (self.file, self.line) if each is not None)

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.problem}; {self.remedy}"


@dataclass(kw_only=True)
class Report:
    """findings: what is wrong; an application with none keeps the contract. passed: by check, what was seen.

    skipped: checks that were left out because of earlier findings. request: a command that asks for a prediction.
    """

    application: str
    findings: list[Finding] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    request: str | None = None


class Broken(Exception):
    """A check cannot go on: `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


def of_error(check: str, error: DeepLambdaError, place: tuple[str | None, int | None] = (None, None)) -> Finding:
    """An error that a user's code caused; the place that its sentence names comes before `place`."""
    problem = error.message
    if named := _PLACE.search(problem):
        place = named["file"], int(named["line"])
        problem = problem.replace(named[0], "")
    return Finding(check=check, problem=problem, remedy=error.remedy, file=place[0], line=place[1])
