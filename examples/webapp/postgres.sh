# A PostgreSQL server of its own, in the directory $1 with the port $2: as Debian sets one up, but
# for a line.
set -eu
directory="$1" port="$2"
bin="$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)"
mkdir -p "$directory"
if [ "$(id -u)" = 0 ]; then
    # The server refuses to be root; Debian has a user for it.
    chown postgres "$directory"
    as='setpriv --reuid=postgres --regid=postgres --init-groups'
    superuser=postgres
else
    as=
    superuser="$(id -un)"
fi
cd "$directory"
if ! [ -e data/PG_VERSION ]; then
    $as "$bin/initdb" -D data -U "$superuser" -A peer --auth-host=scram-sha-256 -E UTF8
    # The roles of bindings may use the socket, too: see docs/postgres.md.
    $as sed -i '1i local all +gobs_binding scram-sha-256' data/pg_hba.conf
fi
exec $as "$bin/postgres" -D data -k "$directory" -p "$port" -c listen_addresses=127.0.0.1
