# SPDX-License-Identifier: Apache-2.0
"""The work of the series of checkpoints, in the sandbox.

series.py serve NAME    is the session that a checkpoint holds: it works on request
series.py ask N         has it do step N, and returns when that is done

What it does is the same in every run: all that is random has a fixed seed, but
for bytes that shall not compress. Programs' own addresses differ.
"""
import compileall
import json
import mmap
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time

ADDRESS = "\0series"
LIBRARY = os.path.dirname(os.__file__)
PAGE = 4096
HEAP = 70000  # records, about 80 MB
WORDS = [f"{a}{b}{c}" for a in "bdfglmnprstv" for b in "aeiou" for c in ("n", "r", "st", "l", "")]


def text(r, words):
    return " ".join(r.choices(WORDS, k=words))


class Records:
    """A heap of small objects, as a service keeps it."""

    def __init__(self, count):
        self.all = {}
        self.next = 0
        self.grow(random.Random(1), count)

    def grow(self, r, count):
        for _ in range(count):
            self.all[self.next] = {
                "name": f"user-{self.next}", "score": r.random(), "about": text(r, 40),
                "tags": r.sample(WORDS, 4), "seen": [r.randrange(1 << 40) for _ in range(8)],
            }
            self.next += 1

    def change(self, r, count):
        for k in r.sample(sorted(self.all), count):
            self.all[k]["score"] = r.random()
            self.all[k]["about"] = text(r, 40)

    def drop(self, r, count):
        for k in r.sample(sorted(self.all), count):
            del self.all[k]


def edit(r, tree, count):
    """Changes files of a tree as an editor does: anew, with a few other lines."""
    files = sorted(os.path.join(d, f) for d, _, fs in os.walk(tree) for f in fs if f.endswith(".py"))
    for f in r.sample(files, min(count, len(files))):
        with open(f, "rb") as old:
            lines = old.readlines()
        for _ in range(3):
            lines.insert(r.randrange(len(lines) + 1), f"# {text(r, 8)}\n".encode())
        with open(f, "wb") as new:
            new.writelines(lines)


def copy(to, tree=LIBRARY):
    shutil.copytree(tree, to, symlinks=True)


def heap():
    """A python heap that grows and changes."""
    records = Records(HEAP)
    for n in range(1, 100):
        yield
        r = random.Random(n)
        records.grow(r, 1500)
        records.change(r, 300)
        records.drop(r, 100)


def packages():
    """Unpacking and editing package trees."""
    r = random.Random(2)
    copy("/series/first")
    copy("/series/libraries", "/usr/lib/x86_64-linux-gnu")
    yield
    edit(r, "/series/first", 150)
    yield
    with tarfile.open("/series/first.tar.gz", "w:gz", compresslevel=1) as t:
        t.add("/series/first", "second")
    with tarfile.open("/series/first.tar.gz") as t:
        t.extractall("/series")
    yield
    edit(r, "/series/second", 150)
    os.remove("/series/first.tar.gz")
    yield
    shutil.rmtree("/series/first")
    copy("/series/third", os.path.join(LIBRARY, "encodings"))
    yield
    compileall.compile_dir("/series/second", quiet=2, force=True, maxlevels=1)
    yield
    edit(r, "/series/second", 300)
    yield


def forks():
    """One base, diverging forks: every step after the first is a fork's own."""
    records = Records(HEAP)
    copy("/series/tree", os.path.join(LIBRARY, "encodings"))
    n = yield
    r = random.Random(n)
    records.grow(r, 1500)
    records.change(r, 300)
    edit(r, "/series/tree", 30)
    yield


def pages():
    """Random page updates in a large heap."""
    memory = mmap.mmap(-1, 240 << 20)
    r = random.Random(4)
    count = len(memory) // PAGE

    def page():
        rows = [b"%08d %-14s %s\n" % (r.randrange(10**5), r.choice(WORDS).encode(), b"." * 40) for _ in range(66)]
        return b"".join(rows)[:PAGE].ljust(PAGE, b"-")

    for i in range(count):
        memory[i * PAGE:(i + 1) * PAGE] = page()
    while True:
        yield
        for i in r.sample(range(count), count // 12):
            memory[i * PAGE:(i + 1) * PAGE] = page()


def session():
    """A mixed session: a heap, files, and processes that stay."""
    r = random.Random(5)
    records = Records(HEAP // 2)
    copy("/series/tree", os.path.join(LIBRARY, "asyncio"))
    children = []
    for n in range(1, 100):
        yield
        records.grow(r, 800)
        records.change(r, 300)
        copy(f"/series/tree-{n}", os.path.join(LIBRARY, ("json", "email", "unittest", "http", "xml", "encodings")[n % 6]))
        edit(r, "/series", 20)
        with open(f"/series/records-{n}.json", "w") as f:
            json.dump(list(records.all.values())[-2000:], f)
        c = subprocess.Popen([sys.executable, "-c", "import asyncio, json, sys; d = [str(i) for i in range(50000)]; print(flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        c.stdout.readline()
        children.append(c)
        if len(children) > 3:
            c = children.pop(0)
            c.communicate()


def noise():
    """A GiB that does not compress, then exactly a hundredth of its pages anew."""
    memory = mmap.mmap(-1, 1 << 30)
    view = memoryview(memory)
    source = open("/dev/urandom", "rb", buffering=0)
    count = len(memory) // PAGE

    def fill(start, end):
        while start < end:
            start += source.readinto(view[start:min(end, start + (1 << 20))])

    fill(0, len(memory))
    chosen = sorted(random.Random(6).sample(range(count), count // 100))
    yield
    for i in chosen:
        fill(i * PAGE, (i + 1) * PAGE)
    yield


def serve(name):
    os.makedirs("/series", exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(ADDRESS)
    listener.listen()
    steps = globals()[name]()
    started = False
    while True:
        connection, _ = listener.accept()
        with connection:
            n = int(connection.recv(16))
            steps.send(n if started else None)
            started = True
            connection.sendall(b"done")


def ask(step):
    for _ in range(600):  # it may only just have been started
        try:
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.connect(ADDRESS)
            break
        except OSError:
            time.sleep(0.1)
    s.sendall(step.encode())
    if s.recv(16) != b"done":
        sys.exit("the session ended")


{"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2])
