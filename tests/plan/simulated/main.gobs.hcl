provider "dummy" {
  alias     = "rows"
  simulated = true
}
machine "db" {
  provider = dummy.rows
  service "orders" { tcp = "127.0.0.1:5432" }
}
machine "app" {
  provider = dummy.rows
}
binding "db" {
  from = machine.db.service.orders
  to   = machine.app
}
