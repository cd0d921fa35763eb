# A web application on two machines, with PostgreSQL and Redis on two others.
#
# The application is an ordinary one: it reads DATABASE_URL and REDIS_URL. There is no password in
# either, nor anywhere else: each binding has a role of its own at PostgreSQL and a user of its own
# at Redis, which gobs makes, and takes away with the binding. `blue` may change the notes, `green`
# may only read them, and neither sees keys of Redis that are not its business.
#
# The servers are Debian's: apt-get install postgresql redis-server python3-psycopg2 python3-redis

variable "directory" {
  type        = string
  default     = "/tmp/gobs-webapp"
  description = "Where the servers keep their data and their sockets; it outlives the machines."
}

variable "postgres_port" {
  type        = number
  default     = 27471
  description = "The port in the name of PostgreSQL's socket, and on 127.0.0.1."
}

variable "apps" {
  type = map(object({ port = number, access = string }))
  default = {
    blue  = { port = 27472, access = "owner" }
    green = { port = 27473, access = "read" }
  }
  description = "The application's machines: where each listens, and what it may do with the notes."
}

machine "db" {
  provider = dummy
  run      = ["exec sh -s '${var.directory}/postgres' ${var.postgres_port} <<'SH'\n${file("postgres.sh")}SH\n"]

  service "notes" {
    postgres {
      database = "notes"
      create   = true
      socket   = "${var.directory}/postgres/.s.PGSQL.${var.postgres_port}"
    }
  }
}

machine "cache" {
  provider = dummy
  run      = ["exec sh -s '${var.directory}/redis' <<'SH'\n${file("redis.sh")}SH\n"]

  service "visits" {
    redis { socket = "${var.directory}/redis/redis.sock" }
  }
}

machine "app" {
  for_each = var.apps
  provider = dummy
  run      = ["exec /usr/bin/python3 - ${each.key} ${each.value.port} <<'PY'\n${file("app.py")}PY\n"]
}

binding "notes" {
  for_each = var.apps
  from     = machine.db.service.notes
  to       = machine.app[each.key]

  attenuate {
    access          = each.value.access
    connections_max = 5
  }

  expose {
    env = { DATABASE_URL = "uri" }
  }
}

binding "visits" {
  for_each = var.apps
  from     = machine.cache.service.visits
  to       = machine.app[each.key]

  attenuate {
    keys     = ["visits:*"]
    commands = ["get", "incrby"]
  }

  expose {
    env = { REDIS_URL = "uri" }
  }
}

output "try" {
  value       = { for name, app in var.apps : name => "curl -s http://127.0.0.1:${app.port}/" }
  description = "Talks to the application on each machine; curl -d 'a note' leaves one."
}
