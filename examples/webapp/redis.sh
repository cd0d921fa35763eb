# A Redis server of its own, in the directory $1: on a socket that only its user can open.
set -eu
mkdir -p "$1"
exec redis-server --port 0 --unixsocket "$1/redis.sock" --unixsocketperm 700 --dir "$1"
