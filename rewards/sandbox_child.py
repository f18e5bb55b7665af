"""The inside of a sandbox: confines its own process, then runs code and answers with plain data.

Started by ``instructrec.rewards.sandbox_process`` in a fresh interpreter without ``site``, which
gets this file as code, so it imports nothing of ours and little at all. It knows no expected value,
and what it says is believed by nobody: the asking process reads data and compares.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import sys

TYPE_CHECKING = False  # typing, signal and types would double the time of a start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any
else:
    ModuleType = type(sys)

_SIGKILL = 9
_MOST_NESTED = 32
_LONGEST_REASON = 200
_encode_text: Callable[[str], str]

try:  # the json package itself takes longer to import than all the rest
    from _json import encode_basestring_ascii as _encode_text
except ImportError:
    from json import dumps as _encode_text


class Unplain(Exception):
    """A value that is too long, or nested too deeply."""


class Alien(Unplain):
    """A value that is no plain data."""


def serve(settings: dict[str, Any]) -> None:
    """Confines this process, says so, and does what it is asked.

    Args:
        settings: As made by ``SandboxProcess``: descriptors, limits, rules and the first nonce.
    """
    talk = Talk(settings["input"], settings["answers"], settings["longest_answer"])
    try:
        confine(settings)
    except (OSError, ValueError) as error:
        talk.answer(settings["nonce"], "unconfined", str(error))
        os._exit(1)
    talk.answer(settings["nonce"], "ready", None)
    nonce, mode, *rest = talk.receive()
    (run_tests if mode == "tests" else run_program)(talk, nonce, *rest)
    os._exit(0)  # what the code left to be done at the end is not done


# Being confined -----------------------------------------------------------------------------------


def confine(settings: dict[str, Any]) -> None:
    """Gives away what the code must not have; there is no way back.

    Raises:
        OSError: The kernel refused one of the parts.
    """
    import resource  # not on every system

    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(0o077)
    os.chdir(settings["folder"])
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        os.setresuid(*[settings["uid"]] * 3)
    if sys.platform == "linux":
        _must(libc.prctl(1, _SIGKILL, 0, 0, 0), "the signal at the parent's death")
        if settings["parent"] is not None and os.getppid() != settings["parent"]:
            os._exit(1)  # it died before the kernel was told
    for which, limit in settings["limits"]:
        resource.setrlimit(which, (limit, limit))
    if settings["filter"] is None:
        return
    _must(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    header = ctypes.create_string_buffer((0x20080522).to_bytes(4, "little") + bytes(4))
    nothing = ctypes.create_string_buffer(24)
    _must(libc.syscall(settings["capset"], header, nothing), "giving up capabilities")
    _landlock(libc, *settings["landlock"])
    program = ctypes.create_string_buffer(settings["filter"], len(settings["filter"]))
    steps = (len(settings["filter"]) // 8).to_bytes(8, "little")
    pointer = ctypes.addressof(program).to_bytes(8, "little")
    _must(libc.prctl(22, 2, ctypes.create_string_buffer(steps + pointer), 0, 0), "seccomp")


def _landlock(libc: Any, attributes: bytes, rules: list[tuple[str, int, int]]) -> None:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = libc.syscall(444, buffer, ctypes.c_size_t(len(attributes)), 0)
    _must(min(ruleset, 0), "Landlock")
    for path, for_folder, for_file in rules:
        try:
            place = os.open(path, os.O_PATH)
        except OSError:  # not on this system, or not for this user
            continue
        rights = for_folder if os.path.isdir(path) else for_file
        rule = rights.to_bytes(8, "little") + place.to_bytes(4, "little")
        _must(libc.syscall(445, ruleset, 1, ctypes.create_string_buffer(rule), 0), "Landlock")
        os.close(place)
    _must(libc.syscall(446, ruleset, 0), "Landlock")
    os.close(ruleset)


def _must(result: int, part: str) -> None:
    if result != 0:
        raise OSError(f"{part}: {os.strerror(ctypes.get_errno())}")


# Talking ------------------------------------------------------------------------------------------


class Talk:
    """Messages come as marshalled data, answers go as lines of JSON.

    Args:
        incoming: Descriptor that messages are read from.
        outgoing: Descriptor that answers are written to.
        longest: Characters that an answer may have.
    """

    def __init__(self, incoming: int, outgoing: int, longest: int) -> None:
        self.incoming, self.outgoing, self.longest = incoming, outgoing, longest
        self.nonce = ""

    def receive(self) -> Any:
        """Waits for the next message; ends the process when there will be none."""
        size = int.from_bytes(self._read(4), "big")
        return marshal.loads(self._read(size))

    def answer(self, nonce: str, kind: str, value: Any) -> None:
        """Answers the message that carried the nonce."""
        body = encode(value, self.longest)
        data = memoryview(f'["{nonce}","{kind}",{body}]\n'.encode())
        while data:
            data = data[os.write(self.outgoing, data) :]

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = os.read(self.incoming, size - len(content))
            if not piece:
                os._exit(0)
            content += piece
        return content


def encode(value: Any, longest: int) -> str:
    """Returns plain data as JSON that keeps its types.

    Args:
        value: None, or of exactly these types, at any depth: bool, int, float, complex, str,
            bytes, list, tuple, set, frozenset, dict.
        longest: Characters that the text may have.

    Raises:
        Alien: It is something else.
        Unplain: It is nested too deeply, or too long.
    """
    left = longest

    def text(item: Any, depth: int) -> str:
        nonlocal left
        if depth > _MOST_NESTED:
            raise Unplain(f"a value nested more than {_MOST_NESTED} deep")
        kind = type(item)
        if item is None or kind is bool:
            found = {None: "null", True: "true", False: "false"}[item]
        elif kind is int:
            if item.bit_length() > 4 * left:
                raise Unplain("a value that is too long")
            found = str(item) if -(2**53) < item < 2**53 else f'["i","{item:x}"]'
        elif kind is float:
            found = f'["f","{item.hex()}"]'
        elif kind is complex:
            found = f'["c","{item.real.hex()}","{item.imag.hex()}"]'
        elif kind is str:
            if len(item) > left:
                raise Unplain("a value that is too long")
            found = _encode_text(item)
        elif kind is bytes:
            if len(item) > left:
                raise Unplain("a value that is too long")
            found = f'["b","{item.hex()}"]'
        elif kind in _TAGS:
            if len(item) > left:
                raise Unplain("a value that is too long")
            found = f'["{_TAGS[kind]}"' + "".join(["," + text(i, depth + 1) for i in item]) + "]"
        elif kind is dict:
            if len(item) > left:
                raise Unplain("a value that is too long")
            pairs = [f",{text(k, depth + 1)},{text(v, depth + 1)}" for k, v in item.items()]
            found = '["d"' + "".join(pairs) + "]"
        else:
            raise Alien(f"a value of type {kind.__name__}")
        left -= len(found) if kind not in _TAGS and kind is not dict else 5
        if left < 0:
            raise Unplain("a value that is too long")
        return found

    return text(value, 0)


_TAGS: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}


def describe(error: BaseException) -> str:
    """Returns kind and message of an error as short plain text, whatever its class does."""
    name = str(type(error).__name__)
    try:
        text = f"{name}: {str(error)[:_LONGEST_REASON]}"
    except BaseException:
        text = name
    return text.encode("unicode_escape").decode()[:_LONGEST_REASON]


# Running ------------------------------------------------------------------------------------------


def run_program(talk: Talk, nonce: str, source: str, name: str | None) -> None:
    """Runs a program, then calls one of its functions for each message ``(nonce, args, kwargs)``.

    Args:
        talk: With the process that asks.
        nonce: Of the message that brought the program.
        source: The program.
        name: Of the function, dotted for a method; None for the last function that it defines.
    """
    try:
        module = ModuleType("solution")
        sys.modules["solution"] = module
        exec(compile(source, "<solution>", "exec", dont_inherit=True), module.__dict__)
        function = _find(module, name)
    except BaseException as error:
        talk.answer(nonce, "raised", describe(error))
        return
    talk.answer(nonce, "defined", None)
    while True:
        nonce, arguments, keywords = talk.receive()
        kind: str
        value: Any
        try:
            kind, value = "value", function(*arguments, **keywords)
        except BaseException as error:
            kind, value = "raised", describe(error)
        try:
            talk.answer(nonce, kind, value)
        except BaseException as error:
            talk.answer(nonce, "unplain", describe(error))


def _find(module: ModuleType, name: str | None) -> Any:
    if name is None:
        made = [f for f in module.__dict__.values() if type(f) is type(_find)]
        own = [f for f in made if f.__module__ == module.__name__]
        if not own:
            raise NameError("the program defines no function")
        return own[-1]
    found: Any = module
    for part in name.split("."):
        found = found() if isinstance(found, type) else found
        if not hasattr(found, part):
            raise NameError(f"the program does not define {name}")
        found = getattr(found, part)
    return found


class Failed(Exception):
    """The function under test raised, or returned what is no data."""


def run_tests(talk: Talk, nonce: str, preamble: str, name: str) -> None:
    """Runs tests, which arrive one by one, against a function that runs in another sandbox.

    Args:
        talk: With the process that asks.
        nonce: Of the message that brought the preamble.
        preamble: Code that the tests may build on.
        name: Of the function under test.
    """
    here = {"nonce": nonce, "untold": ""}

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        try:
            talk.answer(here["nonce"], "call", [list(arguments), keywords])
        except Alien as error:
            here["untold"] = str(error)
            raise
        kind, value = talk.receive()
        if kind != "value":
            raise Failed(value)
        return value

    module = ModuleType("tests")
    sys.modules["tests"] = module
    try:
        exec(compile(preamble, "<preamble>", "exec", dont_inherit=True), module.__dict__)
    except SyntaxError:
        pass  # the first half of a function: nothing that tests could build on
    except BaseException as error:
        talk.answer(nonce, "fault", f"what it builds on raises {describe(error)}")
        return
    module.__dict__[name.split(".")[-1]] = module.__dict__["candidate"] = candidate
    talk.answer(nonce, "defined", None)
    while True:
        here["nonce"], source = talk.receive()
        kind, value = "passed", ""
        try:
            code = compile(source, "<tests>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            talk.answer(here["nonce"], "fault", describe(error))
            continue
        try:
            module.__dict__.pop("check", None)
            exec(code, module.__dict__)
            if "check" in module.__dict__:
                module.__dict__["check"](candidate)
        except BaseException as error:
            kind, value = "raised", describe(error)
        if here["untold"]:
            kind, value = "fault", f"a test calls the function with {here['untold']}"
        talk.answer(here["nonce"], kind, value)
