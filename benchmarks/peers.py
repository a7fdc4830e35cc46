"""`python -m benchmarks.peers litserve|ray PORT`: the champion of digits behind another model server, as one writes it.

The same model in fp32, the same transform, the same JSON, one worker with one PyTorch thread, requests in flight
batched by the server's own means. `benchmarks.serving_peers` starts these.
"""

import sys
from base64 import b64decode
from typing import Any

import pyarrow as pa
import torch

from deeplambda.adapters.model_service import ModelClient
from deeplambda.adapters.s3 import ObjectStore
from deeplambda.config import load_settings
from deeplambda.errors import NotReady
from deeplambda.state.card import fetch_card
from deeplambda.state.versions import fetch_model, load_code

BATCH_ROWS, BATCH_WAIT_S = 32, 0.005


class Champion:
    """The champion of digits: encoded images in, predictions out."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        settings = load_settings()
        store = ObjectStore(settings)
        version = ModelClient(settings, "digits").serving()
        if version is None:
            raise NotReady("digits has no champion", "run 'deeplambda batch run digits'")
        card = fetch_card(store, "digits", version)
        self._application = load_code(store, settings, card).featurizer.application
        self._model = fetch_model(store, self._application, card)

    def predictions(self, images: list[bytes]) -> list[dict[str, Any]]:
        """Those of a batch, each as the body of a reply."""
        features = self._application.transform(pa.RecordBatch.from_pydict({"image": images}))
        with torch.inference_mode():
            outputs = self._model(torch.from_numpy(features)).numpy()
        decoded = self._application.objective.decode(outputs)
        return [
            {
                "predictions": [
                    {
                        "prediction": text,
                        "confidence": float(decoded.confidence_N[row]),
                        "scores": decoded.scores_of(row),
                    }
                ]
            }
            for row, text in enumerate(decoded.values)
        ]


def image_of(request: Any) -> bytes:
    """The image in a request's JSON."""
    return b64decode(request["instances"][0]["image"])


def lit_serve(port: int) -> None:
    """Serve at `/predict` by LitServe."""
    import litserve

    from benchmarks.litserve_api import DigitsAPI

    api = DigitsAPI(max_batch_size=BATCH_ROWS, batch_timeout=BATCH_WAIT_S)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning"
    )


def ray_serve(port: int) -> None:
    """Serve at `/predict` by Ray Serve."""
    import ray
    from ray import serve

    @serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": 1})
    class Digits:
        def __init__(self) -> None:
            self.champion = Champion()

        @serve.batch(max_batch_size=BATCH_ROWS, batch_wait_timeout_s=BATCH_WAIT_S)
        async def scored(self, images: list[bytes]) -> list[dict[str, Any]]:
            return self.champion.predictions(images)

        async def __call__(self, request: Any) -> Any:
            return await self.scored(image_of(await request.json()))

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    serve.run(Digits.bind(), route_prefix="/predict", blocking=True)


if __name__ == "__main__":
    {"litserve": lit_serve, "ray": ray_serve}[sys.argv[1]](int(sys.argv[2]))
