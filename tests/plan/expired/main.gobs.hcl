machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "app" {
  provider = dummy
}

binding "db" {
  from = machine.db.service.orders
  to   = machine.app
  attenuate { expires = "2001-01-01T00:00:00Z" }
}
