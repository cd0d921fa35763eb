machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" { provider = dummy }

binding "x" {
  from = machine.db.service.orders
  to   = machine.app
  as   = "one"
}

binding "y" {
  from = machine.db.service.orders
  to   = machine.app
  as   = "two"
}
