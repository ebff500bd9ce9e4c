# Ends with 0 if the database is whole and its counter is the number of its rows.
import sqlite3, sys

db = sqlite3.connect("load.db", timeout=30)
check = db.execute("PRAGMA integrity_check").fetchall()
db.execute("BEGIN")
rows, = db.execute("SELECT count(*) FROM rows").fetchone()
counter, = db.execute("SELECT n FROM counter").fetchone()
print(check, rows, counter)
sys.exit(0 if check == [("ok",)] and rows == counter > 0 else 1)
