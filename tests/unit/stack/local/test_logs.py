from pathlib import Path

from deeplambda.stack.local.logs import last_lines


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, 2) == "two\nthree"


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "kafka.log", 2) == ""
