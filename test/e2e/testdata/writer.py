# Writes the same number to several places in a fixed order, over and over. On
# SIGUSR1 it says whether they agree with its memory: none may be ahead of the
# others by more than the step that is under way.
import os, signal

order = ["overwritten", "renamed", "small"]
n = 0
asked = False


def ask(*_):
    global asked
    asked = True


def write(place, n):
    if place == "renamed":
        with open("renamed.new", "w") as f:
            f.write(str(n) * 1000)
        os.rename("renamed.new", "renamed")
    elif place == "overwritten":
        fixed.seek(0)
        fixed.write(f"{n:020d}" * 500)
        fixed.flush()
    else:
        with open(f"small.{n % 50}", "w") as f:
            f.write(str(n))


def read(place, n):
    if place == "renamed":
        text = open("renamed").read()
        return text == str(n) * 1000
    if place == "overwritten":
        return open("overwritten").read() == f"{n:020d}" * 500
    return all(open(f"small.{k % 50}").read() == str(k) for k in range(max(1, n - 49), n + 1))


signal.signal(signal.SIGUSR1, ask)
open("writer.pid", "w").write(str(os.getpid()))
fixed = open("overwritten", "w")
while True:
    n += 1
    for place in order:
        write(place, n)
    if asked:
        bad = [place for place in order if not read(place, n)]
        open("verdict.new", "w").write("consistent" if not bad else f"at {n} these differ: {bad}")
        os.rename("verdict.new", "verdict")
        asked = False
