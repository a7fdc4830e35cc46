import pytest

from deeplambda.stack.local.doctor import java_major_version


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('NOTE: Picked up JDK_JAVA_OPTIONS: -Xmx1g\nopenjdk version "25-ea"', 25),
        ("command not found", None),
    ],
)
def test_java_says_its_version_in_several_ways(banner: str, version: int | None) -> None:
    assert java_major_version(banner) == version
