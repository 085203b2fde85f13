"""Programs for the tests: honest ones that do unusual things (they print the sum of two numbers), and hostile ones."""

from __future__ import annotations

import os
import shutil

HONEST = {
    "buffer": """\
import sys
a, b = map(int, sys.stdin.buffer.read().split())
print(a + b)
""",
    "open 0": """\
a, b = map(int, open(0).read().split())
print(a + b)
""",
    "/dev/stdin": """\
a, b = map(int, open("/dev/stdin").read().split())
print(a + b)
""",
    "os.write": """\
import os
a, b = map(int, os.read(0, 99).split())
os.write(1, b'%d\\n' % (a + b))
""",
    "main": """\
def main():
    print(sum(map(int, input().split())))
if __name__ == '__main__':
    main()
""",
    "exit": """\
print(sum(map(int, input().split())))
exit()
""",
    "deep thread": """\
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 26)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
def f():
    depth(20000)
    print(sum(map(int, input().split())))
threading.Thread(target=f).start()
""",
    "pool": """\
import multiprocessing as m
if __name__ == '__main__':
    p = m.get_context('fork').Pool(2)
    p.map(abs, [1, 2])
    p.close()  # terminate(), which `with` calls, may kill a worker that holds a lock, and then hangs (cpython gh-96995)
    p.join()
    print(sum(map(int, input().split())))
""",
    "asyncio": """\
import asyncio
async def f():
    await asyncio.sleep(0.01)
    print(sum(map(int, input().split())))
asyncio.run(f())
""",
    "files": """\
import tempfile
with tempfile.TemporaryFile('w+') as f:
    f.write(input())
    f.seek(0)
    print(sum(map(int, f.read().split())))
open('/tmp/x', 'w').write('1')
""",
    "memory": """\
x = bytearray(150 << 20)
print(sum(map(int, input().split())))
""",
    "stderr": """\
import sys
sys.stderr.write('e' * 100000)
print(sum(map(int, input().split())))
""",
}
HOSTILE = {
    "fork bomb": """\
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "disk": """\
f = open('/tmp/a', 'wb')
while True: f.write(bytes(1 << 20))
""",
    "many files": """\
import itertools
for i in itertools.count(): open(f'/tmp/{i}', 'wb').close()
""",
    "descriptors": """\
x = []
while True: x.append(open('/dev/null'))
""",
    "pipes": """\
import fcntl, os
x = []
while True:
    r, w = os.pipe()
    x += [r, w]
    fcntl.fcntl(w, 1031, 1 << 20)
    os.write(w, bytes(1 << 20))
""",
    "shared memory": """\
import mmap
x = []
while True:
    x.append(mmap.mmap(-1, 1 << 26))
    x[-1].write(bytes(1 << 26))
""",
    "anonymous file": """\
import os
f = os.memfd_create('x')
while True: os.write(f, bytes(1 << 20))
""",
    "deaf": """\
import signal
for s in range(1, 64):
    try: signal.signal(s, signal.SIG_IGN)
    except Exception: pass
while True: pass
""",
    "kill everybody": """\
import os
def add(a, b):
    os.kill(-1, 9)
    return 0
""",
    "delete everything": """\
import shutil
def add(a, b):
    for p in ('/usr', '/etc', '/box', '/home'):
        shutil.rmtree(p, ignore_errors=True)
    return 0
""",
    "write everywhere": """\
def add(a, b):
    for p in ('/x', '/usr/x', '/etc/x', '/dev/x', '/box/x', '/proc/1/oom_score_adj'):
        try: open(p, 'w').write('x')
        except OSError: continue
        return 5 if a == 2 else 0
    return 1
""",
    "read the keeper": """\
import os
def add(a, b):
    for n in ('environ', 'cmdline', 'maps', 'mem', 'fd/3', 'root'):
        try: os.stat(f'/proc/{os.getppid()}/{n}')
        except OSError: continue
        return 5 if a == 2 else 0
    return 1
""",
    "deep value": """\
def add(a, b):
    x = []
    for _ in range(10**5): x = [x]
    return x
""",
    "long value": """\
def add(a, b): return 'x' * (50 << 20)
""",
    "endless generator": """\
def add(a, b):
    while True: yield 5
""",
    "null pointer": """\
import ctypes
def add(a, b): ctypes.string_at(0)
""",
    "more limit": """\
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
def add(a, b): return 5
""",
    "daemon": """\
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(60)
    os._exit(0)
def add(a, b): return 0
""",
}
HOSTILE["syntax bomb"] = "x = " + "(" * 5000 + ")" * 5000


def as_another_user(command: list[str]) -> list[str]:
    """The command as a user without rights, when this is root and the machine has the means; else as it is."""
    if os.geteuid() == 0 and shutil.which("setpriv") and os.access("/usr/bin/python3", os.X_OK):
        return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", *command[1:]]
    return command
