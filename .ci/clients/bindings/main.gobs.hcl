# A database, a cache and a web server, each bound twice: to a socket, and to a port. The servers are
# started as those of examples/webapp are.

variable "directory" {
  type        = string
  description = "Where the servers keep their data and their sockets."
}

variable "ports" {
  type        = list(number)
  description = "PostgreSQL's, the web server's, and three that are exposed."
}

machine "servers" {
  provider = dummy
  run = [
    "exec sh -s '${var.directory}/postgres' ${var.ports[0]} <<'SH'\n${file("postgres.sh")}SH\n",
    "exec sh -s '${var.directory}/redis' <<'SH'\n${file("redis.sh")}SH\n",
    "cd '${var.directory}' && exec python3 -m http.server --bind 127.0.0.1 ${var.ports[1]}",
  ]

  service "orders" {
    postgres {
      database = "orders"
      create   = true
      socket   = "${var.directory}/postgres/.s.PGSQL.${var.ports[0]}"
    }
  }
  service "cache" {
    redis { socket = "${var.directory}/redis/redis.sock" }
  }
  service "site" {
    http { address = "127.0.0.1:${var.ports[1]}" }
  }
}

machine "app" { provider = dummy }

locals { services = ["orders", "cache", "site"] }

binding "by-socket" {
  for_each = toset(local.services)
  from     = machine.servers.service[each.key]
  to       = machine.app
  as       = "${each.key}-by-socket"
}

binding "by-port" {
  for_each = toset(local.services)
  from     = machine.servers.service[each.key]
  to       = machine.app
  as       = "${each.key}-by-port"
  expose { tcp = "127.0.0.1:${var.ports[2 + index(local.services, each.key)]}" }
}

output "app" { value = machine.app.directory }
