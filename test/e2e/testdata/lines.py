# Prints numbered lines: a burst every few milliseconds, or as long as argv[1]
# says, up to argv[2] (0 = for ever), so that a lost or doubled byte shows.
import sys, time

pause, last = float(sys.argv[1]), int(sys.argv[2])
n = 0
while n < last or last == 0:
    for _ in range(20):
        n += 1
        print(f"line {n:08d}")
    sys.stdout.flush()
    time.sleep(pause)
