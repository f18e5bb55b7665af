"""The attacks that a sandbox has to stop before it is trusted with anything.

A kernel version or a header says what should hold. This says what does: a program that tries runs
inside, and tells what it could do.
"""

from __future__ import annotations

PROBE = """
def attack(secret, outside, folder, parent, known):
    import ctypes, os, signal, sys
    libc = ctypes.CDLL(None)
    could = []

    def trial(what, call):
        try:
            call()
        except BaseException:
            return
        could.append(what)

    def forked():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    def threaded():
        import _thread
        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(lock.release, ())

    def connected():
        import _socket
        _socket.socket()

    def connected_here():
        import _socket
        _socket.socket(_socket.AF_UNIX)

    def traced():
        if libc.ptrace(16, parent, 0, 0) == -1 and libc.ptrace(0, 0, 0, 0) == -1:
            raise OSError

    def released():
        if libc.prctl(1, 0, 0, 0, 0) == -1:
            raise OSError

    def shared():
        if libc.unshare(0x10000000) == -1:
            raise OSError

    trial("open a network socket", connected)
    trial("open a local socket", connected_here)
    trial("start a process", forked)
    trial("start a thread", threaded)
    trial("start a program", lambda: os.execv("/bin/true", ["true"]))
    trial("read a file of the host", lambda: open(secret).read())
    trial("read the environment of the host", lambda: open(f"/proc/{parent}/environ").read())
    trial("list the root folder", lambda: os.listdir("/"))
    trial("write to a file of the host", lambda: open(outside, "w").write("x"))
    trial("write to a device", lambda: open("/dev/shm/instructrec", "w").write("x"))
    trial("truncate a file of the host", lambda: os.close(os.open(secret, os.O_TRUNC)))
    trial("change the rights of a file", lambda: os.chmod(secret, 0o777))
    trial("signal the host", lambda: os.kill(parent, 0))
    trial("trace a process", traced)
    trial("outlive the host", released)
    trial("make a namespace", shared)
    if set(os.environ) - set(known):
        could.append("see environment variables of the host")
    for descriptor in range(3, 256):
        try:
            kind = os.fstat(descriptor).st_mode & 0o170000
        except OSError:
            continue
        if kind != 0o010000:
            could.append("use an open file of the host")
    if folder is not None:
        name = folder + "/probe"
        with open(name, "w") as file:
            file.write("x")
        os.remove(name)
    return could
"""
"""A function that returns what it could do that it must not."""

HELP = {
    "Landlock": (
        "the kernel has no Landlock: Linux 5.13 or newer is needed, with 'landlock' among the "
        "security modules (kernel option lsm=landlock,...). In a container, its seccomp profile "
        "must let the calls landlock_* through."
    ),
    "seccomp": (
        "the kernel takes no seccomp filter (CONFIG_SECCOMP_FILTER), or the container forbids it."
    ),
    "no_new_privs": "the kernel refuses no_new_privs.",
}
"""Part that is missing -> what to do."""


def advice(message: str) -> str:
    """Returns what to do about a part that is missing, as far as it is known."""
    return next((text for part, text in HELP.items() if part in message), "")
