# Two machines, and one binding between them: `app` gets the service `orders` of `db`.
#
# The programs know nothing of gobs. `db` runs a plain HTTP server on a port that only its own
# machine should see; `app` finds an address in its environment, and what it connects to there is
# carried from hob to hob over mutually authenticated TLS.

variable "orders_port" {
  type        = number
  default     = 27461
  description = "Where the orders program listens, on the machine db."
}

variable "app_port" {
  type        = number
  default     = 27462
  description = "Where programs on the machine app find it, through the binding."
}

machine "db" {
  provider = dummy

  # A script travels within the declaration, as it would to a machine that is far away.
  run = ["exec perl - ${var.orders_port} <<'PERL'\n${file("orders.pl")}PERL\n"]

  service "orders" {
    tcp = "127.0.0.1:${var.orders_port}"
  }
}

machine "app" {
  provider = dummy
  run      = ["exec perl - <<'PERL'\n${file("report.pl")}PERL\n"]
}

binding "db" {
  from = machine.db.service.orders
  to   = machine.app

  expose {
    tcp = "127.0.0.1:${var.app_port}"
  }
}

output "try" {
  value       = "curl -s http://${binding.db.address}/"
  description = "Talks to the program on db, from where app stands."
}
