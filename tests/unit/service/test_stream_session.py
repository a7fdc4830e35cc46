import pytest

from deeplambda.service.stream_session import cores_to_get


@pytest.mark.parametrize(
    ("options", "cores"),
    [
        ({}, 2),
        ({"spark.dynamicAllocation.maxExecutors": "4"}, 2),
        ({"spark.dynamicAllocation.enabled": "true"}, 2),
        ({"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.maxExecutors": "4"}, 4),
        (
            {
                "spark.dynamicAllocation.enabled": "true",
                "spark.dynamicAllocation.maxExecutors": "4",
                "spark.executor.cores": "2",
            },
            8,
        ),
        ({"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.maxExecutors": "1"}, 2),
    ],
)
def test_a_batch_has_tasks_for_executors_that_are_yet_to_come(options: dict[str, str], cores: int) -> None:
    assert cores_to_get(2, options.get) == cores
