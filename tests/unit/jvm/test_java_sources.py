"""Java is compiled once for all clones, whatever its JVM says meanwhile, and again where the jar is damaged."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deeplambda.config import Settings
from deeplambda.errors import ConfigurationError
from deeplambda.jvm.ivy import java_program
from deeplambda.jvm.java_sources import compiled_jar


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "java"
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "First.java").write_text("package one; public class First { static class Inner {} }")
    (folder / "one" / "Second.java").write_text("package one; public class Second { First first; }")
    return folder


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each JVM that was started."""
    told, home = tmp_path / "starts", tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "java"
    program.write_text(f'#!/bin/sh\necho started >> "{told}"\nexec "{java_program()}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))
    return told


def names(jar: Path) -> list[str]:
    with zipfile.ZipFile(jar) as packed:
        return packed.namelist()


@pytest.mark.slow
def test_what_a_jvm_says_is_no_error(settings: Settings, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Xlog:gc*=info:stderr")
    assert names(compiled_jar(sources, settings)) == ["one/First$Inner.class", "one/First.class", "one/Second.class"]


@pytest.mark.slow
def test_java_that_does_not_compile_is_told_and_not_kept(settings: Settings, sources: Path) -> None:
    (sources / "one" / "Second.java").write_text("package one; public class Second { int f() { return missing; } }")
    with pytest.raises(ConfigurationError, match=r"did not compile: .*missing"):
        compiled_jar(sources, settings)
    assert not list((settings.data_dir / "classes").glob("*.jar"))


@pytest.mark.slow
def test_who_comes_at_once_waits_for_the_first_one_s_jar(settings: Settings, sources: Path, starts: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = {each.result() for each in [pool.submit(compiled_jar, sources, settings) for _ in range(3)]}
    assert len(made) == 1
    assert starts.read_text() == "started\n"


@pytest.mark.slow
def test_a_damaged_jar_is_made_anew(settings: Settings, sources: Path) -> None:
    jar = compiled_jar(sources, settings)
    whole = names(jar)
    jar.write_bytes(jar.read_bytes()[:100])
    assert names(compiled_jar(sources, settings)) == whole
    with zipfile.ZipFile(jar, "w") as packed:
        packed.writestr(whole[0], b"")
    assert names(compiled_jar(sources, settings)) == whole
