# A web application: notes in PostgreSQL, and a count of visits in Redis. It knows nothing of gobs.
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2
import redis

name, port = sys.argv[1], int(sys.argv[2])
visits = redis.Redis.from_url(os.environ["REDIS_URL"])


def database():
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    connection.autocommit = True
    return connection


class App(BaseHTTPRequestHandler):
    def do_GET(self):
        with database() as connection, connection.cursor() as cursor:
            try:
                cursor.execute("select id, author, text from notes order by id")
                notes = cursor.fetchall()
            except psycopg2.errors.UndefinedTable:
                notes = []
        lines = [f"note {id} by {author}: {text}" for id, author, text in notes]
        count = visits.incr(f"visits:{name}")
        self.answer(200, lines + [f"visit {count} of {name}"])

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            with database() as connection, connection.cursor() as cursor:
                cursor.execute(
                    "create table if not exists notes (id serial, author text, text text)"
                )
                cursor.execute("insert into notes (author, text) values (%s, %s)", (name, text))
        except psycopg2.errors.InsufficientPrivilege as error:
            return self.answer(403, [error.diag.message_primary])
        self.answer(201, ["noted"])

    def answer(self, status, lines):
        body = "".join(f"{line}\n" for line in lines).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", port), App).serve_forever()
