from pathlib import Path

import pytest

from deeplambda.stack.local.doctor import java_major_version, settings_file


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


def test_a_name_in_the_settings_file_that_is_no_setting_is_told(tmp_path: Path) -> None:
    file = tmp_path / "stack.env"
    (none_yet,) = settings_file(file)
    assert none_yet.is_fine
    file.write_text("DEEPLAMBDA_GENERATION=true\nDEEPLAMBDA_KEPT_DAYS=3\n")
    (typed_wrong,) = settings_file(file)
    assert "DEEPLAMBDA_GENERATION " in typed_wrong.subject
    assert typed_wrong.remedy == "write DEEPLAMBDA_GENERATIONS"
