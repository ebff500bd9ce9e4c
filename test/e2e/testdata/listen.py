# A server on loopback: answers each line with the line and how many it has
# answered by then.
import socketserver

count = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global count
        for line in self.rfile:
            count += 1
            self.wfile.write(line.rstrip() + b" %d\n" % count)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("127.0.0.1", 8077), Handler).serve_forever()
