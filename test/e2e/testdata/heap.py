# Holds a heap of known contents, HEAP_MB large, and writes its hash to heap.sum
# each time it gets SIGUSR1. The seed is in heap.seed, so that the hash can be
# computed again without the heap.
import hashlib, os, random, signal

size = int(os.environ["HEAP_MB"])
seed = int(open("heap.seed").read())


def blocks():
    r = random.Random(seed)
    for _ in range(size):
        yield r.randbytes(1 << 20)


heap = list(blocks())


def answer(*_):
    h = hashlib.sha256()
    for b in heap:
        h.update(b)
    with open("heap.new", "w") as f:
        f.write(h.hexdigest())
    os.rename("heap.new", "heap.sum")


signal.signal(signal.SIGUSR1, answer)
open("heap.pid", "w").write(str(os.getpid()))
while True:
    signal.pause()
