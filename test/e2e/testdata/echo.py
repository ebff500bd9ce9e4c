# Two processes and a TCP connection over loopback between them: numbers go there
# and back, each is logged as counter.py does. Any trouble with the connection
# ends both.
import os, socket, time

listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    there, _ = listener.accept()
    while data := there.recv(64):
        there.sendall(data)
    os._exit(0)

here = socket.create_connection(listener.getsockname()).makefile("rw", buffering=1)
with open("count.log", "a", buffering=1) as log:
    n = 0
    while True:
        n += 1
        here.write(f"{n}\n")
        if here.readline() != f"{n}\n":
            os._exit(1)
        log.write(f"{n} {time.time():.6f} {time.monotonic():.6f} {os.getpid()}\n")
        time.sleep(0.01)
