machine "db2" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5433" }
}
machine "app" {
  provider = dummy
}
binding "db" {
  from = machine.db2.service.orders
  to   = machine.app
}
