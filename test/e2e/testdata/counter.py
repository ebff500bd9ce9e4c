# Counts into count.log: number, wall clock, monotonic clock, process.
import os, time

with open("count.log", "a", buffering=1) as log:
    n = 0
    while True:
        n += 1
        log.write(f"{n} {time.time():.6f} {time.monotonic():.6f} {os.getpid()}\n")
        time.sleep(0.01)
