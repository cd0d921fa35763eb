"""An application that finds its services with pyservicebinding, which nobody here wrote."""

import http.client
import socket

import psycopg
import redis
from pyservicebinding import binding

found = binding.ServiceBinding()
assert len(found.all_bindings()) == 6, found.all_bindings()

for it in found.bindings("postgresql", "gobs"):
    assert set(it) == {"type", "provider", "host", "port", "database", "username", "uri"} | (
        {"path"} if it["host"].startswith("/") else set()
    ), it
    who = "select session_user, current_database()"
    # By its parts, and by its address.
    parts = {"host": it["host"], "port": it["port"], "dbname": it["database"]}
    with psycopg.connect(**parts, user=it["username"]) as db:
        assert db.execute(who).fetchone() == (it["username"], it["database"])
    with psycopg.connect(it["uri"], user="whoever") as db:
        assert db.execute(who).fetchone() == (it["username"], it["database"])

for it in found.bindings("redis"):
    cache = redis.from_url(it["uri"])
    cache.incr("python")
    if "host" in it:
        redis.Redis(host=it["host"], port=int(it["port"])).incr("python")

for it in found.bindings("http"):
    if "host" in it:
        site = http.client.HTTPConnection(it["host"], int(it["port"]))
    else:
        site = http.client.HTTPConnection("site")
        site.sock = socket.socket(socket.AF_UNIX)
        site.sock.connect(it["path"])
    site.request("GET", "/")
    assert site.getresponse().status == 200

print("pyservicebinding", *sorted(it["type"] for it in found.all_bindings()))
