machine "db" {
  provider = dummy
  service "orders" { tcp = "127.0.0.1:5432" }
}

machine "web" {
  for_each = toset(["blue", "green"])
  provider = dummy
}
binding "db" {
  from = machine.db.service.orders
  to   = each.value
  for_each = machine.web
}
