"""Which champion a request is for, and why there is none."""

from collections.abc import Mapping

from werkzeug.exceptions import NotFound

from deeplambda.errors import NotReady, UnknownApplication
from speed_layer.model_service.champions import Champion, ChampionWatch


class Champions:
    """The champions of all applications, by name."""

    def __init__(self, watches: Mapping[str, ChampionWatch]) -> None:
        self.watches = watches

    def watch(self, name: str) -> ChampionWatch:
        """Raises: UnknownApplication."""
        if name not in self.watches:
            raise UnknownApplication(f"no model {name!r}", f"this service serves: {', '.join(self.watches)}")
        return self.watches[name]

    def serving(self, name: str, version: str | None) -> Champion:
        """The champion of `name`, which has to be `version` if one is given.

        Raises: UnknownApplication, NotFound for another version, NotReady before the first champion.
        """
        watch = self.watch(name)
        champion = watch.current
        if champion is None:
            raise no_champion(watch)
        if version is not None and version != str(champion.card.version):
            raise NotFound(f"version {version} of {name!r} does not serve; version {champion.card.version} does")
        return champion


def no_champion(*watches: ChampionWatch) -> NotReady:
    """The error for requests to applications without a champion; it gives each one's reason."""
    reasons = [f"{watch.name!r} has no champion yet" + (f": {watch.error}" if watch.error else "") for watch in watches]
    return NotReady(
        "; ".join(reasons), f"if none was promoted, train one and run 'deeplambda model promote {watches[0].name}'"
    )
