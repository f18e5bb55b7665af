"""Programs that try to break a sandbox, to forge a verdict, or only look as if they did.

``FORGERIES`` claim to double a number; ``ATTACKS`` define ``attack(pid, secret)``, which returns
True when it got what it wanted; ``BOMBS`` define ``attack`` too and want time, memory or disk;
``BENIGN`` double a number in ways that a careless sandbox would forbid.
"""

from __future__ import annotations

import platform
import re

CASES = [{"args": [n], "expected": 2 * n} for n in (3, 10, -4)]
"""What a right program does."""
ORACLE = "def double(n):\n    return 2 * n\n"
"""A right program."""

FORGERIES = {
    "does nothing": "def double(n):\n    pass\n",
    "wrong": "def double(n):\n    return 3 * n\n",
    "right type, wrong value": "def double(n):\n    return 6\n",
    "float": "def double(n):\n    return 2.0 * n\n",
    "bool": "def double(n):\n    return True\n",
    "text of the number": "def double(n):\n    return str(2 * n)\n",
    "equal to everything": """
class Same:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def double(n): return Same()
""",
    "int that is equal to everything": """
class Same(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(n): return Same(0)
""",
    "int of its own class": "class I(int): pass\ndef double(n): return I(2 * n)\n",
    "str that is equal to everything": """
class S(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def double(n): return S("6")
""",
    "walks the frames": """
import sys
def double(n):
    frame = sys._getframe()
    while frame is not None:
        for name, value in list(frame.f_locals.items()):
            if name in ("expected", "passed", "result"):
                return value
            if isinstance(value, list):
                value.append("passed")
        frame = frame.f_back
    return "passed"
""",
    "patches the comparison": """
import builtins
builtins.isinstance = lambda *a: True
builtins.all = builtins.any = builtins.bool = lambda *a: True
builtins.type = lambda *a: int
def double(n): return 0
""",
    "patches the encoder": """
import sys
inner = sys._getframe(2).f_globals if hasattr(sys, "_getframe") else {}
inner["encode"] = lambda *a: '"passed"'
def double(n): return 0
""",
    "patches the answer": """
import gc
for thing in gc.get_objects():
    if type(thing).__name__ == "Talk":
        type(thing).answer = lambda self, nonce, kind, value: None
def double(n): return 0
""",
    "searches for the tests": """
import gc
def double(n):
    for thing in gc.get_objects():
        if type(thing) is dict and "expected" in thing:
            return thing["expected"]
        if type(thing) is list and thing and type(thing[0]) is dict and "expected" in thing[0]:
            return thing[0]["expected"]
    return None
""",
    "leaves by os._exit": "import os\nos._exit(0)\n",
    "leaves by os._exit in the call": "import os\ndef double(n): os._exit(0)\n",
    "leaves by sys.exit": "import sys\nsys.exit(0)\n",
    "leaves by sys.exit in the call": "import sys\ndef double(n): sys.exit(0)\n",
    "says so at exit": """
import atexit
atexit.register(print, "passed")
def double(n): raise SystemExit(0)
""",
    "prints that it passed": """
print("passed"); print("1.0"); print('{"passed": true}')
def double(n): print("passed"); print(2 * n)
""",
    "writes to every descriptor": """
import os
for fd in range(3, 64):
    for line in (b"passed\\n", b'["0","value",6]\\n', b'["0","defined",null]\\n'):
        try: os.write(fd, line)
        except OSError: pass
def double(n): return 0
""",
    "answers with the nonce that it found": """
import os, sys
def double(n):
    frame = sys._getframe(1)
    nonce, talk = frame.f_locals["nonce"], frame.f_locals["talk"]
    os.write(talk.outgoing, f'["{nonce}","passed",true]\\n'.encode())
    os._exit(0)
""",
    "answers before it is asked": """
import os, sys
frame = sys._getframe(1)
while "talk" not in frame.f_locals: frame = frame.f_back
talk, nonce = frame.f_locals["talk"], frame.f_locals["nonce"]
for value in ("null", "6", "20", "-8"):
    os.write(talk.outgoing, f'["{nonce}","value",{value}]\\n'.encode())
def double(n): return 0
""",
    "answers twice": """
import os, sys
def double(n):
    frame = sys._getframe(1)
    nonce, talk = frame.f_locals["nonce"], frame.f_locals["talk"]
    for guess in range(-10, 30):
        os.write(talk.outgoing, f'["{nonce}","value",{guess}]\\n'.encode())
    return 0
""",
    "huge repr": """
class Big:
    def __repr__(self): return "x" * 10**9
def double(n): raise ValueError(Big())
""",
    "huge answer": "def double(n): return [6] * 10**7\n",
    "answer without end": """
def double(n):
    a = []
    a.append(a)
    return a
""",
    "not a number": "def double(n): return float('nan')\n",
    "an error that is equal": """
class E(BaseException):
    def __str__(self): raise SystemExit
def double(n): raise E
""",
    "closes the way back": "import os\nos.closerange(0, 256)\ndef double(n): return 0\n",
    "function that is no function": """
class Any:
    def __call__(self, *a, **k): return self
    def __getattr__(self, name): return self
    def __int__(self): return 6
    def __index__(self): return 6
double = Any()
""",
    "no program": "this is not Python",
    "a module that is none": """
import sys
class M(dict):
    def __getattr__(self, name): return lambda *a: 6
sys.modules["solution"] = sys.modules["builtins"] = M()
def double(n): return 6
""",
}
"""What is tried -> a program that must score nothing."""

_TRY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attack(pid, secret):
{body}
    return True
"""


def _attack(body: str) -> str:
    return _TRY.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))


ATTACKS = {
    "connect": _attack("import socket; socket.create_connection(('127.0.0.1', 22), 0.2)"),
    "network socket": _attack("import _socket; _socket.socket()"),
    "raw network socket": _attack("import _socket; _socket.socket(17, 3, 768)"),
    "local socket": _attack("import _socket; _socket.socket(_socket.AF_UNIX)"),
    "abstract socket": _attack(
        "import _socket; s = _socket.socket(_socket.AF_UNIX); s.bind('\\0instructrec')"
    ),
    "pair of sockets": _attack("import _socket; _socket.socketpair()"),
    "network of bash": _attack("os.execv('/bin/bash', ['bash', '-c', ': </dev/tcp/127.0.0.1/22'])"),
    "fork": _attack("if os.fork() == 0: os._exit(0)"),
    "fork by the raw call": _attack("assert libc.syscall(57) >= 0"),
    "clone3": _attack("assert libc.syscall(435, None, 0) == -1 and ctypes.get_errno() == 22"),
    "thread": _attack("import _thread; _thread.start_new_thread(print, ())"),
    "subprocess": _attack("import subprocess; subprocess.run(['/bin/true'], check=True)"),
    "exec": _attack("os.execv('/bin/true', ['true'])"),
    "spawn": _attack("assert os.posix_spawn('/bin/true', ['true'], {}) > 0"),
    "read a file of the host": _attack("open(secret).read()"),
    "read the home of root": _attack("assert os.listdir('/root')"),
    "read the users": _attack("open('/etc/passwd').read()"),
    "list the root": _attack("os.listdir('/')"),
    "environment of the host": _attack("open(f'/proc/{pid}/environ', 'rb').read()"),
    "memory of the host": _attack("open(f'/proc/{pid}/mem', 'rb')"),
    "its own /proc": _attack("open('/proc/self/status').read()"),
    "own environment": _attack(
        "known = {'LANG', 'PATH', 'PYTHONHASHSEED', 'TZ', 'PWD'}\nassert set(os.environ) - known"
    ),
    "write to the library": _attack("open(os.__file__, 'a')"),
    "truncate the library": _attack("os.close(os.open(os.__file__, os.O_RDONLY | os.O_TRUNC))"),
    "write beside": _attack("open(secret + '.new', 'w').write('x')"),
    "write to /dev/shm": _attack("open('/dev/shm/instructrec', 'w').write('x')"),
    "make a folder": _attack("os.mkdir('/dev/shm/instructrec-folder')"),
    "link a file of the host": _attack("os.link(secret, 'copy'); open('copy').read()"),
    "symbolic link": _attack("os.symlink(secret, 'copy'); open('copy').read()"),
    "leave by ..": _attack("assert os.listdir('..')"),
    "change rights": _attack("os.chmod(secret, 0o777)"),
    "change owner": _attack("os.chown(secret, 0, 0)"),
    "remove a file of the host": _attack("os.unlink(secret)"),
    "rename a file of the host": _attack("os.rename(secret, secret + '.old')"),
    "signal the host": _attack("os.kill(pid, 0)"),
    "stop all of its processes": _attack("os.kill(-1, 0)"),
    "signal by a thread": _attack("assert libc.syscall(234, pid, pid, 0) == 0"),
    "signal by the owner of a file": _attack(
        "import fcntl\n"
        "fcntl.fcntl(1, 10, 9); fcntl.fcntl(1, 8, pid)\n"
        "assert fcntl.fcntl(1, 9) == pid"
    ),
    "raise its own priority": _attack("os.setpriority(os.PRIO_PROCESS, 0, -20)"),
    "raise its own limits": _attack(
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))"
    ),
    "trace the host": _attack("assert libc.ptrace(16, pid, 0, 0) == 0"),
    "read memory of the host": _attack("assert libc.syscall(310, pid, None, 0, None, 0, 0) >= 0"),
    "outlive the host": _attack("assert libc.prctl(1, 0, 0, 0, 0) == 0"),
    "become root": _attack("assert libc.syscall(105, 0) == 0"),
    "namespace": _attack("assert libc.unshare(0x10000000) == 0"),
    "mount": _attack("assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"),
    "chroot": _attack("os.chroot('.')"),
    "bpf": _attack("assert libc.syscall(321, 0, None, 0) == -1 and ctypes.get_errno() == 22"),
    "io_uring": _attack("assert libc.syscall(425, 1, None) == -1 and ctypes.get_errno() == 14"),
    "userfaultfd": _attack("assert libc.syscall(323, 0) >= 0"),
    "keyring": _attack("assert libc.syscall(250, 0, -3, 0, 0, 0) >= 0"),
    "calls of x32": _attack("assert libc.syscall(0x40000000 + 39) > 0"),
    "shared memory": _attack("assert libc.syscall(29, 0, 4096, 0o1600) >= 0"),
    "memory as a file": _attack("os.memfd_create('x')"),
    "open files of the host": _attack(
        "import stat\n"
        "for fd in range(3, 256):\n"
        "    try: mode = os.fstat(fd).st_mode\n"
        "    except OSError: continue\n"
        "    if not stat.S_ISFIFO(mode): return True\n"
        "return False"
    ),
    "type into the terminal": _attack("import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
}
"""What is wanted -> a program that must not get it."""
RAW = re.compile(r"libc\.syscall")
if platform.machine() != "x86_64":  # the numbers of calls are those of x86_64
    ATTACKS = {name: code for name, code in ATTACKS.items() if not RAW.search(code)}
ALL_AT_ONCE = """
def attack(sources, pid, secret):
    got = []
    for name, source in sources.items():
        space = {}
        try:
            exec(source, space)
            if space["attack"](pid, secret) is True:
                got.append(name)
        except BaseException:
            pass
    return got
"""
"""A program that tries several attacks, and returns the names of those that succeed."""
DEADLY = ("calls of x32", "exec", "network of bash", "spawn", "subprocess")
"""Attacks that end the process that tries them, or would if they succeeded."""

BOMBS = {
    "loop": "def attack():\n    while True: pass\n",
    "loop that catches everything": """
def attack():
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "loop that ignores signals": """
import signal
def attack():
    for number in range(1, 32):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
""",
    "sleep": "import time\ndef attack(): time.sleep(10**6)\n",
    "big number": "def attack(): return str(9 ** (9 ** 9))[:3]\n",
    "regular expression": "import re\ndef attack(): re.match('(a+)+$', 'a' * 64 + 'b')\n",
    "memory": "def attack(): return len(bytearray(2 << 30))\n",
    "memory by and by": """
def attack():
    kept = []
    while True: kept.append(bytearray(1 << 20))
""",
    "recursion": """
import sys
sys.setrecursionlimit(10**8)
def attack(): return attack()
""",
    "zip bomb": """
import zlib
def attack():
    packed = zlib.compress(bytes(10**6)) * 1
    data = zlib.compress(bytes(10**8), 9)
    return len(zlib.decompress(data) * 100)
""",
    "flood of output": "def attack():\n    while True: print('x' * 4096)\n",
    "flood of answers": """
import os
def attack():
    for fd in range(3, 64):
        try:
            while True: os.write(fd, b'x' * 65536)
        except OSError: pass
""",
    "threads": """
import threading, time
def attack():
    for _ in range(10**5): threading.Thread(target=time.sleep, args=(60,)).start()
""",
    "forks": "import os\ndef attack():\n    while True: os.fork()\n",
    "open files": "def attack(): return [open('/dev/null') for _ in range(10**5)]\n",
    "one large file": """
def attack():
    with open('large', 'wb') as file:
        for _ in range(10**4): file.write(bytes(1 << 20))
""",
    "many files": """
def attack():
    for number in range(10**7):
        with open(str(number), 'wb') as file: file.write(bytes(1 << 16))
""",
    "many empty files": "def attack():\n    for n in range(10**7): open(str(n), 'w').close()\n",
    "crash": "import ctypes\ndef attack(): ctypes.string_at(0)\n",
    "abort": "import os\ndef attack(): os.abort()\n",
}
"""What is used up -> a program that must end in time, and leave the host as it was."""

BENIGN = {
    "oracle": ORACLE,
    "library": """
import bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools
import hashlib, heapq, itertools, json, math, operator, random, re, statistics, string, typing
def double(n): return int(decimal.Decimal(n) * 2) + len(hashlib.md5(b'').hexdigest()) - 32
""",
    "dataclass": """
from dataclasses import dataclass
@dataclass
class Number:
    value: int
def double(n): return Number(n).value * 2
""",
    "prints": "def double(n):\n    print('doubling', n)\n    return 2 * n\n",
    "recursion": """
def double(n):
    if n == 0: return 0
    return 2 + double(n - 1) if n > 0 else -double(-n)
""",
    "main guard": """
def double(n): return 2 * n
if __name__ == '__main__': print(double(int(input())))
""",
    "helper": "def twice(x): return x + x\ndef double(n): return twice(n)\n",
    "handles errors": """
def double(n):
    try:
        open('/etc/passwd')
    except OSError:
        pass
    return 2 * n
""",
    "some memory": "def double(n):\n    kept = [0] * 10**6\n    return 2 * n\n",
    "a little sleep": "import time\ndef double(n):\n    time.sleep(0.01)\n    return 2 * n\n",
    "large exact numbers": "def double(n):\n    return (2 * n * 10**200) // 10**200\n",
    "random": "import random\ndef double(n):\n    random.shuffle([1, 2, 3])\n    return 2 * n\n",
    "lambda": "double = lambda n: n << 1\n",
    "type hints": """
from __future__ import annotations
def double(n: int) -> int: return n * 2
""",
}
"""What is special about it -> a program that must pass."""
