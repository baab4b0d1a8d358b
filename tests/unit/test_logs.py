"""What nobody expected: its last line and the log's path on the console, its traceback in the log."""

import pytest
from safetensors import SafetensorError

from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.logs import log_to
from openspectra.writing import only_writer


def test_unexpected_exception_is_its_last_line_with_the_log(tmp_path):
    with pytest.raises(OpenSpectraError) as caught, log_to(tmp_path / "a.log"):
        raise ValueError("first\nsecond")
    assert str(caught.value) == f"ValueError: first (not expected here; what led to it stands in {tmp_path / 'a.log'})"
    assert caught.value.exit_code == 1
    log = (tmp_path / "a.log").read_text()
    assert "Traceback" in log and "second" in log


def test_expected_errors_and_runs_without_log_are_left_alone(tmp_path):
    with pytest.raises(ConfigError, match="^wrong$"), log_to(tmp_path / "a.log"):
        raise ConfigError(["wrong"])
    with pytest.raises(KeyError), log_to(None):
        raise KeyError("x")


def test_disk_error_that_a_library_tells_in_words_is_one_line(tmp_path):
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OpenSpectraError) as caught, only_writer(tmp_path / "out"):
        raise error
    assert (
        str(caught.value) == f"{tmp_path / 'out'}: No space left on device; make room and run the same command again."
    )
    with pytest.raises(SafetensorError), only_writer(tmp_path / "out"):
        raise SafetensorError("header too large")
