# The machine that the cases `derived_firewall_*` share, and the first binding from it.

machine "db" {
  provider = cloud
  region   = "eu"
  type     = "small"

  hob {
    listen    = "[::]:7463"
    advertise = ["ipv4"]
  }

  firewall { derived = true }

  service "orders" { tcp = "127.0.0.1:5432" }
}

binding "app" {
  from = machine.db.service.orders
  to   = machine.app
}
