machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

binding "own" {
  from = machine.db.service.orders
  to   = machine.db
}
