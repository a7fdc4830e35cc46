"""The code of the version that serves, for those who make features for the model service: the stream and SQL.

The service refuses features of other code or learned state (`OtherFeatures`) and names the version that it serves; that
version is loaded then and the features are made anew. So a swap to other code loses and mixes nothing.
"""

import time

from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import Settings
from deeplambda.errors import NotReady
from deeplambda.records.featurizer import Featurizer
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import load_code

_LOOK_EVERY_S = 0.5


class ChampionCode:
    """Keeps one application's featurizer; one lives in each process that makes features. version: whose it is."""

    def __init__(self, settings: Settings, name: str, client: ModelClient, *, patience_s: float) -> None:
        self._settings, self._name, self._client, self._patience_s = settings, name, client, patience_s
        self._store = ObjectStore(settings)
        self._featurizer: Featurizer | None = None
        self.version: int | None = None

    def current(self) -> Featurizer:
        """The one loaded last; at first, that of the version that serves. Raises: NotReady when none does in time."""
        return self._featurizer or self.load(self._serving_version())

    def load(self, version: int) -> Featurizer:
        """Take up a version's code and learned state. Raises: CorruptObject, BadInput, NotReady."""
        card = fetch_card(self._store, self._name, version)
        self._featurizer, self.version = load_code(self._store, self._settings, card).featurizer, version
        return self._featurizer

    def renew(self) -> bool:
        """Take up the code of the version that serves; False when that is the code taken up already.

        To be called where all events are refused: no features are sent then, so the service cannot say that they are
        of old code, whose schema or transform may be what refuses them. Raises: as `load`.
        """
        known = self._featurizer
        serving = self._serving_version()
        return serving != self.version and (known is None or self.load(serving).id != known.id)

    def _serving_version(self) -> int:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                version = self._client.serving()
            except NotReady:  # it is being restarted
                if time.monotonic() > deadline:
                    raise
                version = None
            if version is not None:
                return version
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{self._name} has no champion", f"train and promote one: 'deeplambda batch run {self._name}'"
                )
            time.sleep(_LOOK_EVERY_S)
