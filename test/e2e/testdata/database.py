# Commits to a SQLite database without a pause: a row and a counter in each
# transaction. From MOST rows on the oldest makes room, so that the time of a
# check does not grow with that of the test.
import os, sqlite3

open("database.pid", "w").write(str(os.getpid()))
db = sqlite3.connect("load.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body BLOB)")
db.execute("CREATE TABLE IF NOT EXISTS counter (n INTEGER)")
db.execute("INSERT INTO counter VALUES (0)")
MOST = 20000
rows = 0
while True:
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO rows (body) VALUES (randomblob(500))")
    if rows < MOST:
        db.execute("UPDATE counter SET n = n + 1")
        rows += 1
    else:
        db.execute("DELETE FROM rows WHERE id = (SELECT min(id) FROM rows)")
    db.execute("COMMIT")
