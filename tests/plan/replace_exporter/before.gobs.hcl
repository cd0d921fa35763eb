machine "db" {
  provider = dummy
  zone = "a"
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" {
  provider = dummy
}

binding "db" {
  from = machine.db.service.orders
  to   = machine.app
}
