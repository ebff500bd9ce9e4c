# Commits to a SQLite database without a pause: a row and a counter in each
# transaction.
import os, sqlite3

open("database.pid", "w").write(str(os.getpid()))
db = sqlite3.connect("load.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, body BLOB)")
db.execute("CREATE TABLE IF NOT EXISTS counter (n INTEGER)")
db.execute("INSERT INTO counter VALUES (0)")
while True:
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO rows (body) VALUES (randomblob(500))")
    db.execute("UPDATE counter SET n = n + 1")
    db.execute("COMMIT")
