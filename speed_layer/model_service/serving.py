"""Which champion a request is for, and why there is none."""

from collections.abc import Mapping

from werkzeug.exceptions import NotFound

from deeplambda.clock import now
from deeplambda.config import Settings
from deeplambda.errors import NotReady, UnknownApplication
from speed_layer.model_service.canaries import RunningCanary
from speed_layer.model_service.champions import Champion, ChampionWatch


class Champions:
    """The champions of all applications, by name; and the canaries that run beside them."""

    def __init__(
        self, watches: Mapping[str, ChampionWatch], canaries: Mapping[str, RunningCanary] | None = None
    ) -> None:
        self.watches = watches
        self.canaries = {} if canaries is None else canaries

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

    def canary(self, name: str, version: str | None = None) -> RunningCanary | None:
        """The canary that is asked; version: only where that is its candidate."""
        found = self.canaries.get(name)
        if found is None or not found.is_asked or version not in (None, str(found.known.version)):
            return None
        return found


def no_champion(*watches: ChampionWatch) -> NotReady:
    """The error for requests to applications without a champion; it gives each one's reason."""
    reasons = [f"{watch.name!r} has no champion yet" + (f": {watch.error}" if watch.error else "") for watch in watches]
    return NotReady(
        "; ".join(reasons), f"if none was promoted, train one and run 'deeplambda model promote {watches[0].name}'"
    )


def check_fresh(settings: Settings, watch: ChampionWatch) -> None:
    """Whether what a watch serves may still be sent requests, as the settings of staleness say; they do by default.

    Raises: NotReady that says since when it is stale.
    """
    silent_s = watch.silent_s
    if 0 < settings.stale_champions_s < silent_s:
        raise NotReady(
            f"{watch.name!r}: the champions topic has not answered for {silent_s:.0f} s, more than the "
            f"{settings.stale_champions_s:g} s of DEEPLAMBDA_STALE_CHAMPIONS_S: {watch.error}",
            "see 'deeplambda status'",
        )
    champion = watch.current
    if champion is not None and settings.stale_model_h:
        age_h = (now() - champion.card.created_at).total_seconds() / 3600
        if age_h > settings.stale_model_h:
            raise NotReady(
                f"version {champion.card.version} of {watch.name!r} was trained {age_h:.1f} h ago, more than the "
                f"{settings.stale_model_h:g} h of DEEPLAMBDA_STALE_MODEL_H",
                f"train and promote another: 'deeplambda batch run {watch.name}'",
            )
