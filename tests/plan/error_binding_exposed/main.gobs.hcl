machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" { provider = dummy }

binding "one" {
  from = machine.db.service.orders
  to   = machine.app
  expose { tcp = "127.0.0.1:7000" }
}

binding "two" {
  from = machine.db.service.orders
  to   = machine.app
  expose { tcp = "127.0.0.1:7000" }
}
