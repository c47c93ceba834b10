from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import pairwise
from types import ModuleType

import pytest

from monai_ext.errors import UserError, answer_user_errors, find_user_error, report_user_errors


def chain(*errors: BaseException, link: str = "__cause__") -> BaseException:
    """Link errors, the first innermost, as `raise ... from` ("__cause__") or handling ("__context__") does."""
    for inner, outer in pairwise(errors):
        setattr(outer, link, inner)
    return errors[-1]


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_user_error_is_found_below_what_wraps_it(link):
    mistake = UserError("give a file")
    wrapped = chain(mistake, RuntimeError("applying transform"), RuntimeError("expression"), link=link)
    assert find_user_error(wrapped) is mistake


def test_the_outermost_of_several_is_found():
    outer = UserError("case a: give a file")
    assert find_user_error(chain(UserError("give a file"), outer, RuntimeError())) is outer


def test_other_errors_have_none():
    assert find_user_error(chain(KeyError("a"), ValueError("b"))) is None
    assert find_user_error(None) is None


def test_a_circle_of_causes_ends():
    one, other = RuntimeError(), RuntimeError()
    one.__cause__, other.__cause__ = other, one
    assert find_user_error(one) is None


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def end_of(code: str) -> tuple[int, str]:
    """Exit code and stderr of a process that reports user errors and runs ``code``."""
    code = f"from monai_ext.errors import UserError, report_user_errors\nreport_user_errors()\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_process_ends_with_the_sentence_alone():
    code = (
        "try:\n    raise UserError('a\\nb.png is no picture.')\nexcept UserError as e:\n    raise RuntimeError from e"
    )
    assert end_of(code) == (1, "error: a b.png is no picture.\n")


def test_other_errors_keep_their_traceback():
    status, text = end_of("{}['key']")
    assert status == 1
    assert text.startswith("Traceback")
    assert text.endswith("KeyError: 'key'\n")


def test_interactive_hook_prints_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    report_user_errors()
    sys.excepthook(UserError, UserError("give a file"), None)
    assert capsys.readouterr() == ("", "error: give a file\n")


def test_a_reader_who_leaves_early_is_shown_no_traceback() -> None:
    code = "from monai_ext.errors import report_user_errors as r; r(); [print('x' * 1000) for _ in range(10000)]"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


class FakeServer:
    """What of MONAI Label's app :func:`answer_user_errors` uses."""

    def __init__(self) -> None:
        self.app, self.handlers, self.middleware_stack = self, {}, "built"

    def add_exception_handler(self, kind, handler):
        self.handlers[kind] = handler


@pytest.fixture
def server(monkeypatch) -> FakeServer:
    responses = ModuleType("starlette.responses")
    responses.JSONResponse = lambda content, status_code: (status_code, content)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "starlette", ModuleType("starlette"))
    monkeypatch.setitem(sys.modules, "starlette.responses", responses)
    server = FakeServer()
    monkeypatch.setitem(sys.modules, "monailabel.app", server)
    answer_user_errors()
    return server


def test_a_server_answers_a_user_error_with_its_sentence(server):
    wrapped = chain(UserError("a\nb.png is no picture."), RuntimeError("applying transform"))
    for error in (wrapped, UserError("a b.png is no picture.")):
        kind = next(kind for kind in type(error).__mro__ if kind in server.handlers)
        answer = asyncio.run(server.handlers[kind](None, error))
        assert answer == (422, {"detail": "a b.png is no picture."})
    assert server.middleware_stack is None  # else the handlers would not be seen


def test_a_server_keeps_other_errors(server):
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(server.handlers[RuntimeError](None, error))


def test_elsewhere_no_server_is_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "monailabel.app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette", None)  # importing it fails
    answer_user_errors()
